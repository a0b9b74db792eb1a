"""Offline methods side by side: data of long ways and of short ones, and what was published of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from deepres.experiments.make_data import Kind
from deepres.experiments.studies.offline import BASE, MADE, PAPER, TRANSITIONS, from_data, made, takes
from deepres.experiments.studies.transfer import QRL, Objective
from deepres.experiments.study import Numbers, Size, Study, Trial
from deepres.report.correlation import spearman

LENGTHS: dict[Kind, int] = {"navigate": 1000, "stitch": 200}
"""Transitions of an episode, as OGBench has them."""
PUBLISHED: dict[Kind, dict[str, tuple[int, int]]] = {
    "navigate": {
        "GCBC": (9, 29), "GCIVL": (63, 45), "GCIQL": (53, 34), "QRL": (82, 86), "CRL": (29, 39), "HIQL": (79, 58),
    },
    "stitch": {
        "GCBC": (23, 7), "GCIVL": (70, 12), "GCIQL": (21, 31), "QRL": (80, 84), "CRL": (0, 0), "HIQL": (74, 13),
    },
}  # fmt: skip
"""Success in percent in pointmaze-medium and -large, after a million steps of 1024 rows (arXiv 2410.20092). Its point
has no inertia, and is at its goal within 1 m of it; ours within 0.5 m."""
TASK = {"env": "point_u_maze", "eval_env": "point_u_maze_eval", "depth": 4, "actor_depth": None}
"""The goals of the evaluation are four to six cells away, those of short ways four at most. In point_big_maze no method
gets farther than some four cells in so few steps."""
CPU = BASE.replace(**TASK, batch_size=256, episode_length=500, total_steps=4000, eval_every=5)
AWR = {"extraction": "awr"}


def _methods(kind: Kind) -> dict[str, Objective]:
    """With the policy's goals as published for data of that kind (GCBC's are later ones in both). All clone by
    advantage, as published GCIVL and HIQL do: the slopes of GCIQL and QRL lead nowhere in so few steps."""
    anywhere = 0.5 if kind == "stitch" else 0.0
    goals = {"random_actor_goals": anywhere}
    return {
        "GCBC": Objective("gcbc", {"goals": "uniform"}),
        "GCIVL": Objective("gcivl", goals),
        "GCIQL": Objective("gciql", {**AWR, **goals, "bc_alpha": 10.0}),
        "QRL": Objective("qrl", {**QRL, "actor_goals": "random" if anywhere else "future"}),
        "CRL": Objective("crl", {**AWR, **goals, "bc_alpha": 3.0}),
        "HIQL": Objective("hiql", goals),
    }


def _trials(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else PAPER.replace(**TASK)
    files = {kind: Trial({"data": kind, "method": MADE, "seed": 0}, base) for kind in PUBLISHED}
    return list(files.values()) + [
        Trial(
            {"data": kind, "method": name, "seed": seed},
            one.config(base, seed=seed),
            after=files[kind].name,
        )
        for seed in seeds
        for kind in PUBLISHED
        for name, one in _methods(kind).items()
    ]


STEPS: dict[Size, tuple[int, int]] = {"cpu": (4_000, 20_000), "paper": (200_000, 1_000_000)}


def _longer(size: Size, seeds: Sequence[int]) -> list[Trial]:
    """Short ways alone, and two lengths of training; evaluations are as many in both."""
    base = CPU if size == "cpu" else PAPER.replace(**TASK)
    file = Trial({"data": "stitch", "method": MADE, "steps": 0, "seed": 0}, base)
    every = base.schedule.eval_every
    methods = {name: one for name, one in _methods("stitch").items() if name != "GCBC"}
    return [file] + [
        Trial(
            {"data": "stitch", "method": name, "steps": steps, "seed": seed},
            one.config(base, seed=seed, total_steps=steps, eval_every=every * steps // min(STEPS[size])),
            after=file.name,
        )
        for seed in seeds
        for steps in STEPS[size]
        for name, one in methods.items()
    ]


def learned(trial: Trial, folder: Path) -> Numbers:
    """Make the data, or learn from them. published_medium, published_large: success of that method in OGBench."""
    kind: Kind = trial.labels["data"]
    if trial.after is None:
        return made(folder, TRANSITIONS, kind, LENGTHS[kind], trial.config.env.name)
    numbers = from_data(trial, folder)
    medium, large = PUBLISHED[kind][trial.labels["method"]]
    return numbers | {"published_medium": medium / 100, "published_large": large / 100}


def ordered(rows: Sequence[dict[str, Any]]) -> str:
    """Rank correlation of the methods' mean success with what was published, for each kind of data."""
    told = []
    for kind in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == kind]
        names = list(dict.fromkeys(row["method"] for row in own))
        found = [fmean(row["success"] for row in own if row["method"] == name) for name in names]
        medium, large = (
            spearman(found, [PUBLISHED[kind][name][maze] for name in names]) for maze in range(2)
        )
        best = sorted(zip(names, found, strict=True), key=lambda one: -one[1])
        order = ", ".join(f"{name} {score:.2f}" for name, score in best)
        told.append(
            f"{kind}: {order}; rank correlation with pointmaze-medium {medium:.2f}, -large {large:.2f}"
        )
    return ". ".join(told) + "."


STUDIES = (
    Study(
        name="offline-methods",
        source="arXiv 2410.20092, tables of pointmaze-medium and -large",
        question="offline, are the methods in the order that was published?",
        claim="On data of long ways and of short ones the methods' order is about the published one.",
        refuted="a rank correlation with the published figures at or below 0.",
        trials=_trials,
        run=learned,
        along="method",
        seeds=(3, 3),
        slopes=False,
        also=("time_at_goal", "published_medium", "published_large", "seconds"),
        says=ordered,
        takes=takes,
    ),
    Study(
        name="offline-patience",
        source="arXiv 2410.20092, whose trainings are 250 times as long as those of size cpu",
        question="offline, are methods that back up values behind on short ways for want of steps?",
        claim="On data of short ways QRL, GCIQL, GCIVL and HIQL gain with training, and CRL does not.",
        refuted="a slope of theirs at or below 0, or one of CRL above it.",
        trials=_longer,
        run=learned,
        along="steps",
        seeds=(3, 3),
        also=("time_at_goal", "published_medium", "published_large", "seconds"),
        takes=takes,
    ),
)
