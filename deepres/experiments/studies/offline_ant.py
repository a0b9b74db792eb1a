"""Does depth help when the data are fixed, for an ant in a maze? Its gait makes the data, see gait.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepres.experiments.studies import offline
from deepres.experiments.studies.transfer import Objective
from deepres.experiments.study import Numbers, Size, Study, Trial, grid

MAZE, LENGTH = "ant_u_maze", 400
"""Data are of ways of at most four cells, each straight to its end: of long tours, where what comes later says little
of which way to go now, nothing was learned in as many steps."""
METHODS = {
    "CRL, DDPG+BC": Objective("crl", offline.DDPG | {"bc_alpha": 0.1}),
    "CRL, AWR": Objective("crl", offline.AWR),
    "GCBC": Objective("gcbc", {"goals": "uniform"}),
}
"""With OGBench's weight of cloning for the ant."""


def _trials(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = offline.BASE.replace(eval_envs=64, eval_every=16) if size == "cpu" else offline.PAPER
    base = base.replace(env=MAZE, episode_length=1000)
    file = Trial({"method": offline.MADE, "depth": 0, "seed": 0}, base)
    return [file] + [
        Trial({"method": name, **trial.labels}, trial.config, after=file.name)
        for seed in seeds
        for name, one in METHODS.items()
        for trial in grid(one.config(base), {"depth": offline.DEPTHS}, [seed])
    ]


def learned(trial: Trial, folder: Path) -> Numbers:
    """Make the data, or learn from them."""
    if trial.after is None:
        return offline.made(folder, offline.TRANSITIONS, "stitch", LENGTH, MAZE)
    return offline.learned(trial, folder)


STUDIES = (
    Study(
        name="offline-ant",
        source=offline.SOURCE,
        question="offline, does depth help an ant in a maze?",
        claim="Success grows with depth: of cloning, and of contrastive RL by either way to a policy.",
        refuted="a slope of any at or below 0.",
        trials=_trials,
        run=learned,
        seeds=(3, 3),
        metric="success_easy",
        also=("success", "final_distance", "val_accuracy", "time_rank", "seconds"),
        takes=offline.takes,
    ),
)
