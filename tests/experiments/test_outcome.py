"""What studies say of made-up rows, and how they draw them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest import approx

from deepres.config import Config
from deepres.experiments import aggregate, curves, numbers, outcome, studies
from deepres.experiments.outcome import verdict
from deepres.experiments.settings import lines, settings
from deepres.experiments.studies import successors
from deepres.experiments.study import Study, scores
from deepres.report.lines import Line, Place, _Scale, plot_lines
from deepres.runs.files import RunFiles


def made_up(**changes) -> Study:
    told = {
        "source": "-",
        "question": "?",
        "claim": "It grows.",
        "refuted": "a slope below 0.",
        "name": "made_up",
    }
    return Study(**{**told, "trials": lambda size, seeds: [], **changes})


def rows_of(by_depth: dict[int, list[float]]) -> list[dict]:
    return [
        {"depth": depth, "seed": seed, "success": score}
        for depth, each in by_depth.items()
        for seed, score in enumerate(each)
    ]


@pytest.mark.parametrize(
    ("by_depth", "says"),
    [
        (
            {4: [0.1, 0.2, 0.1], 16: [0.4, 0.5, 0.4], 64: [0.7, 0.8, 0.8]},
            "success +0.158 [+0.122, +0.194], rises.",
        ),
        ({4: [0.7, 0.8, 0.8], 16: [0.4, 0.5, 0.4], 64: [0.1, 0.2, 0.1]}, "falls."),
        ({4: [0.1, 0.8, 0.4], 16: [0.5, 0.2, 0.9], 64: [0.2, 0.9, 0.3]}, "undecided."),
        ({4: [0.1, 0.2], 16: [0.4, 0.5], 64: [0.7, 0.8]}, "has too few seeds (2) to decide."),
        ({4: [1.0] * 3, 16: [1.0] * 3, 64: [1.0 + 1e-12] * 3}, "is flat."),
    ],
)
def test_the_sentence_says_what_the_rows_do(by_depth, says):
    told = verdict(made_up(), settings(rows_of(by_depth), ["depth", "seed"], "success"))
    assert told.startswith("Success per doubling of depth, with its 95% interval: ") and told.endswith(says)


def test_settings_are_told_over_all_tasks_and_seeds():
    scores = {
        ("u", 4): [0.1, 0.2, 0.3], ("u", 16): [0.2, 0.3, 0.4], ("u", 64): [0.0, 0.1, 0.2],
        ("v", 4): [0.5, 0.6, float("nan")], ("v", 16): [0.7, 0.8, 0.9], ("v", 64): [0.5, 0.5, 0.5],
    }  # fmt: skip
    rows = [
        {"env": env, "depth": depth, "seed": seed, "success": score}
        for (env, depth), each in scores.items()
        for seed, score in enumerate(each)
    ]
    study = made_up(form="{:.2f}")
    found = settings(rows, ["env", "depth", "seed"], "success")
    columns, cells = aggregate.aggregate(study, found)
    assert columns == ["depth", "tasks", "runs", "interquartile mean", "P(more than the first depth)"]
    assert [cell[:3] for cell in cells] == [["4", "2", "5"], ["16", "2", "6"], ["64", "2", "6"]]
    middle = (0.3, (0.3 + 0.4 + 0.7 + 0.8) / 4, (0.1 + 0.2 + 0.5 + 0.5) / 4)  # of 5 runs one is cut, of 6 one
    assert [cell[3].split()[0] for cell in cells][1:] == [f"{mean:.2f}" for mean in middle[1:]]
    assert cells[0][3].startswith(f"{(0.2 + 0.3 + 0.5) / 3:.2f} [") and cells[0][4] == "-"
    # u: 16 beats 4 in 6 of 9 pairs and ties in 2, v: in all; 64 beats 4 in 1, ties in 2 of 9, v: ties in 3 of 6
    better, worse = (7 / 9 + 1) / 2, (2 / 9 + 0.25) / 2
    assert [cell[4].split()[0] for cell in cells[1:]] == [f"{better:.2f}", f"{worse:.2f}"]
    rows = rows_of({4: [0.1, 0.3], 16: [0.4, 0.6], 64: [0.2, 0.3]})
    told = aggregate.drops(study, settings(rows, ["depth", "seed"], "success"))
    assert told == "Largest drop between neighbours along depth: success 0.25 (16 to 64)."
    assert aggregate.markdown(study, []) == ""
    nan = float("nan")
    found = settings(rows_of({4: [nan, nan], 16: [0.1, nan], 64: [0.5, 0.6]}), ["depth", "seed"], "success")
    _, cells = aggregate.aggregate(study, found)
    assert [cell[2:] for cell in cells] == [["0", "nan", "-"], ["1", "0.10", "-"], cells[2][2:]]
    assert cells[2][4] == "-"  # there is no first to be more than
    found = settings(rows_of({4: [0.9, 0.9], 16: [0.1, nan], 64: [0.1, 0.2]}), ["depth", "seed"], "success")
    assert aggregate.drops(study, found).endswith("success 0.80 (4 to 16).")


def test_without_slopes_the_sentence_names_the_ends():
    rows = rows_of({4: [0.1, 0.2, 0.1], 16: [0.4, 0.5, 0.4], 64: [float("nan")] * 3})
    told = verdict(made_up(slopes=False), settings(rows, ["depth", "seed"], "success"))
    assert told.startswith("Success from 0.133 [0.100, 0.200] (depth 4) to 0.433") and told.endswith(
        "(depth 16)."
    )


def test_every_number_of_a_table_is_explained():
    for name in studies.names():
        study = studies.find(name)
        assert {study.metric, *study.also} <= numbers.MEANINGS.keys(), name


def test_lines_that_coincide_are_seen_and_many_get_panels(tmp_path):
    """Every line is drawn beside the others; more than six objectives get a panel each, with a line for each maze."""
    rows = [
        {"env": env, "objective": name, "depth": depth, "seed": 0, "success": 0.5}
        for env in ("u", "big")
        for name in "abcdefg"
        for depth in (4, 16)
    ]
    labels = ["env", "objective", "depth", "seed"]
    many = outcome._panels(made_up(), lines(made_up(), settings(rows, labels, "success")))
    assert many[0] == ("a", "env u") and many[-1] == ("g", "env big") and len(many) == 14
    few = outcome._panels(made_up(), lines(made_up(), settings(rows[:6], labels, "success")))
    assert few == [("", "objective a"), ("", "objective b"), ("", "objective c")]
    for values in ([4, 16, 64], [1, 2], ["relu", "swish"]):
        scale = _Scale(values)
        assert len({scale.beside(values[0], i, 5) for i in range(5)}) == 5
    same = {4: Place([0.5], 0.5, 0.4, 0.6)}
    written = plot_lines(
        [Line("env u", same, name) for name in "ab"], "depth", "success", "t", tmp_path / "f.png"
    )
    assert [file.name for file in written] == ["f.png", "f.pdf"] and all(file.exists() for file in written)


def test_slopes_at_equal_seconds_stop_every_depth_where_the_fastest_ended(tmp_path):
    """16 layers take twice the seconds and reach as much a step: at equal steps no slope, at equal seconds a fall."""
    columns = "depth,seed,env_steps,seconds,success,time_at_goal"
    rows = [
        f"{depth},{seed},{step},{step * depth / 4},{step / 10 + 0.01 * seed},0"
        for depth, seed in ((4, 0), (16, 0), (4, 1), (16, 1), (4, 2))
        for step in range(11)
    ]
    file = tmp_path / "curves.csv"
    file.write_text("\n".join([columns, *rows]) + "\n")
    found = curves.equal_seconds(curves.read_curves(file, ["depth", "seed"]), ["depth", "seed"])
    assert found == {"": {4: {0: approx(0.8), 1: approx(0.81)}, 16: {0: approx(0.15), 1: approx(0.16)}}}
    told = outcome._at_equal_seconds(made_up(), found, 2)
    assert "those of the fastest setting of each seed: success -0.325, has too few seeds (2)" in told
    assert curves.score_at([{"seconds": 0.0, "success": 0.3}], 9.0) is None
    curves.plot_curves(
        curves.read_curves(file, ["depth", "seed"]), ["depth", "seed"], "depth", "t", tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (
        curves.read_curves(file, ["depth", "another"])
        == {}
        == curves.read_curves(tmp_path / "none", ["depth"])
    )


def test_final_scores_are_means_of_the_last_five_evaluations():
    def row(i: int, success: float) -> dict[str, float]:
        return {
            "env_steps": 100.0 * i,
            "success_any": success,
            "time_at_goal": 10 * success,
            "final_distance": 1.0,
        }

    successes = [0.0, 0.2, 0.6, 0.4, 0.5, 0.5, 0.6, 0.4]
    rounds = [{"seconds": 2.0, "gradient_steps": 8.0, "skipped_steps": 1.0}] * 2
    files = RunFiles(Path(), Config("crl"), [row(i, s) for i, s in enumerate(successes)], rounds)
    found = scores(files)
    assert found["success"] == pytest.approx(sum(successes[-5:]) / 5)
    assert found["success_area"] == pytest.approx(sum(successes[1:]) / 7)
    assert found["steps_to_half"] == 200 and found["skipped_steps"] == 2 and found["seconds"] == 2.0
    assert "success_easy" not in found  # most tasks have no easier radius
    near = [row(i, s) | {"success_easy": s / 2} for i, s in enumerate(successes)]
    assert scores(RunFiles(Path(), Config("crl"), near, rounds))["success_easy"] == found["success"] / 2
    short = scores(RunFiles(Path(), Config("crl"), [row(0, 0.0), row(1, 0.3)], []))
    assert short["success"] == 0.3 and short["steps_to_half"] != short["steps_to_half"]


def test_gains_are_ratios_to_crl_of_the_same_maze():
    times = {"CRL": [100.0, 300.0], "SRL": [400.0, 400.0], "ChronoSRL": [0.0, 100.0]}
    rows = [
        {
            "env": env,
            "objective": name,
            "seed": seed,
            "time_at_goal": time * scale,
            "final_distance": 9 - time / 100,
        }
        for env, scale in (("u", 1.0), ("v", 0.0))
        for name, each in times.items()
        for seed, time in enumerate(each)
    ]
    told = successors.gains(rows)
    assert "u: SRL 2.00 [1.33, 4.00] (published 1.36" in told and "ChronoSRL 0.25 [0.00, 1.00]" in told
    assert (
        "v: no ratio, as 2 of CRL's seeds are never at their goal (CRL 0.0, SRL 0.0, ChronoSRL 0.0); metres"
        in told
    )
    assert "metres left less CRL's, seed by seed: SRL -2.00 [-14.71, +10.71]; ChronoSRL +1.50 [" in told
    assert "chunks" not in told


def test_slopes_count_the_seeds_that_they_are_drawn_from():
    def says(by_depth):
        return verdict(made_up(), settings(rows_of(by_depth), ["depth", "seed"], "success"))

    nan = float("nan")
    assert says({4: [0.1, 0.1, 0.1, nan], 16: [nan, 0.2, 0.3, 0.0]}).endswith(
        "has too few seeds (2) to decide."
    )
    assert says({4: [0.1, 0.2, nan, 0.1], 16: [0.4, 0.5, 0.4, 0.4]}).endswith("rises (3 seeds).")
    assert says({4: [0.1, 0.2, 0.3]}) == "No slope of success yet: it takes two values of depth."


def test_walls_are_compared_with_the_tasks_own_seed_by_seed():
    cells = {"as the task has it": (0.5, 0.6), "smooth walls": (0.7, 0.8), "springy": (0.5,)}
    rows = [
        {"contact": contact, "seed": seed, "cells": share}
        for contact, shares in cells.items()
        for seed, share in enumerate(shares)
    ]
    says = studies.find("wall-contact").says
    assert says(rows) == (
        'Cells beside "as the task has it", seed by seed, with 95% intervals: smooth walls +0.200 [+0.200, +0.200].'
    )
    assert says(rows[:2]) == "No two values of contact in two seeds yet."


def test_depth_is_compared_with_the_width_of_as_many_weights():
    success = {(4, 64): 0.1, (4, 128): 0.3, (16, 64): 0.4, (32, 64): 0.5}
    rows = [
        {"depth": depth, "width": width, "seed": seed, "success": share + seed / 100}
        for seed in (1, 2)
        for (depth, width), share in success.items()
    ]
    says = studies.find("width").says
    assert says(rows) == (
        "Success less that of the wider network with as many hidden weights, seed by seed: "
        "16 layers of 64 +0.100 [+0.100, +0.100] beside 4 layers of 128."
    )
    assert says(rows[:4]) == "No two shapes with as many hidden weights in two seeds yet."


def test_learners_of_one_collector_are_compared_seed_by_seed():
    def row(collector, learner, seed, success):
        return {"collector": collector, "learner": learner, "seed": seed, "success": success}

    study = studies.find("collector")
    rows = [row(c, "itself", s, 0.9) for c in (4, 32) for s in (0, 1)]
    assert study.says(rows) == "No two learners of the same data in two seeds yet."
    rows += [row(32, learner, s, s + learner / 100) for s in (0, 1) for learner in (4, 32)]
    rows += [row(4, 4, 0, 0.5), row(4, 32, 1, 0.5)]
    assert study.says(rows) == (
        "Success with 32 layers less that with 4, seed by seed: +0.280 [+0.280, +0.280] from the data of the collector "
        "with 32."
    )


def test_runs_that_diverged_are_told_and_kept_apart():
    def row(start, seed, **numbers):
        return {
            "start": start,
            "depth": 64,
            "seed": seed,
            "diverged": 0.0,
            "entropy": 1.0,
            "finite": 1.0,
            **numbers,
        }

    rows = [row("published", s, loss=4.0, first_loss=6.0) for s in (0, 1)]
    rows += [row("scaled", 0, loss=3.0, first_loss=6.0), row("scaled", 1, loss=float("inf"), diverged=1.0)]
    told = studies.find("stability").says(rows)
    assert "published start had 6.00 at depth 64" in told and "published 4.00 at depth 64 (2 seeds" in told
    assert "scaled 3.00 at depth 64 (1 seed, " in told and "scaled diverged at depth 64 (1 seed)" in told
