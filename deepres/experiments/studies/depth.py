"""Depth, and what it needs: trainings over a grid, after the figures of arXiv 2503.14858."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.experiments.differences import by_seed, paired
from deepres.experiments.looks import look
from deepres.experiments.presets import PRESETS, paper
from deepres.experiments.study import Numbers, Size, Study, Trial, grid, trained

CPU = Config(
    "crl",
    env="point_hardest_maze",
    width=64,
    init="published",
    batch_size=256,
    num_envs=64,
    unroll_length=62,
    gradient_steps=100,
    buffer_steps=5000,
    total_steps=625_000,
    eval_envs=128,
    eval_every=8,
    checkpoint_every=16,
    keep_checkpoints=1,
    threads=1,
    device="cpu",
)
"""The base of the studies of size "cpu": a maze where 4 layers reach between a tenth and six tenths of the goals."""


def _depth(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        return grid(CPU, {"init": ["published", "scaled"], "depth": [4, 16, 64]}, seeds)
    envs = sorted({one.env for one in PRESETS.values()})
    return [
        Trial({"env": env, **trial.labels}, trial.config)
        for env in envs
        for trial in grid(paper(env), {"depth": [4, 8, 16, 32, 64]}, seeds)
    ]


def looked(trial: Trial, folder: Path) -> Numbers:
    """Train, then look at what the run knows of its maze (looks.py)."""
    numbers = trained(trial, folder)
    there = trial.config.env.name.startswith("point") and not numbers["diverged"]
    return numbers | (look(folder) if there else {})


def _width(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base, widths, depths = (
        (CPU, [32, 64, 128, 256], [8, 16, 32])
        if size == "cpu"
        else (paper("humanoid"), [256, 512, 1024, 2048], [8, 16, 32, 64])
    )
    wide = grid(base, {"depth": [4], "width": widths}, seeds)
    deep = grid(base, {"depth": depths, "width": [base.network.width]}, seeds)
    return sorted((*wide, *deep), key=lambda trial: trial.labels["seed"])


def equal_weights(rows: Sequence[dict[str, Any]]) -> str:
    """What the deeper network scores more than the wider one with as many hidden weights, depth x width^2."""
    shapes = list(dict.fromkeys((int(row["depth"]), int(row["width"])) for row in rows))
    told = []
    for deep, wide in product(shapes, shapes):
        if deep[0] > wide[0] and deep[0] * deep[1] ** 2 == wide[0] * wide[1] ** 2:
            scores = [by_seed(rows, "success", depth=depth, width=width) for depth, width in (deep, wide)]
            if more := paired(*scores):
                of, beside = (f"{depth} layers of {width}" for depth, width in (deep, wide))
                told.append(f"{of} {more.text('{:+.3f}')} beside {beside}")
    if not told:
        return "No two shapes with as many hidden weights in two seeds yet."
    return f"Success less that of the wider network with as many hidden weights, seed by seed: {'; '.join(told)}."


def _skips(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base, depths = (CPU, [4, 16, 64]) if size == "cpu" else (paper("humanoid"), [4, 8, 12, 16, 24, 32])
    return grid(base, {"skip_every": [4, 0], "depth": depths}, seeds)


def _actor_and_critic(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else paper("humanoid")
    depths = [4, 16, 32] if size == "cpu" else [4, 16, 64]
    return grid(base, {"actor_depth": depths, "depth": depths}, seeds)


def _batch(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        return grid(CPU, {"batch_size": [64, 128, 256, 512, 1024], "depth": [4, 32]}, seeds)
    return grid(
        paper("humanoid"), {"batch_size": [128, 256, 512, 1024, 2048], "depth": [4, 8, 16, 32, 64]}, seeds
    )


def _norm_and_activation(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base, depths = (CPU, [4, 16, 64]) if size == "cpu" else (paper("humanoid"), [4, 16, 64])
    variants: dict[str, dict[str, object]] = {
        "published": {},
        "without norm": {"norm": False},
        "relu": {"activation": "relu"},
    }
    return [
        Trial({"network": name, **trial.labels}, trial.config)
        for seed in seeds
        for name, options in variants.items()
        for trial in grid(base.replace(**options), {"depth": depths}, [seed])
    ]


def _metric_energy(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else paper("ant_u4_maze")
    return grid(base.replace(energy="mrn", form="backward"), {"depth": [4, 16, 64]}, seeds)


def _engines(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else paper("ant_u4_maze")
    return grid(base, {"engine": ["c", "jax"], "depth": [4, 16]}, seeds)


FIGURE = "arXiv 2503.14858, figure {}"
STUDIES = (
    Study(
        name="depth",
        source=FIGURE.format("1 and table 1"),
        question="does contrastive RL get better with depth?",
        claim="Success grows with depth, actor and critic alike.",
        refuted="a slope of success on log2 depth whose interval lies at or below 0.",
        trials=_depth,
        run=looked,
        curves=True,
        also=(
            "time_at_goal",
            "steps_to_half",
            "way_rank",
            "line_rank",
            "step_near",
            "branch_decay",
            "varying",
        ),
    ),
    Study(
        name="width",
        source=FIGURE.format("4"),
        question="is depth a better use of parameters than width?",
        claim="At the same number of parameters the deeper network scores more than the wider one.",
        refuted="a width at depth 4 that scores more than the depth of as many parameters.",
        trials=_width,
        along="width",
        seeds=(3, 3),
        slopes=False,
        says=equal_weights,
    ),
    Study(
        name="skips",
        source=FIGURE.format("5"),
        question="does depth need residual connections?",
        claim="With residual connections success grows with depth, without them it does not.",
        refuted="a slope without residual connections that is no less than the one with them.",
        trials=_skips,
        seeds=(3, 3),
    ),
    Study(
        name="actor-and-critic",
        source=FIGURE.format("6"),
        question="which network is it that needs depth?",
        claim="Both do: success grows with the critic's depth at every depth of the actor.",
        refuted="a slope on the critic's depth at or below 0 beside a deep actor.",
        trials=_actor_and_critic,
        seeds=(3, 3),
    ),
    Study(
        name="batch",
        source=FIGURE.format("7"),
        question="do deep networks make use of larger batches?",
        claim="At equal gradient steps a larger batch helps, and deep networks more than shallow ones.",
        refuted="a slope on log2 of the batch at depth 32 that is no greater than at depth 4.",
        trials=_batch,
        along="batch_size",
        seeds=(3, 3),
    ),
    Study(
        name="norm-and-activation",
        source=FIGURE.format("16"),
        question="does depth need LayerNorm and Swish?",
        claim="Success grows with depth with both of them, and not without either.",
        refuted="a slope without LayerNorm, or with ReLU, that is no less than the published network's.",
        trials=_norm_and_activation,
        seeds=(3, 3),
    ),
    Study(
        name="metric-energy",
        source=FIGURE.format("15"),
        question="does depth help CMD-1, whose energy is a quasimetric?",
        claim="Success grows with depth with the metric residual network as energy and the backward loss too.",
        refuted="a slope on log2 depth whose interval lies at or below 0.",
        trials=_metric_energy,
        seeds=(3, 3),
        also=("time_at_goal",),
    ),
    Study(
        name="engines",
        source=FIGURE.format("20"),
        question="is the effect of depth one of a physics version?",
        claim="Success grows with depth under either engine.",
        refuted="a slope of another sign under one of them.",
        trials=_engines,
        seeds=(3, 3),
    ),
)
