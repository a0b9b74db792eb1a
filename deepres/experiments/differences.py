"""What one setting scores more than another, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepres.experiments.statistics import Interval, student


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """The mean of one[seed] - other[seed] over the seeds of both, with Student's interval; None below two seeds."""
    seeds = [seed for seed in one if seed in other]
    return student([one[seed] - other[seed] for seed in seeds]) if len(seeds) > 1 else None


def by_seed(rows: Sequence[dict[str, Any]], metric: str, **labels: Any) -> dict[int, float]:
    """The metric of the rows with these labels."""
    return {
        row["seed"]: float(row[metric])
        for row in rows
        if all(row.get(name) == value for name, value in labels.items())
    }


def beside_the_first(rows: Sequence[dict[str, Any]], metric: str, along: str) -> str:
    """What each value of the label `along` has more of the metric than the first value."""
    first, *others = dict.fromkeys(row[along] for row in rows)
    base = by_seed(rows, metric, **{along: first})
    found = [(value, paired(by_seed(rows, metric, **{along: value}), base)) for value in others]
    told = [f"{value} {less.text('{:+.3f}')}" for value, less in found if less]
    if not told:
        return f"No two values of {along} in two seeds yet."
    return f'{metric.capitalize()} beside "{first}", seed by seed, with 95% intervals: {"; ".join(told)}.'
