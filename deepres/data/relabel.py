"""Samplers: which goals the rows of a batch are learned for, and what a batch holds.

A sampler asks the ring for the columns it needs, draws where the rows of a whole round lie, and gathers them batch by
batch. CRL's rows are pairs: a state-action and, as its goal, a state that followed. A TD method's rows are
transitions under the goal that was commanded, some of them under one that was reached instead (Hindsight Experience
Replay, arXiv 1707.01495).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepres.data.batch import Batch
from deepres.data.replay import ReplayBuffer, Rows

Draw = dict[str, Tensor]
"""Where the rows of `count` batches of B lie: tensors [count, B], or [count, B, ...]."""


def truncated_geometric(uniform: Tensor, longest: Tensor, gamma: float) -> Tensor:
    """d in 1..longest with P(d) proportional to gamma^d, by inverting its distribution function.

        P(d <= k) = (1 - gamma^k) / (1 - gamma^longest)
        d = ceil(log(1 - uniform * (1 - gamma^longest)) / log(gamma))

    uniform: float64 in [0, 1). longest: whole numbers >= 0 of the same shape; 0 gives d = 0 (no later step).
    """
    log_gamma = math.log(gamma)
    within = -torch.expm1(longest * log_gamma)
    d = torch.ceil(torch.log1p(-uniform * within) / log_gamma)
    return torch.minimum(d.clamp_min(1).long(), longest)


def geometric(uniform: Tensor, gamma: float) -> Tensor:
    """h >= 1, int64, with P(h) = (1 - gamma) gamma^(h - 1): ceil(log(1 - uniform) / log(gamma)).

    uniform: float64 in [0, 1).
    """
    return torch.ceil(torch.log1p(-uniform) / math.log(gamma)).clamp_min(1).long()


class Sampler(ABC):
    """Draws the batches of a round from a ring."""

    columns: tuple[str, ...] = ()
    """What the ring must keep beside states, actions and trajectories (names of deepres.data.batch.COLUMNS)."""

    @abstractmethod
    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        """Where `need` rows lie, in parts; a generator of random numbers on the ring's device."""

    @abstractmethod
    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        """The rows of `draw` ([B] each), float32 on the ring's device; as long as nothing was inserted since."""

    def draw(
        self, ring: ReplayBuffer, count: int, batch_size: int, *, window: int, generator: torch.Generator
    ) -> Draw:
        """Where the rows of `count` batches lie. A generator on another device than the ring's seeds one there."""
        if generator.device.type != ring.device.type:
            seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
            generator = torch.Generator(ring.device).manual_seed(int(seed))
        parts = list(self.draw_rows(ring, count * batch_size, window, generator))
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: t.view(count, batch_size, *t.shape[1:]) for name, t in whole.items()}

    def batches(
        self, ring: ReplayBuffer, count: int, batch_size: int, *, window: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """`count` batches for one round of gradient steps, pinned where the ring is. window: steps; see
        `ReplayBuffer.deal`."""
        drawn = self.draw(ring, count, batch_size, window=window, generator=generator)
        gathered = (self.batch(ring, {name: one[i] for name, one in drawn.items()}) for i in range(count))
        return (batch.map(Tensor.pin_memory) for batch in gathered) if ring.pinned else gathered


class FutureGoals(Sampler):
    """Pairs: (state, action) at time t, and the goal coordinates of a state d >= 1 steps later in its trajectory.

    gamma: P(d) is proportional to gamma^d, cut off at the end of the trajectory or of the sampled window; None: d is
    uniform. A trajectory's last step has nothing after it and is paired with its own state, as published. commanded:
    share of the rows that keep the goal that the policy was given. horizon: H, actions of a row; with H > 1 a batch's
    action is [B, H * A], those of t .. t + H - 1, and extra["valid"] [B] float32 is 1 where all of them lie in the
    row's trajectory and window; elsewhere the action is 0.

    lags: also give extra["ahead"] [B] int64, how many steps later the goal is reached; of a row that keeps the
    commanded goal, how many later steps of its trajectory its window has.

    falls: also give, in `extra`, [B] each: "left" int64, later steps of the row's trajectory in its window; "falls"
    bool, whether the last of these ended it for good (a time limit does not, and what comes after the window is not
    known); "lag" int64, an h >= 1 with P(h) proportional to gamma^h, drawn apart from the goal and not cut off.

    together: so many rows of one environment's window stand side by side in a batch, see `ReplayBuffer.deal`.
    """

    def __init__(
        self,
        gamma: float | None,
        commanded: float = 0.0,
        *,
        horizon: int = 1,
        lags: bool = False,
        falls: bool = False,
        together: int = 1,
    ):
        if falls and gamma is None:
            raise ValueError("falls=True draws lags with the goals' gamma, got None; pass one")
        self.gamma, self.commanded, self.horizon = gamma, commanded, horizon
        self.lags, self.falls, self.together = lags, falls, together
        self.columns = ("goals",) * bool(commanded) + ("terminals",) * falls

    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        for rows in ring.deal(need, window, generator, together=self.together):
            yield self.drawn(ring, rows, generator)

    def drawn(self, ring: ReplayBuffer, rows: Rows, generator: torch.Generator) -> Draw:
        """Where `rows` and what belongs to them lie."""
        options: Any = {"dtype": torch.float64, "generator": generator, "device": ring.device}
        uniform = torch.rand(len(rows.env), **options)
        if self.gamma is None:
            ahead = torch.minimum((uniform * rows.left).long() + 1, rows.left)
        else:
            ahead = truncated_geometric(uniform, rows.left, self.gamma)
        drawn = {"now": ring.index(rows), "later": ring.index(rows, ahead)}
        if self.commanded:
            kept = torch.rand(len(rows.env), generator=generator, device=ring.device) < self.commanded
            drawn["commanded"] = kept
        if self.lags:
            drawn["ahead"] = torch.where(kept, rows.left, ahead) if self.commanded else ahead
        if self.horizon > 1:
            drawn["whole"] = whole_chunks(ring, rows, self.horizon)
        if self.falls:
            assert self.gamma is not None
            uniform = torch.rand(len(rows.env), **options)
            drawn |= {"left": rows.left, "last": ring.index(rows, rows.left)}
            drawn["lag"] = geometric(uniform, self.gamma)
        return drawn

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        now = draw["now"]
        goal = ring.take("states", draw["later"], ring.goal_slice)
        if self.commanded:
            goal = torch.where(draw["commanded"][:, None], ring.take("goals", now), goal)
        action, extra = taken_actions(ring, draw, self.horizon)
        if self.lags:
            extra["ahead"] = draw["ahead"]
        if self.falls:
            extra |= {"left": draw["left"], "lag": draw["lag"]}
            extra["falls"] = ring.take("terminals", draw["last"]).bool()
        return Batch(ring.take("states", now), action, goal, extra=extra)


def whole_chunks(ring: ReplayBuffer, rows: Rows, horizon: int) -> Tensor:
    """[n] bool: whether horizon - 1 later steps of the row's trajectory lie in its window and have an action each."""
    return rows.left - ring.idle_steps >= horizon - 1


def taken_actions(ring: ReplayBuffer, draw: Draw, horizon: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch's action [B, horizon * A] and what it adds to `extra`: of chunks, "valid" [B] float32.

    draw: "now" [B]; with a horizon > 1 also "whole" [B] bool (see `whole_chunks`).
    """
    if horizon == 1:
        return ring.take("actions", draw["now"]), {}
    whole = draw["whole"]
    return ring.take_chunk(draw["now"], horizon, whole), {"valid": whole.float()}


class FutureTransitions(FutureGoals):
    """FutureGoals' pairs with what followed: next_state [B, S], an episode's true last state where it ended.

    terminal: give terminal [B] and extra["next_achieved"] [B, G], the goal coordinates of the next state; else
    extra["achieved"] [B, G], those of the state.
    """

    def __init__(self, gamma: float | None, *, terminal: bool = True):
        super().__init__(gamma)
        self.terminal = terminal
        self.columns = ("next_states", *(("terminals",) if terminal else ()))

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        pairs, now = super().batch(ring, draw), draw["now"]
        next_state = ring.take("next_states", now)
        if not self.terminal:
            achieved = {"achieved": ring.take("states", now, ring.goal_slice)}
            return replace(pairs, next_state=next_state, extra=achieved)
        extra = {"next_achieved": next_state[:, ring.goal_slice]}
        return replace(pairs, next_state=next_state, terminal=ring.take("terminals", now), extra=extra)


class Hindsight(Sampler):
    """Transitions (state, action, next state, reward, terminal) under a goal.

    share: of the rows, those that get what was reached at a later step of their trajectory as their goal; the others
    keep the commanded one. dense: the environment's own reward in place of the sparse one; share must then be 0.
    truncation: give extra["truncation"] [B] float32 too, 1 where the time limit cut the episode.

    strategy: which later step: "future", a uniformly drawn one, the next one included; "final", the trajectory's last
    in the sampled window; "published", as the public baselines of arXiv 2503.14858 (JaxGCRL) have it, but with rows and
    goals that belong together: only a row whose trajectory reaches its time limit within the window gets a goal of its
    own, what was achieved before the last action, and every reward is that of standing at the goal before acting.

    The sparse reward is 1 where the next state has reached the row's goal, as the task judges it, else 0. The next
    state of an episode's last step is the one before the reset, and a time limit is not terminal. Where a task moves
    its goal during an episode, a row has the goal from before its step.
    """

    def __init__(
        self, share: float, strategy: str = "future", *, dense: bool = False, truncation: bool = False
    ):
        if dense and share:
            raise ValueError(f"a dense reward is that of the commanded goal: share must be 0, got {share}")
        self.share, self.strategy, self.dense, self.truncation = share, strategy, dense, truncation
        self._published = bool(share) and strategy == "published"
        cut = ("truncations",) if truncation or self._published else ()
        commanded = (
            () if share == 1 and not self._published else ("goals", "rewards" if dense else "successes")
        )
        self.columns = tuple(sorted((*commanded, "next_states", "terminals", *cut)))

    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        for rows in ring.deal(need, window, generator, ends=True):
            drawn = {"now": ring.index(rows)}
            if self.share:
                uniform = torch.rand(
                    (2, len(rows.env)), dtype=torch.float64, generator=generator, device=ring.device
                )
                drawn["relabelled"] = uniform[0] < self.share
                future = self.strategy == "future"
                ahead = (uniform[1] * (rows.left + 1)).long() if future else rows.left
                drawn["later"] = ring.index(rows, torch.minimum(ahead, rows.left))
            yield drawn

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        now = draw["now"]
        state, next_state = ring.take("states", now), ring.take("next_states", now)
        goal, reward = self._judged(ring, draw, state, next_state)
        return Batch(
            state=state,
            action=ring.take("actions", now),
            goal=goal,
            next_state=next_state,
            reward=reward,
            terminal=ring.take("terminals", now),
            extra={"truncation": ring.take("truncations", now)} if self.truncation else {},
        )

    def _judged(
        self, ring: ReplayBuffer, draw: Draw, state: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Goal [B, G] and reward [B] of the rows."""
        if self.share and ring.reached is None:
            raise ValueError("Hindsight needs the task's verdict; make the ring with reached=")
        if "goals" not in self.columns:
            assert ring.reached is not None
            goal = ring.take("next_states", draw["later"], ring.goal_slice)
            return goal, ring.reached(next_state, goal).float()
        goal = ring.take("goals", draw["now"])
        reward = ring.take("rewards" if self.dense else "successes", draw["now"])
        if not self.share:
            return goal, reward
        assert ring.reached is not None
        relabelled, later = draw["relabelled"], draw["later"]
        if self._published:
            relabelled = relabelled & ring.take("truncations", later).bool()
            goal = torch.where(relabelled[:, None], ring.take("states", later, ring.goal_slice), goal)
            return goal, ring.reached(state, goal).float()
        goal = torch.where(relabelled[:, None], ring.take("next_states", later, ring.goal_slice), goal)
        return goal, torch.where(relabelled, ring.reached(next_state, goal).float(), reward)
