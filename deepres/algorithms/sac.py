"""SAC, soft actor-critic on goals (arXiv 1801.01290, 1812.05905), with Hindsight (arXiv 1707.01495) as a sampler.

With two critics Q_1, Q_2, their slow copies Qbar, and the reward of coming to s' under the goal g

    y      r + gamma (1 - terminal) (min_k Qbar_k(s', g, a') - alpha log pi(a'|s', g)),   a' ~ pi(.|s', g)
    critic 0.5 mean over rows and both critics of (Q_k(s, g, a) - y)^2
    actor  mean(alpha log pi(a''|s, g) - min_k Q_k(s, g, a'')),   a'' ~ pi(.|s, g)
    alpha  exp(log_alpha) * mean(stop_grad(-log pi(a''|s, g) - target_entropy))
    Qbar   Qbar + tau (Q - Qbar), after the step

All losses read the parameters from before the step. The reward is 1 where s' has reached the goal and else 0; s' of an
episode's last step is the state before the reset, and a time limit is no terminal: there the value goes on. The public
baseline of the paper (JaxGCRL, over Brax) differs: gamma=0.9, actor_lr=critic_lr=1e-4, time_limit="left_out",
exact_tanh=True, networks of two layers of 256 ReLU without norm, a standard deviation of softplus(raw) + 1e-3; with
Hindsight, hindsight=1.0 and hindsight_strategy="published".
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deepres.algorithms.base import About, Group, Losses, Pass
from deepres.algorithms.parts import average_into, policy_losses
from deepres.algorithms.soft import SoftActor
from deepres.algorithms.td import SoftOptions, check_reward, counted, ended, transitions
from deepres.data.batch import Batch
from deepres.data.relabel import Hindsight
from deepres.networks import Networks, call_frozen
from deepres.options import option


@dataclass(frozen=True)
class SACOptions(SoftOptions):
    """Soft actor-critic on goals."""

    reward: Literal["sparse", "dense"] = option("sparse")
    """1 at the goal and 0 elsewhere, or the environment's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reward(self.reward, self.hindsight)


class SAC(SoftActor):
    """Soft actor-critic: twin critics of concat(state, goal, action).

    The methods from `critic_outputs` on are what critics of another kind do otherwise (categorical.py).
    """

    Options: ClassVar[type] = SACOptions
    options: SoftOptions
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
        groups = self.build_actor(networks)
        self.q = networks.values(
            self.sizes.state + self.sizes.goal + self.sizes.action, outputs=self.critic_outputs()
        )
        self.q_slow = deepcopy(self.q).requires_grad_(False)
        return groups | {"critic": Group(list(self.q.parameters()), self.options.critic_lr)}

    @property
    def sampler(self) -> Hindsight:
        return transitions(self.options)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.reward is not None
        options, device = self.options, batch.state.device
        here, there = noise.unbind()
        obs = torch.cat([batch.state, batch.goal], dim=1)
        with self.side.beside(device):
            action, log_prob = self.sampled(obs, here)
            value = self.values(call_frozen(self.q, torch.cat([obs, action], dim=1))).amin(dim=0)
            policy = policy_losses(
                log_prob, value * self.reward_unit, self.log_alpha, self.target_entropy, impl=self.op_impl
            )
        target = self._target(batch, self.log_alpha.detach().exp(), there)
        out = self.q(torch.cat([obs, batch.action], dim=1))
        critic = counted(self.errors(out, target), batch, options).mean()
        self.side.join(device)
        metrics = {
            "critic_loss": critic,
            "actor_loss": policy.actor,
            "alpha_loss": policy.temperature,
            "alpha": policy.alpha,
            "entropy": policy.entropy,
            "q": self.values(out).mean(),
            "target": self.level(target).mean(),
            "reward": batch.reward.mean(),
        }
        yield {"critic": critic, "actor": policy.actor, "alpha": policy.temperature}, metrics

    @torch.no_grad()
    def _target(self, batch: Batch, alpha: Tensor, noise: Tensor) -> Tensor:
        assert batch.next_state is not None
        obs = torch.cat([batch.next_state, batch.goal], dim=1)
        action, log_prob = self.sampled(obs, noise)
        bonus = -alpha * log_prob / self.reward_unit
        bonus = bonus if self.options.entropy_in_target else torch.zeros_like(bonus)
        return self.target(*self.outcome(batch), self.q_slow(torch.cat([obs, action], dim=1)), bonus)

    def after_step(self, skip: Tensor) -> None:
        average_into(self.q_slow.parameters(), self.q.parameters(), self.options.tau, skip)

    def critic_outputs(self) -> int:
        """How many numbers a critic ends in."""
        return 1

    @property
    def reward_unit(self) -> float:
        """What a value is multiplied by to be weighed against the policy's entropy, which has the reward's unit."""
        return 1.0

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The rows' rewards [B], and the discounts [B] of what follows them."""
        assert batch.reward is not None
        return batch.reward, self.options.gamma * (1 - ended(batch, self.options))

    def target(self, reward: Tensor, discount: Tensor, slow: Tensor, bonus: Tensor) -> Tensor:
        """What the critics are to say: y [B] of the module's head. slow: the slow critics at s' and a'; bonus: [B]."""
        return reward + discount * (self.values(slow).amin(dim=0) + bonus)

    def values(self, out: Tensor) -> Tensor:
        """[2, B] of what the critics give."""
        return out

    def level(self, target: Tensor) -> Tensor:
        """[B] the value that a `target` stands for."""
        return target

    def errors(self, out: Tensor, target: Tensor) -> Tensor:
        """[2, B] of which the mean is the critics' loss."""
        return 0.5 * (out - target).square()
