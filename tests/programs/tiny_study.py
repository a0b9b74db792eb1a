"""Studies of seconds, as a user's own module; run as a program: FOLDER."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from deepres.experiments import studies
from deepres.experiments.runner import run_study
from deepres.experiments.study import Study, Trial, grid
from deepres.training.stopping import Stopped, exit_status
from helpers.tiny_runs import TINY

BASE = TINY.replace(total_steps=160, eval_every=2, threads=1)


def counted(trial: Trial, folder: Path) -> dict[str, float]:
    """Numbers without a training; a seed of 9 fails."""
    if trial.labels["seed"] == 9:
        raise RuntimeError("seed 9 is out of luck")
    return {"success": trial.labels["depth"] / 10 + trial.labels["seed"]}


TRAINED = Study(
    name="tiny",
    source="-",
    question="does it grow?",
    claim="It grows.",
    refuted="a slope below 0.",
    trials=lambda size, seeds: grid(BASE, {"depth": [4, 8]}, seeds),
    seeds=(1, 1),
    curves=True,
)
studies.register(TRAINED)
studies.register(replace(TRAINED, name="tiny_numbers", run=counted, seeds=(2, 2), curves=False))


def one_depth(size, seeds):
    """Of the study above the trials with 4 layers, by other labels; and one that it lacks."""
    alone = [
        Trial({"width": 32, "seed": seed}, BASE.replace(depth=4, actor_depth=None, seed=seed))
        for seed in seeds
    ]
    return alone + [Trial({"width": 16, "seed": seed}, BASE.replace(width=16, seed=seed)) for seed in seeds]


ALIKE = replace(studies.find("tiny_numbers"), name="tiny_alike", trials=one_depth, along="width")
studies.register(ALIKE)
studies.register(replace(ALIKE, name="tiny_otherwise", run=lambda *_: {}))


def stops(trial: Trial, folder: Path) -> dict[str, float]:
    """All is asked to end before this trial has a figure."""
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1.0)
    raise Stopped("SIGTERM: stopped before the first evaluation was done", exit_status("SIGTERM"))


studies.register(replace(TRAINED, name="tiny_stops", run=stops, curves=False))


def shared(size, seeds):
    """The data, of which a seed of 7 fails, and trials that read them."""
    data = Trial({"what": "the data", "depth": 0, "seed": 0}, BASE)
    return [data] + [
        Trial({"what": "reads", **one.labels}, one.config, after=data.name)
        for one in grid(BASE, {"depth": [4, 8]}, seeds)
    ]


def reads(trial: Trial, folder: Path) -> dict[str, float]:
    if trial.after is None:
        if (folder.parents[1] / "no_data").exists():
            raise RuntimeError("the data cannot be made")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").write_text("0.5")
        return {"transitions": 1.0}
    return {"success": float((folder.with_name(trial.after) / "data").read_text()) * trial.labels["depth"]}


studies.register(replace(TRAINED, name="tiny_shared", trials=shared, run=reads, seeds=(1, 1), curves=False))

if __name__ == "__main__":
    run_study("tiny", out=Path(sys.argv[1]), imports=["tiny_study"])
