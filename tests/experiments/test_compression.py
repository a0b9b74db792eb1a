"""The study of compression: what it says of made-up rows, and one student of a tiny teacher."""

from __future__ import annotations

import pytest

from deepres import Config
from deepres.experiments.studies import compression
from deepres.experiments.studies.compression import (
    DISTILLED,
    PRUNED,
    SCRATCH,
    TEACHER,
    compressed,
    reaches,
    retained,
)
from deepres.experiments.study import Trial
from helpers.tiny_runs import SIZES


def row(method: str, depth: int, seed: int, success: float, both: float) -> dict:
    named = {"method": method, "depth": depth, "seed": seed}
    return {**named, "success": success, "teacher_success": 0.75, "both": both}


def test_an_interval_knows_of_seeds_and_of_episodes_in_pairs():
    assert retained([row(TEACHER, 64, 0, 0.75, 0.75)]) == compression.Interval(1.0, 1.0, 1.0)
    paired, apart = (retained([row(DISTILLED, 8, s, 0.75, both) for s in range(3)]) for both in (0.74, 0.56))
    assert paired.value == apart.value == 1.0
    # of 1536 pairs 2% differ, or 38% as where one does not know of the other: that is the variance of a pair
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * (0.02 / 1536) ** 0.5 / 0.75, rel=0.15)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * (0.38 / 1536) ** 0.5 / 0.75, rel=0.15)
    seeds = retained([row(DISTILLED, 8, s, success, success) for s, success in enumerate((0.3, 0.75, 0.6))])
    assert seeds.value == pytest.approx(0.55 / 0.75) and seeds.low < 0.5 and seeds.high > 0.95


def test_the_sentence_names_the_depths_that_keep_enough():
    rows = [row(TEACHER, 64, s, 0.75, 0.75) for s in range(3)]
    for depth, distilled in ((32, 0.75), (16, 0.74), (8, 0.6), (4, 0.76)):
        rows += [row(DISTILLED, depth, s, distilled, min(distilled, 0.75)) for s in range(3)]
        rows += [row(SCRATCH, depth, s, 0.3 + depth / 100, 0.3) for s in range(3)]
    said = reaches(rows)
    assert "kept distilled at depth 32, 16, 4 (at 4: 1.013" in said
    assert "from scratch at no depth (most at 32: 0.827" in said and "seeds: 3" in said


def test_a_student_is_measured_beside_its_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "EPISODES", 8)
    effort = {"steps": 8, "num_envs": 4, "unroll_length": 5, "gradient_steps": 4, "batch_size": 16}
    monkeypatch.setitem(compression.EFFORT, "point_u_maze", effort)
    monkeypatch.setattr(compression, "HEAL", 4)
    config = Config("crl", **{**SIZES, "depth": 8, "actor_depth": None, "width": 8, "total_steps": 80})
    teacher = Trial({"method": TEACHER, "depth": 8, "seed": 0}, config)
    above = compressed(teacher, tmp_path / teacher.name)
    assert above["success"] == above["teacher_success"] == above["both"] and above["action_rmse"] == 0
    student = Trial({"method": DISTILLED, "depth": 4, "seed": 0}, config.replace(depth=4), teacher.name)
    found = compressed(student, tmp_path / student.name)
    assert found.keys() == above.keys() and found["teacher_success"] == above["success"]
    assert found["gradient_steps"] == 8 and found["env_steps"] == 40 and 0 < found["action_rmse"] < 1
    numbers = 8 * (4 + 2 + 3) + 4 * (8 * 8 + 3 * 8) + 2 * 2 * (8 + 1)  # stem and its norm, stack, two heads
    assert found["megabytes"] == pytest.approx(4 * numbers / 1e6)
    pruned = Trial({"method": PRUNED, "depth": 4, "seed": 0}, config.replace(depth=4), teacher.name)
    left = compressed(pruned, tmp_path / pruned.name)
    assert left.keys() == above.keys() and left["megabytes"] == found["megabytes"]
    assert (left["gradient_steps"], left["env_steps"]) == (4, 128)
    again = compressed(student, tmp_path / student.name)  # what is finished is measured, not learned again
    assert again == found
    # a run that diverges keeps nothing, and its row is read as any
    lost = {"diverged": 1.0, "seconds": 1.0, "gradient_steps": 3.0, "env_steps": 20.0, "success": 0.0}
    monkeypatch.setattr(compression, "trained", lambda *_: lost)
    scratch = Trial({"method": SCRATCH, "depth": 4, "seed": 0}, config.replace(depth=4), teacher.name)
    left = compressed(scratch, tmp_path / scratch.name)
    assert left["success"] == left["retained"] == 0 and left["teacher_success"] == above["success"]
    assert retained([left]).value == 0 and left["gradient_steps"] == 3
