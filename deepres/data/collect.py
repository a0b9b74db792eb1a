"""Collection: the policy acts in all environments side by side, and what happened goes into the buffer.

One crossing each way per step: the observation comes to torch, the action goes to the environments (see
environments.py). Nothing waits for the device but the last line of an unroll.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from deepres.acting import ActorPolicy
from deepres.data.batch import COLUMNS, Sizes, Unroll
from deepres.data.chunks import Chunk, Player, seen_by
from deepres.data.environments import Environments, Step, require_environments

# What a column takes from the steps before and after an action.
_READ: dict[str, Callable[[Step, Step, int], Tensor]] = {
    "goals": lambda before, after, state_dim: before.obs[:, state_dim:],
    "next_states": lambda before, after, state_dim: after.terminal_obs[:, :state_dim],
    "rewards": lambda before, after, state_dim: after.reward,
    "successes": lambda before, after, state_dim: after.success,
    "terminals": lambda before, after, state_dim: after.done & ~after.truncation,
    "truncations": lambda before, after, state_dim: after.truncation,
}


def collect(
    env: Environments,
    step: Step,
    policy: ActorPolicy,
    steps: int,
    generator: torch.Generator,
    columns: Sequence[str] = (),
    chunk: Chunk | None = None,
) -> tuple[Step, Unroll]:
    """Act for `steps` steps with the stochastic policy; returns where the environments stand then, and the unroll.

    columns: names of deepres.data.batch.COLUMNS to record as well. chunk: what the environments have planned and not
    done yet, `Unroll.chunk` of the unroll before; None plans anew. It is ended as planned, whatever was learned since.
    """
    require_environments(env)
    device, shape = policy.device, (steps, env.num_envs)
    sizes = Sizes(env.state_dim, env.action_dim, env.goal_dim)
    states = torch.empty(*shape, sizes.state, device=device)
    actions = torch.empty(*shape, sizes.action, device=device)
    traj_ids = torch.empty(shape, dtype=torch.int32, device=device)
    success = torch.empty(shape, device=device)
    more = {name: _empty(name, shape, sizes, device) for name in columns}
    noise = torch.randn(*shape, policy.horizon * sizes.action, generator=generator, device=device)
    player = Player(policy, chunk)
    obs = step.obs
    for t in range(steps):
        before = step
        states[t] = obs[:, : sizes.state]
        traj_ids[t] = before.traj_id
        # a tensor of its own: XLA may read it later than this step returns
        action = player.act(seen_by(policy, env, before), before.traj_id, noise[t])
        step = env.step(before, action)
        actions[t] = action
        obs = step.obs
        success[t] = step.success
        for name, column in more.items():
            column[t] = _READ[name](before, step, sizes.state)
    return step, Unroll(states, actions, traj_ids, more, success.mean().item(), player.chunk)


def _empty(name: str, shape: tuple[int, int], sizes: Sizes, device: torch.device) -> Tensor:
    size = COLUMNS[name].size(sizes)
    whole = (*shape, size) if size else shape
    return torch.empty(whole, dtype=COLUMNS[name].dtype or torch.float32, device=device)


class Ahead:
    """Collects in a thread of its own while the learner learns, with a copy of the policy as it was at the start.

    The same seed gives the same steps, however the two take turns.
    """

    def __init__(self, env: Environments, columns: Sequence[str] = ()):
        self.env, self.columns = env, columns
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collect")

    def start(
        self, step: Step, policy: ActorPolicy, steps: int, seed: int, chunk: Chunk | None = None
    ) -> Future[tuple[Any, Unroll]]:
        """Begin `collect`; the future's result is what it returns, its exception what it raises."""
        copy = policy.copy()
        generator = torch.Generator(copy.device).manual_seed(seed)
        stream = torch.cuda.Stream(copy.device) if copy.device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(copy.device))

        def work() -> tuple[Any, Unroll]:
            with torch.cuda.stream(stream):  # None: where we are
                result = collect(self.env, step, copy, steps, generator, self.columns, chunk)
            if stream is not None:
                stream.synchronize()
            return result

        return self._thread.submit(work)
