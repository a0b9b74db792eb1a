"""When a row's own trajectory first reaches its goal: what survival RL learns from (arXiv 2605.31273, 2609.36238).

A goal is a point, or several in a row that must be reached one after another (sequences.py). A pass copies the achieved
goals of its windows once, side by side, and looks along each row's own trajectory in its window for the first lag at
which the goal is reached; nothing is of the size of a window squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepres.data.batch import Batch
from deepres.data.relabel import Draw, Sampler, taken_actions, truncated_geometric, whole_chunks
from deepres.data.replay import ReplayBuffer, Rows
from deepres.data.sequences import BLOCK, Line, Query, Squares, at_once, searches, sequences_apart

NEVER = 2**62  # a lag beyond all others
LEVELS = (1.0, 0.5, 0.25)  # of the radius: inside a goal is the share of these that a distance lies within


@dataclass(frozen=True)
class GoalMix:
    """Which goals rows are learned for. later: share of the rows that get a state d >= 1 steps later, P(d) proportional
    to gamma^d. current: their own state. The others get a random step of the same window, of whatever trajectory."""

    later: float = 0.85
    current: float = 0.05
    gamma: float = 0.999


class FirstHits(Sampler):
    """State-actions under a goal, and the first lag at which their trajectory reaches it.

    bins: K; lags are 0..K-1. radius: of reaching, Euclidean, in the goal's coordinates; None is the task's own (of the
    ring). mix: where goals come from. censor: of a row that does not reach its goal, "horizon" says that it does not
    within K, as published; "observed", within what is left of its trajectory in the window, or K if it falls, as
    nothing is reached after that. sequence: m >= 1; with several, a goal is m achieved goals one after another (a
    random step's is one, m times), and reached where all m steps from a lag on lie within the radius of theirs; the
    last m - 1 steps of a window are then no rows and no goals. horizon: actions to a row, t .. t + H - 1. edges: bins
    of lags, [edges_k, edges_k+1), for the occupancy; () gives none.

    Beside state, action and goal [B, G] (of a sequence the first), a batch has in `extra`

        lag        [B] int64, of the first hit, at most K - 1; of a row without one that until which nothing was
        event      [B] bool, whether there was a hit
        valid      [B] float32, with H > 1: 1 where the row's chunk lies in its trajectory and window; else its actions
                   are 0
        sequence   [B, m * G], with m > 1
        occupancy  [B, bins] with edges: of each bin's observed lags the share spent inside the goal, where inside is
                   the mean of 1[distance <= radius], 1[<= radius / 2], 1[<= radius / 4]
        observed   [B, bins] bool, with edges: whether the bin has an observed lag. Lags after a fall are observed, as
                   nothing; those after a time limit or the window's end are not
        falls      [B] bool, with edges: whether the row's trajectory ends for good later in the window
        apart      [B, B] bool, with edges: whether the goals of two rows lie further apart than the radius, those of
                   sequences at any step
    """

    columns = ("terminals",)

    def __init__(
        self,
        bins: int,
        *,
        radius: float | None = None,
        mix: GoalMix = GoalMix(),
        censor: Literal["horizon", "observed"] = "horizon",
        sequence: int = 1,
        horizon: int = 1,
        edges: tuple[int, ...] = (),
    ):
        self.bins, self.radius, self.mix, self.censor = bins, radius, mix, censor
        self.sequence, self.horizon, self.edges = sequence, horizon, edges

    # --- drawing ---

    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        for rows in ring.deal(need, window, generator, margin=self.sequence - 1):
            uniform = torch.rand(
                (3, len(rows.env)), dtype=torch.float64, generator=generator, device=ring.device
            )
            yield self._labelled(ring, rows, uniform)

    def _labelled(self, ring: ReplayBuffer, rows: Rows, uniform: Tensor) -> Draw:
        more = self.sequence - 1
        reach = (rows.left - more).clamp_min(0)  # the last lag at which a whole sequence was seen
        later = uniform[0] < self.mix.later
        random = uniform[0] >= self.mix.later + self.mix.current
        ahead = torch.where(later, truncated_geometric(uniform[1], reach, self.mix.gamma), 0)
        elsewhere = rows.start + (uniform[2] * (rows.length - more)).long()
        goal = torch.where(random, elsewhere, rows.step + ahead)
        span = torch.where(random, 0, (rows.left - ahead).clamp(max=more))
        falls = ring.take("terminals", ring.index(rows, rows.left)).bool()

        begin = rows.env * rows.length - rows.start
        line = self._line(ring, rows, begin + rows.step + rows.left)
        own, there = line.place(begin + rows.step), line.place(begin + goal)
        first, inside = self._searched(line, Query(own, there, reach, random), self._radius(ring))
        event = first <= reach
        censored = torch.full_like(first, self.bins)
        if self.censor == "observed":
            censored = torch.where(falls, censored, (reach + 1).clamp(max=self.bins))
        draw = {
            "now": ring.index(rows),
            "goal": ring.index(Rows(rows.env, goal, rows.left, rows.start, rows.length)),
            "span": span,
            "lag": torch.where(event, first.clamp(max=self.bins - 1), censored),
            "event": event,
            "falls": falls,
        }
        if self.horizon > 1:
            draw["whole"] = whole_chunks(ring, rows, self.horizon)
        if inside is not None:
            draw["inside"] = inside
            draw["seen"] = torch.where(falls, self.bins, (reach + 1).clamp(max=self.bins))
        return draw

    def _radius(self, ring: ReplayBuffer) -> float:
        radius = ring.threshold if self.radius is None else self.radius
        if radius is None:
            raise ValueError(
                "FirstHits needs the radius of reaching; pass radius=, or make the ring with threshold="
            )
        return radius

    def _line(self, ring: ReplayBuffer, rows: Rows, ends: Tensor) -> Line:
        """The achieved goals of all windows of the pass, environment by environment. ends: [n] which of them end a
        row's trajectory."""
        starts = torch.zeros(ring.num_envs, dtype=torch.int64, device=ring.device).scatter_(
            0, rows.env, rows.start
        )
        steps = starts[:, None] + torch.arange(rows.length, device=ring.device)
        env = torch.arange(ring.num_envs, device=ring.device)[:, None].expand_as(steps)
        index = ring.index(Rows(env.flatten(), steps.flatten(), rows.left, rows.start, rows.length))
        return Line.of(ring.take("states", index, ring.goal_slice), ends, self.sequence, rows.length)

    def _searched(self, line: Line, query: Query, radius: float) -> tuple[Tensor, Tensor | None]:
        """[n] the first lag <= reach of a hit, or one beyond; [n, bins] int16, three times the lags inside, by bin."""
        first = torch.full_like(query.reach, NEVER)
        bins = max(0, len(self.edges) - 1)
        inside = torch.zeros(len(first), bins, dtype=torch.int16, device=first.device)
        for rows, squares in searches(line, query, self.sequence, whole=bool(self.edges)):
            self._search(rows, squares, query.reach, radius, first, inside)
        return first, inside if self.edges else None

    def _search(
        self, rows: Tensor, squares: Squares, reach: Tensor, radius: float, first: Tensor, inside: Tensor
    ) -> None:
        """Fill in `first` and `inside` of `rows` [n], whose squared distances at lags come from `squares`."""
        edges = torch.tensor(self.edges, device=first.device)
        for looking in rows.split(at_once(rows.device) // BLOCK):
            for start in range(0, int(reach[looking].max()) + 1, BLOCK):
                lags = torch.arange(start, start + BLOCK, device=first.device)
                square = squares(looking, start)
                square.masked_fill_(lags > reach[looking, None], math.inf)
                hit = torch.where(square <= radius**2, lags, NEVER).amin(dim=1)
                first[looking] = torch.minimum(first[looking], hit)
                further = reach[looking] >= start + BLOCK
                if self.edges:
                    in_bin = (lags[:, None] >= edges[:-1]) & (lags[:, None] < edges[1:])
                    level = torch.zeros_like(square)
                    for share in LEVELS:
                        level += square <= (radius * share) ** 2
                    inside[looking] += (level @ in_bin.float()).to(torch.int16)
                else:  # nothing beyond the first hit matters
                    further &= hit == NEVER
                looking = looking[further]

    # --- gathering ---

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        now, goal = draw["now"], draw["goal"]
        state, goals = ring.take("states", now), ring.take("states", goal, ring.goal_slice)
        action, extra = taken_actions(ring, draw, self.horizon)
        extra |= {"lag": draw["lag"], "event": draw["event"]}
        points = goals[:, None]
        if self.sequence > 1:
            steps = torch.minimum(torch.arange(self.sequence, device=now.device), draw["span"][:, None])
            points = ring.take("states", ring.ahead(goal[:, None], steps).flatten(), ring.goal_slice)
            points = points.view(len(now), self.sequence, -1)
            extra["sequence"] = points.flatten(1)
        if self.edges:
            edges = torch.tensor(self.edges, device=now.device)
            seen = (torch.minimum(draw["seen"][:, None], edges[1:]) - edges[:-1]).clamp_min(0)
            extra["occupancy"] = draw["inside"].float() / (len(LEVELS) * seen.clamp_min(1))
            extra |= {"observed": seen > 0, "falls": draw["falls"]}
            extra["apart"] = sequences_apart(points, self._radius(ring))
        return Batch(state, action, goals, extra=extra)
