"""What wall contact does to exploration: the point's U maze under other contact parameters, acted in at random and
learned in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.experiments.differences import beside_the_first
from deepres.experiments.studies.depth import CPU
from deepres.experiments.study import Numbers, Size, Study, Trial, trained

CONTACTS: dict[str, dict[str, Any]] = {
    "as the task has it": {},
    "smooth walls": {"friction": 0.0},
    "friction 0.3": {"friction": 0.3},
    "springy": {"solref": (0.02, 0.5)},
    "overdamped": {"solref": (0.02, 2.0)},
    "softer": {"solref": (0.04, 1.0)},
    "hard impedance": {"solimp": (0.99, 0.999, 0.001, 0.5, 2.0)},
    "soft impedance": {"solimp": (0.5, 0.9, 0.05, 0.5, 2.0)},
    "timestep 2.5 ms": {"timestep": 0.0025},
    "solver to its end": {"iterations": 100},
}
LEARNED_IN = ("as the task has it", "smooth walls")
"""The task's own, and the one whose random actions get as much farther as was seen beside the published code."""


def _env(contact: str) -> str:
    return "point_u_maze_contact_" + contact.replace(" ", "_")


def _registered(contact: str) -> str:
    from deepres.envs import register

    register(_env(contact), "deepres.experiments.contact_maze:ContactMaze", **CONTACTS[contact])
    return _env(contact)


def _trials(contacts: Sequence[str], base: Config, seeds: Sequence[int]) -> list[Trial]:
    return [
        Trial({"contact": contact, "seed": seed}, base.replace(env=_env(contact), seed=seed))
        for seed in seeds
        for contact in contacts
    ]


def _random(size: Size, seeds: Sequence[int]) -> list[Trial]:
    return _trials(list(CONTACTS), CPU, seeds)


def _learning(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU.replace(depth=4 if size == "cpu" else 16, total_steps=1_000_000, batch_size=128)
    return _trials(LEARNED_IN if size == "cpu" else list(CONTACTS), base, seeds)


def wandered(trial: Trial, folder: Path) -> Numbers:
    """Random actions; see contact_maze.explored."""
    from deepres.experiments.contact_maze import explored

    return explored(_registered(trial.labels["contact"]), trial.labels["seed"])


def wanders(trial: Trial) -> tuple[int, int]:
    """Steps of that."""
    from deepres.experiments.contact_maze import ENVS, STEPS

    return ENVS * STEPS, 0


def learned(trial: Trial, folder: Path) -> Numbers:
    """Train among such walls."""
    _registered(trial.labels["contact"])
    return trained(trial, folder)


STUDIES = (
    Study(
        name="wall-contact",
        source="ours: trajectories beside the published code part at the first touch of a wall",
        question="what does wall contact do to exploration?",
        claim="How far random actions get depends on friction at the wall more than on how it gives way.",
        refuted="a change of stiffness, damping or time step that moves the share of cells as much as friction does.",
        trials=_random,
        run=wandered,
        takes=wanders,
        metric="cells",
        along="contact",
        slopes=False,
        says=partial(beside_the_first, metric="cells", along="contact"),
        also=("farthest", "random_success", "escaped", "rebound"),
    ),
    Study(
        name="wall-contact-learning",
        source="ours: trajectories beside the published code part at the first touch of a wall",
        question="does it change what contrastive RL has learned after a million steps?",
        claim="Among smooth walls, where random actions get farther, more goals are reached after a million steps.",
        refuted="no more success without friction at the walls than with it.",
        trials=_learning,
        run=learned,
        along="contact",
        slopes=False,
        says=partial(beside_the_first, metric="success", along="contact"),
        also=("time_at_goal", "success_area", "seconds"),
    ),
)
