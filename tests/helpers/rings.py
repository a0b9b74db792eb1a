"""Rings filled by hand: every number in them tells which environment, step and trajectory it is of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepres import Batch, Sizes
from deepres.data.batch import COLUMNS, Unroll
from deepres.data.relabel import FutureGoals, Sampler
from deepres.data.replay import ReplayBuffer

GAMMA = 0.9
SIZES = Sizes(state=3, action=1, goal=3)


def trajectory(env: Tensor, t: Tensor, episode: int = 20) -> Tensor:
    """The trajectory that step `t` of `env` belongs to: environments reset at different times, one far less often."""
    return (t + 7 * env) // torch.tensor([episode, episode // 2, 10 * episode])[env] + 1


def filled(
    num_envs: int = 3,
    capacity: int = 50,
    steps: int = 50,
    episode: int = 20,
    goal_slice: slice = slice(0, 3),
    columns: Sequence[str] = (),
) -> ReplayBuffer:
    """A ring whose states spell (env, absolute step, trajectory), so that a row tells where it came from.

    An action is its step / 1000. The state that a step leads to is (env, step + 1, the step's own trajectory), also
    where the trajectory ends; the commanded goal is (env, 1000 + trajectory, -1), the success of a step whether it is a
    multiple of 3, its reward its step / 10. Trajectories of environment 1 end for good, the others at a time limit.
    """
    buffer = ReplayBuffer(num_envs, capacity, SIZES, goal_slice, columns, reached=reached)
    for first in range(0, steps, 10):
        count = min(10, steps - first)
        t = torch.arange(first, first + count)[:, None].expand(count, num_envs)
        env = torch.arange(num_envs)[None].expand(count, num_envs)
        ids = trajectory(env, t, episode)
        ended = trajectory(env, t + 1, episode) != ids
        every = {
            "goals": torch.stack([env, 1000 + ids, -torch.ones_like(t)], dim=-1).float(),
            "next_states": torch.stack([env, t + 1, ids], dim=-1).float(),
            "rewards": t / 10,
            "successes": t % 3 == 0,
            "terminals": ended & (env == 1),
            "truncations": ended & (env != 1),
        }
        assert every.keys() == COLUMNS.keys()
        states = torch.stack([env, t, ids], dim=-1).float()
        buffer.insert(Unroll(states, states[..., 1:2] / 1000, ids.int(), {c: every[c] for c in columns}, 0.0))
    return buffer


def reached(states: Tensor, goals: Tensor) -> Tensor:
    """The verdict of the ring's task: the state is the goal, or the step before it."""
    same_run = (states[:, 0] == goals[:, 0]) & (states[:, 2] == goals[:, 2])
    return same_run & (goals[:, 1] - states[:, 1] <= 1) & (goals[:, 1] >= states[:, 1])


def draw(
    buffer: ReplayBuffer,
    count: int,
    batch_size: int,
    window: int = 1000,
    seed: int = 0,
    sampler: Sampler | None = None,
) -> list[Batch]:
    """`count` batches; by default CRL's, with GAMMA."""
    generator = torch.Generator().manual_seed(seed)
    sampler = sampler or FutureGoals(GAMMA)
    return list(sampler.batches(buffer, count, batch_size, window=window, generator=generator))
