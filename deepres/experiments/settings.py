"""The settings of a study, which are its trials that differ in their seed alone; the lines that they make along an
axis; what rows add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepres.experiments.budget import budget
from deepres.experiments.folder import Row
from deepres.experiments.statistics import Interval, mean_interval
from deepres.experiments.study import Study, Trial, named


@dataclass(frozen=True)
class Setting:
    """Trials that differ in their seed alone."""

    labels: dict[str, Any]
    scores: dict[int, float]
    """By seed."""
    rows: list[Row] = field(default_factory=list)

    @property
    def mean(self) -> Interval:
        return mean_interval(list(self.scores.values()))

    def estimate(self, study: Study) -> Interval:
        """The study's metric here."""
        return study.interval(self.rows) if study.interval else self.mean


def scored(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Those that have the study's metric: not the trials that others only learn from."""
    return [row for row in rows if study.metric in row]


def settings(rows: Sequence[Row], names: Sequence[str], metric: str) -> list[Setting]:
    """The rows by all labels but the seed, in the order that they come."""
    found: dict[tuple[Any, ...], Setting] = {}
    for row in rows:
        labels = {name: row[name] for name in names if name != "seed"}
        one = found.setdefault(tuple(labels.values()), Setting(labels, {}))
        one.scores[row["seed"]] = float(row.get(metric, "nan"))
        one.rows.append(row)
    return list(found.values())


def lines(study: Study, found: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The settings that differ along the study's axis alone, by what tells them from the others."""
    drawn: dict[str, list[Setting]] = {}
    for one in found:
        others = named({name: value for name, value in one.labels.items() if name != study.along})
        drawn.setdefault(others, []).append(one)
    return drawn


def finite(rows: Sequence[Row], name: str) -> list[float]:
    """The numbers under `name`, of the rows that have one."""
    found = (row.get(name) for row in rows)
    return [float(n) for n in found if isinstance(n, int | float) and math.isfinite(n)]


def most_steps(study: Study, trials: Sequence[Trial], rows: Sequence[Row]) -> tuple[float, float]:
    """The most environment steps and gradient steps that a row tells of; 0 where none does. The clock of a trial that
    learns from data counts no environment steps."""
    acting = {trial.words for trial in trials if budget(study, trial).env_steps}
    acted = [row for row in rows if tuple(str(row.get(name)) for name in trials[0].labels) in acting]
    counts = (finite(acted, "env_steps"), finite(rows, "gradient_steps"))
    return max(counts[0], default=0.0), max(counts[1], default=0.0)
