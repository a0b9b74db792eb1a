"""Pictures of what every block of a run did as it was trained (training/instruments.py)."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from deepres.report.figures import plain, save
from deepres.runs.folder import RunFolder

PANELS = {
    "stream": "rms of the stream",
    "varying": "rms of its part that depends on the input",
    "branch": "rms of what the block adds",
    "gradient": "norm of the gradient in its weights",
    "dormant": "share of dormant features",
}
AT_THE_END = {
    "rank": "effective rank of the last features",
    "saturated": "share of saturated outputs",
}
"""What has one number to a network, drawn over the steps."""


def report(run_dir: Path, path: Path | None = None) -> Path:
    """Draw instruments.csv of the run, every block over its place, from the first measurement to the last, and what a
    network has once over the steps, into `path`, by default RUN/instruments.png, and beside it a PDF. Raises ValueError
    in one sentence if nothing was measured."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    folder = RunFolder(run_dir)
    folder.read_config()
    rows = _rows(folder.instruments)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    times = sorted({int(row["env_steps"]) for row in rows})
    shades, across = colormaps["viridis"], len(PANELS) + len(AT_THE_END)
    figure = Figure(figsize=(3.1 * across, 2.5 * len(networks) + 0.6), layout="constrained")
    axes = figure.subplots(len(networks), across, squeeze=False)
    for row_of_axes, network in zip(axes, networks, strict=True):
        for axis, (name, label) in zip(row_of_axes[len(PANELS) :], AT_THE_END.items(), strict=True):
            line = [(int(r["env_steps"]), float(r.get(name, "nan"))) for r in rows if r["network"] == network]
            line = [at for at in line if math.isfinite(at[1])]
            if not line:  # an encoder has no outputs that saturate
                axis.set_axis_off()
                continue
            axis.plot(*zip(*line, strict=True), color="black", linewidth=1, marker="o", ms=3)
            _dress(axis, f"{network.replace('_', ' ')}: {label}", "environment steps")
        for axis, (name, label) in zip(row_of_axes[: len(PANELS)], PANELS.items(), strict=True):
            for i, time in enumerate(times):
                line = [(int(r["block"]), float(r[name])) for r in rows if _is(r, network, time)]
                shade = shades(0.9 * i / max(1, len(times) - 1))
                mark = "o" if len(line) < 12 else None
                axis.plot(*zip(*line, strict=True), color=shade, linewidth=1, marker=mark, ms=3)
            _dress(axis, f"{network.replace('_', ' ')}: {label}", "block")
    figure.suptitle(
        f"{plain(run_dir.name)}: from {times[0]:,} (dark) to {times[-1]:,} steps (light)", fontsize=10
    )
    path = path or run_dir / "instruments.png"
    save(figure, path)
    return path


def _dress(axis: Any, title: str, abscissa: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.set_xlabel(abscissa, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def summary(run_dir: Path) -> list[tuple[str, ...]]:
    """Of every network, at the last measurement: blocks, the stream's rms at the end and its varying part, the ratio of
    the last block's gradient to the first's, dormant features, effective rank, saturated outputs."""
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
                "" if math.isnan(saturated := float(last.get("saturated", "nan"))) else f"{saturated:.1%}",
            )
        )
    return told


def _is(row: dict[str, str], network: str, time: int) -> bool:
    return row["network"] == network and int(row["env_steps"]) == time


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise ValueError(
            f"{path.parent} has no measurements; train it with --instruments-every N, a measurement every N rounds"
        )
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.values())]
