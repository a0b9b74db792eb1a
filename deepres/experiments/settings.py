"""The settings of a study: its trials that differ in their seed alone, and the lines that they make along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepres.experiments.folder import Row
from deepres.experiments.statistics import Interval, mean_interval
from deepres.experiments.study import Study, named


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
