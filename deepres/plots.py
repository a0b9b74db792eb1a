"""Pictures of a run's figures."""

from __future__ import annotations

import csv
from pathlib import Path


def plot_curves(run_dir: Path, path: Path) -> Path:
    """Draw evaluations.csv and metrics.csv of `run_dir` over environment steps into the PNG `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    evaluations, metrics = _columns(run_dir / "evaluations.csv"), _columns(run_dir / "metrics.csv")
    panels = [
        (evaluations, {"success_any": "goals reached"}, "share of episodes", (0, 1.02)),
        (evaluations, {"time_at_goal": "time at goal"}, "steps", None),
        (metrics, {"critic_loss": "critic", "actor_loss": "actor"}, "loss", None),
        (metrics, {"entropy": "entropy", "alpha": "temperature"}, "nats", None),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.4), layout="constrained")
    for axis, (table, lines, label, limits) in zip(axes, panels, strict=True):
        for column, name in lines.items():
            axis.plot(
                table["env_steps"],
                table[column],
                label=name,
                marker="o" if len(table["env_steps"]) < 40 else None,
                ms=3,
            )
        axis.set(xlabel="environment steps", ylabel=label, ylim=limits, title=" and ".join(lines.values()))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axis.legend(frameon=False)
    figure.suptitle(run_dir.name)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _columns(path: Path) -> dict[str, list[float]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no rows yet; let the run finish a round first")
    return {name: [float(row[name]) for row in rows] for name in rows[0]}
