"""Goals by mixed laws: what offline methods learn for (OGBench, arXiv 2410.20092, and its public code).

A goal is the row's own state, a later state of its trajectory (geometrically soon, or any of them alike), or the state
of any row of the data. Methods that back up values draw the values' goals by one law and the policy's by another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.data.batch import Batch
from deepres.data.relabel import Draw, FutureGoals, Sampler, geometric, truncated_geometric
from deepres.data.replay import ReplayBuffer, Rows


@dataclass(frozen=True)
class GoalLaw:
    """Shares of the goals, which add up to 1. current: the row's own state. geometric, uniform: a later state of its
    trajectory (see MixedGoals). anywhere: the state of any row, of whatever trajectory."""

    current: float = 0.0
    geometric: float = 0.0
    uniform: float = 0.0
    anywhere: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.current, self.geometric, self.uniform, self.anywhere)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"the shares current, geometric, uniform and anywhere must be at least 0 and add up to 1, got {shares}"
            )


TD_VALUES = GoalLaw(current=0.2, geometric=0.5, anywhere=0.3)
"""Of values that are backed up: GCIVL, GCIQL, HIQL."""
GEOMETRIC = GoalLaw(geometric=1.0)
"""Of CRL's pairs."""
ANYWHERE = GoalLaw(anywhere=1.0)
"""Of QRL's distances, and of policies on data of random motion (explore)."""
LATER = GoalLaw(uniform=1.0)
"""Of policies on data of long ways (navigate, play, noisy)."""
LATER_OR_ANYWHERE = GoalLaw(uniform=0.5, anywhere=0.5)
"""Of policies on data of short ways (stitch)."""


def draw_goals(
    law: GoalLaw, ring: ReplayBuffer, rows: Rows, generator: torch.Generator, gamma: float, clipped: bool
) -> tuple[Tensor, Tensor]:
    """[n] where the goals of `rows` lie, by `law` as MixedGoals says it; [n] steps ahead that they are, or, of those
    that are anywhere, steps to the trajectory's end."""
    which, uniform = torch.rand(
        (2, len(rows.env)), dtype=torch.float64, generator=generator, device=ring.device
    )
    left = rows.left
    if clipped:
        soon = torch.minimum(geometric(uniform, gamma), left)
        alike = torch.minimum((1.5 + (left - 1) * uniform).long(), left)
    else:
        soon = truncated_geometric(uniform, left, gamma)
        alike = torch.minimum((uniform * left).long() + 1, left)
    ahead = torch.where(which < law.current + law.geometric, soon, alike)
    ahead = torch.where(which < law.current, 0, ahead)
    goal = ring.index(rows, ahead)
    if law.anywhere:
        elsewhere = which >= law.current + law.geometric + law.uniform
        goal = torch.where(elsewhere, ring.anywhere(len(goal), generator), goal)
        ahead = torch.where(elsewhere, left, ahead)
    return goal, ahead


class FutureAndActorGoals(FutureGoals):
    """FutureGoals' pairs, with extra["actor_goal"] [B, G]: a goal for the policy by the law `policy`, drawn apart.

    clipped: of that law, see MixedGoals; a trajectory goes on to its last state. options: of FutureGoals.
    """

    def __init__(self, gamma: float, policy: GoalLaw, *, clipped: bool = False, **options: Any):
        super().__init__(gamma, **options)
        self.policy, self.law_gamma, self.clipped = policy, gamma, clipped

    def drawn(self, ring: ReplayBuffer, rows: Rows, generator: torch.Generator) -> Draw:
        pairs = super().drawn(ring, rows, generator)
        goal, _ = draw_goals(self.policy, ring, rows, generator, self.law_gamma, self.clipped)
        return {**pairs, "actor_goal": goal}

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        pairs = super().batch(ring, draw)
        pairs.extra["actor_goal"] = ring.take("states", draw["actor_goal"], ring.goal_slice)
        return pairs


class MixedGoals(Sampler):
    """Transitions (state, action, next state, terminal) under a goal of the law `values`.

    policy: also draw extra["actor_goal"] [B, G] by this law, apart from `goal`. gamma: of the geometric law. clipped:
    how far ahead a later state lies, d steps, where the trajectory goes on for L,

        clipped (as published)   geometric  d = min(h, L),  P(h) = (1 - gamma) gamma^(h - 1), h = 1, 2, ...
                                 uniform    d = round(1 + (L - 1) u),  u in [0, 1): 1 and L half as often as the others
        else (ours)              geometric  P(d) proportional to gamma^d,  1 <= d <= L
                                 uniform    P(d) = 1 / L,  1 <= d <= L

    A trajectory goes on to its last row in the window; d is 0 there. Clipped, a recorded episode ends at the state of
    its last transition, as published, else at the state that this one led to. `anywhere` are the rows that can be
    dealt, each alike; its own state is not left out.

    reward [B] is 0 where the goal is the row's own state, else -1. subgoal: k steps; k > 0 gives what hierarchies learn
    from, in `extra`:

        near            [B, G] the goal coordinates k steps later, or where the trajectory ends
        waypoint_state  [B, S] the state k steps later, or at the policy's goal if that comes sooner on the row's
                        trajectory, or where the trajectory ends
        waypoint        [B, G] its goal coordinates
    """

    columns = ("next_states", "terminals")

    def __init__(
        self,
        values: GoalLaw,
        policy: GoalLaw | None = None,
        *,
        gamma: float = 0.99,
        clipped: bool = True,
        subgoal: int = 0,
    ):
        if subgoal and policy is None:
            raise ValueError("subgoal= leads towards the policy's goals; pass policy=, their law")
        self.values, self.policy, self.gamma, self.clipped = values, policy, gamma, clipped
        self.subgoal = subgoal

    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        for rows in ring.deal(need, window, generator, ends=self.clipped):
            now = ring.index(rows)
            how = ring, rows, generator, self.gamma, self.clipped
            goal, _ = draw_goals(self.values, *how)
            drawn = {"now": now, "goal": goal}
            if self.policy is not None:
                drawn["actor_goal"], left = draw_goals(self.policy, *how)
                if self.subgoal:
                    drawn["near"] = ring.index(rows, rows.left.clamp(max=self.subgoal))
                    drawn["waypoint"] = ring.index(rows, left.clamp(max=self.subgoal))
            yield drawn

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        now = draw["now"]
        extra = {}
        if "actor_goal" in draw:
            extra["actor_goal"] = ring.take("states", draw["actor_goal"], ring.goal_slice)
        if "near" in draw:
            extra["near"] = ring.take("states", draw["near"], ring.goal_slice)
            extra["waypoint_state"] = ring.take("states", draw["waypoint"])
            extra["waypoint"] = extra["waypoint_state"][:, ring.goal_slice]
        return Batch(
            state=ring.take("states", now),
            action=ring.take("actions", now),
            goal=ring.take("states", draw["goal"], ring.goal_slice),
            next_state=ring.take("next_states", now),
            reward=(draw["goal"] == now).float() - 1,
            terminal=ring.take("terminals", now),
            extra=extra,
        )
