"""Scores of a study against one label: every seed a point, their mean a line with its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepres.report.figures import save

MARKERS = "osD^vPX*"
ROOM = 60  # letters that stand below an axis side by side
ACROSS = 4  # panels beside each other, at most


@dataclass(frozen=True)
class Place:
    """One setting: each seed's score, their mean's interval."""

    scores: Sequence[float]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """places: by value of the label it is drawn along. Those of one `panel` share axes, of one `name` a colour."""

    name: str
    places: Mapping[Any, Place]
    panel: str = ""


def plot_lines(lines: Sequence[Line], along: str, metric: str, title: str, path: Path) -> list[Path]:
    """Draw `lines` into `path` (.png) and beside it as a PDF. In each of several panels the others' means are grey."""
    from matplotlib.figure import Figure

    values = list(dict.fromkeys(value for line in lines for value in line.places))
    scale = _Scale(values)
    names = list(dict.fromkeys(line.name for line in lines))
    panels = list(dict.fromkeys(line.panel for line in lines))
    across = min(len(panels), ACROSS)
    down = -(-len(panels) // across)
    beside = 0.0 if len(names) < 2 else 0.5 + 0.075 * max(map(len, names))  # inches that the legend takes
    size = (6.4, 4.2) if len(panels) == 1 else (2.4 * across, 2.0 * down + 0.5)
    figure = Figure(figsize=(size[0] + beside, size[1]), layout="constrained")
    flat = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(flat, panels, strict=False):
        for line in lines:
            if line.panel != panel:
                at = sorted(line.places, key=lambda value: scale.at[value])
                means = [line.places[value].value for value in at]
                axis.plot([scale.at[value] for value in at], means, color="0.85", lw=0.8, zorder=0)
        for line in lines:
            if line.panel == panel:
                _draw(axis, line, scale, names.index(line.name), len(names))
        scale.put(axis)
        axis.set_title(panel, fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for i, axis in enumerate(flat[: len(panels)]):
        if i + across >= len(panels):  # nothing below it
            axis.set_xlabel(along.replace("_", " "))
            axis.tick_params(labelbottom=True)
        if i % across == 0:
            axis.set_ylabel(metric.replace("_", " "))
    figure.suptitle(title)
    if len(names) > 1:
        drawn = {
            name: mark for axis in flat for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        shown = [drawn[name] for name in names]
        figure.legend(shown, names, loc="outside right upper", frameon=False, fontsize=8)
    return save(figure, path)


class _Scale:
    """Where values of the label lie: numbers at themselves, others in a row."""

    def __init__(self, values: Sequence[Any]):
        self.numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.at = {value: value if self.numbers else i for i, value in enumerate(values)}
        self.log = self.numbers and min(values) > 0 and max(values) >= 4 * min(values)
        low, high = min(self.at.values()), max(self.at.values())
        self.span = math.log2(high / low) if self.log else float(high - low) or 1.0

    def beside(self, value: Any, i: int, count: int) -> float:
        """Where the i-th of `count` lines lies at `value`: beside the others, so that none hides another."""
        shift = (i - (count - 1) / 2) * min(1.0, 8 / count)
        if self.log:
            return float(self.at[value] * 2 ** (0.01 * shift * self.span))
        return float(self.at[value] + (0.01 * self.span if self.numbers else 0.08) * shift)

    def put(self, axis: Any) -> None:
        if self.log:
            axis.set_xscale("log", base=2)
        words = [str(value) for value in self.at]
        long = not self.numbers and sum(map(len, words)) > ROOM
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axis.set_xticks(list(self.at.values()), words, **slanted)
        axis.minorticks_off()


def _draw(axis: Any, line: Line, scale: _Scale, i: int, count: int) -> None:
    values = sorted(line.places, key=lambda value: scale.at[value])
    at = [scale.beside(value, i, count) for value in values]
    places = [line.places[value] for value in values]
    # of equal scores the mean and its interval may differ by a rounding
    bars = [[max(0.0, p.value - p.low) for p in places], [max(0.0, p.high - p.value) for p in places]]
    form = MARKERS[i % len(MARKERS)] + ("-" if scale.numbers else "")
    axis.errorbar(
        at, [p.value for p in places], yerr=bars, fmt=form, ms=5, capsize=3, label=line.name, color=f"C{i}"
    )
    for where, place in zip(at, places, strict=True):
        axis.plot([where] * len(place.scores), place.scores, "o", color=f"C{i}", alpha=0.35, ms=3.5)
