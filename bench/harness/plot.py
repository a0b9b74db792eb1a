"""Fused against unfused over depth (or batch), as a picture.

A column for each op, mode and precision; speed as a multiple of eager PyTorch, time a layer, peak memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.harness import table
from bench.harness.results import Row
from deepres.report.figures import save

INK, FAINT, GRID = "#222222", "#8a8f98", "#e6e8eb"
STYLES: dict[str, dict[str, Any]] = {
    "eager": {"color": "#6b7280", "marker": "o"},
    "reference": {"color": "#b0b6bf", "marker": "o"},
    "eager-fp32": {"color": "#a9adb5", "marker": "x"},
    "eager-matmul": {"color": "#a9adb5", "marker": "x"},
    "compile": {"color": "#e08e45", "marker": "s"},
    "compile-matmul": {"color": "#eebf94", "marker": "s"},
    "calls": {"color": "#4fb0a8", "marker": "s"},
    "broadcast": {"color": "#b24d4d", "marker": "D"},
    "jax": {"color": "#8e6bbf", "marker": "D"},
    "deepres": {"color": "#00857c", "marker": "o", "linewidth": 2.6, "markersize": 6, "zorder": 5},
    "deepres-cpu": {"color": "#4fb0a8", "marker": "v"},
    "deepres-triton": {"color": "#3d7fc4", "marker": "v"},
    "deepres-cuda": {"color": "#7a9a01", "marker": "v"},
    "deepres-recompute": {"color": "#00857c", "marker": "^", "linestyle": "--"},
    "deepres-checkpoint": {"color": "#00857c", "marker": "^", "linestyle": "--"},  # its name in older files
    "products": {"color": INK, "linestyle": (0, (2, 2)), "linewidth": 1.2, "zorder": 1},
}


def draw(results: dict[str, Any], path: Path) -> bool:
    """Writes the PNG `path` and a PDF; False, and no file, where nothing was measured."""
    groups = [(heading, [row for row in rows if row["ms"]]) for heading, rows in table.groups(results)]
    groups = [(heading, rows) for heading, rows in groups if rows]
    if not groups:
        return False
    panels = [
        ("times as fast as eager PyTorch", _speed, False),
        ("peak memory above parameters, MB", _memory, True),
    ]
    if results["environment"]["device"]["kind"] != "cpu":  # a CPU's times are its neighbours', too
        panels.insert(1, ("time per layer, µs", lambda row: _spread(row, 1e3 / row["depth"]), True))
    size = (1.2 + 3.9 * len(groups), 1.6 + 2.55 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(groups), sharex="col", sharey="row", squeeze=False)
    for column, (heading, rows) in enumerate(groups):
        op, mode, precision = heading.split(", ")
        axes[0][column].set_title(f"{op.replace('_', ' ')}\n{mode}, {precision}", fontsize=10.5, color=INK)
        for line, (name, value, logarithmic) in enumerate(panels):
            axis = axes[line][column]
            _panel(axis, rows, table.axis(results, op), value, logarithmic)
            if column == 0:
                axis.set_ylabel(name, fontsize=9.5, color=INK)
        varied = {"depth": "depth (layers)", "batch": "batch (rows)"}[table.axis(results, op)]
        axes[-1][column].set_xlabel(varied, fontsize=9.5, color=INK)
    for axis in axes[0]:
        axis.set_ylim(bottom=0)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=10,
    )
    sizes = {name: sorted({row[name] for _, rows in groups for row in rows}) for name in ("batch", "width")}
    figure.supxlabel(
        f"{table.machine(results)}\n"
        + "".join(f"{name} {values[0]}; " for name, values in sizes.items() if len(values) == 1)
        + "medians of interleaved runs\nbands and bars from the 10th to the 90th percentile",
        fontsize=8,
        color=FAINT,
    )
    save(figure, path)
    return True


Band = tuple[float, float, float]  # low, middle, high


def _speed(row: Row) -> Band | None:
    speed_up = row["speed_up"]
    return (speed_up["p10"], speed_up["median"], speed_up["p90"]) if speed_up else None


def _spread(row: Row, scale: float) -> Band:
    return row["ms"]["p10"] * scale, row["ms"]["median"] * scale, row["ms"]["p90"] * scale


def _memory(row: Row) -> Band | None:
    peak = row["peak_bytes"]
    return (peak / 1e6, peak / 1e6, peak / 1e6) if peak else None


def _panel(
    axis: Axes, rows: list[Row], varied: str, value: Callable[[Row], Band | None], logarithmic: bool
) -> None:
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    varying = sorted({row[varied] for row in rows})
    for i, name in enumerate(names):
        own = [row for row in rows if row["implementation"] == name]
        points = [(row[varied], band) for row in own if (band := value(row)) is not None]
        if not points:
            continue
        style = {"linewidth": 1.7, "markersize": 4.5, "label": own[0]["label"]} | STYLES.get(name, {})
        sizes = [size for size, _ in points]
        low, middle, high = zip(*(band for _, band in points), strict=True)
        if len(points) == 1:  # a line and a band would have no length
            place = i - (len(names) - 1) / 2 if len(varying) == 1 else 0.0  # beside the others, none hidden
            bars = [[middle[0] - low[0]], [high[0] - middle[0]]]
            axis.errorbar(
                sizes[0] * 2 ** (0.12 * place), middle, yerr=bars, capsize=3, **({"marker": "_"} | style)
            )
        else:
            axis.fill_between(sizes, low, high, color=style["color"], alpha=0.13, linewidth=0)
            axis.plot(sizes, middle, **style)
    axis.set_xscale("log", base=2)
    if len(varying) == 1:
        axis.set_xlim(varying[0] / 2, 2 * varying[0])
    axis.set_xticks(varying, [str(size) for size in varying])
    axis.xaxis.set_minor_formatter(NullFormatter())
    if logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}" if y < 1e6 else f"{y:.0e}"))
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=FAINT, labelcolor=INK, labelsize=8.5, length=3)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
