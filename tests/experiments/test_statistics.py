"""Statistics of few seeds, beside scipy, exact small cases and what is known of made-up data."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from deepres.experiments.statistics import (
    Interval,
    bootstrap,
    depth_slope,
    iqm,
    iqm_interval,
    mean_interval,
    probability_of_improvement,
    student,
)
from deepres.report.correlation import spearman


@pytest.mark.parametrize("n", [1, 3, 4, 7, 30])
def test_interquartile_mean_is_scipys_trimmed_mean(n):
    scores = np.random.default_rng(n).normal(size=n)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25))
    several = np.random.default_rng(n).normal(size=(3, n))
    assert iqm(several, axis=1) == pytest.approx(stats.trim_mean(several, 0.25, axis=1))


def test_what_rounds_to_zero_has_no_minus():
    assert Interval(-1e-17, -0.0004, 1e-9).text("{:+.3f}") == "+0.000 [-0.0004, +0.000]"
    assert Interval(0.5, -0.25, 10.0).text() == "0.50 [-0.25, 10.00]"


def test_bootstrap_is_scipys():
    scores = np.random.default_rng(0).gamma(2.0, size=20)
    ours = mean_interval(scores)
    theirs = stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, random_state=1
    ).confidence_interval
    assert ours.value == pytest.approx(scores.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.06)
    assert mean_interval(scores) == ours != mean_interval(scores, seed=1)


def test_strata_are_drawn_within_themselves():
    """Runs of one task never stand in for another's: two tasks without spread have an interval without width."""
    exact = iqm_interval([np.full(4, 1.0), np.full(4, 3.0)])
    assert (exact.value, exact.low, exact.high) == (2.0, 2.0, 2.0)
    pooled = bootstrap([np.array([1.0] * 4 + [3.0] * 4)], lambda s: s[0].mean(axis=0))
    assert pooled.low < 1.5 and pooled.high > 2.5


def test_probability_of_improvement_counts_pairs():
    x, y = np.array([1.0, 2.0, 5.0]), np.array([2.0, 3.0])
    counted = np.mean([(a > b) + 0.5 * (a == b) for a, b in product(x, y)])
    assert probability_of_improvement([x], [y]).value == pytest.approx(counted)
    n = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert probability_of_improvement([x], [y]).value == pytest.approx(n)
    two = probability_of_improvement([x, x], [y, x])
    assert two.value == pytest.approx((counted + 0.5) / 2)
    with pytest.raises(ValueError, match="the same tasks, got 1 and 2"):
        probability_of_improvement([x], [x, y])


def test_slope_is_polyfits_and_pairs_seeds():
    depths, seeds = (4, 16, 64), range(5)
    offset = np.random.default_rng(3).normal(size=5)  # what a seed does at every depth
    scores = {d: {s: 0.1 * np.log2(d) + offset[s] for s in seeds} for d in depths}
    flat = [(np.log2(d), score) for d in depths for score in scores[d].values()]
    slope = depth_slope(scores)
    assert slope.value == pytest.approx(np.polyfit(*zip(*flat, strict=True), 1)[0])
    assert slope.high - slope.low < 1e-9  # the seeds' offsets cancel
    other = {d: {s + 10 * d: score for s, score in scores[d].items()} for d in depths}
    apart = depth_slope(other)
    assert apart.value == pytest.approx(slope.value) and apart.high - apart.low > 0.1
    two = {
        4: {0: 0.1, 1: 0.4, 2: 0.2},
        16: {5: 0.9, 6: 0.3, 7: 0.8, 8: 0.5},
    }  # no seed in common: Welch's interval
    x, y = (np.array(list(two[d].values())) for d in (16, 4))
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    ours = depth_slope(two)  # whose degrees of freedom are rounded down
    assert ours.value == pytest.approx((x.mean() - y.mean()) / 2)
    assert ours.low <= theirs.low / 2 + 1e-6 and ours.high - ours.low < 1.1 * (theirs.high - theirs.low) / 2


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    """Of 2000 made-up studies with a slope of 1, 95% have it inside their interval, with three seeds too."""
    draw, held = np.random.default_rng(5), 0
    for _ in range(2000):
        scores = {d: {s: np.log2(d) + draw.normal() for s in range(seeds)} for d in (4, 16, 64)}
        slope = depth_slope(scores)
        held += slope.low <= 1 <= slope.high
    assert 0.935 <= held / 2000 <= 0.965


@pytest.mark.parametrize("n", [2, 3, 6, 21, 22, 40, 200])
def test_students_interval_is_scipys(n):
    scores = np.random.default_rng(n).normal(size=n)
    ours, theirs = student(scores), stats.ttest_1samp(scores, 0.0).confidence_interval()
    assert (ours.value, ours.low, ours.high) == pytest.approx((scores.mean(), *theirs), abs=1e-4)


def test_rank_correlation_is_scipys():
    draw = np.random.default_rng(0)
    x, ties = draw.normal(size=200), draw.integers(5, size=200)
    for y in (x**3, -x, ties, x + draw.normal(size=200)):
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman(x, np.ones(200)))


def test_what_cannot_be_computed_is_told():
    with pytest.raises(ValueError, match="two depths at least, got \\[4\\]"):
        depth_slope({4: {0: 1.0}})
    with pytest.raises(ValueError, match="one score at least, got none"):
        iqm([])
    with pytest.raises(ValueError, match="as many runs each, got \\[2, 1\\]"):
        bootstrap([[1.0, 2.0], [1.0]], lambda s: s[0].mean(axis=0), paired=True)
    one = student([0.5])
    assert (one.value, one.low, one.high) == (0.5, 0.5, 0.5)
