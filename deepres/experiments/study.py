"""A study: an experiment as data. Which trials are run, what each measures, what is claimed, and what would refute it.

A trial is one row of its table: a seed of one setting. `Study.run` turns it into numbers, by default by training its
config to the end. See folder.py for the folder that a study leaves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from deepres.config import Config
from deepres.experiments.statistics import Interval
from deepres.runs.files import RunFiles, read_run
from deepres.runs.folder import RunFolder

Size = Literal["cpu", "paper"]
Numbers = dict[str, float]

_SHORT = {"depth": "d", "seed": "s"}
LAST = 5  # evaluations that a final score is the mean of (arXiv 2503.14858)


@dataclass(frozen=True)
class Trial:
    """labels: what tells the trial from the others, its seed among them. config: what it trains. after: the trial
    whose run it reads, if it needs one; that one is run first."""

    labels: dict[str, Any]
    config: Config
    after: str | None = None

    @property
    def name(self) -> str:
        words = (f"{_SHORT.get(name, name + '_')}{value}" for name, value in self.labels.items())
        return "-".join(words).replace("/", "_").replace(" ", "_")

    @property
    def words(self) -> tuple[str, ...]:
        """The labels' values as a CSV file has them."""
        return tuple("" if value is None else str(value) for value in self.labels.values())


def named(labels: Mapping[str, Any]) -> str:
    """Labels as they are read: "init scaled, depth 4"."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in labels.items())


def trained(trial: Trial, folder: Path) -> Numbers:
    """Train the trial's config in `folder` to its end, going on with what is there, and read its scores.

    A run that a neighbour has finished is taken (see neighbours.py). One that diverges for good scores 0 and says so.
    """
    from deepres.experiments.neighbours import complete, taken
    from deepres.training.loop import train
    from deepres.training.stability import Diverged

    if (neighbour := taken(trial.config, folder)) is not None:
        print(f"taken from {neighbour}, which has finished the same run", flush=True)
        return scores(read_run(folder)) | {"diverged": 0.0}
    resume, diverged = RunFolder(folder).config.exists(), 0.0
    if resume and complete(folder, trial.config):  # stopped before its row was written
        return scores(read_run(folder)) | {"diverged": 0.0}
    try:
        result = train(trial.config, folder, resume=resume, progress=False)
        if result.interrupted:
            raise KeyboardInterrupt
    except Diverged:
        diverged = 1.0
    found = scores(read_run(folder)) | {"diverged": diverged}
    reached = [name for name in ("success", "time_at_goal", "success_easy") if name in found]
    return found | (dict.fromkeys(reached, 0.0) if diverged else {})


def scores(run: RunFiles) -> Numbers:
    """A run's scores: final ones are means of its last five evaluations, never its best one.

    success, time_at_goal, final_distance; success_area: mean of all evaluations but the first, that of the untrained
    policy; steps_to_half: environment steps of the first evaluation that reaches half of the goals, NaN if none does;
    success_easy, within the easier radius, of tasks that have one.
    """
    rows = run.evaluations
    last = rows[1:][-LAST:] or rows
    half = [row["env_steps"] for row in rows if row["success_any"] >= 0.5]
    ended = run.rounds[-1] if run.rounds else {}
    easy = [row["success_easy"] for row in last if "success_easy" in row]
    return {
        "success": statistics.fmean(row["success_any"] for row in last),
        "time_at_goal": statistics.fmean(row["time_at_goal"] for row in last),
        "final_distance": statistics.fmean(row["final_distance"] for row in last),
        "success_area": statistics.fmean(row["success_any"] for row in rows[1:] or rows),
        "steps_to_half": half[0] if half else float("nan"),
        "env_steps": float(run.env_steps),
        "gradient_steps": ended.get("gradient_steps", 0.0),
        "skipped_steps": sum(row.get("skipped_steps", 0.0) for row in run.rounds),
        "seconds": ended.get("seconds", 0.0),
        **({"success_easy": statistics.fmean(easy)} if easy else {}),
    }


@dataclass(frozen=True)
class Study:
    """One experiment.

    source: where the claim stands. question, claim: a sentence each. refuted: the outcome that would refute the
    claim. trials: of a size, with so many seeds. run: what a trial measures. metric: the number that the claim is
    about. along: the label that the metric is drawn against. form: how the metric is printed. seeds: how many, by
    size. slopes: whether what came out is the slope of the metric on log2 of `along`, a number.
    """

    name: str
    source: str
    question: str
    claim: str
    refuted: str
    trials: Callable[[Size, Sequence[int]], list[Trial]]
    run: Callable[[Trial, Path], Numbers] = trained
    metric: str = "success"
    along: str = "depth"
    form: str = "{:.3f}"
    seeds: tuple[int, int] = (5, 5)
    slopes: bool = True
    also: tuple[str, ...] = ()
    """Other numbers whose means stand in the table."""
    interval: Callable[[Sequence[dict[str, Any]]], Interval] | None = None
    """Of the rows of one setting, the metric where it is not the mean over the seeds."""
    says: Callable[[Sequence[dict[str, Any]]], str] | None = None
    """Of all rows, what they say to the claim, where that is not a slope."""
    curves: bool = False
    """Whether its learning curves are kept and drawn, and slopes told at equal seconds too."""
    takes: Callable[[Trial], tuple[int, int]] | None = None
    """Environment steps and gradient steps of a trial, where it does not train its config (budget.py)."""

    def many(self, size: Size) -> int:
        """Seeds that it takes when none are given."""
        return self.seeds[0 if size == "cpu" else 1]


def grid(base: Config, values: dict[str, Sequence[Any]], seeds: Sequence[int]) -> list[Trial]:
    """A trial for every combination of the options' values and every seed; seeds come before settings, so that a
    study which is stopped early has few seeds of everything.

        grid(Config("crl", env="ant"), {"depth": [4, 16]}, range(3))

    Where the depth varies, the actor is as deep as the critic.
    """
    found = []
    for seed in seeds:
        for combination in product(*values.values()):
            varied = dict(zip(values, combination, strict=True))
            options = {**({"actor_depth": None} if "depth" in varied else {}), **varied, "seed": seed}
            found.append(Trial({**varied, "seed": seed}, base.replace(**options)))
    return found
