"""HIQL, hierarchical implicit Q-learning: one value, a policy of subgoals and a policy of actions (arXiv 2307.11949).

A subgoal w is what was achieved k steps later, told to the policies as rep(s, w), 10 numbers of length sqrt(10) that
the values learn with. With V_k(s, rep(s, g)), slow copies Vbar_k that read the same rep, and r, m as in implicit.py

    u      r + gamma m min_k Vbar_k(s', rep(s', g)) - mean_k Vbar_k(s, rep(s, g))
    value  sum_k mean(w (r + gamma m Vbar_k(s', rep(s', g)) - V_k(s, rep(s, g)))^2),   w = 0.7 where u >= 0, else 0.3
    high   -mean(min(exp(alpha A), 100) log N(rep(s, w_h); high(s, g_h), 1)),   A = V(s_h, g_h) - V(s, g_h),
           g_h the policy's goal, s_h the state k steps later, no later than g_h, w_h = e(s_h)
    low    -mean(min(exp(alpha A), 100) log N(a; low(s, rep(s, w)), 1)),   A = V(s', w) - V(s, w),   w = e(s_{t+k})
    acts   clip(low(s, z), -1, 1),   z = high(s, g) drawn out to the length sqrt(10)
    Vbar   Vbar + tau (V - Vbar), after the step

V stands for mean_k V_k where it weighs policies, and targets of them are held constant. All losses read the parameters
from before the step. Published: k is 25, 100 for humanoids and 10 for arms; networks are trunk=plain, depth=3,
width=512. A run that acts explores by noise on actions alone. Ours: subgoals are the parts e(s) of states that goals
speak of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
class HIQLOptions(ImplicitOptions):
    """Hierarchical implicit Q-learning."""

    expectile: float = option(0.7, least=0.5, below=1)
    """Weight of targets above the value, 1 - expectile of those below."""
    subgoal_steps: int = option(25, least=1)
    """How many steps ahead subgoals lie."""
    rep_dim: int = option(10, least=1)
    """Numbers that tell a subgoal."""
    high_alpha: float = option(3.0, least=0)
    """How sharply the policy of subgoals prefers what the values call better; 0 clones everything alike."""
    low_alpha: float = option(3.0, least=0)
    """The same of the policy of actions."""


class TwoLevels(nn.Module):
    """Both policies as one: obs = concat(state, goal) [N, S + G] -> the mean of an action [N, A].

    state: S. high: obs -> a subgoal [N, R]. low: concat(state, subgoal drawn out to length sqrt(R)) -> [N, A].
    """

    def __init__(self, high: nn.Module, low: nn.Module, state: int):
        super().__init__()
        self.high, self.low, self.state = high, low, state

    def forward(self, obs: Tensor) -> Tensor:
        return self.low(torch.cat([obs[:, : self.state], lengthened(self.high(obs))], dim=1))


def lengthened(x: Tensor) -> Tensor:
    """x [..., R] with rows of length sqrt(R)."""
    return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1])


class HIQL(Algorithm):
    """Hierarchical implicit Q-learning: one value, a policy of subgoals, a policy of actions towards them."""

    Options = HIQLOptions
    options: HIQLOptions
    headline = ("value_loss", "low_loss", "high_loss", "v")
    about = About(
        source="arXiv 2307.11949, 2410.20092",
        losses="values: expectile of the TD error; both policies: cloning, weighted by exp(alpha A)",
        actor_reads="old",
        layers="4 D",
    )
    passes = (
        Pass("rep"), Pass("v"), Pass("rep", backward=False, batches=6),
        Pass("v_slow", backward=False, batches=2), Pass("v", backward=False, batches=4),
        Pass("high"), Pass("low"),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        options, sizes = self.options, self.sizes
        self.rep = networks.encoder(sizes.state + sizes.goal, options.rep_dim)
        self.v = networks.values(sizes.state + options.rep_dim)
        self.v_slow = deepcopy(self.v).requires_grad_(False)
        self.high = networks.mean_actor(sizes.state + sizes.goal, options.rep_dim)
        self.low = networks.mean_actor(sizes.state + options.rep_dim, sizes.action)
        values = [*self.rep.parameters(), *self.v.parameters()]
        return {
            "value": Group(values, options.critic_lr),
            "high": Group(list(self.high.parameters()), options.actor_lr),
            "low": Group(list(self.low.parameters()), options.actor_lr),
        }

    @property
    def sampler(self) -> MixedGoals:
        return mixed_goals(self.options, self.options.subgoal_steps)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.next_state is not None
        options, extra = self.options, batch.extra
        state, after, goal, far = batch.state, batch.next_state, batch.goal, extra["actor_goal"]
        now = lengthened(self.rep(torch.cat([state, goal], dim=1)))
        v = self.v(torch.cat([state, now], dim=1))
        with torch.no_grad():
            led = extra["waypoint_state"]
            states = torch.cat([after, state, led, state, after, state])
            goals = torch.cat([goal, far, far, extra["near"], extra["near"], extra["waypoint"]])
            reps = lengthened(self.rep(torch.cat([states, goals], dim=1)))
            then, *_, near, _, wanted = reps.chunk(6)
            slow = torch.cat([torch.cat([state, now], dim=1), torch.cat([after, then], dim=1)])
            slow, slow_then = self.v_slow(slow).chunk(2, dim=1)
            rows = slice(len(state), 5 * len(state))  # of those that a policy's weights are about
            judged = self.v(torch.cat([states[rows], reps[rows]], dim=1)).mean(dim=0)
            far_from, far_to, near_from, near_to = judged.chunk(4)
            target = backed_up(batch, slow_then, options.gamma)
            above = backed_up(batch, slow_then.amin(dim=0), options.gamma) - slow.mean(dim=0)
        value = expectile_loss(above, target - v, options.expectile).mean(dim=1).sum()
        subgoal = self.high(torch.cat([state, far], dim=1))
        high, of_high = weighted_cloning(subgoal, wanted, far_to - far_from, options.high_alpha)
        mean = self.low(torch.cat([state, near], dim=1))
        low, of_low = weighted_cloning(mean, batch.action, near_to - near_from, options.low_alpha)
        metrics = {
            "value_loss": value,
            "high_loss": high,
            "low_loss": low,
            "v": v.mean(),
            "target": target.mean(),
            "above": (above >= 0).float().mean(),
            **{f"high_{name}": x for name, x in of_high.items()},
            **{f"low_{name}": x for name, x in of_low.items()},
        }
        yield {"value": value, "high": high, "low": low}, metrics

    def after_step(self, skip: Tensor) -> None:
        average_into(self.v_slow.parameters(), self.v.parameters(), self.options.tau, skip)

    def policy(self) -> ClippedGaussianPolicy:
        return ClippedGaussianPolicy(TwoLevels(self.high, self.low, self.sizes.state))
