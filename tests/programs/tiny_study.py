"""Studies of seconds, as a user's own module; run as a program: FOLDER."""

import sys
from dataclasses import replace
from pathlib import Path

from deepres.experiments import studies
from deepres.experiments.runner import run_study
from deepres.experiments.study import Study, Trial, grid
from helpers.tiny_runs import TINY

BASE = TINY.replace(total_steps=160, eval_every=2)


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

if __name__ == "__main__":
    run_study("tiny", out=Path(sys.argv[1]), imports=["tiny_study"])
