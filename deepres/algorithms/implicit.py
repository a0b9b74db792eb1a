"""Implicit value learning on goals, what gcivl.py, gciql.py and hiql.py share (arXiv 2110.06169; on goals 2307.11949).

A row (s, a, s') has a goal g for the values and another for the policy. Where g is the row's own state, r = 0 and
m = 0; everywhere else r = -1 and m = 1: minus V counts the discounted steps to the goal.

    there     r + gamma m V(s', g), and -1 / (1 - gamma) where the episode ended for good: nothing is reached after it
    expectile |tau - 1[u < 0]| x^2, u the sign that decides: an average of x that leans to where u > 0
    bc        log N(a; mu(s, g), 1): the policy's spread is fixed, and what acts is its mean, held in [-1, 1]
    AWR       -mean(min(exp(alpha advantage), 100) bc)

Nothing here asks for actions that were not taken, and nothing seeks what was not seen: these are methods for recorded
data (`Config(data=...)`). A run that acts learns from its own ring in the same way and explores by the policy's spread.

Ours: goals are the parts e(s) of states, not states; values and policy are the stacks of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from deepres.algorithms.extraction import awr
from deepres.algorithms.parts import awr_weights, unit_log_density
from deepres.data.batch import Batch
from deepres.data.goal_laws import GoalLaw, MixedGoals
from deepres.options import check, option


@dataclass(frozen=True)
class ImplicitOptions:
    """What all three have; the defaults are those of OGBench (arXiv 2410.20092)."""

    expectile: float = option(0.9, least=0.5, below=1)
    """Weight of targets above the value, 1 - expectile of those below."""
    current_goals: float = option(0.2, least=0, most=1, share=True)
    """Share of the values' rows whose goal is their own state."""
    later_goals: float = option(0.5, least=0, most=1, share=True)
    """Share of the values' rows whose goal is d steps later, P(d) proportional to gamma^d; the others' is any state."""
    goal_cut: Literal["clipped", "renormalised"] = option("clipped")
    """A d beyond the trajectory's end is its end, or is not drawn."""
    random_actor_goals: float = option(0.0, least=0, most=1, share=True)
    """Share of the policy's rows whose goal is any state, the others' is uniformly later; published 0.5 for short
    pieces (stitch), 1 for undirected data (explore)."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount; published 0.995 for giant mazes and for humanoids."""
    tau: float = option(0.005, above=0, most=1)
    """Share by which the slow values follow in a step."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the policy."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the values."""

    def __post_init__(self) -> None:
        check(self)
        if self.current_goals + self.later_goals > 1:
            raise ValueError(
                f"current_goals + later_goals must be at most 1, got {self.current_goals} + {self.later_goals}"
            )


def mixed_goals(options: ImplicitOptions, subgoal: int = 0) -> MixedGoals:
    """The sampler that `options` ask for. subgoal: steps to the subgoals of a hierarchy, 0 without one."""
    own, later, anywhere = options.current_goals, options.later_goals, options.random_actor_goals
    values = GoalLaw(current=own, geometric=later, anywhere=1 - own - later)
    policy = GoalLaw(uniform=1 - anywhere, anywhere=anywhere)
    return MixedGoals(
        values, policy, gamma=options.gamma, clipped=options.goal_cut == "clipped", subgoal=subgoal
    )


def expectile_loss(decides: Tensor, error: Tensor, expectile: float) -> Tensor:
    """where(decides >= 0, expectile, 1 - expectile) * error^2, [..., B] of both; the weight is held constant."""
    below = (decides.detach() < 0).to(error.dtype)
    return (expectile - below).abs() * error.square()


def backed_up(batch: Batch, value: Tensor, gamma: float) -> Tensor:
    """`there` of the module's head, for `value` V(s', g) [..., B]."""
    assert batch.reward is not None and batch.terminal is not None
    after = value + batch.terminal * (-1 / (1 - gamma) - value)
    return batch.reward - batch.reward * gamma * after  # m = -r


def weighted_cloning(
    mean: Tensor, action: Tensor, advantage: Tensor, alpha: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """AWR's loss [] and what is measured of it, for a policy's means and what was done, [B, A] each."""
    cloned = unit_log_density(mean, action)
    measured = {"advantage": advantage.mean(), "weight": awr_weights(advantage, alpha).mean()}
    return awr(advantage, cloned, alpha), {**measured, "bc": cloned.mean()}
