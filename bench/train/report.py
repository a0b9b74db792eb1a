"""What bench/train.py measured, as rows, tables and a picture."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import results as files
from bench.harness import table, turns
from bench.harness.results import Row
from deepres.report.figures import save

RIVALS = ("eager", "jax")
PARTS = ("collect", "sample", "actor", "critic", "optimiser", "update", "log", "evaluate")
SMOOTH = 10  # steps that a smoothed loss is the mean of, or a quarter of a short curve's


def finished(
    rows: dict[str, Row],
    seconds: dict[str, list[list[float]]],
    losses: dict[str, list[float]],
    rounds: dict[str, list[dict[str, float]]],
    *,
    interleaved: bool,
) -> list[Row]:
    """The rows of a case with everything that follows from its clocks."""
    measured = [name for name, row in rows.items() if row["status"] == "measured"]
    whole = {name: [_whole(rows[name], r) for r in rounds[name]] for name in measured}
    for name in measured:
        row = rows[name]
        row["interleaved"] = interleaved
        row["step_ms"] = turns.spread([1e3 * s for turn in seconds[name] for s in turn])
        row["steps_per_s"] = 1e3 / row["step_ms"]["median"]
        row["losses"] = losses[name]
        row["us"] = _parts(row, rounds[name])
        row["whole_us"] = turns.spread([1e6 * s for s in whole[name]])
        row["speed_up"] = {r: _faster(seconds[r], seconds[name]) for r in RIVALS if r in measured}
        row["whole_speed_up"] = {
            r: _faster([[s] for s in whole[r]], [[s] for s in whole[name]]) for r in RIVALS if r in measured
        }
        row["loss_difference"] = {r: difference(losses[name], losses[r]) for r in RIVALS if r in measured}
    return list(rows.values())


def _faster(rival: list[list[float]], own: list[list[float]]) -> dict[str, float]:
    """How many times faster, turn by turn; contestants that ran one after another had turns of their own number."""
    common = min(len(rival), len(own))
    return turns.ratio(rival[:common], own[:common])


def difference(own: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of the two curves, as far as both go, each smoothed over SMOOTH steps."""
    common = min(len(own), len(other))
    pairs = zip(smoothed(own[:common]), smoothed(other[:common]), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def smoothed(curve: Sequence[float]) -> list[float]:
    """Means of SMOOTH neighbours, or of a quarter of a short curve."""
    window = min(SMOOTH, max(1, len(curve) // 4))
    return [statistics.fmean(curve[i : i + window]) for i in range(len(curve) - window + 1)]


def _whole(row: Row, one_round: dict[str, float]) -> float:
    """Seconds of a run for each of its gradient steps."""
    return sum(one_round.values()) + sum(row["overheads"].values())


def _parts(row: Row, rounds: list[dict[str, float]]) -> dict[str, float]:
    """Microseconds for each gradient step by part, in the order of PARTS."""
    seconds = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]} | row["overheads"]
    if row["split"]:
        update = seconds.pop("update")
        seconds |= {part: update * share for part, share in row["split"].items()}
    return {part: 1e6 * seconds[part] for part in PARTS if part in seconds}


def load(path: Path) -> dict[str, Any]:
    """A result file's contents; ValueError in one sentence when it is none."""
    return files.load(path, "train")


def show(results: dict[str, Any]) -> None:
    """The tables on standard output."""
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Two tables for each case: how fast a gradient step is, and where a whole run's time goes."""
    lines: list[str] = []
    for env, depth in dict.fromkeys((row["env"], row["depth"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["env"], row["depth"]) == (env, depth)]
        measured = [row for row in rows if row["status"] == "measured"]
        order = "in turns"
        if not all(row["interleaved"] for row in measured):
            order = "one after another, for memory's sake"
        cells = [_speed_cells(row) for row in measured]
        header = ["", "gradient steps/s", "x eager", "x JAX", "whole run x eager", "x JAX", "loss off by"]
        lines += [f"**{env}, depth {depth}** ({order})", "", *table.markdown_lines(header, cells), ""]
        cells = []
        for part in PARTS:
            if any(part in row["us"] for row in measured):
                name = "actor + critic + optimiser" if part == "update" else part
                cells.append([name, *(_share(row, part) for row in measured)])
        cells.append(["together", *(f"{row['whole_us']['median']:,.0f}" for row in measured)])
        header = ["µs for each gradient step", *(row["label"] for row in measured)]
        lines += [*table.markdown_lines(header, cells), ""]
        lines += [
            f"{row['label']} {row['status']}: {row['reason']}.\n"
            for row in rows
            if row["status"] != "measured"
        ]
    size = results["arguments"]
    lines.append(
        f"Batch {size['batch']}, width {size['width']}; "
        f"ratios: median of the turns (10th to 90th percentile). {table.machine(results)}."
    )
    return "\n".join(lines)


def _speed_cells(row: Row) -> list[str]:
    ratios = [_ratio(row[kind], rival) for kind in ("speed_up", "whole_speed_up") for rival in RIVALS]
    off = max((v for r, v in row["loss_difference"].items() if r != row["contestant"]), default=None)
    return [row["label"], f"{row['steps_per_s']:#.3g}", *ratios, "-" if off is None else f"{off:.1e}"]


def _share(row: Row, part: str) -> str:
    if part not in row["us"]:
        return ""
    return f"{row['us'][part]:,.0f} ({row['us'][part] / sum(row['us'].values()):.0%})"


def _ratio(ratios: dict[str, dict[str, float]], rival: str) -> str:
    if rival not in ratios:
        return "-"
    r = ratios[rival]
    return f"{r['median']:.2f} ({r['p10']:.2f}-{r['p90']:.2f})"


def draw(results: dict[str, Any], path: Path) -> bool:
    """A row of panels for each case: the critic's loss, gradient steps per second, the parts of a whole run; a PNG
    and a PDF. False where there is none."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        print(f"no picture: {error}; pip install 'deepres[bench]'", file=sys.stderr)
        return False
    measured = [row for row in results["rows"] if row["status"] == "measured"]
    found = list(dict.fromkeys((row["env"], row["depth"]) for row in measured))
    if not found:
        return False
    figure = Figure(figsize=(15, 1 + 3.2 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 3, squeeze=False)
    colors = {"eager": "#6b7280", "jax": "#8e6bbf", "deepres": "#4fb0a8", "deepres-bf16": "#00857c"}
    shades = dict(zip(PARTS, colormaps["tab10"].colors, strict=False))
    for (env, depth), (curve, speed, parts) in zip(found, axes, strict=True):
        rows = [row for row in measured if (row["env"], row["depth"]) == (env, depth)]
        common = min(len(row["losses"]) for row in rows)  # else each were smoothed over a number of its own
        for style, row in zip(("-", "--", "-.", ":"), rows, strict=False):
            line = smoothed(row["losses"][:common])
            curve.plot(line, style, color=colors[row["contestant"]], label=row["label"], linewidth=1.8)
        curve.set(title=f"{env}, depth {depth}", xlabel="gradient step", ylabel="critic's loss, smoothed")
        curve.ticklabel_format(axis="y", useOffset=False)
        curve.legend(frameon=False, fontsize=8)
        labels = [row["label"] for row in rows]
        rates = [row["steps_per_s"] for row in rows]
        bars = speed.barh(labels, rates, color=[colors[row["contestant"]] for row in rows])
        against = [row["speed_up"].get("eager", {}).get("median") for row in rows]
        speed.bar_label(
            bars, [f"{r:.3g}" + (f"  ({x:.2f}x)" if x else "") for r, x in zip(rates, against, strict=True)]
        )
        speed.set(title="gradient steps/s (x eager)", xlim=(0, 1.3 * max(rates)))
        left = [0.0] * len(rows)
        for part in PARTS:
            width = [row["us"].get(part, 0) / 1e3 for row in rows]
            if any(width):
                name = "actor + critic + optimiser" if part == "update" else part
                parts.barh(labels, width, left=left, label=name, color=shades[part])
                left = [a + b for a, b in zip(left, width, strict=True)]
        parts.set(title="a whole run, ms for each gradient step")
        parts.legend(frameon=False, fontsize=7, ncols=2)
        for axis in (speed, parts):
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(table.machine(results), fontsize=8, color="#8a8f98")
    save(figure, path)
    return True
