"""GCIQL, implicit Q-learning on goals (arXiv 2110.06169; on goals as OGBench has it, 2410.20092).

With two critics Q_k(s, g, a), their slow copies Qbar_k, one value V(s, g), and r, m, bc as in implicit.py

    u      min_k Qbar_k(s, g, a) - V(s, g)
    value  mean(w u^2),   w = 0.9 where u >= 0, else 0.1
    critic sum_k mean((r + gamma m V(s', g) - Q_k(s, g, a))^2)
    actor  DDPG+BC: -mean(q) / (mean |q| + 1e-6) - alpha mean(bc),   q = min_k Q_k(s, g_a, clip(mu(s, g_a), -1, 1)),
           the divisor held constant, g_a the policy's goal
           or AWR: -mean(min(exp(alpha A), 100) bc),   A = min_k Q_k(s, g_a, a) - V(s, g_a)
    Qbar   Qbar + tau (Q - Qbar), after the step

All losses read the parameters from before the step. Published alphas (`bc_alpha`) of DDPG+BC: 0.003 for point mazes,
0.3 for the ant's (0.01 on explored data), 0.1 for humanoids, 1 for arms. Published networks are trunk=plain, depth=3,
width=512.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepres.acting import ClippedGaussianPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.extraction import ddpg_bc
from deepres.algorithms.implicit import (
    ImplicitOptions,
    backed_up,
    expectile_loss,
    mixed_goals,
    weighted_cloning,
)
from deepres.algorithms.parts import average_into, unit_log_density
from deepres.data.batch import Batch
from deepres.data.goal_laws import MixedGoals
from deepres.networks import Networks, call_frozen
from deepres.options import option


@dataclass(frozen=True)
class GCIQLOptions(ImplicitOptions):
    """Implicit Q-learning on goals."""

    extraction: Literal["ddpg_bc", "awr"] = option("ddpg_bc")
    """How the policy learns: by the critics' slope, held to what was done; or as what was done, weighted."""
    bc_alpha: float = option(0.3, least=0)
    """Of ddpg_bc the weight of cloning; of awr how sharply the policy prefers what the critics call better."""


class GCIQL(Algorithm):
    """Implicit Q-learning: steps to a goal from what was done, a policy by the critics' slope near it."""

    Options = GCIQLOptions
    options: GCIQLOptions
    headline = ("critic_loss", "actor_loss", "q")
    about = About(
        source="arXiv 2410.20092, 2110.06169",
        losses="value: expectile of Q - V; critics: squared TD error; actor: -Q and cloning, or weighted cloning",
        actor_reads="old",
        layers="4 D",
    )
    passes: tuple[Pass, ...] = (
        Pass("q_slow", backward=False), Pass("v"),
        Pass("v", backward=False), Pass("q"),
        Pass("actor"), Pass("q", weights=False),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        options, seen = self.options, self.sizes.state + self.sizes.goal
        self.q = networks.values(seen + self.sizes.action)
        self.q_slow = deepcopy(self.q).requires_grad_(False)
        self.v = networks.value(seen)
        self.actor = networks.mean_actor(seen, self.sizes.action)
        if options.extraction == "awr":
            self.passes = (*self.passes[:-1], Pass("q", backward=False), Pass("v", backward=False))
        return {
            "value": Group(list(self.v.parameters()), options.critic_lr),
            "critic": Group(list(self.q.parameters()), options.critic_lr),
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
        }

    @property
    def sampler(self) -> MixedGoals:
        return mixed_goals(self.options)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.next_state is not None
        options = self.options
        now = torch.cat([batch.state, batch.goal], dim=1)
        done = torch.cat([now, batch.action], dim=1)
        with torch.no_grad():
            low = self.q_slow(done).amin(dim=0)
        v = self.v(now)
        value = expectile_loss(low - v, low - v, options.expectile).mean()
        with torch.no_grad():
            after = self.v(torch.cat([batch.next_state, batch.goal], dim=1))
            target = backed_up(batch, after, options.gamma)
        q = self.q(done)
        critic = (target - q).square().mean(dim=1).sum()
        actor, measured = self._actor_loss(batch)
        metrics = {
            "value_loss": value,
            "critic_loss": critic,
            "actor_loss": actor,
            "v": v.mean(),
            "q": q.mean(),
            "target": target.mean(),
            **measured,
        }
        yield {"value": value, "critic": critic, "actor": actor}, metrics

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss [], and what is measured of it."""
        alpha, seen = self.options.bc_alpha, torch.cat([batch.state, batch.extra["actor_goal"]], dim=1)
        mean = self.actor(seen)
        if self.options.extraction == "awr":
            with torch.no_grad():
                q = self.q(torch.cat([seen, batch.action], dim=1)).amin(dim=0)
                advantage = q - self.v(seen)
            return weighted_cloning(mean, batch.action, advantage, alpha)
        q = call_frozen(self.q, torch.cat([seen, mean.clamp(-1, 1)], dim=1)).amin(dim=0)
        cloned = unit_log_density(mean, batch.action)
        return ddpg_bc(q, cloned, alpha), {"actor_q": q.mean(), "bc": cloned.mean()}

    def after_step(self, skip: Tensor) -> None:
        average_into(self.q_slow.parameters(), self.q.parameters(), self.options.tau, skip)

    def policy(self) -> ClippedGaussianPolicy:
        return ClippedGaussianPolicy(self.actor)
