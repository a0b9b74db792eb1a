"""What a study would take before it is run: trials, environment steps, gradient steps; of size "paper" also GPU hours.

The hours are a prediction, not a measurement: the paper's own, of one 80 GB GPU (arXiv 2503.14858, its wall-clock
tables, humanoid at width 256 and batch 512), between its depths on a straight line, by gradient steps; where width or
batch are greater, as width^2 times batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepres.config import Config
from deepres.experiments.presets import PRESETS
from deepres.experiments.study import Size, Study, Trial


@dataclass(frozen=True)
class Budget:
    """Of some trials together. hours: predicted, one GPU."""

    trials: int = 0
    env_steps: int = 0
    gradient_steps: int = 0
    hours: float = 0.0

    def __add__(self, other: Budget) -> Budget:
        return Budget(
            self.trials + other.trials,
            self.env_steps + other.env_steps,
            self.gradient_steps + other.gradient_steps,
            self.hours + other.hours,
        )


def steps(config: Config) -> tuple[int, int]:
    """Environment steps and gradient steps of a run of `config` to its end, as training/run.py takes its rounds."""
    schedule, envs = config.schedule, config.env.num_envs
    first = config.first_round
    unroll = envs * schedule.unroll_length
    rounds = 1 + max(0, math.ceil((schedule.total_steps - first) / unroll))
    return first + (rounds - 1) * unroll, rounds * schedule.gradient_steps


def budget(study: Study, trial: Trial) -> Budget:
    """Of one trial, as the study says, else as its config does: one that comes after another learns from what that one
    made and does not act."""
    if study.takes:
        acted, learned = study.takes(trial)
    else:
        acted, learned = (0, trial.config.schedule.total_steps) if trial.after else steps(trial.config)
    network, batch = trial.config.network, trial.config.schedule.batch_size
    more = max(1.0, (network.width / 256) ** 2 * batch / 512)
    return Budget(1, acted, learned, more * predicted_hours(network.depth, learned))


def predicted_hours(depth: int, gradient_steps: int) -> float:
    """The paper's hours for as many gradient steps at that depth, width 256 and batch 512. Beyond its deepest run the
    line goes on."""
    humanoid = {one.depth: one for one in PRESETS.values() if one.env == "humanoid" and one.hours}
    maze = {one.depth: one for one in PRESETS.values() if one.env == "humanoid_u_maze" and one.hours}
    known = {d: one.hours / steps(one.config)[1] for d, one in humanoid.items() if one.hours}
    shallow, deep = min(maze), max(maze)
    known[deep] = known[shallow] * (maze[deep].hours or 0.0) / (maze[shallow].hours or 1.0)
    points = sorted(known.items())
    depth = max(depth, points[0][0])
    for (low, at_low), (high, at_high) in pairwise(points):
        if depth <= high or high == points[-1][0]:
            return gradient_steps * (at_low + (at_high - at_low) * (depth - low) / (high - low))
    raise AssertionError("the paper has runs of several depths")


def print_budget(study: Study, size: Size, seeds: Sequence[int] = ()) -> Budget:
    """Print what the study compares and what it would take, by the depth of its networks; returns the sum."""
    from deepres.report.tables import console, table

    trials = study.trials(size, list(seeds) or list(range(study.many(size))))
    varied: dict[str, dict[str, None]] = {}
    by_depth: dict[int, Budget] = {}
    for trial in trials:
        for label, value in trial.labels.items():
            varied.setdefault(label, {})[str(value)] = None
        depth = trial.config.network.depth
        by_depth[depth] = by_depth.get(depth, Budget()) + budget(study, trial)
    whole = sum(by_depth.values(), Budget())
    rows = [(str(depth), *_cells(one, size)) for depth, one in sorted(by_depth.items())]
    columns = ("depth", "trials", "env steps", "gradient steps", *(["GPU hours"] if size == "paper" else []))
    console().print(f"{study.name}: {study.question}", highlight=False, soft_wrap=True)
    console().print(
        *(f"{label}: {'; '.join(values)}" for label, values in varied.items()), sep="\n", highlight=False
    )
    console().print(table(f"{study.name}, size {size}", columns, [*rows, ("all", *_cells(whole, size))]))
    if size == "paper":
        print(
            "GPU hours: predicted from the paper's own of one 80 GB GPU by gradient steps, and as width^2 times batch "
            "beyond 256 and 512; not measured here."
        )
    return whole


def _cells(one: Budget, size: Size) -> tuple[str, ...]:
    hours = (f"{one.hours:,.1f}",) if size == "paper" else ()
    return (str(one.trials), f"{one.env_steps:,}", f"{one.gradient_steps:,}", *hours)
