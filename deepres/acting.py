"""What acts: an actor network, and how what it puts out becomes actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ActorPolicy(ABC):
    """The base of what acts.

    actor: the network, over obs = concat(state, goal) [N, S + G]. horizon: H, how many actions it plans at once; the
    actor then gives the H * A numbers of actions t .. t + H - 1. deepres.data.chunks plays them.
    """

    actor: nn.Module
    horizon: int = 1
    clocked: ClassVar[bool] = False
    """Whether obs has one more column, the steps that are left of the episode after this one."""

    @property
    def device(self) -> torch.device:
        return next(self.actor.parameters()).device

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, A] in [-1, 1] for obs [N, S + G]: explored with `noise` [N, H * A], standard normal, or the best
        known without; of a chunk the first alone."""
        actions = self.actions(obs, noise)
        return actions[:, : actions.shape[1] // self.horizon]

    @torch.no_grad()
    def plan(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Chunks [N, H, A] for obs [N, S + G], of which `act` gives the first action."""
        return self.actions(obs, noise).unflatten(1, (self.horizon, -1))

    @abstractmethod
    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        """[N, H * A] in [-1, 1]."""

    def copy(self) -> Self:
        """This policy with weights of its own, which no gradient step changes."""
        return replace(self, actor=deepcopy(self.actor))


@dataclass(frozen=True)
class GaussianPolicy(ActorPolicy):
    """Actions that are tanh of a Gaussian: the actor gives (mean, log_std), each [N, H * A]."""

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        mean, log_std = self.actor(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)


@dataclass(frozen=True)
class ClippedGaussianPolicy(ActorPolicy):
    """Actions of a Gaussian of one fixed spread, held in [-1, 1]: the actor gives its mean, [N, H * A].

    std: of every number of an action, where it explores.
    """

    std: float = 1.0

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        mean = self.actor(obs)
        return (mean if noise is None else mean + self.std * noise).clamp(-1, 1)


@dataclass(frozen=True)
class ClockedGaussianPolicy(GaussianPolicy):
    """The same for an actor that also sees log(1 + steps left): obs is [N, S + G + 1], the last column the steps."""

    clocked: ClassVar[bool] = True

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        return super().actions(torch.cat([obs[:, :-1], obs[:, -1:].log1p()], dim=1), noise)


@dataclass(frozen=True)
class DeterministicPolicy(ActorPolicy):
    """Actions that the actor itself gives, [N, H * A] in (-1, 1), explored by noise that is added to them.

    noise: its standard deviation. bound: what it is clipped to.
    """

    noise: float = 0.4
    bound: float = 0.5

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        action = self.actor(obs)
        if noise is None:
            return action
        return (action + (self.noise * noise).clamp(-self.bound, self.bound)).clamp(-1, 1)
