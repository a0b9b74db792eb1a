"""The paper's runs by name: `deepres train --preset humanoid-d64`.

Scores, environment steps and hours are the published ones (arXiv 2503.14858, table 1 and its wall-clock tables, one
80 GB GPU). Physics here is MuJoCo's, not the paper's: under random actions an ant lives 19 times and a humanoid 3.3
times shorter than there. So scores are not comparable one to one, and the effect of depth is the claim.

Methods that came after it have a word before the depth, `ant-u4-maze-ac-crl-d16`, on the same tasks and networks. Their
scores are those of one later comparison of several methods (arXiv 2609.36238: 100M steps, four seeds, its own physics
and evaluation); scores that were measured on other tasks of the same names are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from deepres.config import Config

ACTOR_DEPTH_LIMIT = 512
"""The paper keeps the actor here beside a 1024-layer critic: beyond, it saw the actor's loss explode."""


@dataclass(frozen=True)
class Preset:
    """One published run. time_at_goal: of 1000 steps; hours: wall clock; None where the paper's tables have none."""

    env: str
    depth: int
    env_steps: int
    time_at_goal: float | None
    hours: float | None
    method: str = "crl"

    @property
    def name(self) -> str:
        method = "" if self.method == "crl" else f"{self.method}-"
        return f"{self.env.replace('_', '-')}-{method}d{self.depth}"

    @property
    def config(self) -> Config:
        """Everything that a preset does not name is the published default already (see `Config`)."""
        algorithm, options = _METHODS[self.method]
        if algorithm in ("srl", "chrono") and self.env.startswith("humanoid"):
            options = {**options, "goal_sequence": 32, "batch_size": 1024}
        return Config(
            algorithm,
            env=self.env,
            eval_env=_EVALUATED_ON.get(self.env),
            parity=True,
            depth=self.depth,
            init="published",
            actor_depth=min(self.depth, ACTOR_DEPTH_LIMIT),
            total_steps=self.env_steps,
            auto_reset="first",
            **options,
        )


_EVALUATED_ON = {"ant_big_maze": "ant_big_maze_eval"}  # on the goals that are far from the start

# task: environment steps in millions, {depth: time at goal}, {depth: hours}
_PUBLISHED: dict[str, tuple[int, dict[int, float], dict[int, float]]] = {
    "arm_binpick_hard": (150, {4: 38, 64: 219}, {}),  # "100-150M"
    "arm_push_easy": (100, {4: 308, 64: 762}, {64: 19.52}),
    "arm_push_hard": (100, {4: 171, 64: 410}, {}),
    "ant_u4_maze": (100, {4: 11.4, 64: 286}, {}),
    "ant_u5_maze": (400, {4: 0.97, 64: 61}, {}),
    "ant_big_maze": (100, {4: 61, 64: 441}, {64: 11.66}),
    "ant_hardest_maze": (200, {4: 215, 64: 387}, {}),
    "humanoid": (100, {4: 12.6, 64: 649}, {4: 1.48, 8: 2.13, 16: 3.40, 32: 5.92, 64: 10.99}),
    "humanoid_u_maze": (400, {4: 3.2, 64: 159}, {64: 46.7, 1024: 134.15}),
    "humanoid_big_maze": (400, {4: 0.06, 64: 59}, {}),
}

_METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # word: algorithm, its options
    "crl": ("crl", {}),
    "ac-crl": ("crl", {"horizon": 3, "gradient_steps": 999}),  # every batch of a round's rows
    "safe-crl": ("crl", {"survival_rows": True, "survival_bonus": 1.0}),
    "cmd": ("crl", {"energy": "mrn", "form": "backward"}),
    "srl": ("srl", {}),
    "chrono": ("chrono", {}),
}

# method, task: {depth: time at goal after 100M steps}
_LATER: dict[tuple[str, str], dict[int, float | None]] = {
    ("ac-crl", "ant_u4_maze"): {16: None},
    ("ac-crl", "ant_big_maze"): {8: 689},
    ("ac-crl", "ant_hardest_maze"): {8: 450, 16: 536},
    ("ac-crl", "humanoid"): {8: 731, 16: 803, 32: 789, 64: 754},
    ("ac-crl", "humanoid_u_maze"): {16: 27},
    ("ac-crl", "humanoid_big_maze"): {16: 6, 32: 5, 64: 6},
    ("safe-crl", "ant_u4_maze"): {16: None},
    ("safe-crl", "ant_big_maze"): {16: None},
    ("safe-crl", "humanoid"): {16: None, 64: None},
    ("safe-crl", "humanoid_u_maze"): {64: None},
    ("cmd", "ant_u4_maze"): {4: None, 64: None},
    ("srl", "ant_u4_maze"): {8: 701, 16: 834, 32: 826, 64: 830},
    ("srl", "ant_u5_maze"): {8: 389, 16: 693, 32: 738, 64: 768},
    ("srl", "ant_big_maze"): {16: 789, 32: 800, 64: 799},
    ("srl", "ant_hardest_maze"): {8: 248, 16: 521, 32: 590, 64: 706},
    ("srl", "humanoid"): {8: 464, 16: 493, 32: 492, 64: 557},
    ("srl", "humanoid_u_maze"): {32: 35, 64: 37},
    ("srl", "humanoid_big_maze"): {8: 5},
    ("chrono", "ant_u4_maze"): {4: 861, 8: 837, 16: 858, 32: 847, 64: 843},
    ("chrono", "ant_u5_maze"): {1: 354, 2: 665, 4: 796, 8: 779, 16: 796, 32: 786, 64: 757},
    ("chrono", "ant_big_maze"): {4: 832, 8: 823, 16: 855, 32: 860, 64: 808},
    ("chrono", "ant_hardest_maze"): {1: 260, 2: 520, 4: 757, 8: 778, 16: 789, 32: 769, 64: 772},
    ("chrono", "humanoid"): {2: 60, 4: 769, 8: 823, 16: 830, 32: 843, 64: 804},
    ("chrono", "humanoid_u_maze"): {4: 20, 8: 35, 16: 76, 32: 77, 64: 187},
    ("chrono", "humanoid_big_maze"): {4: 9, 8: 20, 16: 18, 32: 21, 64: 25},
}

PRESETS: dict[str, Preset] = {
    one.name: one
    for env, (millions, scores, hours) in _PUBLISHED.items()
    for depth in sorted(scores.keys() | hours.keys())
    for one in [Preset(env, depth, millions * 1_000_000, scores.get(depth), hours.get(depth))]
} | {
    one.name: one
    for (method, env), later in _LATER.items()
    for depth, score in later.items()
    for one in [Preset(env, depth, 100_000_000, score, None, method)]
}


def names() -> list[str]:
    """The presets' names, in the order of the paper's table; later methods after it."""
    return list(PRESETS)


def preset(name: str) -> Config:
    """The configuration of a published run. Raises ValueError, naming the nearest ones, if there is none so called."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`deepres presets` lists them"
        raise ValueError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name].config


def print_presets() -> None:
    """Print the presets with the published score and hours."""
    from deepres.report.tables import console, table

    columns = ("preset", "critic", "actor", "env steps", "time at goal (published)", "hours")
    rows = []
    for name, one in PRESETS.items():
        config = one.config
        score = "" if one.time_at_goal is None else f"{one.time_at_goal:g}"
        hours = "" if one.hours is None else f"{one.hours:g}"
        millions = f"{config.schedule.total_steps // 1_000_000}M"
        rows.append(
            (name, str(config.network.depth), str(config.network.actor_depth), millions, score, hours)
        )
    console().print(table("presets: deepres train --preset NAME", columns, rows))


def paper(env: str) -> Config:
    """The published run on `env`, at any of its depths. Raises ValueError if the paper has none."""
    found = [one.config for one in PRESETS.values() if one.env == env]
    if not found:
        raise ValueError(f"the paper has no run on {env!r}; `deepres presets` lists what it has")
    return found[0]
