"""Depth and what it needs: figures 1, 3, 4, 5, 6, 7 and 11 of arXiv 2503.14858."""

from __future__ import annotations

from collections.abc import Sequence

from deepres.config import Config
from deepres.experiments.presets import PRESETS
from deepres.experiments.study import Size, Study, Trial, grid

CPU = Config(
    "crl",
    env="point_hardest_maze",
    width=64,
    batch_size=256,
    num_envs=64,
    unroll_length=62,
    gradient_steps=100,
    buffer_steps=5000,
    total_steps=1_250_000,
    eval_envs=128,
    eval_every=16,
    checkpoint_every=16,
    keep_checkpoints=1,
    threads=1,
    device="cpu",
)
"""The base of the studies of size "cpu": a maze where 4 layers reach between a tenth and six tenths of the goals."""


def paper(env: str) -> Config:
    """The base of the size "paper" on `env`: the published run."""
    return next(one.config for one in PRESETS.values() if one.env == env)


def _depth(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        return grid(CPU, {"init": ["published", "scaled"], "depth": [4, 16, 64]}, seeds)
    envs = sorted({one.env for one in PRESETS.values()})
    return [
        Trial({"env": env, **trial.labels}, trial.config)
        for env in envs
        for trial in grid(paper(env), {"depth": [4, 8, 16, 32, 64]}, seeds)
    ]


STUDIES = (
    Study(
        name="depth",
        source="arXiv 2503.14858, figure 1 and table 1",
        question="does contrastive RL get better with depth?",
        claim="Success grows with depth, actor and critic alike.",
        refuted="a slope of success on log2 depth whose interval lies at or below 0.",
        trials=_depth,
    ),
)
