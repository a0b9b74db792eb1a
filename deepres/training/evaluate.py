"""Evaluation: one episode in each of many environments with the deterministic policy (the Gaussian's mean, squashed or
clipped as its kind does), its chunks open loop as in training.

An environment's figures cover its first episode, up to and including the step that ends it (paper, section 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.acting import ActorPolicy
from deepres.data.chunks import Player, seen_by
from deepres.data.environments import Environments, require_environments
from deepres.training.stability import TrainingError

EVAL_SEED = 1_000_003  # added to a run's seed, so that no training episode is an evaluation's
_LOOK_EVERY = 32  # steps: to see whether anybody is still at it waits for the device


class NotFiniteError(TrainingError):
    """A policy, or every environment, returned values that are not finite: there is nothing to score."""


class Abandoned(Exception):
    """An evaluation that was told to stop."""


@dataclass(frozen=True)
class Evaluation:
    """Means over the environments whose episode was finite from start to end."""

    time_at_goal: float
    """Steps of the episode within the task's threshold of the goal."""
    success_any: float
    """Share of environments with at least one such step."""
    final_distance: float
    """Distance to the goal at the episode's last step, in the task's unit (metres)."""
    episode_length: float
    """Steps until the episode ended."""
    success_easy: float | None = None
    """Share of environments with a step within the task's published easier threshold; None where there is none."""
    success_hard: float | None = None
    """The same of the harder one."""
    broken_envs: int = 0
    """Environments that returned a value that is not finite; they are in no mean."""

    def as_dict(self) -> dict[str, float]:
        """The figures by name, without those that the task does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Paths:
    """What the environments did, for pictures."""

    achieved: Tensor
    """[T, N, G] goal coordinates before each step, NaN once an environment's episode has ended."""
    goal: Tensor
    """[N, G] the goals that were asked for."""
    reached: Tensor
    """[N] bool, whether the goal was ever reached."""


def evaluate(
    env: Environments,
    policy: ActorPolicy,
    *,
    seed: int,
    watch: Callable[[Any], None] | None = None,
    abandon: Callable[[], bool] = lambda: False,
) -> tuple[Evaluation, Paths]:
    """Run every environment's first episode; the same seed gives the same starts and goals.

    env: its num_envs episodes are averaged. watch: called with the environments' own state (`Step.raw`) at the start
    and after every step (a camera, say). abandon: asked before every step whether to raise Abandoned.
    Raises NotFiniteError, in one sentence, for a policy whose actions are not finite where its observations are, and
    where every environment broke; a RuntimeWarning tells of some that did.
    """
    require_environments(env)
    device, player = policy.device, Player(policy)
    step = env.reset(seed)
    if watch:
        watch(step.raw)
    obs = step.obs
    goal = obs[:, env.state_dim :].clone()
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=device)
    finite = obs.isfinite().all(dim=1)
    sane = torch.ones(
        (), dtype=torch.bool, device=device
    )  # the policy: finite actions for finite observations
    time_at_goal, length, final_distance = torch.zeros(3, env.num_envs, device=device)
    graded = {level: torch.zeros_like(alive) for level in env.graded}
    achieved = []
    for t in range(env.episode_length):
        here = obs[:, : env.state_dim][:, env.goal_slice]
        achieved.append(torch.where(alive[:, None], here, torch.nan))
        if abandon():
            raise Abandoned
        action = player.act(seen_by(policy, env, step), step.traj_id)
        sane = sane & (action.isfinite().all(dim=1) | ~finite | ~alive).all()
        step = env.step(step, action)
        if watch:
            watch(step.raw)
        obs = step.obs
        finite = finite & (~alive | step.terminal_obs.isfinite().all(dim=1) & step.distance.isfinite())
        time_at_goal += torch.where(alive, step.success, 0.0)
        final_distance = torch.where(alive, step.distance, final_distance)
        for level, there in env.within(step).items():
            graded[level] |= alive & there
        length += alive
        alive = alive & ~step.done
        if (watch or t % _LOOK_EVERY == 0) and (not sane or not alive.any()):
            break
    if not sane:
        raise NotFiniteError(
            "the policy's actions are not finite, so there is nothing to score; go on from an earlier checkpoint, with "
            "smaller learning rates"
        )
    broken = env.num_envs - int(finite.sum())
    _tell_broken(broken, env.num_envs)
    achieved = achieved[: int(length.max())]
    reached = time_at_goal > 0
    figures = Evaluation(
        time_at_goal=time_at_goal[finite].mean().item(),
        success_any=reached[finite].float().mean().item(),
        final_distance=final_distance[finite].mean().item(),
        episode_length=length[finite].mean().item(),
        **{f"success_{level}": seen[finite].float().mean().item() for level, seen in graded.items()},
        broken_envs=broken,
    )
    return figures, Paths(torch.stack(achieved), goal, reached)


def _tell_broken(broken: int, num_envs: int) -> None:
    if broken == num_envs:
        raise NotFiniteError(
            f"all {num_envs} environments returned values that are not finite, so there is nothing to score: the "
            "physics diverged; see the task's time step and forces, or evaluate an earlier checkpoint"
        )
    if broken:
        warnings.warn(
            f"{broken} of {num_envs} environments returned values that are not finite in this evaluation; its means "
            "are those of the others",
            RuntimeWarning,
            stacklevel=3,
        )
