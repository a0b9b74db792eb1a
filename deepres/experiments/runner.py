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
from deepres.experiments.study import Size, Trial


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
    modules = list(dict.fromkeys([*folder.imports(), *imports]))
    folder.write(folder.asked, json.dumps(asked | {"seeds": seeds, "imports": modules}, indent=2) + "\n")
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


def _job(trial: Trial, folder: StudyFolder) -> Job:
    command = [sys.executable, "-m", "deepres.experiments.trial", str(folder.path), trial.name]
    return Job(trial.name, command, folder.log(trial), folder.row(trial).exists, folder.trial(trial).exists())


def _tell_left(folder: StudyFolder, trials: list[Trial]) -> None:
    rows = write_rows(folder, trials)
    print(f"{len(rows)} of {len(trials)} trials finished", flush=True)
