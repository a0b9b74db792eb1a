"""Students of a trained policy: a run of `distill` that starts with its teacher's weights and what the teacher did.

    run = open_student("runs/ant-crl-d64-s0", 8)                  # in memory: run.round() until run.done
    distill("runs/ant-crl-d64-s0", 8, "runs/ant-d8")              # in a folder, trained to its end

A student has its teacher's task and kind of network; only depth and width differ. Where the widths agree its actor
begins as every so manieth block of the teacher's (depths 64 and 8: every eighth, the last one among them), with the
teacher's stem and heads; else as any network does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.acting import GaussianPolicy
from deepres.algorithms.distill import Distill, DistillOptions, energy_options
from deepres.config import Config, Schedule
from deepres.machine import plain_torch
from deepres.options import flags
from deepres.policy import Policy
from deepres.runs import checkpoint as checkpoints
from deepres.runs.folder import RunFolder, new_folder, write_whole
from deepres.training.loop import Result, save, train
from deepres.training.run import Run

STEPS = 20_000
"""Gradient steps of a distillation (20 to 50 thousand)."""
ENVS, UNROLL, ROUND, BATCH = 64, 50, 100, 512
TEACHERS_SHARE = 0.4
"""Of the steps that the student takes, those that the ring starts with. The student's share of the ring grows to 0.71
and is a half on average over the run."""

STUDENTS_OWN = {"width", "init", "actor_head_scale"}
"""Options of a network that a student may have of its own: its size and how it starts."""

_STACK = "trunk.stack."


def student_config(teacher: Policy, source: str | None, depth: int, **changes: Any) -> Config:
    """The config of a student of `depth` layers.

    source: where the teacher was read from. changes: other options by their flat names (width, seed, num_envs),
    `steps`, gradient steps in all, over which the step size falls, and `energy_share` (DistillOptions). Raises
    ValueError in one sentence for a policy that has no Gaussian, another task, or a network that cannot be.
    """
    config = teacher.config
    if type(teacher.network) is not GaussianPolicy:
        raise ValueError(
            f"a teacher's actions must be tanh of a Gaussian of state and goal, got a {type(teacher.network).__name__} "
            f"of {config.algorithm_name}; pass a run of crl or sac, say"
        )
    for name in ("env", "env_options", "goal_sampler"):
        known = config.get(name)
        if name in changes and config.replace(**{name: changes[name]}).get(name) != known:
            raise ValueError(
                f"a student learns its teacher's task, {name}={known}, got {name}={changes[name]}; leave {name} out"
            )
    for name in (changes.keys() & {"network", *flags(config.network)}) - STUDENTS_OWN:
        if name == "network" or changes[name] != config.get(name):
            raise ValueError(
                f"a student is a network of its teacher's kind, of its own depth and width alone, got "
                f"{name}={changes[name]}; leave {name} out"
            )
    steps = changes.pop("steps", STEPS)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
    network, num_envs = config.network, changes.pop("num_envs", ENVS)
    share = changes.pop("energy_share", 0.0)
    if share and (source is None or not Path(source).is_dir()):
        raise ValueError(
            f"energy_share={share} asks the teacher's whole run, got a policy; pass the run's folder"
        )
    judged = energy_options(config.algorithm, network.depth) if share else {}
    unroll, each = changes.pop("unroll_length", UNROLL), changes.pop("gradient_steps", min(ROUND, steps))
    if steps % each:
        more = steps - steps % each + each
        raise ValueError(
            f"gradient steps must be a multiple of {each}, those of a round, got {steps}; take "
            f"{f'{more - each} or ' if steps > each else ''}{more}"
        )
    taken = unroll * (steps // each)
    watched = max(config.env.episode_length, round(TEACHERS_SHARE * taken))
    schedule = Schedule(
        total_steps=num_envs * taken, unroll_length=unroll, gradient_steps=each, batch_size=BATCH,
        buffer_steps=watched + taken, min_buffer_steps=watched, eval_envs=config.schedule.eval_envs,
        checkpoint_every=config.schedule.checkpoint_every, keep_checkpoints=config.schedule.keep_checkpoints,
        seed=config.schedule.seed,
    )  # fmt: skip
    own = DistillOptions(
        teacher=source,
        teacher_depth=network.actor_depth or network.depth,
        teacher_width=network.width,
        horizon=teacher.network.horizon,
        decay_steps=steps,
        energy_share=share,
        **judged,
    )
    begun = Config(
        own,
        env=replace(config.env, num_envs=num_envs),
        network=replace(network, depth=depth, actor_depth=None),
        schedule=schedule,
        system=config.system,
    )
    return begun.replace(**changes)


@plain_torch()
def open_student(
    teacher: str | Path | Policy, depth: int, *, start: Mapping[str, Tensor] | None = None, **changes: Any
) -> Run:
    """A student in memory, ready for its first round: its ring holds what the teacher did in the student's environments
    (exploring, as in training), 0.4 times as many steps as the student will take and at least an episode.

    teacher: a run's folder, a file of Policy.save, or a policy. depth: layers. start: the student's first weights, by
    the names of its actor's parameters: {"trunk.stack.weight": [depth, W, W], "trunk.stem.weight": ..., "mean.bias":
    ...}, e.g. `dict(policy.network.actor.named_parameters())` of a pruned one. changes: see `student_config`.
    Raises what Policy.load raises, and ValueError in one sentence.
    """
    return _opened(*_asked(teacher, depth, changes), start)


def _asked(teacher: str | Path | Policy, depth: int, changes: dict[str, Any]) -> tuple[Policy, Config]:
    if isinstance(teacher, Policy):
        return teacher, student_config(teacher, None, depth, **changes)
    where = {"device": changes["device"]} if "device" in changes else {}
    policy = Policy.load(teacher, **where)
    return policy, student_config(policy, str(teacher), depth, **changes)


def _opened(teacher: Policy, config: Config, start: Mapping[str, Tensor] | None) -> Run:
    run, shape, own = Run(config), teacher.config.network, config.network
    known = dict(teacher.network.actor.named_parameters())
    algorithm = run.learner.algorithm
    assert isinstance(algorithm, Distill) and isinstance(config.algorithm, DistillOptions)
    for name, theirs in algorithm.copied.items():
        _fill(run, f"{name}.", known if name == "teacher" else _of_run(config.algorithm.teacher, theirs))
    if start is None:
        alike = (shape.width, shape.skip_every) == (own.width, own.skip_every)
        start = evenly(known, own.depth, own.skip_every) if alike else {}
    if start:
        _fill(run, "actor.", start)
    run.watch(teacher.network, config.schedule.min_buffer_steps)
    return run


def _of_run(folder: str | None, network: str) -> dict[str, Tensor]:
    """The parameters of a network of the run in `folder`, at its newest checkpoint that reads."""
    prefix = f"parameters/{network}."
    found = checkpoints.find_shared(
        RunFolder(Path(folder or "")).checkpoints, lambda name: name.startswith(prefix)
    )
    return {name.removeprefix(prefix): tensor for name, tensor in found.tensors.items()}


@plain_torch()
def distill(
    teacher: str | Path | Policy,
    depth: int,
    out: str | Path | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    progress: bool = True,
    **changes: Any,
) -> Result:
    """Train a student in the new folder `out`, by default one under runs/; it is a run as any other.

    Interrupted, it goes on with train(config, out, resume=True). See `open_student` for the arguments. Raises
    FileExistsError besides if something is in `out`.
    """
    policy, config = _asked(teacher, depth, changes)
    target = new_folder(config) if out is None else RunFolder(Path(out))
    lock = target.take(resume=False)
    try:
        run = _opened(policy, config, start)
        save(run, target)
        write_whole(target.config, config.to_json())  # makes it a run, and comes last
    finally:
        lock.give_back()
    del run  # the one that learns is read from the folder, as after an interruption
    return train(config, target.path, resume=True, progress=progress)


def evenly(known: Mapping[str, Tensor], depth: int, skip_every: int) -> dict[str, Tensor]:
    """The actor's parameters `known` with `depth` layers of the stack: every so manieth block, the last one among
    them. {} where `known` has no such blocks, or fewer."""
    layers = len(known.get(_STACK + "weight", ()))
    have, want = layers // max(1, skip_every), depth // max(1, skip_every)
    if not skip_every or depth < skip_every or layers < skip_every or want > have:
        return {}
    blocks = [(i + 1) * have // want - 1 for i in range(want)]
    kept = torch.tensor([b * skip_every + layer for b in blocks for layer in range(skip_every)])
    return {name: t[kept.to(t.device)] if name.startswith(_STACK) else t for name, t in known.items()}


@torch.no_grad()
def _fill(run: Run, network: str, found: Mapping[str, Tensor]) -> None:
    named = run.learner.parameters().items()
    wanted = {name.removeprefix(network): p for name, p in named if name.startswith(network)}
    for name, p in wanted.items():
        came = found.get(name)
        if came is None or came.shape != p.shape:
            told = "nothing" if came is None else str(list(came.shape))
            raise ValueError(
                f"{network}{name} must have shape {list(p.shape)}, got {told}; pass every parameter of an actor of "
                "this depth and width"
            )
        p.copy_(came)
