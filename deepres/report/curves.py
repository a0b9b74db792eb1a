"""Pictures of runs' figures; each goes into a PNG and, beside it, a PDF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepres import algorithms
from deepres.report.figures import plain, save
from deepres.report.groups import Group
from deepres.runs.files import read_rows
from deepres.runs.folder import RunFolder


def plot_curves(run_dir: Path, path: Path) -> Path:
    """Draw evaluations.csv and metrics.csv of `run_dir` over environment steps into the PNG `path`."""
    folder = RunFolder(run_dir)
    evaluations, metrics = _columns(folder.evaluations), _columns(folder.metrics)
    headline = algorithms.find(folder.read_config().algorithm_name).headline
    losses = {name: name.removesuffix("_loss").replace("_", " ") for name in headline}
    policy = {"entropy": "entropy", "alpha": "temperature"}
    panels = [
        (evaluations, {"success_any": "goals reached"}, "share of episodes", (0, 1.02)),
        (evaluations, {"time_at_goal": "time at goal"}, "steps", None),
        (metrics, _there(losses, metrics), "loss", None),
        (metrics, _there(policy, metrics), "nats", None),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = _panels(len(panels), (3.75 * len(panels), 3.4))
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
    figure.suptitle(plain(run_dir.name))
    save(figure, path)
    return path


def _there(lines: dict[str, str], table: dict[str, list[float]]) -> dict[str, str]:
    return {column: name for column, name in lines.items() if column in table}


def _columns(path: Path) -> dict[str, list[float]]:
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no rows yet; let the run finish a round first")
    return {name: [row[name] for row in rows] for name in rows[0]}


def plot_groups(groups: list[Group], path: Path) -> Path:
    """Learning curves of groups of runs into the PNG `path`: the seeds' mean, and a band from least to largest."""
    panels = {"time_at_goal": "time at goal (steps)", "success_any": "goals reached (share of episodes)"}
    figure, axes = _panels(len(panels), (12, 4.2))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for one in groups:
            steps, mean, least, largest = one.curve(column)
            name = f"{one.label} ({len(one.runs)} seeds)" if len(one.runs) > 1 else one.label
            (line,) = axis.plot(steps, mean, label=plain(name), marker="o" if len(steps) < 40 else None, ms=3)
            axis.fill_between(steps, least, largest, color=line.get_color(), alpha=0.18, linewidth=0)
        axis.set(xlabel="environment steps", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        _tidy(axis)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)
    return path


def plot_scores(option: str, lines: Mapping[str, Mapping[Any, Group]], title: str, path: Path) -> Path:
    """Score against one option into the PNG `path`: every seed a point, their mean a line.

    option: its name. lines: label -> value of the option -> its runs.
    """
    values = list(dict.fromkeys(value for line in lines.values() for value in line))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = {value: value if numbers else i for i, value in enumerate(values)}
    doubling = numbers and min(values) > 0 and max(values) >= 4 * min(values)
    panels = {"time_at_goal": "time at goal (steps)", "success_any": "goals reached (share of episodes)"}
    figure, axes = _panels(len(panels), (10, 4))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for name, line in lines.items():
            scores = {places[value]: one.last(column) for value, one in line.items()}
            means = [sum(each) / len(each) for each in scores.values()]
            (drawn,) = axis.plot(list(scores), means, linewidth=2, label=plain(name))
            for place, each in scores.items():
                axis.plot([place] * len(each), each, "o", color=drawn.get_color(), alpha=0.45, ms=5)
        if doubling:
            axis.set_xscale("log", base=2)
        axis.set_xticks([places[value] for value in values], [str(value) for value in values])
        axis.minorticks_off()
        axis.set(xlabel=option.replace("_", " "), ylabel=label)
        axis.set_ylim(bottom=0)
        _tidy(axis)
    if len(lines) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(plain(title))
    save(figure, path)
    return path


def _panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with `count` axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _tidy(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
