"""Pictures of runs' figures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepres.compare import Group


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
        _tidy(axis)
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


def plot_groups(groups: list[Group], path: Path) -> Path:
    """Learning curves of groups of runs into the PNG `path`: the seeds' mean, and a band from least to largest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"time_at_goal": "time at goal (steps)", "success_any": "goals reached (share of episodes)"}
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4.2), layout="constrained")
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for one in groups:
            steps, mean, least, largest = one.curve(column)
            name = f"{one.label} ({len(one.runs)} seeds)" if len(one.runs) > 1 else one.label
            (line,) = axis.plot(steps, mean, label=name, marker="o" if len(steps) < 40 else None, ms=3)
            axis.fill_between(steps, least, largest, color=line.get_color(), alpha=0.18, linewidth=0)
        axis.set(xlabel="environment steps", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        _tidy(axis)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def plot_depths(groups: dict[int, Group], path: Path) -> Path:
    """Score against depth into the PNG `path`: every seed a point, their mean a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"time_at_goal": "time at goal (steps)", "success_any": "goals reached (share of episodes)"}
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4), layout="constrained")
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        scores = {depth: one.last(column) for depth, one in groups.items()}
        for depth, values in scores.items():
            axis.plot([depth] * len(values), values, "o", color="#00857c", alpha=0.45, ms=5)
        means = [sum(values) / len(values) for values in scores.values()]
        axis.plot(list(scores), means, color="#00857c", linewidth=2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(scores), [str(depth) for depth in scores])
        axis.minorticks_off()
        axis.set(xlabel="depth of the critic (layers)", ylabel=label)
        axis.set_ylim(bottom=0)
        _tidy(axis)
    figure.suptitle(next(iter(groups.values())).runs[0].config.env)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _tidy(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
