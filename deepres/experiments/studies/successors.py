"""What later objectives gain over CRL at equal gradient steps, beside what was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepres.experiments.differences import by_seed, paired
from deepres.experiments.presets import paper
from deepres.experiments.statistics import Scores, bootstrap
from deepres.experiments.studies.depth import CPU
from deepres.experiments.studies.transfer import OBJECTIVES
from deepres.experiments.study import Size, Study, Trial

PUBLISHED = {
    "CRL, chunks of 3": "2.11 on 11 tasks (arXiv 2608.30640)",
    "SRL": "1.36 in ant_u4_maze at 8 layers, no figure at 4 (arXiv 2609.36238)",
    "ChronoSRL": "2.25 in ant_u4_maze at 4 layers (arXiv 2609.36238)",
}
"""Time at goal over CRL's; the ants' are after 100 million environment steps."""


def _trials(size: Size, seeds: Sequence[int]) -> list[Trial]:
    if size == "cpu":
        bases = [CPU, CPU.replace(env="ant_u_maze", total_steps=1_250_000, eval_every=16, eval_envs=64)]
    else:
        bases = [paper("ant_u4_maze"), paper("ant_hardest_maze")]
    return [
        Trial(
            {"env": base.env.name, "objective": name, "seed": seed},
            OBJECTIVES[name].config(base, depth=4, actor_depth=None, seed=seed),
        )
        for seed in seeds
        for base in bases
        for name in ("CRL", *PUBLISHED)
    ]


def gains(rows: Sequence[dict[str, Any]]) -> str:
    """Time at goal of each objective over CRL's in the same environment, with the interval of drawing seeds anew. Where
    CRL is never there: how much nearer each ends."""
    told = []
    for env in dict.fromkeys(row["env"] for row in rows):
        times = {
            name: [
                float(row["time_at_goal"]) for row in rows if (row["env"], row["objective"]) == (env, name)
            ]
            for name in ("CRL", *PUBLISHED)
        }
        never = sum(time == 0 for time in times["CRL"])
        if not times["CRL"]:
            told.append(f"{env}: no ratio, as CRL has not finished there")
            continue
        if never:
            found = [f"{name} {np.mean(each):.1f}" for name, each in times.items() if each]
            none = f"{env}: no ratio, as {never} of CRL's seeds are never at their goal ({', '.join(found)})"
            left = {name: by_seed(rows, "final_distance", env=env, objective=name) for name in times}
            less = {name: paired(left[name], left["CRL"]) for name in PUBLISHED}
            metres = [f"{name} {each.text('{:+.2f}')}" for name, each in less.items() if each]
            told.append(
                none + (f"; metres left less CRL's, seed by seed: {'; '.join(metres)}" if metres else "")
            )
            continue
        found = [
            f"{name} {_ratio(times[name], times['CRL'])} (published {said})"
            for name, said in PUBLISHED.items()
            if times[name]
        ]
        told.append(f"{env}: {'; '.join(found)}")
    return f"Time at goal over CRL's: {'. '.join(told)}."


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    def ratio(each: list[Scores]) -> Scores:
        return np.asarray(each[0].mean(axis=0) / np.maximum(each[1].mean(axis=0), 1e-9))

    return bootstrap([ours, theirs], ratio).text()


STUDIES = (
    Study(
        name="successors",
        source="arXiv 2608.30640 (action chunks), 2609.36238 (SRL and ChronoSRL)",
        question="what do later objectives gain over CRL?",
        claim="Action chunks and survival objectives are longer at their goals than CRL of the same depth.",
        refuted="a ratio of time at goal whose interval lies at or below 1.",
        trials=_trials,
        metric="time_at_goal",
        along="objective",
        form="{:.1f}",
        seeds=(3, 4),
        slopes=False,
        also=("success", "final_distance", "seconds"),
        says=gains,
    ),
)  # fmt: skip
