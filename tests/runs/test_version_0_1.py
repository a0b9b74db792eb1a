"""Runs and sweeps that version 0.1 left (tests/data_0_1, made by it): they are read, evaluated and gone on with."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import deepres
from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments.grid import sweep
from deepres.report.groups import group
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from helpers.tiny_runs import ROOT, contents, rows

OLD = ROOT / "tests" / "data_0_1" / "run"


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(OLD, tmp_path / "run")


def test_its_options_are_read_under_their_names_of_today():
    config = Config.from_file(OLD / "config.json")
    written = json.loads((OLD / "config.json").read_text())
    assert config.algorithm_name == "crl" and (config.network.depth, config.network.actor_depth) == (4, 4)
    assert (config.env.name, config.env.engine, config.system.recompute) == ("point_u_maze", "auto", "none")
    now = {"critic_depth": "depth", "physics": "engine", "checkpoint": "recompute"}
    for name, value in written.items():
        assert config.get(now.get(name, name)) == value, name


def test_it_evaluates_to_the_figures_that_it_had(run, capsys):
    before = contents(run)
    with open(run / "evaluations.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    policy = deepres.Policy.load(run)
    figures, paths = policy.evaluate()
    assert policy.env_steps == 60 and paths.goal.shape == (2, 2)
    assert figures.final_distance == pytest.approx(float(last["final_distance"]), rel=1e-4)
    assert figures.time_at_goal == float(last["time_at_goal"])
    main(["eval", str(run), "--episodes", "3"])
    assert "at 60 env steps: time at goal" in capsys.readouterr().out
    assert contents(run) == before


def test_it_resumes_and_ends_at_its_total_steps(run):
    old = checkpoints.load_newest(run / "checkpoints")[1]
    config = Config.from_file(run / "config.json").replace(total_steps=100)
    before = rows(run / "metrics.csv")
    result = deepres.train(config, run, resume=True, progress=False)
    assert result.env_steps == 100 and result.before.as_dict().items() >= old.counters["before"].items()
    assert rows(run / "metrics.csv")[:2] == before
    assert [int(row["env_steps"]) for row in rows(run / "metrics.csv")] == [40, 60, 80, 100]
    path, new, skipped = checkpoints.load_newest(run / "checkpoints")
    header = json.loads((path / "state.json").read_text())
    assert (
        skipped == []
        and header["format"] == checkpoints.FORMAT
        and header["config"] == json.loads(config.to_json())
    )
    assert new.counters["gradient_steps"] == old.counters["gradient_steps"] + 4
    assert new.tensors.keys() == old.tensors.keys()
    assert new.shards[0]["env/traj_id"].shape == (2,)
    # and what today's version has written goes on in turn
    more = deepres.train(config.replace(total_steps=120), run, resume=True, progress=False)
    assert more.env_steps == 120 and Config.from_file(run / "config.json").schedule.total_steps == 120


def test_it_is_compared_as_one_with_a_run_of_today(run, tmp_path):
    today = shutil.copytree(run, tmp_path / "today")
    config = Config.from_file(run / "config.json").replace(seed=1)
    (today / "config.json").write_text(config.to_json())
    (one,) = group([read_run(run), read_run(today)])
    assert one.label == "point_u_maze" and [files.env_steps for files in one.runs] == [60, 60]


def test_what_cannot_change_is_told_under_its_name_of_today(run):
    config = Config.from_file(run / "config.json").replace(depth=8)
    with pytest.raises(
        ValueError, match="depth cannot change when a run is resumed: it was started with 4, got 8"
    ):
        deepres.train(config, run, resume=True, progress=False)
    assert contents(run) == contents(OLD)


def test_a_later_format_is_refused_in_a_sentence(run, capsys):
    later = {**json.loads((run / "config.json").read_text()), "format": 99}
    (run / "config.json").write_text(json.dumps(later))
    for arguments in (["eval", str(run)], ["train", "--resume", str(run)], ["render", str(run)]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert "has config format 99, this version reads up to 3; use the version of deepres that" in error


def left_sweep(run: Path) -> tuple[Path, Config]:
    """The folder of a sweep as version 0.1 left it, with that run in it, and the options that it was asked for with."""
    folder = run.parent / "sweep"
    folder.mkdir()
    run.rename(folder / "d4-s0")
    written = json.loads((folder / "d4-s0" / "config.json").read_text())
    own = {k: v for k, v in written.items() if k not in ("critic_depth", "actor_depth", "seed")}
    asked = {"depths": [4], "seeds": [0], "config": own}
    (folder / "sweep.json").write_text(json.dumps(asked, indent=2) + "\n")
    return folder, read_run(folder / "d4-s0").config


def test_its_sweep_goes_on(run, capsys):
    folder, config = left_sweep(run)
    result = sweep(config, {"depth": [4], "seed": [0]}, folder)
    assert result.failed == [] and all(cell.finished for cell in result.cells)
    said = capsys.readouterr().out
    assert "d4-s0: finished already" in said and "score against depth" in said
    assert json.loads((folder / "sweep.json").read_text())["grid"] == {"depth": [4], "seed": [0]}


def test_another_sweep_in_its_folder_is_refused(run):
    folder, config = left_sweep(run)
    with pytest.raises(
        ValueError, match=r"holds a sweep with gamma=0\.99, got 0\.9; pass another folder \(--out\)"
    ):
        sweep(config.replace(gamma=0.9), {"depth": [4], "seed": [0]}, folder)
