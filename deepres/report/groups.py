"""Runs that differ in their seed alone are one, with their spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from deepres.runs.files import RunFiles


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    label: what tells them from the other groups: their options where these are few, else their folder. differing: then
    all options in which the groups differ; "" where the label has them.
    """

    label: str
    runs: list[RunFiles]
    differing: str = ""

    def curve(self, column: str) -> tuple[list[float], list[float], list[float], list[float]]:
        """(environment steps, mean, least, largest) of an evaluation's figure over the seeds, up to where the first of
        them ends: a mean of those that are left would be another thing."""
        values: dict[float, list[float]] = {}
        for run in self.runs:
            for row in run.evaluations:
                values.setdefault(row["env_steps"], []).append(row[column])
        ends = min((run.evaluations[-1]["env_steps"] for run in self.runs if run.evaluations), default=0)
        steps = sorted(step for step in values if step <= ends)
        rows = [values[step] for step in steps]
        return steps, [statistics.fmean(r) for r in rows], [min(r) for r in rows], [max(r) for r in rows]

    def last(self, column: str) -> list[float]:
        """Each run's last evaluation."""
        return [run.evaluations[-1][column] for run in self.runs if run.evaluations]


def group(runs: Sequence[RunFiles]) -> list[Group]:
    """The runs by everything but their seed, in the order given."""
    keyed: dict[str, list[RunFiles]] = {}
    for run in runs:
        aside = {name for name, one in run.config.fields().items() if one.metadata.get("aside")}
        own = {name: value for name, value in run.config.flat().items() if name not in aside}
        keyed.setdefault(json.dumps(own), []).append(run)
    settings = [json.loads(key) for key in keyed]
    names = dict.fromkeys(name for one in settings for name in one)  # each algorithm has options of its own
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    if "algorithm" in differing:  # an option that only one of them has tells nothing more
        differing = [name for name in differing if all(name in one for one in settings)]
    if all(one.get("actor_depth") in (None, one["depth"]) for one in settings):  # the depth tells it already
        differing = [name for name in differing if name != "actor_depth"]
    labels = [
        ", ".join(
            [one["env"]] * ("env" not in differing) + [_label(name, one.get(name)) for name in differing]
        )
        for one in settings
    ]
    members = list(keyed.values())
    if max(map(len, labels), default=0) <= _LONGEST:
        return [Group(label, runs) for label, runs in zip(labels, members, strict=True)]
    names_of = _folders(members)
    return [Group(*one) for one in zip(names_of, members, labels, strict=True)]


_LONGEST = 42  # characters of a label that leave a table of 80 columns room for its figures


def _folders(groups: list[list[RunFiles]]) -> list[str]:
    """A short name for each group: its first run's folder, with as much of the path before it as tells them apart, its
    end alone where that is long."""
    paths = [runs[0].folder.absolute().parts for runs in groups]
    for count in range(1, max(map(len, paths)) + 1):
        found = ["/".join(parts[-count:]) for parts in paths]
        if len(set(found)) == len(found):
            break
    short = [name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}" for name in found]
    return short if len(set(short)) == len(short) else found


def _label(name: str, value: object) -> str:
    return str(value) if name in ("env", "algorithm") else f"{name.replace('_', ' ')} {value}"
