"""TD3, twin delayed deterministic policy gradients on goals (arXiv 1802.09477), with Hindsight (arXiv 1707.01495).

With the policy mu(s, g) = tanh(network), two critics Q_1, Q_2, slow copies mubar, Qbar of all, n standard normal

    y      r + gamma (1 - terminal) min_k Qbar_k(s', g, a'),   a' = clip(mubar(s', g) + clip(0.2 n, -0.5, 0.5), -1, 1)
    critic 0.5 mean over rows and both critics of (Q_k(s, g, a) - y)^2
    actor  -mean(Q_1(s, g, mu(s, g))),   stepped at every second gradient step
    slow   slow + tau (fast - slow), mubar's and Qbar's alike, after the steps that step the actor

All losses read the parameters from before the step. It explores by mu + clip(0.4 n, -0.5, 0.5), held in [-1, 1]. The
public baseline of arXiv 2503.14858 (JaxGCRL) differs: gamma=0.9, time_limit="terminal", networks of two layers of 256
ReLU without norm, hindsight_strategy="published", stored actions not held in [-1, 1], and a slip in its slow policy,
which `published_target_policy` has too: (1 - tau) mu_before + tau mu_after, an average of the policy before and after
its last step and of nothing older.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepres.acting import DeterministicPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.parts import SecondStream, average_into
from deepres.algorithms.td import TDOptions, check_reward, counted, ended, transitions
from deepres.data.batch import Batch
from deepres.data.relabel import Hindsight
from deepres.networks import Networks, call_frozen
from deepres.options import option


@dataclass(frozen=True)
class TD3Options(TDOptions):
    """Twin delayed deterministic policy gradients on goals."""

    reward: Literal["sparse", "dense"] = option("sparse")
    """1 at the goal and 0 elsewhere, or the environment's own."""
    policy_every: int = option(2, least=1)
    """Gradient steps to a step of the actor and of the slow copies."""
    exploration_noise: float = option(0.4, least=0)
    """Standard deviation of the noise on actions that are collected."""
    exploration_bound: float = option(0.5, above=0)
    """What that noise is clipped to."""
    target_noise: float = option(0.2, least=0)
    """Standard deviation of the noise on the slow policy's action in the target."""
    target_bound: float = option(0.5, above=0)
    """What that noise is clipped to."""
    published_target_policy: bool = option(False)
    """The public baseline's slip: the slow policy averages those before and after the last step, no older ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reward(self.reward, self.hindsight)


class TD3(Algorithm):
    """Twin delayed deterministic policy gradients: twin critics, a policy without spread that is stepped less often."""

    Options = TD3Options
    options: TD3Options
    headline = ("critic_loss", "actor_loss", "q")
    about = About(
        source="arXiv 1802.09477",
        losses="critics: squared TD error; actor: -Q of the first",
        actor_reads="old",
        layers="4 D",
    )
    passes = (
        Pass("actor"), Pass("q", weights=False),
        Pass("actor_slow", backward=False), Pass("q_slow", backward=False),
        Pass("q"),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        state, action, goal = self.sizes.state, self.sizes.action, self.sizes.goal
        options = self.options
        self.actor = networks.deterministic_actor(state + goal, action)
        self.q = networks.values(state + goal + action)
        self.actor_slow = deepcopy(self.actor).requires_grad_(False)
        self.q_slow = deepcopy(self.q).requires_grad_(False)
        self._before: list[Tensor] = []
        self._side = SecondStream()
        return {
            "actor": Group(list(self.actor.parameters()), options.actor_lr, every=options.policy_every),
            "critic": Group(list(self.q.parameters()), options.critic_lr),
        }

    @property
    def sampler(self) -> Hindsight:
        return transitions(self.options)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.reward is not None
        device = batch.state.device
        if self.options.published_target_policy:
            self._before = [p.detach().clone() for p in self.actor.parameters()]
        obs = torch.cat([batch.state, batch.goal], dim=1)
        with self._side.beside(device):
            value = call_frozen(self.q, torch.cat([obs, self.actor(obs)], dim=1))[0]
            actor = -value.mean()
        target = self._target(batch, noise)
        q = self.q(torch.cat([obs, batch.action], dim=1))
        critic = 0.5 * counted((q - target).square(), batch, self.options).mean()
        self._side.join(device)
        metrics = {
            "critic_loss": critic,
            "actor_loss": actor,
            "q": q.mean(),
            "target": target.mean(),
            "reward": batch.reward.mean(),
        }
        yield {"critic": critic, "actor": actor}, metrics

    @torch.no_grad()
    def _target(self, batch: Batch, noise: Tensor) -> Tensor:
        """y [B] of the module's head."""
        assert batch.next_state is not None and batch.reward is not None
        options = self.options
        obs = torch.cat([batch.next_state, batch.goal], dim=1)
        blur = (options.target_noise * noise).clamp(-options.target_bound, options.target_bound)
        action = (self.actor_slow(obs) + blur).clamp(-1, 1)
        value = self.q_slow(torch.cat([obs, action], dim=1)).amin(dim=0)
        return batch.reward + options.gamma * (1 - ended(batch, options)) * value

    def after_step(self, skip: Tensor) -> None:
        tau, idle = self.options.tau, self.unstepped.get("actor", skip)
        average_into(self.q_slow.parameters(), self.q.parameters(), tau, idle)
        if self.options.published_target_policy:
            average_into(self.actor_slow.parameters(), self._before, 1.0, idle)
        average_into(self.actor_slow.parameters(), self.actor.parameters(), tau, idle)

    def policy(self) -> DeterministicPolicy:
        options = self.options
        return DeterministicPolicy(
            self.actor, noise=options.exploration_noise, bound=options.exploration_bound
        )
