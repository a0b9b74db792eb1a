"""Pictures of what every block of a run did as it was trained (training/instruments.py)."""

from __future__ import annotations

import csv
from pathlib import Path

from deepres.runs.folder import RunFolder

PANELS = {
    "stream": "rms of the stream",
    "varying": "rms of its part that depends on the input",
    "branch": "rms of what the block adds",
    "gradient": "norm of the gradient in its weights",
    "dormant": "share of dormant features",
}


def report(run_dir: Path, path: Path | None = None) -> Path:
    """Draw instruments.csv of the run, every block over its place, from the first measurement to the last, into the PNG
    `path`, by default RUN/instruments.png. Raises ValueError in one sentence if nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder = RunFolder(run_dir)
    folder.read_config()
    rows = _rows(folder.instruments)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    times = sorted({int(row["env_steps"]) for row in rows})
    shades = plt.get_cmap("viridis")
    figure, axes = plt.subplots(
        len(networks), len(PANELS), squeeze=False, layout="constrained",
        figsize=(3.1 * len(PANELS), 2.5 * len(networks) + 0.6),
    )  # fmt: skip
    for row_of_axes, network in zip(axes, networks, strict=True):
        for axis, (name, label) in zip(row_of_axes, PANELS.items(), strict=True):
            for i, time in enumerate(times):
                line = [(int(r["block"]), float(r[name])) for r in rows if _is(r, network, time)]
                shade = shades(0.9 * i / max(1, len(times) - 1))
                mark = "o" if len(line) < 12 else None
                axis.plot(*zip(*line, strict=True), color=shade, linewidth=1, marker=mark, ms=3)
            axis.set_title(f"{network.replace('_', ' ')}: {label}", fontsize=8)
            axis.set_xlabel("block", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.25)
    figure.suptitle(f"{run_dir.name}: from {times[0]:,} (dark) to {times[-1]:,} steps (light)", fontsize=10)
    path = path or run_dir / "instruments.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def summary(run_dir: Path) -> list[tuple[str, ...]]:
    """Of every network, at the last measurement: blocks, the stream's rms at the end and its varying part, the ratio of
    the last block's gradient to the first's, dormant features, effective rank."""
    folder = RunFolder(run_dir)
    folder.read_config()
    rows = _rows(folder.instruments)
    time = max(int(row["env_steps"]) for row in rows)
    told = []
    for network in dict.fromkeys(row["network"] for row in rows):
        blocks = [row for row in rows if _is(row, network, time)]
        first, last = blocks[0], blocks[-1]
        ratio = (
            float(last["gradient"]) / float(first["gradient"]) if float(first["gradient"]) else float("nan")
        )
        dormant = sum(float(row["dormant"]) for row in blocks) / len(blocks)
        figures = (float(last["stream"]), float(last["varying"]), ratio)
        told.append(
            (
                network,
                str(len(blocks)),
                *(f"{x:.2f}" for x in figures),
                f"{dormant:.1%}",
                f"{float(last['rank']):.1f}",
            )
        )
    return told


def _is(row: dict[str, str], network: str, time: int) -> bool:
    return row["network"] == network and int(row["env_steps"]) == time


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise ValueError(f"{path.parent} has no measurements; train it with --instruments-every N")
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.values())]
