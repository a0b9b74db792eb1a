"""A sweep on real physics: killed, asked for again, and complete."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from deepres.commands.main import main
from deepres.experiments import grid
from deepres.experiments.grid import sweep
from deepres.experiments.jobs import Outcome
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from helpers import tiny_runs

TINY = tiny_runs.TINY.replace(actor_depth=None, eval_every=100)


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tiny_runs.ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_process(monkeypatch):
    """Every run of a sweep in this process, for an import of JAX and MuJoCo takes longer than the run."""

    def run_jobs(waiting, places):
        for job in waiting:
            print(f"{job.name}: {'resumed' if job.resumed else 'started'}")
            assert job.command[:3] == [sys.executable, "-m", "deepres"]
            main(job.command[3:])
        return Outcome([], None)

    monkeypatch.setattr(grid, "run_jobs", run_jobs)


def test_a_killed_sweep_goes_on_where_it_was(tmp_path, in_checkout, one_process, capsys):
    folder, options = tmp_path / "sweep", tmp_path / "options.json"
    options.write_text(TINY.replace(total_steps=1_000_000).to_json())  # the first run never ends by itself
    command = [
        "sweep",
        "--config-file",
        str(options),
        "--depths",
        "4",
        "8",
        "--seeds",
        "3",
        "--out",
        str(folder),
    ]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "deepres", *command])
    deadline = time.monotonic() + 120
    while not checkpoints.steps(folder / "d4-s3" / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()  # and its run with it
    process.wait()
    saved = checkpoints.steps(folder / "d4-s3" / "checkpoints")[-1]
    enough = TINY.replace(total_steps=int(saved) + 1_000)  # the killed sweep's run may have saved once more

    result = sweep(enough, {"depth": [4, 8], "seed": [3]}, folder)
    said = capsys.readouterr().out
    assert not result.failed and not result.interrupted and all(cell.finished for cell in result.cells)
    assert "d4-s3: resumed" in said and "d8-s3: started" in said
    assert [read_run(cell.folder).config.network.depth for cell in result.cells] == [4, 8]
    assert "score against depth" in said and (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    steps = [int(row["env_steps"]) for row in read_run(folder / "d4-s3").rounds]
    assert steps == sorted(set(steps))  # resumed, not begun again
    assert json.loads((folder / "sweep.json").read_text())["grid"] == {"depth": [4, 8], "seed": [3]}

    assert sweep(enough, {"depth": [4, 8], "seed": [3]}, folder).failed == []
    assert capsys.readouterr().out.count("finished already") == 2


def test_any_options_vary(tmp_path, one_process, capsys, monkeypatch):
    """Their names, values and combinations; the scores stand against the first."""
    monkeypatch.setenv("COLUMNS", "200")
    folder, options = tmp_path / "sweep", tmp_path / "options.json"
    options.write_text(TINY.replace(total_steps=80).to_json())
    asks = ["--grid", "gamma=0.9,0.99", "seed=1"]
    main(["sweep", "--config-file", str(options), *asks, "--out", str(folder)])
    said = " ".join(capsys.readouterr().out.split())
    assert "point_u_maze: score against gamma gamma seeds finished" in said
    for gamma in (0.9, 0.99):
        run = read_run(folder / f"gamma_{gamma}-s1")
        assert (run.config.algorithm.gamma, run.config.schedule.seed, run.env_steps) == (gamma, 1, 80)
        assert run.config.network == TINY.network
    assert (folder / "gamma.png").read_bytes().startswith(b"\x89PNG")
    asked = json.loads((folder / "sweep.json").read_text())
    assert asked["grid"] == {"gamma": [0.9, 0.99], "seed": [1]}
    main(["compare", str(folder), "--out", str(tmp_path / "c.png")])
    said = capsys.readouterr().out
    assert "point_u_maze, gamma 0.9" in said and "point_u_maze, gamma 0.99" in said


def test_another_runs_score_is_not_taken_for_the_one_asked_for(tmp_path, one_process, capsys):
    """The folder's name tells only what varied, and the sweep in between varied more."""
    folder, asks = tmp_path / "sweep", {"depth": [4], "seed": [0]}
    short = TINY.replace(total_steps=80, gamma=0.5)
    assert not sweep(short, asks, folder).failed
    asked = json.loads((folder / "sweep.json").read_text())
    asked["config"]["algorithm"]["options"]["gamma"] = 0.99
    (folder / "sweep.json").write_text(json.dumps(asked))
    before = (folder / "d4-s0.json").read_text()
    with pytest.raises(ValueError) as error:
        sweep(short.replace(gamma=0.99), asks, folder)
    assert str(error.value) == (
        f"{folder / 'd4-s0'} was run with gamma=0.5, got 0.99; pass another folder (--out)"
    )
    assert (folder / "d4-s0.json").read_text() == before

    (folder / "sweep.json").write_text(json.dumps({**asked, "config": short.to_dict()}))
    capsys.readouterr()
    sweep(short.replace(actor_lr=0.5, total_steps=40, threads=1), asks, folder)
    assert "d4-s0: finished already, with actor_lr=0.0003\n" in capsys.readouterr().out


def test_a_run_that_fails_is_told_with_its_sentence(tmp_path, in_checkout, capsys):
    folder = tmp_path / "sweep"
    moon = "ant_moon_maze_gen_1f"  # a layout is looked up when the maze is made
    result = sweep(TINY.replace(env=moon), {"depth": [4], "seed": [0]}, folder)
    assert result.failed == ["d4-s0"] and not any(cell.finished for cell in result.cells)
    said = capsys.readouterr().out
    assert "d4-s0: failed: deepres: " in said and "moon_maze" in said and str(folder / "d4-s0.log") in said


def test_an_actor_has_the_depth_that_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(grid, "run_jobs", lambda jobs, *_: asked.extend(jobs) or Outcome([], None))
    for depth, wanted in ((None, [4, 16]), (8, [8, 8])):
        cells = sweep(TINY.replace(actor_depth=depth), {"depth": [4, 16]}, tmp_path / str(depth)).cells
        assert [cell.config.network.actor_depth for cell in cells] == wanted


def test_runs_of_one_place_may_have_been_asked_for_other_lengths(tmp_path, one_process, capsys):
    asked = {"depth": [4], "seed": [0, 1]}
    sweep(TINY, {**asked, "seed": [0]}, tmp_path / "a")
    longer = TINY.replace(eval_every=TINY.schedule.eval_every + 1)
    result = sweep(longer, asked, tmp_path / "a")
    assert not result.failed and all(cell.finished for cell in result.cells)


def test_grids_that_cannot_be_get_one_sentence(tmp_path):
    new = tmp_path / "a"
    with pytest.raises(ValueError, match=r"depth must take different values, at least one, got \[4, 4\]"):
        sweep(TINY, {"depth": [4, 4], "seed": [0]}, new)
    with pytest.raises(ValueError, match="depth must be a multiple"):
        sweep(TINY, {"depth": [6], "seed": [0]}, new)
    with pytest.raises(ValueError, match="jobs must be"):
        sweep(TINY, {"depth": [4], "seed": [0]}, new, jobs=-1)
    with pytest.raises(ValueError, match="tau does not apply to crl"):
        sweep(TINY, {"tau": [0.1, 0.2]}, new)
    with pytest.raises(ValueError, match="env must take a list of values, got 'ant'; put it in brackets"):
        sweep(TINY, {"env": "ant"}, new)
    with pytest.raises(ValueError, match="seed must take a list of values, got 3"):
        sweep(TINY, {"seed": 3}, new)
    with pytest.raises(ValueError, match="varies one option at least"):
        sweep(TINY, {}, new)
    with pytest.raises(
        ValueError, match=r"two runs would have the folder .*eval_env_None: .*None.* and .*'None'"
    ):
        sweep(TINY, {"eval_env": [None, "None"]}, new)
    for names in ({"env": ["ant", "mars"]}, {"eval_env": ["mars"]}):
        with pytest.raises(ValueError, match=r"env must be one of .* got 'mars'"):
            sweep(TINY, names, new)
    assert not new.exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        sweep(TINY, {"depth": [4], "seed": [0]}, tmp_path / "b")


@pytest.mark.parametrize("left", ["{}", "[]", '{"config": 3}', '{"grid": '])
def test_a_damaged_sweep_file_is_named(tmp_path, left):
    (tmp_path / "sweep.json").write_text(left)
    with pytest.raises(
        ValueError, match=r"sweep\.json is (not as a sweep wrote it|damaged: .*); restore it from a copy"
    ):
        sweep(TINY, {"seed": [0]}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_values_may_come_from_anything_that_has_some(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "run_jobs", lambda *_: Outcome([], None))
    values = {"depth": np.array([4, 8]), "gamma": (g for g in np.array([0.5, 0.9])), "seed": range(2)}
    cells = sweep(TINY, values, tmp_path).cells
    assert [cell.name for cell in cells][:3] == ["d4-gamma_0.5-s0", "d4-gamma_0.5-s1", "d4-gamma_0.9-s0"]
    asked = json.loads((tmp_path / "sweep.json").read_text())["grid"]
    assert asked == {"depth": [4, 8], "gamma": [0.5, 0.9], "seed": [0, 1]}
