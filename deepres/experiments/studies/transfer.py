"""What is learned from whose data, and how far it carries: collectors and learners, objectives, stitching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.experiments.differences import by_seed, paired
from deepres.experiments.presets import paper
from deepres.experiments.studies.depth import CPU
from deepres.experiments.study import Numbers, Size, Study, Trial, grid, trained

# --- objectives, from one ring and online ---


@dataclass(frozen=True)
class Objective:
    """An algorithm with the options that make it the objective of that name."""

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: Config, **changes: Any) -> Config:
        """Everything but the algorithm's own options as in `base`."""
        groups = {"env": base.env, "network": base.network, "schedule": base.schedule, "system": base.system}
        return Config(self.algorithm, **groups, **self.options).replace(**changes)


HER = {"hindsight": 0.8}
QRL: dict[str, Any] = {"extraction": "awr", "bc_alpha": 3.0, "critic_lr": 1e-3, "feature_dim": 64}
"""Its distances and their multiplier grow by steps of Adam, so slowly at the published 3e-4 that few would be left."""
OBJECTIVES: dict[str, Objective] = {
    "CRL": Objective("crl"),
    "CRL, binary": Objective("crl", {"form": "binary", "logsumexp_penalty": 0.0}),
    "CRL, chunks of 3": Objective("crl", {"horizon": 3}),
    "SAC + HER": Objective("sac", HER),
    "TD3 + HER": Objective("td3", {**HER, "actor_head_scale": 0.01}),
    "MSE-TD + HER": Objective("sac", {**HER, "entropy_in_target": False}),
    "HL-Gauss + HER": Objective("hl_gauss", HER),
    "C-learning": Objective("c_learning"),
    "TD-InfoNCE": Objective("td_infonce", {"actor_lr": 3e-4}),
    "QRL": Objective("qrl", QRL),
    "SRL": Objective("srl"),
    "ChronoSRL": Objective("chrono"),
    "GCBC": Objective("gcbc"),
}
"""Every objective that can learn from another's ring; a step size is 3e-4 where nothing is said.

TD3 starts with a small head, or its actions stay at their bounds; the mean square is that of values in the units of
rewards, as in values of [0, 1] a deep critic's start is as large as what it is to learn; QRL is extracted by AWR.
"""
EXPLORING = (
    "CRL", "CRL, binary", "CRL, chunks of 3", "SRL", "ChronoSRL", "MSE-TD + HER", "HL-Gauss + HER", "C-learning",
)  # fmt: skip
"""Those that two CPU cores train online too: contrastive, survival and categorical ones, and the mean square beside."""


FROZEN_STEPS = 8_000
"""Gradient steps of every objective from one ring, by two CPU cores: CRL with 4 layers solves the maze after 6,000."""


def _objective(name: str, base: Config, size: Size, **changes: Any) -> Config:
    """At size "cpu" slow copies follow at 0.02: at 0.005 they would have gone a third of their way in 8,000 steps."""
    config = OBJECTIVES[name].config(base, **changes)
    return config.replace(tau=0.02) if size == "cpu" and hasattr(config.algorithm, "tau") else config


def _frozen(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        base, depths, steps = CPU.replace(env="point_u_maze"), [4, 16], FROZEN_STEPS
    else:
        base, depths, steps = paper("ant_u4_maze"), [4, 16, 64], 20_000
    collected = base.env.num_envs * 5000
    rounds = steps // base.schedule.gradient_steps
    often = {"total_steps": steps, "eval_every": max(1, rounds // 16), "checkpoint_every": 25}
    if size == "cpu":
        often["eval_envs"] = 64  # one start, six goals
    trials = []
    for seed in seeds:
        collector = Trial(
            {"objective": "the collector", "depth": 16, "seed": seed},
            base.replace(depth=16, actor_depth=None, seed=seed, record="all", total_steps=2 * collected),
        )
        trials.append(collector)
        for name in OBJECTIVES:
            for trial in grid(_objective(name, base, size, **often), {"depth": depths}, [seed]):
                trials.append(Trial({"objective": name, **trial.labels}, trial.config, after=collector.name))
    return trials


def _online(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else paper("ant_u4_maze")
    names, depths = (EXPLORING, [4, 16]) if size == "cpu" else (OBJECTIVES, [4, 16, 64])
    return [
        Trial({"objective": name, **trial.labels}, trial.config)
        for seed in seeds
        for name in names
        for trial in grid(_objective(name, base, size), {"depth": depths}, [seed])
    ]


def learned(trial: Trial, folder: Path) -> Numbers:
    """Train the trial, from the ring of the run that it comes after if there is one."""
    if trial.after is None:
        return trained(trial, folder)
    config = trial.config.replace(data=str(folder.with_name(trial.after)))
    return trained(Trial(trial.labels, config), folder)


# --- who collects, who learns ---


def _collectors(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base, learned_for = (CPU, 10_000) if size == "cpu" else (paper("ant_big_maze"), 20_000)
    steps, deep = base.schedule.total_steps, 32
    trials = []
    for seed in seeds:
        for collects in (4, deep):
            collector = Trial(
                {"collector": collects, "learner": "itself", "seed": seed},
                base.replace(
                    depth=collects,
                    actor_depth=None,
                    seed=seed,
                    buffer_steps=-(-steps // base.env.num_envs) + 100,
                ),
            )
            trials.append(collector)
            rounds = base.replace(total_steps=learned_for, eval_every=learned_for // 800, checkpoint_every=25)
            for learns in (4, deep):
                labels = {"collector": collects, "learner": learns, "seed": seed}
                config = rounds.replace(depth=learns, actor_depth=None, seed=seed)
                trials.append(Trial(labels, config, after=collector.name))
    return trials


def ahead(rows: Sequence[dict[str, Any]]) -> str:
    """What the deepest learner's success is above the shallowest one's, from each collector's data: both have the same
    batches, so seeds are compared one by one."""
    learns = [int(row["learner"]) for row in rows if row["learner"] != "itself"]
    shallow, deep = (min(learns), max(learns)) if learns else (0, 0)
    collects = list(dict.fromkeys(row["collector"] for row in rows)) if shallow < deep else []
    of = {
        depth: [by_seed(rows, "success", collector=one, learner=depth) for one in collects]
        for depth in (shallow, deep)
    }
    found = zip(collects, map(paired, of[deep], of[shallow]), strict=True)
    told = [
        f"{less.text('{:+.3f}')} from the data of the collector with {one}" for one, less in found if less
    ]
    if not told:
        return "No two learners of the same data in two seeds yet."
    return f"Success with {deep} layers less that with {shallow}, seed by seed: {'; '.join(told)}."


# --- stitching ---

FARTHER = (4, 5, 6)


def _stitching(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        base = CPU.replace(env="point_u_maze_gen_1f2f3f")
    else:
        base = paper("ant_u4_maze").replace(env="ant_u_maze_gen_1f2f3f", eval_env=None)
    return grid(base, {"depth": [4, 16, 64]}, seeds)


def stitched(trial: Trial, folder: Path) -> Numbers:
    """Train on pairs at most three cells apart; success_4, _5, _6: the trained policy's on pairs so many cells apart,
    and success_far, their mean."""
    from deepres.policy import Policy

    numbers = trained(trial, folder)
    if numbers["diverged"]:
        return numbers | {f"success_{cells}": 0.0 for cells in (*FARTHER, "far")}
    for cells in FARTHER:
        far = trial.config.env.name.replace("gen_1f2f3f", f"gen_{cells}f")
        numbers[f"success_{cells}"] = (
            Policy.load(folder, eval_env=far, eval_envs=256).evaluate()[0].success_any
        )
    return numbers | {"success_far": sum(numbers[f"success_{cells}"] for cells in FARTHER) / len(FARTHER)}


STUDIES = (
    Study(
        name="frozen-buffer",
        source="arXiv 2503.14858, section 6 (is depth special to contrastive losses?)",
        question="which objectives learn better with depth from the same data?",
        claim="From one ring only the contrastive objectives gain with depth.",
        refuted="another objective whose slope lies above 0 with its interval.",
        trials=_frozen,
        run=learned,
        metric="time_at_goal",
        form="{:.1f}",
        seeds=(3, 3),
        also=("success", "success_area", "seconds"),
    ),
    Study(
        name="objectives",
        source="arXiv 2503.14858, figures 12 and 13",
        question="which objectives get better with depth when they explore for themselves?",
        claim="Only the contrastive objectives gain with depth; those by temporal differences do not.",
        refuted="another objective whose slope lies above 0 with its interval.",
        trials=_online,
        seeds=(3, 5),
        curves=True,
        also=("time_at_goal", "seconds"),
    ),
    Study(
        name="collector",
        source="arXiv 2503.14858, figure 8",
        question="does depth explore better, or learn better?",
        claim="Both: on a deep collector's data a deep learner is ahead, on a shallow one's neither learns.",
        refuted="equal scores of both learners on the deep collector's data.",
        trials=_collectors,
        run=learned,
        along="learner",
        seeds=(3, 3),
        slopes=False,
        says=ahead,
    ),
    Study(
        name="stitching",
        source="arXiv 2503.14858, figure 11",
        question="does depth reach goals farther than any that it was trained on?",
        claim="Success on pairs 4 to 6 cells apart grows with depth after training on pairs of at most 3.",
        refuted="a slope of that success on log2 depth at or below 0.",
        trials=_stitching,
        run=stitched,
        metric="success_far",
        seeds=(3, 5),
        also=tuple(f"success_{cells}" for cells in FARTHER),
    ),
)
