"""Action chunks: a policy plans H actions at once, and they are done one after another whatever is seen meanwhile.

A chunk is planned anew when it is used up, and at an environment's reset: its trajectory's number tells. What is left
of the chunks when an unroll ends is part of the run's state. A policy of horizon 1 has no chunks.

Source: Q-chunking (arXiv 2507.07969); with contrastive RL: arXiv 2608.30640.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.acting import ActorPolicy
from deepres.data.environments import Environments, Step


@dataclass(frozen=True)
class Chunk:
    """What N environments have planned.

    actions: [N, H, A] in [-1, 1]. used: [N] int64, how many of them are done, 0 to H. traj_id: [N] int32, of the
    trajectory that they were planned in.
    """

    actions: Tensor
    used: Tensor
    traj_id: Tensor

    def dropped(self, where: Tensor) -> Chunk:
        """The environments `where` [K] int64 plan anew before they act; the others go on."""
        return Chunk(self.actions, self.used.index_fill(0, where, self.actions.shape[1]), self.traj_id)

    def state_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"actions": self.actions, "used": self.used, "traj_id": self.traj_id}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Chunk:
        """What `state_tensors` gave."""
        return cls(**{name: tensors[name].to(device) for name in ("actions", "used", "traj_id")})


def seen_by(policy: ActorPolicy, env: Environments, step: Step) -> Tensor:
    """What `policy` acts on: step.obs [N, S + G], with the steps left of the episode after this if clocked."""
    if not policy.clocked:
        return step.obs
    left = env.episode_length - 1 - step.elapsed
    return torch.cat([step.obs, left[:, None].to(step.obs.dtype)], dim=1)


class Player:
    """Acts for N environments, open loop: each keeps to its chunk until it is used up or its trajectory has ended.

    player = Player(policy)
    action = player.act(step.obs, step.traj_id)         # [N, A]

    chunk: to go on with; None, and always with a policy of horizon 1, plans at the first step.
    """

    def __init__(self, policy: ActorPolicy, chunk: Chunk | None = None):
        self.policy, self.chunk = policy, chunk

    def act(self, obs: Tensor, traj_id: Tensor, noise: Tensor | None = None) -> Tensor:
        """The next action [N, A], a tensor of its own.

        obs: [N, S + G], see `seen_by`. traj_id: [N] int32, the trajectory that each environment is in. noise: standard
        normal [N, H * A], read where a chunk is planned; without it the plan is the policy's mean.
        """
        policy = self.policy
        if policy.horizon == 1:
            return policy.act(obs, noise)
        chunk, ids = self.chunk, traj_id.clone()  # the environments' memory may be theirs to write to
        if chunk is None:
            chunk = Chunk(policy.plan(obs, noise), torch.zeros_like(traj_id, dtype=torch.int64), ids)
        else:
            due = (chunk.used == policy.horizon) | (chunk.traj_id != traj_id)
            chunk = Chunk(
                self._replanned(chunk.actions, due, obs, noise), chunk.used.masked_fill(due, 0), ids
            )
        action = chunk.actions[torch.arange(len(obs), device=obs.device), chunk.used]
        self.chunk = Chunk(chunk.actions, chunk.used + 1, chunk.traj_id)
        return action

    def _replanned(self, actions: Tensor, due: Tensor, obs: Tensor, noise: Tensor | None) -> Tensor:
        if obs.device.type != "cpu":  # to learn which are due would wait for the device
            return torch.where(due[:, None, None], self.policy.plan(obs, noise), actions)
        at = due.nonzero()[:, 0]
        if not len(at):
            return actions
        return actions.index_copy(0, at, self.policy.plan(obs[at], None if noise is None else noise[at]))
