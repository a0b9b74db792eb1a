"""Collection: the policy acts in all environments side by side, and what happened goes into the buffer.

One crossing each way per step: the observation comes to torch, the action goes to JAX (see bridge.py). Nothing waits
for the device but the last line of an unroll.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.bridge import to_jax, to_torch
from deepres.learner import Policy


@dataclass(frozen=True)
class Unroll:
    """T steps of N environments: states [T, N, S] before acting, actions [T, N, A], traj_ids [T, N]."""

    states: Tensor
    actions: Tensor
    traj_ids: Tensor
    success: float
    """Share of the steps that ended within the task's threshold of their goal."""


def collect(
    env: Any, env_state: Any, policy: Policy, steps: int, generator: torch.Generator
) -> tuple[Any, Unroll]:
    """Act for `steps` steps with the stochastic policy; returns the environments' new state and the unroll."""
    device, shape = policy.device, (steps, env.num_envs)
    states = torch.empty(*shape, env.state_dim, device=device)
    actions = torch.empty(*shape, env.action_dim, device=device)
    traj_ids = torch.empty(shape, dtype=torch.int32, device=device)
    success = torch.empty(shape, device=device)
    noise = torch.randn(actions.shape, generator=generator, device=device)
    obs = to_torch(env_state.obs, device)
    for t in range(steps):
        states[t] = obs[:, : env.state_dim]
        traj_ids[t] = to_torch(env_state.traj_id, device)
        # a tensor of its own: XLA may read it later than this step returns
        action = policy.act(obs, noise[t])
        env_state = env.step(env_state, to_jax(action))
        actions[t] = action
        obs = to_torch(env_state.obs, device)
        success[t] = to_torch(env_state.success, device)
    return env_state, Unroll(states, actions, traj_ids, success.mean().item())


class Ahead:
    """Collects in a thread of its own while the learner learns, with a copy of the policy as it was at the start.

    The same seed gives the same steps, however the two take turns.
    """

    def __init__(self, env: Any):
        self.env = env
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collect")

    def start(self, env_state: Any, policy: Policy, steps: int, seed: int) -> Future[tuple[Any, Unroll]]:
        """Begin `collect`; the future's result is what it returns, its exception what it raises."""
        copy = policy.copy()
        generator = torch.Generator(copy.device).manual_seed(seed)
        stream = torch.cuda.Stream(copy.device) if copy.device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(copy.device))

        def work() -> tuple[Any, Unroll]:
            with torch.cuda.stream(stream):  # None: where we are
                result = collect(self.env, env_state, copy, steps, generator)
            if stream is not None:
                stream.synchronize()
            return result

        return self._thread.submit(work)
