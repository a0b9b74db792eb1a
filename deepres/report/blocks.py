"""What every block of a policy does (compress/analyse.py), as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from deepres.compress.analyse import Analysis
from deepres.report.correlation import spearman
from deepres.report.figures import plain, save
from deepres.runs.folder import write_whole

CHEAP = ("gradient", "angular", "norm")
"""Measures that are held against `exact`."""
_LABELS = {
    "exact": "left out",
    "ablated": "replaced by its mean",
    "gradient": "to first order",
}


def rows(found: Analysis) -> list[tuple[str, ...]]:
    """A line for each block: its place, exact, ablated, gradient, angular, norm."""
    measures = (found.exact, found.ablated, found.gradient, found.angular, found.norm)
    return [(str(b), *(f"{x:.4f}" for x in one)) for b, one in enumerate(zip(*measures, strict=True))]


def agreement(found: Analysis) -> dict[str, float]:
    """Of each cheap measure, the rank correlation with `exact` over the blocks; NaN of fewer than two."""
    return {name: spearman(found.exact, found.score(name)) for name in CHEAP}


def write(found: Analysis, folder: Path, title: str) -> list[Path]:
    """Write blocks.csv, blocks.png and blocks.pdf into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "blocks.csv"
    write_whole(table, _csv(found))
    return [table, *_draw(found, title, folder / "blocks.png")]


def _csv(found: Analysis) -> str:
    """Every figure in full; angular_n is of the run of n blocks that begins here, empty where it would not end."""
    runs = {f"angular_{n}": angles for n, angles in found.runs.items()}
    columns = {name: found.score(name) for name in ("exact", "ablated", "gradient", "norm")} | runs
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["block", *columns])
    for block in range(len(found.exact)):
        lines.writerow([block, *(repr(c[block]) if block < len(c) else "" for c in columns.values())])
    return text.getvalue()


def _draw(found: Analysis, title: str, path: Path) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    errors, angles, norms = figure.subplots(1, 3)
    places = list(range(len(found.exact)))
    mark = {"marker": "o", "ms": 3} if len(places) < 40 else {}
    for (name, label), style in zip(_LABELS.items(), ("-", "--", ":"), strict=True):
        errors.plot(places, found.score(name), style, label=label, linewidth=1.4, **mark)
    errors.set(title="rms error of the action", ylabel="of [-1, 1]")
    shades = ("0.0", "0.35", "0.55", "0.7")
    for (n, values), shade in zip(found.runs.items(), shades, strict=False):
        told = "1 block" if n == 1 else f"run of {n}"
        angles.plot(places[: len(values)], values, color=shade, label=told, linewidth=1.4, **mark)
    angles.set(title="angle of what varies", ylabel="share of 180 degrees")
    norms.plot(places, found.norm, color="0.0", linewidth=1.4, **mark)
    norms.set(title="branch over stream", ylabel="ratio of norms")
    for axis in (errors, angles, norms):
        axis.set(xlabel="block")
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        if len(axis.lines) > 1:
            axis.legend(frameon=False, fontsize=7)
    figure.suptitle(plain(title), fontsize=9)
    return save(figure, path)
