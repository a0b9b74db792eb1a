"""Scores of a study against one label: every seed a point, their mean a line with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """One setting: each seed's score, their mean's interval."""

    scores: Sequence[float]
    value: float
    low: float
    high: float


def plot_lines(
    lines: Mapping[str, Mapping[Any, Place]], along: str, metric: str, title: str, path: Path
) -> list[Path]:
    """Draw `lines` (label -> value of `along` -> its scores) into `path` (.png) and beside it as a PDF."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values = list(dict.fromkeys(value for line in lines.values() for value in line))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    at = {value: value if numbers else i for i, value in enumerate(values)}
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for i, (name, line) in enumerate(lines.items()):
        beside = 0.0 if numbers else 0.08 * (i - (len(lines) - 1) / 2)
        places = [at[value] + beside for value in line]
        means = [place.value for place in line.values()]
        bars = [[p.value - p.low for p in line.values()], [p.high - p.value for p in line.values()]]
        style = "-" if numbers else ""
        drawn = axis.errorbar(
            places, means, yerr=bars, fmt="o" + style, ms=5, capsize=3, label=name, color=f"C{i}"
        )
        for place, one in zip(places, line.values(), strict=True):
            axis.plot(
                [place] * len(one.scores), one.scores, "o", color=drawn[0].get_color(), alpha=0.35, ms=3.5
            )
    if numbers and min(values) > 0 and max(values) >= 4 * min(values):
        axis.set_xscale("log", base=2)
    axis.set_xticks([at[value] for value in values], [str(value) for value in values])
    axis.minorticks_off()
    axis.set(xlabel=along.replace("_", " "), ylabel=metric.replace("_", " "), title=title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)
    written = [path, path.with_suffix(".pdf")]
    for file in written:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return written
