"""Runs a study's trials in processes of their own, goes on where it was stopped, and tells what came out.

FOLDER/study.json      which study, size and seeds
       trials/NAME/    what a trial trained; NAME.log: what it printed
       rows/NAME.json  a finished trial's numbers, and on which machine and version they were made
       rows.csv        all of them, a row per seed
       table.md        the table, the sentence, and how it was made
       figure.png, .pdf
       curves.csv, .png  learning curves, of studies that ask for them (curves.py)

Studies whose folders lie in one folder share trainings (neighbours.py).
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from deepres.experiments import studies
from deepres.experiments.curves import equal_seconds, plot_curves, write_curves
from deepres.experiments.jobs import Job, check_places, run_jobs
from deepres.experiments.statistics import Interval, depth_slope, mean_interval
from deepres.experiments.study import Size, Study, Trial
from deepres.runs.folder import write_whole

Row = dict[str, Any]
FLAT = 1e-6  # slopes within it are rounding
MADE = ("date", "version", "machine")  # of a row, what is neither a label nor a number
MOST_LINES = 6  # that a reader tells apart in one panel
FEWEST = 3  # seeds of each setting, below which a bootstrap says nothing


@dataclass(frozen=True)
class StudyFolder:
    """The files of one study."""

    path: Path

    @property
    def asked(self) -> Path:
        return self.path / "study.json"

    def trial(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.name

    def log(self, trial: Trial) -> Path:
        return self.path / "trials" / f"{trial.name}.log"

    def row(self, trial: Trial) -> Path:
        return self.path / "rows" / f"{trial.name}.json"

    def seeds(self, name: str, size: Size) -> list[int]:
        """Those that `name` was asked for here; none if nothing is here yet. Raises ValueError in one sentence for
        what is not a folder of that study and size."""
        if not self.asked.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise ValueError(f"{self.path} is not empty and holds no study; pass another folder (--out)")
            return []
        before = json.loads(self.asked.read_text())
        if (before.get("study"), before.get("size")) != (name, size):
            raise ValueError(
                f"{self.path} holds the study {before.get('study')} of size {before.get('size')}, got {name} of size "
                f"{size}; pass another folder (--out)"
            )
        return list(before["seeds"])

    def write(self, file: Path, text: str) -> None:
        """Whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)

    def read(self) -> tuple[Study, list[Trial]]:
        """The study that is run here, and its trials. Raises FileNotFoundError or ValueError in one sentence."""
        try:
            asked = json.loads(self.asked.read_text())
            for module in asked["imports"]:
                import_module(module)
            study, size, seeds = studies.find(asked["study"]), asked["size"], asked["seeds"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(
                f"{self.asked} is not as a study wrote it; pass another folder (--out)"
            ) from None
        return study, study.trials(size, seeds)


@dataclass(frozen=True)
class StudyResult:
    """rows: of the finished trials. failed: names of those that ended with an error."""

    folder: Path
    rows: list[Row]
    failed: list[str]
    interrupted: bool


def run_study(
    name: str,
    *,
    size: Size = "cpu",
    seeds: Sequence[int] = (),
    out: Path | None = None,
    jobs: int = 0,
    imports: Sequence[str] = (),
) -> StudyResult:
    """Run the study `name`, or go on with it, and write its table and figure.

    seeds: by default as many as the study takes. out: by default runs/studies/<name>. jobs: trials at a time; 0 is one
    to each GPU, or one where there is none. imports: modules that a trial imports first (studies, algorithms or
    environments of your own). Raises ValueError in one sentence for an unknown study, or for a folder
    that holds another.
    """
    study = studies.find(name)
    check_places(jobs)
    if size not in ("cpu", "paper"):
        raise ValueError(f"size must be cpu or paper, got {size!r}")
    seeds = list(seeds) or list(range(study.many(size)))
    folder = StudyFolder(out or default_folder(name))
    asked = {"study": name, "size": size}
    seeds = sorted({*folder.seeds(name, size), *seeds})
    folder.write(
        folder.asked, json.dumps(asked | {"seeds": seeds, "imports": list(imports)}, indent=2) + "\n"
    )
    trials = study.trials(size, seeds)
    (folder.path / "trials").mkdir(exist_ok=True)
    waiting = [trial for trial in trials if not folder.row(trial).exists()]
    print(f"{name}: {len(trials)} trials, {len(trials) - len(waiting)} finished", flush=True)
    alone = {"OMP_NUM_THREADS": "1", "DEEPRES_ENV_THREADS": "1"} if jobs > 1 else {}
    failed, interrupted = [], False
    for stage in (False, True):  # those that read another's run come after it
        part = [_job(trial, folder) for trial in waiting if (trial.after is not None) is stage]
        if part and not interrupted:
            outcome = run_jobs(part, jobs, environment=alone, ended=lambda _: _tell_left(folder, trials))
            failed += outcome.failed
            interrupted = outcome.interrupted
    rows = report(study, trials, folder)
    return StudyResult(folder.path, rows, failed, interrupted)


def default_folder(name: str) -> Path:
    """Where the study `name` is run unless another folder is asked for."""
    return Path("runs") / "studies" / name


def row_text(trial: Trial, numbers: Row, made: Row) -> str:
    """What the file of a finished trial's row holds."""
    return json.dumps({"labels": trial.labels, "numbers": numbers, "made": made}, indent=2) + "\n"


def _job(trial: Trial, folder: StudyFolder) -> Job:
    command = [sys.executable, "-m", "deepres.experiments.trial", str(folder.path), trial.name]
    return Job(trial.name, command, folder.log(trial), folder.row(trial).exists, folder.trial(trial).exists())


def _tell_left(folder: StudyFolder, trials: list[Trial]) -> None:
    rows = write_rows(folder, trials)
    print(f"{len(rows)} of {len(trials)} trials finished", flush=True)


def write_rows(folder: StudyFolder, trials: list[Trial]) -> list[Row]:
    """rows.csv of what is finished, in the trials' order; returns the rows."""
    rows: list[Row] = []
    for trial in trials:
        if folder.row(trial).exists():
            found = json.loads(folder.row(trial).read_text())
            rows.append({**found["labels"], **found["numbers"], **found["made"]})
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        folder.write(folder.path / "rows.csv", text.getvalue())
    return rows


@dataclass(frozen=True)
class Setting:
    """Trials that differ in their seed alone."""

    labels: dict[str, Any]
    scores: dict[int, float]
    """By seed."""
    rows: list[Row] = field(default_factory=list)

    @property
    def mean(self) -> Interval:
        return mean_interval(list(self.scores.values()))

    def estimate(self, study: Study) -> Interval:
        """The study's metric here."""
        return study.interval(self.rows) if study.interval else self.mean


def scored(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Those that have the study's metric: not the trials that others only learn from."""
    return [row for row in rows if study.metric in row]


def settings(rows: Sequence[Row], names: Sequence[str], metric: str) -> list[Setting]:
    """The rows by all labels but the seed, in the order that they come."""
    found: dict[tuple[Any, ...], Setting] = {}
    for row in rows:
        labels = {name: row[name] for name in names if name != "seed"}
        one = found.setdefault(tuple(labels.values()), Setting(labels, {}))
        one.scores[row["seed"]] = float(row.get(metric, "nan"))
        one.rows.append(row)
    return list(found.values())


def lines(study: Study, found: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The settings that differ along the study's axis alone, by what tells them from the others."""
    drawn: dict[str, list[Setting]] = {}
    for one in found:
        others = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in one.labels.items() if name != study.along
        )
        drawn.setdefault(others, []).append(one)
    return drawn


def report(study: Study, trials: list[Trial], folder: StudyFolder) -> list[Row]:
    """Write table.md and the figure from the finished rows, and print the table; returns the rows."""
    from deepres.report.lines import Line, Place, plot_lines
    from deepres.report.tables import console, table

    rows = write_rows(folder, trials)
    found_in = scored(study, rows)
    if not found_in:
        return rows
    names = list(trials[0].labels)
    found = settings(found_in, names, study.metric)
    estimates = [one.estimate(study) for one in found]
    drawn = lines(study, found)
    more = {name: settings(found_in, names, name) for name in study.also}
    shown = (study.metric, "each seed", *study.also)
    columns = (
        *(n.replace("_", " ") for n in names if n != "seed"),
        "seeds",
        *(n.replace("_", " ") for n in shown),
    )
    cells = [
        (
            *(str(value) for value in one.labels.values()),
            str(len(one.scores)),
            estimates[i].text(study.form)
            if len(one.scores) > 1 or study.interval
            else study.form.format(estimates[i].value),
            ", ".join(study.form.format(score) for score in one.scores.values()),
            *(f"{more[name][i].mean.value:.4g}" for name in study.also),
        )
        for i, one in enumerate(found)
    ]
    console().print(table(f"{study.name}: {study.question}", columns, cells))
    sentence = f"{study.claim} {study.says(found_in)}" if study.says else verdict(study, drawn)
    if study.curves and (curves := write_curves(folder, trials)):
        plot_curves(curves, names, study.along, study.name, folder.path / "curves.png")
        sentence += _at_equal_seconds(study, equal_seconds(curves, names, study.along, study.metric))
    print(sentence, flush=True)
    at = dict(zip(map(id, found), estimates, strict=True))
    plotted = [
        Line(
            name,
            {
                one.labels.get(study.along): Place(
                    list(one.scores.values()), at[id(one)].value, at[id(one)].low, at[id(one)].high
                )
                for one in line
            },
            panel,
        )
        for (panel, name), line in zip(_panels(study, drawn), drawn.values(), strict=True)
    ]
    plot_lines(plotted, study.along, study.metric, study.name, folder.path / "figure.png")
    folder.write(folder.path / "table.md", _markdown(study, columns, cells, sentence, rows, len(trials)))
    return rows


def _at_equal_seconds(study: Study, scores: dict[str, dict[int, dict[int, float]]]) -> str:
    """What the slopes are where every setting trains as many seconds as the fastest one."""
    drawn = {
        line: [Setting({study.along: value}, of) for value, of in by_value.items()]
        for line, by_value in scores.items()
    }
    told = "; ".join(f"{name}: {slope}, which {says}" for name, slope, says in slopes(study, drawn))
    return (
        f" At equal seconds of training, those of the fastest setting of each seed: {told}." if told else ""
    )


def _panels(study: Study, drawn: dict[str, list[Setting]]) -> list[tuple[str, str]]:
    """Of each line its panel's title and its name there: by the labels that tell lines apart. Many lines get a panel
    for each value of the label that has most of them."""
    labels = [line[0].labels for line in drawn.values()]
    others = [name for name in labels[0] if name != study.along]
    values = {name: {str(one[name]) for one in labels} for name in others}
    apart = [name for name in others if len(values[name]) > 1]
    panel = max(apart, key=lambda name: len(values[name])) if len(labels) > MOST_LINES else None
    inside = [name for name in apart if name != panel]
    return [
        (str(one[panel]) if panel else "", ", ".join(f"{n.replace('_', ' ')} {one[n]}" for n in inside))
        for one in labels
    ]


def verdict(study: Study, drawn: dict[str, list[Setting]]) -> str:
    """What the rows say to the claim: for every line the slope of the metric on log2 of the axis, with its interval."""
    if study.rising is None:
        return f"{study.claim} Refuted by: {study.refuted}"
    told = [f"{name}: {slope} for each doubling, which {says}" for name, slope, says in slopes(study, drawn)]
    return (
        f"{study.claim} Slope of {study.metric} on log2 {study.along}, 95% interval: " + "; ".join(told) + "."
    )


def slopes(study: Study, drawn: dict[str, list[Setting]]) -> list[tuple[str, str, str]]:
    """Of every line: what it is, its slope with the interval, and what that says to the claim."""
    told = []
    for name, line in drawn.items():
        line = [one for one in line if isinstance(one.labels[study.along], int)]
        if len(line) < 2:
            continue
        slope = depth_slope({int(one.labels[study.along]): one.scores for one in line})
        up = slope if study.rising else Interval(-slope.value, -slope.high, -slope.low)
        says = "supports the claim" if up.low > 0 else "contradicts it" if up.high < 0 else "decides nothing"
        if max(abs(up.low), abs(up.high)) < FLAT:
            says = "is flat"
        if (seeds := min(len(one.scores) for one in line)) < FEWEST:
            says = f"has too few seeds ({seeds}) to decide"
        told.append((name or study.metric, slope.text("{:+.3f}"), says))
    return told


def _markdown(
    study: Study,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    sentence: str,
    rows: list[Row],
    wanted: int,
) -> str:
    line = "| " + " | ".join(columns) + " |"
    body = "\n".join("| " + " | ".join(one) + " |" for one in cells)
    machines = ", ".join(sorted({str(row["machine"]) for row in rows}))
    versions = ", ".join(sorted({str(row["version"]) for row in rows}))
    hours = sum(float(row.get("seconds") or 0) for row in rows) / 3600
    diverged = sum(float(row.get("diverged") or 0) for row in rows)
    return (
        f"# {study.name}: {study.question}\n\n"
        f"Source: {study.source}. Claim: {study.claim} It would be refuted by: {study.refuted}\n\n"
        f"{line}\n{'|' + ' --- |' * len(columns)}\n{body}\n\n"
        f"{sentence}\n\n"
        f"Mean over the seeds with its 95% bootstrap interval. {len(rows)} of {wanted} trials finished, "
        f"{diverged:.0f} diverged; {hours:.1f} hours of training in all. Machine: {machines}. deepres {versions}.\n\n"
        f"    deepres experiment {study.name}\n\n![{study.name}](figure.png)\n"
    )
