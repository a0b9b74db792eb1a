"""The table of the tasks: what a row promises is in it."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from bench import envs as bench
from deepres.envs.tasks.reacher import Reacher


def test_a_row_has_sizes_episodes_speeds_contacts_and_what_random_actions_achieve(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DEEPRES_COMPILE_CACHE", "0")  # as the bench sets it, for this test alone
    arguments = ["point_u_maze", "--envs", "3", "--rounds", "1", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["complete"] and result["arguments"]["rounds"] == 1
    (row,) = result["rows"]
    assert row["state_goal_action"] == [4, 2, 2] and row["sizes_are_published"] and not row["terminates"]
    assert row["episode_length"] == 1000 and row["thresholds"] == [2.0, 0.5, None]
    assert row["candidate_contacts"] > 0 and set(row["compile_s"]) == {"jax", "c"}
    speeds = row["env_steps_per_s"]
    assert set(speeds) == {"jax_3", "c_3"} and min(seen["min"] for seen in speeds.values()) > 0
    assert set(row["c_over_jax"]) == {"3"} and row["random_episode_length"] == 1000
    assert 0 <= row["solved_at_start"] <= row["random_success"] <= 1
    assert row["finite"] and row["random_engine"] == "c"
    table = capsys.readouterr().out
    assert "point_u_maze" in table and "4 2 2" in table and "2 / 0.5 / -" in table


def test_random_actions_alone_on_the_engine_that_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEEPRES_COMPILE_CACHE", "0")
    monkeypatch.setattr(bench, "EPISODES", 3)
    assert bench.main(["ant", "--only", "random", "--engine", "jax", "--out", str(tmp_path)]) == 0
    (row,) = json.loads(next(tmp_path.iterdir()).read_text())["rows"]
    assert row["finite"] and row["random_engine"] == "jax" and row["random_episode_length"] < 1000
    assert "env_steps_per_s" not in row and "random steps" in capsys.readouterr().out


def test_an_observation_that_is_not_finite_is_said_and_ends_in_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEEPRES_COMPILE_CACHE", "0")
    monkeypatch.setattr(bench, "EPISODES", 3)
    monkeypatch.setattr(Reacher, "observe", lambda self, physics: jnp.full(10, jnp.nan))
    assert bench.main(["reacher", "--only", "random", "--out", str(tmp_path)]) == 1
    assert "NOT FINITE" in capsys.readouterr().out


def test_bad_arguments_are_said_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "--rounds must be a number of turns >= 1, got 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="env must be one of"):
        bench.main(["antt"])
    with pytest.raises(ValueError, match="engine must be one of"):
        bench.main(["ant", "--engine", "gpu"])
