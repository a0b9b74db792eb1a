"""Each setting of a study over all its tasks and seeds, after Agarwal et al., arXiv 2108.13264.

Interquartile mean, probability of improvement over the first setting of the same line, largest drop between
neighbours; the intervals draw runs anew within each task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from deepres.experiments.settings import Setting, lines
from deepres.experiments.statistics import iqm_interval, probability_of_improvement
from deepres.experiments.study import Study

TASK = "env"  # the label that tells tasks apart
Tasks = dict[str, list[float]]


def aggregate(study: Study, found: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table and its rows, one to a setting, also where none of its scores is a number."""
    task = None if study.along == TASK else TASK
    groups: dict[tuple[tuple[str, Any], ...], Tasks] = {}
    for one in found:
        key = tuple((name, value) for name, value in one.labels.items() if name != task)
        tasks = groups.setdefault(key, {})
        if scores := _finite(one):
            tasks[str(one.labels.get(TASK))] = scores
    firsts: dict[tuple[tuple[str, Any], ...], Tasks] = {}
    cells = []
    for key, tasks in groups.items():
        line = tuple(pair for pair in key if pair[0] != study.along)
        first = firsts.setdefault(line, tasks)
        shared = [name for name in tasks if name in first]
        better = (
            "-"
            if first is tasks or not shared or min(len(of[n]) for of in (tasks, first) for n in shared) < 2
            else probability_of_improvement([tasks[n] for n in shared], [first[n] for n in shared]).text()
        )
        runs = sum(len(scores) for scores in tasks.values())
        iqm = "nan"
        if tasks:
            interval = iqm_interval(list(tasks.values()))
            iqm = interval.text(study.form) if runs > 1 else study.form.format(interval.value)
        cells.append([*(str(value) for _, value in key), str(len(tasks)), str(runs), iqm, better])
    names = [name for name, _ in next(iter(groups), ())]
    columns = ["tasks", "runs", "interquartile mean", f"P(more than the first {study.along})"]
    return [name.replace("_", " ") for name in [*names, *columns]], cells


def _finite(one: Setting) -> list[float]:
    return [score for score in one.scores.values() if math.isfinite(score)]


def drops(study: Study, found: Sequence[Setting]) -> str:
    """A sentence: of every line along numbers, how much the mean falls most from one setting to the next."""
    told = []
    for name, line in lines(study, found).items():
        means = {
            float(one.labels[study.along]): sum(scores) / len(scores)
            for one in line
            if isinstance(one.labels[study.along], int | float) and (scores := _finite(one))
        }
        falls = [(means[a] - means[b], a, b) for a, b in pairwise(sorted(means))]
        if not falls:
            continue
        fall, a, b = max(falls)
        text = f"{study.form.format(fall)} ({a:g} to {b:g})" if fall > 0 else "none"
        told.append(f"{name or study.metric.replace('_', ' ')} {text}")
    along = study.along.replace("_", " ")
    return f"Largest drop between neighbours along {along}: {'; '.join(told)}." if told else ""


def markdown(study: Study, found: Sequence[Setting]) -> str:
    """The table with a sentence before it and one after; nothing where nothing was measured."""
    if not any(_finite(one) for one in found):
        return ""
    columns, cells = aggregate(study, found)
    body = "\n".join("| " + " | ".join(one) + " |" for one in [columns, ["---"] * len(columns), *cells])
    fallen = drops(study, found)
    return (
        f"Over all tasks and seeds: the interquartile mean of {study.metric.replace('_', ' ')} and the probability "
        f"that a run scores more than one of the first {study.along.replace('_', ' ')} of the same line (a tie is a "
        f"half), with 95% intervals of drawing runs anew within each task.\n\n{body}\n\n"
        + (f"{fallen}\n\n" if fallen else "")
    )
