"""Statistics of few seeds: interquartile mean, bootstrap intervals, probability of improvement, slope on depth.

Sources: Agarwal et al., arXiv 2108.13264 (interquartile mean, stratified bootstrap, probability of improvement);
Student 1908, Welch 1947 (interval of a mean, of a sum of means). Scores are NumPy arrays in float64; every bootstrap
takes its own seed, so the same scores give the same interval.

What decides a claim is a slope or a difference with Student's interval over the seeds. The percentile bootstrap of a
mean would be too narrow: of three seeds it spans them and no more, so that of studies without an effect one in four
would find one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
REPLICATES = 2000


ROUNDING = 1e-6
"""Slopes within it are rounding."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def text(self, form: str = "{:.2f}") -> str:
        value, low, high = (_formed(form, number) for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def _formed(form: str, number: float) -> str:
    """`number` printed. What rounds to zero is 0, but with a sign asked for one digit of it, lest an interval that
    leaves out 0 be shown to end there; what is rounding itself has no minus, which may differ between machines."""
    printed = form.format(number)
    if printed.strip("+-0.") != "":
        return printed
    return form.format(0.0) if abs(number) < ROUNDING or "+" not in form else f"{number:+.1g}"


def iqm(scores: ArrayLike, axis: int | None = None) -> Scores:
    """The interquartile mean: the mean of what is left when a quarter is cut from each end.

        scipy.stats.trim_mean(scores, 0.25)

    scores: along `axis`, or all together. Fewer than 4 have nothing cut.
    """
    values = np.asarray(scores, dtype=np.float64)
    if axis is None:
        values, axis = values.ravel(), 0
    if values.shape[axis] == 0:
        raise ValueError("the interquartile mean wants one score at least, got none")
    ordered = np.moveaxis(np.sort(values, axis=axis), axis, 0)
    cut = len(ordered) // 4
    return np.asarray(ordered[cut : len(ordered) - cut].mean(axis=0))


def bootstrap(
    scores: Sequence[ArrayLike],
    statistic: Callable[[list[Scores]], Scores],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    paired: bool = False,
) -> Interval:
    """95% percentile interval of `statistic`, by drawing runs anew within each stratum.

    scores: one array [n] to a stratum (a task, or a depth), n its runs. statistic: of strata [n, R], R replicates
    side by side, what it estimates [R]. paired: the same runs are drawn in every stratum, which then all have as many
    (run i of each shares its seed, so what a seed does to all of them cancels).
    """
    strata = [np.asarray(one, dtype=np.float64) for one in scores]
    if not strata or any(one.ndim != 1 or not len(one) for one in strata):
        raise ValueError("a bootstrap wants strata of one score at least, [n] each")
    if paired and len({len(one) for one in strata}) > 1:
        raise ValueError(
            f"paired strata must have as many runs each, got {[len(one) for one in strata]}; pass paired=False"
        )
    draw = np.random.default_rng(seed)
    index = draw.integers(len(strata[0]), size=(len(strata[0]), replicates))
    replicas = []
    for one in strata:
        rows = index if paired else draw.integers(len(one), size=(len(one), replicates))
        replicas.append(one[rows])
    drawn = np.asarray(statistic(replicas))
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = np.asarray(statistic([one[:, None] for one in strata]))
    return Interval(float(value.item()), float(low), float(high))


def mean_interval(scores: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean of one group of runs with its interval."""
    return bootstrap([scores], lambda strata: strata[0].mean(axis=0), seed=seed)


def iqm_interval(tasks: Sequence[ArrayLike], *, seed: int = 0, replicates: int = REPLICATES) -> Interval:
    """The interquartile mean over the runs of all tasks, drawn anew within each task."""
    return bootstrap(
        tasks, lambda strata: iqm(np.concatenate(strata), axis=0), seed=seed, replicates=replicates
    )


def probability_of_improvement(
    ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], *, seed: int = 0
) -> Interval:
    """P(a run of ours scores more than one of theirs), mean over the tasks; a tie counts half.

    ours, theirs: one array [n] to a task, in the same order.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"both must have the same tasks, got {len(ours)} and {len(theirs)}")

    def share(strata: list[Scores]) -> Scores:
        pairs = zip(strata[: len(ours)], strata[len(ours) :], strict=True)
        tasks = [
            (x[:, None] > y[None]).mean(axis=(0, 1)) + 0.5 * (x[:, None] == y[None]).mean(axis=(0, 1))
            for x, y in pairs
        ]
        return np.asarray(np.mean(tasks, axis=0))

    return bootstrap([*ours, *theirs], share, seed=seed)


def drawn_seeds(by_depth: Mapping[float, Mapping[int, float]]) -> int:
    """How many seeds `depth_slope` rests on: those that all depths share, or the fewest of a depth if none are."""
    shared = set.intersection(*(set(scores) for scores in by_depth.values()))
    return len(shared) if len(shared) > 1 else min(len(scores) for scores in by_depth.values())


def student(scores: ArrayLike) -> Interval:
    """The mean of [n] scores with its 95% interval, mean +- t s / sqrt(n) with t of n - 1 degrees of freedom (Student
    1908); of one score, that score alone."""
    values = np.asarray(scores, dtype=np.float64)
    return _welch(np.ones(1), [values])


def _welch(weight: Scores, strata: Sequence[Scores]) -> Interval:
    """sum(weight * means) of independent strata [n] each, with its 95% interval (Welch 1947)."""
    value = float(sum(w * one.mean() for w, one in zip(weight, strata, strict=True)))
    several = [
        (w * w * one.var(ddof=1) / len(one), len(one) - 1)
        for w, one in zip(weight, strata, strict=True)
        if len(one) > 1
    ]
    variance = sum(part for part, _ in several)
    if variance <= 0:
        return Interval(value, value, value)
    freedom = variance**2 / sum(part**2 / n for part, n in several)
    half = _t(int(freedom + 1e-9)) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)  # fmt: skip


def _t(freedom: int) -> float:
    """The 97.5% quantile of Student's t with so many degrees of freedom, at least 1."""
    if freedom <= len(_T):
        return _T[max(freedom, 1) - 1]
    z = 1.959964  # Fisher 1941, to 1e-4 from 20 on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def depth_slope(by_depth: Mapping[float, Mapping[int, float]]) -> Interval:
    """Least-squares slope of the score on log2(depth), with its 95% interval: score gained where depth doubles.

        student([np.polyfit(np.log2(depths), scores_of_seed, 1)[0] for every seed])

    by_depth: depth -> seed -> score. Each seed that every depth has gives a slope (what it does to all depths cancels);
    without two such seeds, the depths' runs are independent. Raises ValueError for fewer than two depths.
    """
    if len(by_depth) < 2:
        raise ValueError(f"a slope wants two depths at least, got {sorted(by_depth)}")
    depths = sorted(by_depth)
    shared = sorted(set.intersection(*(set(by_depth[d]) for d in depths)))
    paired = len(shared) > 1
    strata = [
        np.array([by_depth[d][s] for s in shared] if paired else list(by_depth[d].values())) for d in depths
    ]
    x = np.log2(depths)
    weight = (x - x.mean()) / np.square(x - x.mean()).sum()

    return student(weight @ np.stack(strata)) if paired else _welch(weight, strata)
