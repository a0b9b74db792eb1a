"""How far trajectories are from goals at every lag, where a goal is a point or several achieved goals in a row.

A goal of m points from a place q on, seen from a place t of the same trajectory, is as far as its furthest step:

    far[t, q] = max over j < m of |x[t + j] - x[q + j]|^2,   x the achieved goals, a trajectory's last one repeated

Rows that seek it from whatever place share it, and its maximum is one of two shorter sequences': log2(m) passes over a
table of places q by differences t - q, built for so many goals at once as fit a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # lags that a search looks at together
_TABLE_PLACES = 512  # of goals in a table, beside the m - 1 that only end sequences
Squares = Callable[[Tensor, int], Tensor]
"""(rows [n], first lag) -> [n, BLOCK] the squared distance from a row's goal at BLOCK lags, a tensor of its own."""


def at_once(device: torch.device) -> int:
    """Numbers that a search holds in a tensor: 1 MB that a core's cache keeps, elsewhere 64 MB."""
    return 2**18 if device.type == "cpu" else 2**24


@dataclass(frozen=True)
class Line:
    """Achieved goals side by side: points [G, P], places [n] of those that it was made of.

    Behind each trajectory's last one stand m - 1 copies of it, where m points in a row are a goal, and zeros at both
    ends, so that no search leaves the line.
    """

    points: Tensor
    places: Tensor

    @classmethod
    def of(cls, points: Tensor, ends: Tensor, sequence: int, longest: int) -> Line:
        """points: [P, G]. ends: [n] int64, which of them end a trajectory, as often as it comes. longest: lags and
        differences that are ever asked for."""
        margin, device = longest + BLOCK + sequence, points.device
        if sequence == 1:
            return cls(F.pad(points.T, (margin, margin)), torch.arange(len(points), device=device) + margin)
        count = torch.ones(len(points), dtype=torch.int64, device=device).index_fill_(0, ends, sequence)
        drawn_out = points.repeat_interleave(count, dim=0)
        return cls(F.pad(drawn_out.T, (margin, margin)), count.cumsum(0) - count + margin)

    def place(self, index: Tensor) -> Tensor:
        """Where the points `index` of those that it was made of stand."""
        return self.places[index]


class Query(NamedTuple):
    """What [n] rows look for: places on the line of the rows (own) and of their goals (goal); reach, the last lag that
    counts; still, bool, whether a goal of several points is one place's point again and again, and else those from
    that place on, in the row's own trajectory."""

    own: Tensor
    goal: Tensor
    reach: Tensor
    still: Tensor


def searches(line: Line, query: Query, sequence: int, *, whole: bool) -> Iterator[tuple[Tensor, Squares]]:
    """Rows and their distances, part by part, which together are all rows. whole: whether distances are asked for at
    all lags up to reach, or none beyond a row's own distance from its goal."""
    if sequence == 1:
        yield torch.arange(len(query.own), device=query.own.device), _from_points(line, query, 1)
        return
    still = query.still.nonzero()[:, 0]
    if len(still):
        yield still, _from_points(line, query, sequence)
    moving = (~query.still).nonzero()[:, 0]
    moving = moving[query.goal[moving].argsort()]
    goal = query.goal[moving]
    ahead = goal - query.own[moving]
    after = query.reach[moving] - ahead if whole else torch.zeros_like(ahead)
    begin = 0
    while begin < len(moving):
        end = int(torch.searchsorted(goal, goal[begin] + _TABLE_PLACES))
        part = slice(begin, end)
        before, begin = int(ahead[part].max()), end
        width = before + int(after[part].max()) + BLOCK
        yield moving[part], _from_table(line, query, moving[part], sequence, before, width)


def _from_points(line: Line, query: Query, sequence: int) -> Squares:
    """Distances from single points, each row by itself."""
    steps = line.points.unfold(1, BLOCK + sequence - 1, 1)  # [G, P, L], a view

    def squares(rows: Tensor, lag: int) -> Tensor:
        place, goal = query.own[rows] + lag, line.points[:, query.goal[rows]]
        square = torch.zeros(len(rows), steps.shape[2], device=place.device)
        for axis in range(len(goal)):
            square += (steps[axis, place] - goal[axis, :, None]).square_()
        return _running_max(square, sequence, dim=1)

    return squares


def _from_table(line: Line, query: Query, rows: Tensor, sequence: int, before: int, width: int) -> Squares:
    """Distances from sequences, of `rows` in the order of their goals. before: the largest distance to a goal ahead;
    width: differences t - q in the table, from -before on."""
    first, last = (int(query.goal[rows[end]]) for end in (0, -1))
    count = last - first + sequence
    table = torch.zeros(count, width, device=rows.device)
    seen = line.points.unfold(1, width, 1)[:, first - before : first - before + count]
    for axis, goals in enumerate(line.points[:, first : first + count]):
        table += (seen[axis] - goals[:, None]).square_()
    flat = _running_max(table, sequence, dim=0).flatten().unfold(0, BLOCK, 1)

    def squares(rows: Tensor, lag: int) -> Tensor:
        goal = query.goal[rows]
        return flat[(goal - first) * width + query.own[rows] - goal + before + lag]

    return squares


def _running_max(x: Tensor, count: int, dim: int) -> Tensor:
    """The largest of each `count` neighbours along `dim`, which becomes count - 1 shorter."""
    width = 1
    while width < count:
        step = min(width, count - width)
        left = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, left), x.narrow(dim, step, left))
        width += step
    return x


def sequences_apart(points: Tensor, radius: float) -> Tensor:
    """[B, B] bool: whether two of points [B, m, G] lie further apart than `radius` at any of the m steps.

    On a CPU most pairs are told by their centres c, the means over the steps, and by how far a row's steps about its
    centre are at most from those of the average row, e: for the largest distance d of two rows

        |c_i - c_j| <= d <= |c_i - c_j| + e_i + e_j

    The others are looked at step by step, which elsewhere all are: to learn which they are would wait for the device.
    """
    steps = points.transpose(0, 1)
    if points.device.type != "cpu" or len(steps) == 1:
        between = torch.cdist(steps, steps, compute_mode="donot_use_mm_for_euclid_dist")
        return (between > radius).any(dim=0)
    centre = points.mean(dim=1)
    about = points - centre[:, None]
    spread = torch.linalg.vector_norm(about - about.mean(dim=0), dim=2).amax(dim=1)
    between = torch.zeros(len(points), len(points))
    for c in centre.unbind(dim=1):
        between += (c[:, None] - c).square_()
    between.sqrt_()
    hair = 1e-5 * (radius + points.abs().max())  # more than rounding can move either bound
    apart = between > radius + hair
    unsure = ~apart & (between + spread[:, None] + spread > radius - hair)
    axes = [axis.contiguous() for axis in points.unbind(dim=2)]
    for pairs in unsure.triu_(1).nonzero().split(at_once(points.device) // len(steps)):
        i, j = pairs.unbind(dim=1)
        square = torch.zeros(len(pairs), len(steps))
        for axis in axes:
            square += (axis[i] - axis[j]).square_()
        apart[i, j] = apart[j, i] = square.amax(dim=1).sqrt() > radius
    return apart
