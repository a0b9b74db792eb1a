"""GCIVL, implicit V-learning on goals: values of states alone, a policy cloned by advantage (OGBench, arXiv 2410.20092;
2110.06169 without Q).

With two values V_k(s, g), their slow copies Vbar_k, and r, m, bc as in implicit.py

    u      r + gamma m min_k Vbar_k(s', g) - mean_k Vbar_k(s, g)
    value  sum_k mean(w (r + gamma m Vbar_k(s', g) - V_k(s, g))^2),   w = 0.9 where u >= 0, else 0.1
    actor  -mean(min(exp(alpha A), 100) bc),   A = mean_k V_k(s', g_a) - mean_k V_k(s, g_a),   g_a the policy's goal
    Vbar   Vbar + tau (V - Vbar), after the step

All losses read the parameters from before the step. Published networks are trunk=plain, depth=3, width=512.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.acting import ClippedGaussianPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.implicit import (
    ImplicitOptions,
    backed_up,
    expectile_loss,
    mixed_goals,
    weighted_cloning,
)
from deepres.algorithms.parts import average_into
from deepres.data.batch import Batch
from deepres.data.goal_laws import MixedGoals
from deepres.networks import Networks
from deepres.options import option


@dataclass(frozen=True)
class GCIVLOptions(ImplicitOptions):
    """Implicit V-learning on goals."""

    bc_alpha: float = option(10.0, least=0)
    """How sharply the policy prefers what the values call better; 0 clones everything alike."""


class GCIVL(Algorithm):
    """Implicit V-learning: steps to a goal from states alone, a policy cloned where a step came closer."""

    Options = GCIVLOptions
    options: GCIVLOptions
    headline = ("value_loss", "actor_loss", "v")
    about = About(
        source="arXiv 2410.20092, 2110.06169",
        losses="values: expectile of the TD error; actor: cloning, weighted by exp(alpha A)",
        actor_reads="old",
        layers="2 D",
    )
    passes = (
        Pass("v_slow", backward=False, batches=2), Pass("v", backward=False, batches=2),
        Pass("v"), Pass("actor"),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        seen = self.sizes.state + self.sizes.goal
        self.v = networks.values(seen)
        self.v_slow = deepcopy(self.v).requires_grad_(False)
        self.actor = networks.mean_actor(seen, self.sizes.action)
        return {
            "value": Group(list(self.v.parameters()), self.options.critic_lr),
            "actor": Group(list(self.actor.parameters()), self.options.actor_lr),
        }

    @property
    def sampler(self) -> MixedGoals:
        return mixed_goals(self.options)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.next_state is not None
        options, goal = self.options, batch.extra["actor_goal"]
        now, then = torch.cat([batch.state, batch.goal], 1), torch.cat([batch.next_state, batch.goal], 1)
        seen, led = torch.cat([batch.state, goal], 1), torch.cat([batch.next_state, goal], 1)
        with torch.no_grad():
            slow, slow_then = self.v_slow(torch.cat([now, then])).chunk(2, dim=1)
            here, there = self.v(torch.cat([seen, led])).mean(dim=0).chunk(2)
            target = backed_up(batch, slow_then, options.gamma)
            above = backed_up(batch, slow_then.amin(dim=0), options.gamma) - slow.mean(dim=0)
        v = self.v(now)
        value = expectile_loss(above, target - v, options.expectile).mean(dim=1).sum()
        mean = self.actor(seen)
        actor, measured = weighted_cloning(mean, batch.action, there - here, options.bc_alpha)
        metrics = {
            "value_loss": value,
            "actor_loss": actor,
            "v": v.mean(),
            "target": target.mean(),
            "above": (above >= 0).float().mean(),
            **measured,
        }
        yield {"value": value, "actor": actor}, metrics

    def after_step(self, skip: Tensor) -> None:
        average_into(self.v_slow.parameters(), self.v.parameters(), self.options.tau, skip)

    def policy(self) -> ClippedGaussianPolicy:
        return ClippedGaussianPolicy(self.actor)
