"""Runs a study's trials in processes of their own, goes on where it was stopped, and tells what came out.

Studies whose folders (folder.py) lie in one folder share trainings (neighbours.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepres.experiments import studies
from deepres.experiments.folder import Row, StudyFolder, default_folder, write_rows
from deepres.experiments.jobs import Job, check_places, run_jobs
from deepres.experiments.outcome import report
from deepres.experiments.study import Numbers, Size, Trial
from deepres.runs.lock import Lock


@dataclass(frozen=True)
class StudyResult:
    """rows: of the finished trials. failed: names of those that ended with an error. signal: the name of the one that
    stopped it."""

    folder: Path
    rows: list[Row]
    failed: list[str]
    signal: str | None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


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
    folder = StudyFolder(out or default_folder(name))
    asked = folder.of(name, size)
    asked["seeds"] = sorted({*asked["seeds"], *(seeds or range(study.many(size)))})
    asked["imports"] = list(dict.fromkeys([*asked["imports"], *imports]))
    trials = study.trials(size, asked["seeds"])
    _check_names(trials)
    folder.path.mkdir(parents=True, exist_ok=True)
    with Lock(folder.path):
        folder.write(folder.asked, json.dumps(asked, indent=2) + "\n")
        (folder.path / "trials").mkdir(exist_ok=True)
        finished = {trial.name for trial in trials if folder.finished(trial)}
        waiting = _waiting(trials, finished, folder)
        print(f"{name}: {len(trials)} trials, {len(trials) - len(waiting)} finished", flush=True)
        failed, stopped = _run(waiting, trials, folder, jobs)
        rows = report(study, trials, folder)
    return StudyResult(folder.path, rows, failed, stopped)


def _check_names(trials: list[Trial]) -> None:
    named: dict[str, Trial] = {}
    for trial in trials:
        other = named.setdefault(trial.name, trial)
        if other is not trial:
            raise ValueError(
                f"labels must give each trial a name of its own, got {trial.name} of {other.labels} and of "
                f"{trial.labels}"
            )


def _waiting(trials: list[Trial], finished: set[str], folder: StudyFolder) -> list[Trial]:
    """Those to run: without a row, or read by one of them while their own run is not here (their row was taken up from
    elsewhere)."""
    named = {trial.name: trial for trial in trials}
    found = {trial.name for trial in trials if trial.name not in finished}
    for name in list(found):
        after = named[name].after
        while after is not None and not folder.trial(named[after]).exists():
            found.add(after)
            after = named[after].after
    return [trial for trial in trials if trial.name in found]


def _run(
    waiting: list[Trial], trials: list[Trial], folder: StudyFolder, jobs: int
) -> tuple[list[str], str | None]:
    """Run those that wait, each after the one that it reads; names of the failed ones, and the signal that stopped it.

    One whose predecessor has not finished is not run, and counts as failed.
    """
    alone = {"OMP_NUM_THREADS": "1", "DEEPRES_ENV_THREADS": "1"} if jobs > 1 else {}
    failed: list[str] = []
    left = list(waiting)
    while left:
        here = {trial.name for trial in left}
        part = [trial for trial in left if trial.after not in here]
        left = [trial for trial in left if trial.after in here]
        ready = [trial for trial in part if trial.after is None or folder.trial_finished(trial.after)]
        for trial in part:
            if trial not in ready:
                failed.append(trial.name)
                print(f"{trial.name}: not run, as {trial.after} has not finished", flush=True)
        before = {trial.name: row["numbers"] for trial in ready if (row := folder.finished(trial))}
        for trial in ready:  # one that is run again for its readers has a row from elsewhere
            folder.row(trial).unlink(missing_ok=True)
        outcome = run_jobs(
            [_job(trial, folder) for trial in ready],
            jobs,
            environment=alone,
            ended=lambda _: _tell_left(folder, trials),
        )
        failed += outcome.failed
        if outcome.interrupted:
            return failed, outcome.signal
        failed += [
            trial.name for trial in ready if trial.name not in failed and not folder.row(trial).exists()
        ]
        left += _stale(ready, before, trials, folder)
    return failed, None


def _stale(
    ready: list[Trial], before: dict[str, Numbers], trials: list[Trial], folder: StudyFolder
) -> list[Trial]:
    """The finished readers of what has come out otherwise than `before`, on another machine: their rows are of another
    ring, and go."""
    changed = set()
    for trial in ready:
        if (row := folder.finished(trial)) and trial.name in before:
            ours, theirs = ({**of, "seconds": 0.0} for of in (row["numbers"], before[trial.name]))
            if repr(ours) != repr(theirs):
                changed.add(trial.name)
    readers = [trial for trial in trials if trial.after in changed and folder.row(trial).exists()]
    for trial in readers:
        print(
            f"{trial.name}: run again, as {trial.after} has come out otherwise than where its row is from",
            flush=True,
        )
        folder.row(trial).unlink()
    return readers


def _job(trial: Trial, folder: StudyFolder) -> Job:
    command = [sys.executable, "-m", "deepres.experiments.trial", str(folder.path), trial.name]
    return Job(trial.name, command, folder.log(trial), folder.row(trial).exists, folder.trial(trial).exists())


def _tell_left(folder: StudyFolder, trials: list[Trial]) -> None:
    try:
        rows = write_rows(folder, trials)
    except OSError as error:  # the trials under way go on
        print(f"the table cannot be written: {error}; free some space", flush=True)
        return
    print(f"{len(rows)} of {len(trials)} trials finished", flush=True)
