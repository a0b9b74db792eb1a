"""SAC, soft actor-critic on goals (arXiv 1801.01290, 1812.05905), with Hindsight (arXiv 1707.01495) as a sampler.

With two critics Q_1, Q_2, their slow copies Qbar, and the reward of coming to s' under the goal g

    y      r + gamma (1 - terminal) (min_k Qbar_k(s', g, a') - alpha log pi(a'|s', g)),   a' ~ pi(.|s', g)
    critic 0.5 mean over rows and both critics of (Q_k(s, g, a) - y)^2
    actor  mean(alpha log pi(a''|s, g) - min_k Q_k(s, g, a'')),   a'' ~ pi(.|s, g)
    alpha  exp(log_alpha) * mean(stop_grad(-log pi(a''|s, g) - target_entropy))
    Qbar   Qbar + tau (Q - Qbar), after the step

All losses read the parameters from before the step. The reward is 1 where s' has reached the goal and else 0; s' of an
episode's last step is the state before the reset, and a time limit is no terminal: there the value goes on. The public
baseline of the paper (JaxGCRL, over Brax) differs: gamma 0.9, Adam 1e-4, rows cut by the time limit left out, kernels
of 256-256 ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.parts import SecondStream, actor_loss, alpha_loss, average_into, squashed_gaussian
from deepres.data.batch import Batch
from deepres.data.relabel import Hindsight
from deepres.networks import GaussianPolicy, Networks, call_frozen
from deepres.options import check, option


@dataclass(frozen=True)
class SACOptions:
    """Soft actor-critic on goals."""

    hindsight: float = option(0.0, least=0, most=1, share=True)
    """Share of the rows that are learned for a goal reached later in their trajectory; 0 is plain SAC."""
    hindsight_strategy: Literal["future", "final"] = option("future")
    """Which one: a uniformly drawn later step's, or the trajectory's last."""
    reward: Literal["sparse", "dense"] = option("sparse")
    """1 at the goal and 0 elsewhere, or the environment's own."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount."""
    tau: float = option(0.005, above=0, most=1)
    """Share by which the slow critics follow in a step."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critics."""
    alpha_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the temperature."""
    target_entropy_per_action: float = option(-0.5)
    """Entropy that the temperature aims at, nats for each action dimension."""

    def __post_init__(self) -> None:
        check(self)
        if self.reward == "dense" and self.hindsight:
            raise ValueError(
                f"reward=dense is that of the commanded goal and hindsight must then be 0, got {self.hindsight}; "
                "leave one of them out"
            )


class SAC(Algorithm):
    """Soft actor-critic: twin critics of concat(state, goal, action)."""

    Options = SACOptions
    options: SACOptions
    headline = ("critic_loss", "actor_loss", "q")
    about = About(
        source="arXiv 1801.01290, 1812.05905",
        losses="critics: squared TD error; actor: alpha log pi - min Q; alpha: entropy",
        actor_reads="old",
        layers="4 D",
    )
    noises = 2  # an action at s, another at s'
    passes = (
        Pass("actor"), Pass("q", weights=False),
        Pass("actor", backward=False), Pass("q_slow", backward=False),
        Pass("q"),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        state, action, goal = self.sizes.state, self.sizes.action, self.sizes.goal
        options = self.options
        self.actor = networks.actor(state + goal, action)
        self.q = networks.values(state + goal + action)
        self.q_slow = deepcopy(self.q).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy = options.target_entropy_per_action * action
        self._side = SecondStream()
        return {
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
            "critic": Group(list(self.q.parameters()), options.critic_lr),
            "alpha": Group([self.log_alpha], options.alpha_lr, clip=False),
        }

    @property
    def sampler(self) -> Hindsight:
        options = self.options
        return Hindsight(options.hindsight, options.hindsight_strategy, dense=options.reward == "dense")

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.reward is not None
        device = batch.state.device
        here, there = noise.unbind()
        obs = torch.cat([batch.state, batch.goal], dim=1)
        alpha = self.log_alpha.exp()
        with self._side.beside(device):
            mean, log_std = self.actor(obs)
            action, log_prob = squashed_gaussian(mean, log_std, here)
            judged = torch.cat([obs, action], dim=1)
            value = call_frozen(self.q, judged).amin(dim=0)
            actor = actor_loss(alpha.detach(), log_prob, value)
            temperature = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        target = self._target(batch, alpha.detach(), there)
        taken = torch.cat([obs, batch.action], dim=1)
        q = self.q(taken)
        critic = 0.5 * (q - target).square().mean()
        self._side.join(device)
        metrics = {
            "critic_loss": critic,
            "actor_loss": actor,
            "alpha_loss": temperature,
            "alpha": alpha,
            "entropy": -log_prob.mean(),
            "q": q.mean(),
            "target": target.mean(),
            "reward": batch.reward.mean(),
        }
        yield {"critic": critic, "actor": actor, "alpha": temperature}, metrics

    @torch.no_grad()
    def _target(self, batch: Batch, alpha: Tensor, noise: Tensor) -> Tensor:
        """y [B] of the module's head."""
        assert batch.next_state is not None and batch.reward is not None and batch.terminal is not None
        obs = torch.cat([batch.next_state, batch.goal], dim=1)
        mean, log_std = self.actor(obs)
        action, log_prob = squashed_gaussian(mean, log_std, noise)
        judged = torch.cat([obs, action], dim=1)
        value = self.q_slow(judged).amin(dim=0) - alpha * log_prob
        return batch.reward + self.options.gamma * (1 - batch.terminal) * value

    def after_step(self, skip: Tensor) -> None:
        average_into(self.q_slow.parameters(), self.q.parameters(), self.options.tau, skip)

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor)
