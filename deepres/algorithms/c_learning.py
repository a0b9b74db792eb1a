"""C-learning: a classifier of goals that are reached from random ones, learned from one step and itself (arXiv
2011.08909; as in arXiv 2206.07568's code).

With two classifiers' logits f_k(s, a, g), slow copies fbar, what the next state achieves e(s'), another row's goal g,

    p      min_k sigmoid(fbar_k(s', a', g)),   a' ~ pi(.|s', g)
    w      clip(p / (1 - p), 0, 20), 0 where the episode ended for good: how much likelier g is after s' than at random
    critic mean over rows and both critics of
           (1 - gamma) BCE(f_k(s, a, e(s')), 1) + gamma w BCE(f_k(s, a, g), 1) + BCE(f_k(s, a, g), 0)
    actor  mean(alpha log pi(a''|s, g'') - min_k f_k(s, a'', g'')),   g'' reached later, or another row's
    alpha  exp(log_alpha) * mean(stop_grad(-log pi - target_entropy))
    fbar   fbar + tau (f - fbar), after the step

All losses read the parameters from before the step. exp f is then how much likelier a goal is in the discounted future
than at random. `weights="2020"` is the first paper's code: w clipped at 1 / (1 - gamma), and half of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.algorithms.base import About, Group, Losses, Pass
from deepres.algorithms.parts import average_into, mixed_goals, policy_losses
from deepres.algorithms.soft import SoftActor, SoftActorOptions
from deepres.data.batch import Batch
from deepres.data.relabel import FutureTransitions
from deepres.networks import Networks, call_frozen
from deepres.options import option


@dataclass(frozen=True)
class CLearningOptions(SoftActorOptions):
    """C-learning."""

    weights: Literal["2022", "2020"] = option("2022")
    """How the weight w is clipped: at 20, or, as in the first code, at 1 / (1 - gamma)."""
    random_goals: float = option(0.5, least=0, most=1, share=True)
    """Share of the rows whose action is learned for another row's goal; the others have one reached later."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount."""
    tau: float = option(0.005, above=0, most=1)
    """Share by which the slow critics follow in a step."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critics."""


class CLearning(SoftActor):
    """C-learning: classify goals that will be reached, from one step and the classifier itself."""

    Options = CLearningOptions
    options: CLearningOptions
    headline = ("critic_loss", "actor_loss", "weight")
    about = About(
        source="arXiv 2011.08909",
        losses="critics: weighted binary cross entropy; actor: alpha log pi - min f; alpha: entropy",
        actor_reads="old",
        layers="4 D",
    )
    passes = (
        Pass("actor"), Pass("q", weights=False),
        Pass("actor", backward=False), Pass("q_slow", backward=False),
        Pass("q", batches=2),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        groups = self.build_actor(networks)
        self.q = networks.values(self.sizes.state + self.sizes.goal + self.sizes.action)
        self.q_slow = deepcopy(self.q).requires_grad_(False)
        return groups | {"critic": Group(list(self.q.parameters()), self.options.critic_lr)}

    @property
    def sampler(self) -> FutureTransitions:
        return FutureTransitions(self.options.gamma)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        options, device = self.options, batch.state.device
        here, there = noise.unbind()
        others = batch.goal.roll(1, dims=0)
        with self.side.beside(device):
            obs = torch.cat([batch.state, mixed_goals(batch.goal, options.random_goals)], dim=1)
            action, log_prob = self.sampled(obs, here)
            value = call_frozen(self.q, torch.cat([obs, action], dim=1)).amin(dim=0)
            policy = policy_losses(log_prob, value, self.log_alpha, self.target_entropy, impl=self.op_impl)
        weight = self._weight(batch, others, there)
        rows = [torch.cat([batch.state, g, batch.action], 1) for g in (batch.extra["next_achieved"], others)]
        following, random = self.q(torch.cat(rows)).chunk(2, dim=1)
        each = (1 - options.gamma) * F.softplus(-following)
        each = each + options.gamma * weight * F.softplus(-random) + F.softplus(random)
        critic = each.mean() if options.weights == "2022" else 0.5 * each.mean()
        self.side.join(device)
        metrics = {
            "critic_loss": critic,
            "actor_loss": policy.actor,
            "alpha_loss": policy.temperature,
            "alpha": policy.alpha,
            "entropy": policy.entropy,
            "weight": weight.mean(),
            "positive_logit": following.mean(),
            "negative_logit": random.mean(),
        }
        yield {"critic": critic, "actor": policy.actor, "alpha": policy.temperature}, metrics

    @torch.no_grad()
    def _weight(self, batch: Batch, goal: Tensor, noise: Tensor) -> Tensor:
        """w [B] of the module's head, p / (1 - p) = exp(f)."""
        assert batch.next_state is not None and batch.terminal is not None
        obs = torch.cat([batch.next_state, goal], dim=1)
        logits = self.q_slow(torch.cat([obs, self.sampled(obs, noise)[0]], dim=1)).amin(dim=0)
        most = 20.0 if self.options.weights == "2022" else 1 / (1 - self.options.gamma)
        return (1 - batch.terminal) * logits.exp().clamp(max=most)

    def after_step(self, skip: Tensor) -> None:
        average_into(self.q_slow.parameters(), self.q.parameters(), self.options.tau, skip)
