"""A Gaussian policy of state and goal, with a temperature that holds its entropy: what several algorithms act with.

alpha  exp(log_alpha) * mean(stop_grad(-log pi - target_entropy))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.acting import ActorPolicy
from deepres.algorithms.base import Algorithm, Group
from deepres.algorithms.parts import SecondStream
from deepres.networks import GaussianPolicy, Networks
from deepres.options import check, option

TEMPERATURE = ("alpha_lr", "log_alpha_bound", "target_entropy_per_action")
"""Options of a temperature."""


@dataclass(frozen=True)
class SoftActorOptions:
    """Of such a policy."""

    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    alpha_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the temperature."""
    log_alpha_bound: float | None = option(None, above=0, resume=True)
    """Holds the temperature's logarithm within plus and minus this (ours), lest it grow for ever; None does not."""
    target_entropy_per_action: float = option(-0.5)
    """Entropy that the temperature aims at, nats for each action dimension."""
    exact_tanh: bool = option(False)
    """The policy's density as the public SAC has it, without the 1e-6 in the logarithm of its tanh correction."""

    def __post_init__(self) -> None:
        check(self)


class SoftActor(Algorithm):
    """The base of algorithms with such a policy; `build` begins with `build_actor`."""

    options: SoftActorOptions
    noises = 2  # an action at s, another at s'

    def build_actor(self, networks: Networks) -> dict[str, Group]:
        """Makes actor and log_alpha; their groups."""
        options, action = self.options, self.sizes.action
        self.actor: nn.Module = networks.actor(self.sizes.state + self.sizes.goal, action)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy = options.target_entropy_per_action * action
        self.side = SecondStream()
        return {
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
            "alpha": Group([self.log_alpha], options.alpha_lr, clip=False, bound=options.log_alpha_bound),
        }

    def sampled(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action [B, A] at obs [B, S + G], and its log-density [B]."""
        sampled: tuple[Tensor, Tensor] = self.actor(
            obs, noise, exact=self.options.exact_tanh, impl=self.op_impl
        )
        return sampled

    def policy(self) -> ActorPolicy:
        return GaussianPolicy(self.actor)
