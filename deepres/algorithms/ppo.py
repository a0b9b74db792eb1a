"""PPO, proximal policy optimisation on goals (arXiv 1707.06347), the on-policy baseline of arXiv 2503.14858.

A round learns from the steps that were just collected, `unroll_length` of every environment, for as many passes as
`gradient_steps` batches are of them. With log pi_old, V_old and the advantages A of the policy and the value as they
were before the round's first gradient step (deepres.data.newest: generalised advantage estimation, arXiv 1506.02438)

    ratio   exp(log pi(a|s, g) - log pi_old)
    actor   -mean(min(ratio A', clip(ratio, 1 - clip, 1 + clip) A')) - entropy_weight mean(H),   A' = (A - mean) / std
    H       entropy of the Gaussian + sum_k log(1 - tanh(x_k)^2),   x ~ the Gaussian: of the squashed policy, unbiased
    critic  0.5 mean (V(s, g) - (A + V_old))^2

mean and std of A are the batch's, over all processes. Rewards as of sac.py: 1 where s' has reached the goal; a time
limit is no terminal. The public baseline (JaxGCRL, over Brax) differs: gamma=0.9, clip=0.3, learning rates of 1e-4, one
optimiser for both networks, unroll_length=10 with batches of whole unrolls, two passes, a policy of four layers of 32
and a value of five layers of 256 without norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepres.acting import GaussianPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.parts import log_density
from deepres.data.batch import Batch
from deepres.data.newest import NewestSteps
from deepres.networks import Networks
from deepres.options import check, option


@dataclass(frozen=True)
class PPOOptions:
    """Proximal policy optimisation on goals. Passes over a round's steps: gradient_steps * batch_size / (num_envs *
    unroll_length)."""

    gamma: float = option(0.99, above=0, below=1)
    """Discount."""
    gae_decay: float = option(0.95, least=0, most=1)
    """Lambda of the advantages: 0 trusts the value after one step, 1 the rewards as far as they were collected."""
    clip: float = option(0.2, above=0, below=1)
    """How far from 1 the ratio of new to old density is followed."""
    value_clip: float | None = option(None, above=0)
    """How far a value is followed from the old one, in rewards; None has no bound."""
    entropy_weight: float = option(1e-4, least=0, resume=True)
    """Weight of the policy's entropy, for each nat."""
    reward: Literal["sparse", "dense"] = option("sparse")
    """1 at the goal and 0 elsewhere, or the environment's own."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the value."""

    def __post_init__(self) -> None:
        check(self)


class PPO(Algorithm):
    """Proximal policy optimisation: a policy and the value of state and goal, from nothing but its own last steps."""

    Options = PPOOptions
    options: PPOOptions
    headline = ("critic_loss", "entropy", "value")
    about = About(
        source="arXiv 1707.06347",
        losses="actor: clipped ratio times advantage, entropy; critic: squared error of its return",
        actor_reads="old",
        layers="2 D",
    )
    passes = (Pass("actor"), Pass("value"))
    on_policy = True

    def build(self, networks: Networks) -> dict[str, Group]:
        seen, options = self.sizes.state + self.sizes.goal, self.options
        self.actor = networks.actor(seen, self.sizes.action)
        self.value = networks.value(seen)
        return {
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
            "critic": Group(list(self.value.parameters()), options.critic_lr),
        }

    @property
    def sampler(self) -> NewestSteps:
        options = self.options
        return NewestSteps(
            self.judged,
            options.gamma,
            options.gae_decay,
            dense=options.reward == "dense",
            values=options.value_clip is not None,
        )

    @torch.no_grad()
    def judged(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log pi(a|s, g), V(s, g) and V(s', g), [B] each, as they are now; see deepres.data.newest."""
        batch = batch.map(lambda t: t.to(next(self.value.parameters())))
        assert batch.next_state is not None
        obs, after = (torch.cat([state, batch.goal], dim=1) for state in (batch.state, batch.next_state))
        mean, log_std = self.actor(obs)
        return log_density(mean, log_std, batch.action), self.value(obs), self.value(after)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        options, old = self.options, batch.extra
        obs = torch.cat([batch.state, batch.goal], dim=1)
        mean, log_std = self.actor(obs)
        change = log_density(mean, log_std, batch.action) - old["log_prob"]
        ratio = change.exp()
        advantage = self._normalised(old["advantage"])
        bounded = ratio.clamp(1 - options.clip, 1 + options.clip)
        gain = torch.minimum(ratio * advantage, bounded * advantage)
        entropy = _entropy(mean, log_std, noise).mean()
        actor = -gain.mean() - options.entropy_weight * entropy
        value = self.value(obs)
        error = (value - old["target"]).square()
        if options.value_clip is not None:
            near = old["value"] + (value - old["value"]).clamp(-options.value_clip, options.value_clip)
            error = torch.maximum(error, (near - old["target"]).square())
        critic = 0.5 * error.mean()
        metrics = {
            "critic_loss": critic,
            "actor_loss": actor,
            "entropy": entropy,
            "value": value.mean(),
            "target": old["target"].mean(),
            "clipped": (bounded != ratio).to(ratio.dtype).mean(),
            "divergence": (ratio - 1 - change).mean(),
        }
        yield {"actor": actor, "critic": critic}, metrics

    def _normalised(self, advantage: Tensor) -> Tensor:
        every = self.exchange.gather_rows(advantage)
        return (advantage - every.mean()) / (every.std(correction=0) + 1e-8)

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor)


def _entropy(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """H [B] of the module's head, nats; noise [B, A] standard normal."""
    x = mean + log_std.exp() * noise
    log_slope = 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))
    return (0.5 * math.log(2 * math.pi * math.e) + log_std + log_slope).sum(dim=1)
