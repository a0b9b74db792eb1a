"""Evaluation: one episode in each of many environments with the deterministic policy, tanh(mean),
its chunks open loop as in training.

An environment's figures cover its first episode, up to and including the step that ends it (paper, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.acting import ActorPolicy
from deepres.data.chunks import Player
from deepres.data.environments import Environments

EVAL_SEED = 1_000_003  # added to a run's seed, so that no training episode is an evaluation's
_LOOK_EVERY = 32  # steps: to see whether anybody is still at it waits for the device


@dataclass(frozen=True)
class Evaluation:
    """Means over the environments."""

    time_at_goal: float
    """Steps of the episode within the task's threshold of the goal."""
    success_any: float
    """Share of environments with at least one such step."""
    final_distance: float
    """Distance to the goal at the episode's last step, in the task's unit (metres)."""
    episode_length: float
    """Steps until the episode ended."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


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
    env: Environments, policy: ActorPolicy, *, seed: int, watch: Callable[[Any], None] | None = None
) -> tuple[Evaluation, Paths]:
    """Run every environment's first episode; the same seed gives the same starts and goals.

    env: its num_envs episodes are averaged. watch: called with the environments' own state (`Step.raw`) at the start
    and after every step (a camera, say).
    """
    device, player = policy.device, Player(policy)
    step = env.reset(seed)
    if watch:
        watch(step.raw)
    obs = step.obs
    goal = obs[:, env.state_dim :].clone()
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=device)
    time_at_goal = torch.zeros(env.num_envs, device=device)
    length = torch.zeros(env.num_envs, device=device)
    final_distance = torch.zeros(env.num_envs, device=device)
    achieved = []
    for t in range(env.episode_length):
        here = obs[:, : env.state_dim][:, env.goal_slice]
        achieved.append(torch.where(alive[:, None], here, torch.nan))
        step = env.step(step, player.act(obs, step.traj_id))
        if watch:
            watch(step.raw)
        obs = step.obs
        time_at_goal += torch.where(alive, step.success, 0.0)
        final_distance = torch.where(alive, step.distance, final_distance)
        length += alive
        alive = alive & ~step.done
        if (watch or t % _LOOK_EVERY == 0) and not alive.any():
            break
    achieved = achieved[: int(length.max())]
    reached = time_at_goal > 0
    figures = Evaluation(
        time_at_goal=time_at_goal.mean().item(),
        success_any=reached.float().mean().item(),
        final_distance=final_distance.mean().item(),
        episode_length=length.mean().item(),
    )
    return figures, Paths(torch.stack(achieved), goal, reached)
