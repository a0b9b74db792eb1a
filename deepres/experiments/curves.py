"""The learning curves of a study's trials, and its scores at equal seconds.

curves.csv   a row for every evaluation of every finished trial: its labels, environment steps, seconds of training,
             success and time at goal
curves.png, .pdf   success against both
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepres.experiments.study import LAST, Trial, named
from deepres.report.figures import save
from deepres.runs.files import read_rows
from deepres.runs.folder import RunFolder

if TYPE_CHECKING:
    from deepres.experiments.folder import StudyFolder

COLUMNS = {
    "env_steps": "env_steps",
    "seconds": "seconds",
    "success": "success_any",
    "time_at_goal": "time_at_goal",
}
"""What a row of curves.csv holds beside the labels, and its name in a run's evaluations."""
FILE = "curves.csv"
ABREAST = 4  # panels that a page holds side by side

Curve = list[dict[str, float]]
Labels = tuple[str, ...]


def write_curves(folder: StudyFolder, trials: Sequence[Trial]) -> dict[Labels, Curve]:
    """curves.csv of the finished trials; returns those that did not diverge, by the trials' labels in words.

    A trial whose run is not here (its row was taken up from elsewhere) keeps what the file already says of it.
    """
    before, found = read_curves(folder.path / FILE, list(trials[0].labels)), {}
    diverged = set()
    for trial in trials:
        labels = trial.words
        if row := folder.finished(trial):
            rows = read_rows(RunFolder(folder.trial(trial)).evaluations)
            curve = [{name: one[source] for name, source in COLUMNS.items()} for one in rows if _whole(one)]
            if curve := curve or before.get(labels, []):
                found[labels] = curve
            if row["numbers"].get("diverged"):
                diverged.add(labels)
    if found:
        folder.write(folder.path / FILE, text(list(trials[0].labels), found))
    return {labels: curve for labels, curve in found.items() if labels not in diverged}


def text(names: Sequence[str], curves: Mapping[Labels, Curve]) -> str:
    """What curves.csv holds."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*names, *COLUMNS])
    for labels, curve in curves.items():
        writer.writerows([*labels, *row.values()] for row in curve)
    return written.getvalue()


def _whole(row: dict[str, float]) -> bool:
    return all(source in row for source in COLUMNS.values())


def read_curves(path: Path, labels: Sequence[str]) -> dict[Labels, Curve]:
    """The curves in `path` by their trials' labels; none where there is no such file, or none of these columns."""
    found: dict[Labels, Curve] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not {*labels, *COLUMNS} <= row.keys():
                    return {}
                one = found.setdefault(tuple(row[name] for name in labels), [])
                one.append({name: float(row[name]) for name in COLUMNS})
    return found


def score_at(curve: Curve, seconds: float, metric: str = "success") -> float | None:
    """The mean of the last five evaluations up to `seconds` of training, without that of the untrained policy; None
    where there is none."""
    reached = [row[metric] for row in curve[1:] if row["seconds"] <= seconds]
    return statistics.fmean(reached[-LAST:]) if reached else None


def equal_seconds(
    curves: Mapping[Labels, Curve],
    names: Sequence[str],
    along: str = "depth",
    metric: str = "success",
    machines: Mapping[Labels, str] | None = None,
) -> dict[str, dict[int, dict[int, float]]]:
    """Scores when the fastest setting along `along` of the same seed ended: line -> value of `along` -> seed -> score.

    names: of the labels, `along` and "seed" among them. A setting that has not been evaluated by then scores 0. Seeds
    that lack a setting, or whose settings come from several machines, are left out. Nothing is said of a metric that
    curves lack, nor along words.
    """
    at = list(names).index(along)
    if metric not in COLUMNS or not all(labels[at].isdecimal() for labels in curves):
        return {}
    others = [name for name in names if name not in (along, "seed")]
    groups: dict[str, dict[int, dict[int, Labels]]] = {}
    for labels in curves:
        of = dict(zip(names, labels, strict=True))
        line = named({name: of[name] for name in others})
        groups.setdefault(line, {}).setdefault(int(of["seed"]), {})[int(of[along])] = labels
    found: dict[str, dict[int, dict[int, float]]] = {}
    for line, seeds in groups.items():
        wanted = {value for group in seeds.values() for value in group}
        for seed, group in seeds.items():
            if (
                group.keys() != wanted
                or len({(machines or {}).get(labels, "") for labels in group.values()}) > 1
            ):
                continue
            ended = min(curves[labels][-1]["seconds"] for labels in group.values())
            for value, labels in group.items():
                score = score_at(curves[labels], ended, metric) or 0.0
                found.setdefault(line, {}).setdefault(value, {})[seed] = score
    return found


def plot_curves(
    curves: dict[Labels, Curve], names: Sequence[str], along: str, title: str, path: Path
) -> None:
    """Success against environment steps and against seconds of training: a row of panels for each, a panel for each
    line, at most ABREAST side by side, a colour for each value of `along`; every seed is drawn."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    others = [name for name in names if name not in (along, "seed")]
    panels: dict[str, list[tuple[str, Curve]]] = {}
    for labels, curve in curves.items():
        of: dict[str, Any] = dict(zip(names, labels, strict=True))
        panel = named({name: of[name] for name in others})
        panels.setdefault(panel, []).append((of[along], curve))
    values = list(dict.fromkeys(value for panel in panels.values() for value, _ in panel))
    if all(value.isdecimal() for value in values):
        values.sort(key=int)
    colours = [colormaps["viridis"](0.9 * i / max(len(values) - 1, 1)) for i in range(len(values))]
    across, down = min(ABREAST, len(panels)), -(-len(panels) // ABREAST)
    figure = Figure(figsize=(1.5 + 3.2 * across, 5.2 * down), layout="constrained")
    axes = figure.subplots(2 * down, across, squeeze=False, sharey=True)
    for axis in axes[-2:, len(panels) - across * (down - 1) :].flat:
        axis.set_visible(False)
    for number, (panel, drawn) in enumerate(panels.items()):
        top, column = 2 * (number // across), number % across
        for axis, x in zip(axes[top : top + 2, column], ("env_steps", "seconds"), strict=True):
            for value, curve in drawn:
                colour = colours[values.index(value)]
                axis.plot([row[x] for row in curve], [row["success"] for row in curve], color=colour, lw=1.2)
            axis.set_xlabel("environment steps" if x == "env_steps" else "seconds of training")
            axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
            axis.set_ylabel("success" if column == 0 else "")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[top, column].set_title(panel, fontsize=9)
    for value, colour in zip(values, colours, strict=True):
        axes[0, 0].plot([], [], color=colour, label=f"{along.replace('_', ' ')} {value}")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title)
    save(figure, path)
