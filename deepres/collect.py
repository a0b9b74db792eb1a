"""Collection: the policy acts in all environments side by side, and what happened goes into the buffer.

One crossing each way per step: the observation comes to torch, the action goes to JAX (see bridge.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.bridge import to_jax, to_torch
from deepres.learner import Learner


@dataclass(frozen=True)
class Unroll:
    """T steps of N environments: states [T, N, S] before acting, actions [T, N, A], traj_ids [T, N]."""

    states: Tensor
    actions: Tensor
    traj_ids: Tensor
    success: float
    """Share of the steps that ended within the task's threshold of their goal."""


def collect(
    env: Any, env_state: Any, learner: Learner, steps: int, generator: torch.Generator
) -> tuple[Any, Unroll]:
    """Act for `steps` steps with the stochastic policy; returns the environments' new state and the unroll."""
    device = learner.device
    states = torch.empty(steps, env.num_envs, env.state_dim, device=device)
    actions = torch.empty(steps, env.num_envs, env.action_dim, device=device)
    traj_ids = torch.empty(steps, env.num_envs, dtype=torch.int32, device=device)
    success = torch.zeros((), device=device)
    for t in range(steps):
        obs = to_torch(env_state.obs, device)
        noise = torch.randn(env.num_envs, env.action_dim, generator=generator, device=device)
        states[t] = obs[:, : env.state_dim]
        actions[t] = learner.act(obs, noise)
        traj_ids[t] = to_torch(env_state.traj_id, device)
        env_state = env.step(env_state, to_jax(actions[t]))
        success += to_torch(env_state.success, device).mean()
    return env_state, Unroll(states, actions, traj_ids, (success / steps).item())
