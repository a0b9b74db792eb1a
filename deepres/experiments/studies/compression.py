"""What a shallow policy keeps of a deep one: pruned and healed, distilled, or learned at its own depth from scratch."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepres.compress.distill import ENVS, ROUND, UNROLL, distill
from deepres.compress.prune import prune, schedule
from deepres.config import Config
from deepres.experiments import budget
from deepres.experiments.presets import paper
from deepres.experiments.statistics import REPLICATES, Interval
from deepres.experiments.study import Numbers, Size, Study, Trial, trained
from deepres.networks import NetworkOptions
from deepres.policy import Policy
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from deepres.runs.folder import RunFolder, write_whole
from deepres.training.loop import train

EPISODES = 512
OWN_STATES = 64
"""Environments in which the error on a student's own states is measured, for an episode each."""
SEED = 77
TEACHER, DISTILLED, PRUNED, SCRATCH = "the teacher", "distilled", "pruned", "from scratch"
ENOUGH = 0.95
TEACHERS_DEPTH = 64
CPU = Config(
    "crl", env="point_u_maze", depth=TEACHERS_DEPTH, width=64, init="scaled", batch_size=256, num_envs=128,
    unroll_length=50, gradient_steps=100, buffer_steps=5000, min_buffer_steps=300, actor_lr=1e-3, critic_lr=1e-3,
    alpha_lr=1e-3, target_entropy_per_action=0.0, gamma=0.995, total_steps=640_000, eval_envs=128, eval_every=25,
    checkpoint_every=25, keep_checkpoints=1, threads=1, device="cpu",
)  # fmt: skip
"""The teacher of size "cpu": the demo's options at 64 layers, for a third of its steps."""
EFFORT: dict[str, dict[str, Any]] = {CPU.env.name: {"steps": 10_000, "batch_size": 256}}
"""Options of a distillation, by task; elsewhere 50,000 steps of 512 rows."""
HEAL = 1000
"""Gradient steps of 512 rows after each round of pruning; a round takes an eighth of the blocks."""


def _compression(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = CPU if size == "cpu" else paper("ant_u4_maze").replace(depth=TEACHERS_DEPTH)
    trials = []
    for seed in seeds:
        config = base.replace(seed=seed)
        teacher = Trial({"method": TEACHER, "depth": TEACHERS_DEPTH, "seed": seed}, config)
        trials.append(teacher)
        for method in (DISTILLED, PRUNED, SCRATCH):
            for depth in (32, 16, 8, 4):
                labels = {"method": method, "depth": depth, "seed": seed}
                trials.append(Trial(labels, config.replace(depth=depth), after=teacher.name))
    return trials


def compressed(trial: Trial, folder: Path) -> Numbers:
    """Make the trial's policy; its figures over 512 episodes, beside the teacher's.

    success, time_at_goal: without noise, on the same starts and goals as the teacher. both: share of the episodes in
    which both reached the goal. retained: success over the teacher's. action_rmse: root of the mean squared difference
    to the teacher's actions, on the states that the policy itself comes to, both without noise. megabytes: of the
    policy in float32. seconds, gradient_steps, env_steps: what was spent on it alone, its teacher's not counted.
    """
    spent = _made(trial, folder)
    if spent.get("diverged"):  # a teacher's has nothing to be compared with
        above = [] if trial.after is None else _reached(folder.with_name(trial.after))
        none = dict.fromkeys(("success", "both", "retained", "time_at_goal"), 0.0)
        return none | {"teacher_success": sum(above) / EPISODES} | spent
    policy = Policy.load(folder, eval_envs=EPISODES)
    figures, paths = policy.evaluate(SEED)
    reached, error = paths.reached.tolist(), 0.0
    if trial.after is None:
        write_whole(_episodes(folder), json.dumps(reached) + "\n")
        above = reached
    else:
        teacher = folder.with_name(trial.after)
        above = _reached(teacher)
        error = action_rmse(policy, Policy.load(teacher))
    return {
        "success": sum(reached) / EPISODES,
        "teacher_success": sum(above) / EPISODES,
        "both": sum(a and b for a, b in zip(reached, above, strict=True)) / EPISODES,
        "retained": sum(reached) / sum(above) if any(above) else math.nan,
        "time_at_goal": figures.time_at_goal,
        "action_rmse": error,
        "megabytes": 4 * sum(p.numel() for p in policy.network.actor.parameters()) / 1e6,
        **spent,
    }


def _made(trial: Trial, folder: Path) -> Numbers:
    """Make the trial's policy in `folder`, going on with what is there; what was spent."""
    method, depth, seed = trial.labels.values()
    teacher = folder.parent / (trial.after or "")
    if method == PRUNED:
        return _pruned(folder, teacher, depth, seed)
    if method == DISTILLED:
        _student(folder, teacher, depth, seed)
    elif (numbers := trained(trial, folder))["diverged"]:
        return {name: numbers[name] for name in ("seconds", "gradient_steps", "env_steps", "diverged")}
    run = read_run(folder)
    last = run.rounds[-1]
    return {
        "seconds": last["seconds"],
        "gradient_steps": last["gradient_steps"],
        "env_steps": float(run.env_steps),
    }


def _episodes(folder: Path) -> Path:
    """Which of the teacher's episodes reached their goal."""
    return folder / "reached.json"


def _reached(teacher: Path) -> list[bool]:
    reached: list[bool] = json.loads(_episodes(teacher).read_text())
    return reached


def _student(folder: Path, teacher: Path, depth: int, seed: int) -> None:
    """Distil the teacher into `folder`, going on with what is there."""
    run = RunFolder(folder)
    if run.config.exists() and checkpoints.there_is_one(run.checkpoints):
        result = train(run.read_config(), folder, resume=True, progress=False)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        effort = _effort(RunFolder(teacher).read_config().env.name)
        result = distill(teacher, depth, folder, seed=seed, progress=False, **effort)
    if result.interrupted:
        raise KeyboardInterrupt


def _pruned(folder: Path, teacher: Path, depth: int, seed: int) -> Numbers:
    """Prune the teacher into `folder`, or go on with what is there; nobody knows the seconds then."""
    network = RunFolder(teacher).read_config().network
    began = time.perf_counter()
    if RunFolder(folder).config.exists():
        began = math.nan
    else:
        prune(teacher, depth, folder, heal=HEAL, seed=seed)
    steps = _healing(network, depth)
    return {
        "seconds": time.perf_counter() - began,
        "gradient_steps": float(steps),
        "env_steps": float(_acted(steps)),
    }


def _healing(teacher: NetworkOptions, depth: int) -> int:
    """Gradient steps after all rounds of pruning to `depth`."""
    return HEAL * len(schedule(teacher.depth // teacher.skip_every, depth // teacher.skip_every))


def _acted(steps: int) -> int:
    """Environment steps of a student or a pruned policy in so many gradient steps."""
    return steps * UNROLL * ENVS // ROUND


def takes(trial: Trial) -> tuple[int, int]:
    """Environment and gradient steps of a trial."""
    method, depth = trial.labels["method"], trial.labels["depth"]
    if method not in (DISTILLED, PRUNED):
        return budget.steps(trial.config)
    network = trial.config.replace(depth=TEACHERS_DEPTH).network
    steps = _healing(network, depth) if method == PRUNED else _effort(trial.config.env.name)["steps"]
    return _acted(steps), steps


def _effort(task: str) -> dict[str, Any]:
    return EFFORT.get(task, {"steps": 50_000})


def action_rmse(student: Policy, teacher: Policy) -> float:
    """See `compressed`."""
    env = student.environments(OWN_STATES)
    step, total = env.reset(SEED), 0.0
    for _ in range(env.episode_length):
        action = student.act(step.obs)
        total += float((action - teacher.act(step.obs)).square().mean())
        step = env.step(step, action)
    return math.sqrt(total / env.episode_length)


def retained(rows: Sequence[dict[str, Any]]) -> Interval:
    """The students' mean success over their teachers', and its 95% interval: seeds are drawn anew, and of each one 512
    episodes, in which student and teacher had the same start and goal."""
    success, above, both = (
        np.array([float(row[name]) for row in rows]) for name in ("success", "teacher_success", "both")
    )
    kinds = np.stack([both, success - both, above - both, 1 - success - above + both], axis=1).clip(min=0)
    draw = np.random.default_rng(0)
    seeds = draw.integers(len(rows), size=(REPLICATES, len(rows)))
    episodes = draw.multinomial(EPISODES, (kinds / kinds.sum(axis=1, keepdims=True))[seeds]).sum(axis=1)
    ours, theirs = episodes[:, 0] + episodes[:, 1], episodes[:, 0] + episodes[:, 2]
    low, high = np.quantile(ours / np.maximum(theirs, 1), [0.025, 0.975])
    return Interval(float(success.sum() / max(above.sum(), 1 / EPISODES)), float(low), float(high))


def reaches(rows: Sequence[dict[str, Any]]) -> str:
    """The depths of each method at which the lower end of `retained` is 0.95 or more."""
    told = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != TEACHER):
        depths = sorted({row["depth"] for row in rows if row["method"] == method}, reverse=True)
        found = {d: retained([r for r in rows if (r["method"], r["depth"]) == (method, d)]) for d in depths}
        kept = [depth for depth in depths if found[depth].low >= ENOUGH]
        shown = kept[-1] if kept else max(depths, key=lambda depth: found[depth].value)
        where = f"depth {', '.join(map(str, kept))} (at" if kept else "no depth (most at"
        told.append(f"{method} at {where} {shown}: {found[shown].text('{:.3f}')})")
    seeds = len({row["seed"] for row in rows})
    return (
        "95% is kept where the lower end of the interval of retained success is 0.95 or more; seeds: "
        f"{seeds}, episodes of each: {EPISODES}, of which those with one goal mostly end alike, so that the interval "
        f"holds for the maze's few goals. It is kept {'; '.join(told)}."
    )


STUDIES = (
    Study(
        name="compression",
        source="ours; the second open question of arXiv 2503.14858, its section 5",
        question="which shallow policy keeps what a deep one can do?",
        claim="Distilled or pruned policies keep 95% of the teacher's success at a depth where learning from scratch "
        "does not.",
        refuted="a depth at which learning from scratch retains as much as both.",
        trials=_compression,
        run=compressed,
        takes=takes,
        metric="retained",
        seeds=(3, 3),
        slopes=False,
        also=("success", "time_at_goal", "action_rmse", "megabytes", "seconds", "env_steps"),
        interval=retained,
        says=reaches,
    ),
)
