"""Whole runs on real physics: killed, resumed, starved of disk, and evaluated again."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deepres
from deepres import checkpoint as checkpoints
from deepres.checkpoint import CheckpointError
from deepres.config import Config
from deepres.run import load_run
from deepres.stability import TrainingError
from deepres.training import train

pytest.importorskip("mujoco.mjx")

TINY = Config(
    env="point_u_maze", num_envs=4, episode_length=25, critic_depth=4, actor_depth=4, width=32, feature_dim=8,
    batch_size=16, unroll_length=10, gradient_steps=4, buffer_steps=60, min_buffer_steps=20, eval_envs=4,
    eval_every=4, checkpoint_every=1, total_steps=4 * 100,
)  # fmt: skip

SCRIPT = """
import sys
from pathlib import Path
from deepres.config import Config
from deepres.training import train
folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
config = Config.from_file(Path(sys.argv[3]))
train(config, folder, resume=resume)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, deepres.Result]:
    """A run that nothing disturbed; tests that change its folder copy it first."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(TINY, folder, progress=False)


def start(config: Config, folder: Path, *, resume: bool = False) -> subprocess.Popen:
    file = folder.parent / f"{folder.name}.json"
    file.write_text(config.to_json())
    mode = "resume" if resume else "new"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), mode, str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, condition, seconds: float = 120, pause: float = 0.0) -> None:
    """Wait for `condition()` while the process lives; without a pause for those that last a millisecond only."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the run ended too early: {process.stdout.read()}")
        assert time.monotonic() < deadline, "the run took too long"
        time.sleep(pause)


def listing(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


def different(a: checkpoints.Checkpoint, b: checkpoints.Checkpoint) -> list[str]:
    """Names of the tensors that are not equal in every bit."""
    parts = [(a.tensors, b.tensors), *((a.shards[i], b.shards[i]) for i in a.shards | b.shards)]
    assert all(x.keys() == y.keys() for x, y in parts)
    return [k for x, y in parts for k in x if not torch.equal(x[k], y[k])]


def test_killed_runs_resume_to_the_same_bits(finished, tmp_path):
    undisturbed, _ = finished
    run = tmp_path / "run"
    drafts = lambda: any(n.startswith(".draft") for n in listing(run / "checkpoints"))  # noqa: E731

    process = start(TINY, run)
    wait_for(process, lambda: len(checkpoints.steps(run / "checkpoints")) == 2)
    time.sleep(0.02)  # somewhere in the next round
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints.load_newest(run / "checkpoints")[2] == []

    process = start(TINY, run, resume=True)
    before = checkpoints.steps(run / "checkpoints")[-1]
    wait_for(process, lambda: checkpoints.steps(run / "checkpoints")[-1] > before and drafts())
    process.send_signal(signal.SIGKILL)  # while a checkpoint is being written
    process.wait()
    assert checkpoints.load_newest(run / "checkpoints")[2] == []

    train(TINY, run, resume=True, progress=False)
    a = checkpoints.load_newest(undisturbed / "checkpoints")[1]
    b = checkpoints.load_newest(run / "checkpoints")[1]
    assert a.counters["env_steps"] == b.counters["env_steps"] == 400
    assert different(a, b) == []
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(undisturbed / name) == rows(run / name)


def test_what_a_run_leaves(finished):
    folder, result = finished
    assert [int(r["env_steps"]) for r in rows(folder / "metrics.csv")] == list(range(80, 401, 40))
    assert [int(r["env_steps"]) for r in rows(folder / "evaluations.csv")] == [0, 200, 360, 400]
    assert list((folder / "tensorboard").iterdir())
    assert checkpoints.steps(folder / "checkpoints") == ["000000000360", "000000000400"]
    assert Config.from_file(folder / "config.json") == TINY
    assert result.env_steps == 400 and not result.interrupted


def test_the_checkpoint_evaluates_to_the_same_figure(finished):
    folder, result = finished
    loaded = load_run(folder)
    assert loaded.evaluate()[0] == result.after
    _, paths = loaded.evaluate(seed=7)
    assert paths.achieved.shape == (25, 4, 2) and paths.goal.shape == (4, 2)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run")
    newest = run / "checkpoints" / "000000000400" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    result = train(TINY, run, resume=True, progress=False)
    assert "was cut short or changed" in capsys.readouterr().out
    assert result.env_steps == 400 and result.after == finished[1].after
    assert rows(run / "metrics.csv") == rows(finished[0] / "metrics.csv")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"critic_depth": 8},
            "critic_depth cannot change when a run is resumed: it was started with 4, got 8",
        ),
        ({"width": 64}, "width cannot change when a run is resumed: it was started with 32, got 64"),
        ({"num_envs": 8}, "num_envs cannot change when a run is resumed: it was started with 4, got 8"),
    ],
)
def test_another_shape_is_refused_and_the_run_is_untouched(finished, changes, sentence):
    folder, _ = finished
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=sentence):
        train(replace(TINY, **changes), folder, resume=True, progress=False)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_longer_run_goes_on_where_it_ended(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    result = train(replace(TINY, total_steps=480), run, resume=True, progress=False)
    assert result.env_steps == 480 and result.before == finished[1].before
    assert [int(r["env_steps"]) for r in rows(run / "metrics.csv")] == list(range(80, 481, 40))


def test_a_run_ends_early_at_the_success_it_was_asked_for(tmp_path):
    """The reacher's goals include some within reach of any policy, so a low bar is met at the first look."""
    config = replace(TINY, env="reacher", stop_at_success=0.01, eval_every=1, eval_envs=64, total_steps=10**6)
    result = train(config, tmp_path / "run", progress=False)
    assert result.env_steps < 10**6 and result.after.success_any >= 0.01
    assert checkpoints.steps(tmp_path / "run" / "checkpoints")[-1] == f"{result.env_steps:012d}"


def test_a_full_disk_costs_the_unsaved_steps_only(small_disk):
    """The ring (a megabyte a checkpoint) fills 4 MB; the run trains to its end and then says what it could not do."""
    config = replace(
        TINY, num_envs=64, buffer_steps=200, total_steps=64 * 200, keep_checkpoints=9, eval_every=99
    )
    with (
        pytest.warns(
            RuntimeWarning, match="cannot write a checkpoint to .* training goes on and tries again"
        ),
        pytest.raises(CheckpointError, match="nothing there was lost"),
    ):
        train(config, small_disk / "run", progress=False)
    folder = small_disk / "run" / "checkpoints"
    kept = checkpoints.steps(folder)
    assert kept and sorted(os.listdir(folder)) == kept
    assert all(checkpoints.load(folder / name).counters["env_steps"] == int(name) for name in kept)
    shutil.rmtree(folder / kept[0])  # room again: the run goes on from what it has
    assert (
        train(replace(config, keep_checkpoints=1), small_disk / "run", resume=True, progress=False).env_steps
        == 12800
    )


def test_ctrl_c_ends_with_a_checkpoint(tmp_path):
    process = start(replace(TINY, total_steps=10**9, checkpoint_every=10**6), tmp_path / "run")
    wait_for(process, lambda: len(listing(tmp_path / "run")) and (tmp_path / "run" / "metrics.csv").exists())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopping after this round, with a checkpoint" in output
    newest = checkpoints.load_newest(tmp_path / "run" / "checkpoints")[1]
    assert rows(tmp_path / "run" / "metrics.csv")[-1]["env_steps"] == str(newest.counters["env_steps"])


def test_divergence_stops_the_run_with_advice(tmp_path):
    with pytest.raises(TrainingError, match=r"training diverged in round .* is not finite"):
        train(replace(TINY, critic_lr=1e30, actor_lr=1e30), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "ant_on_mars"}, "env must be one of .*ant.*, got 'ant_on_mars'"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:<index>, got 'tpu'"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not there: PyTorch sees"),
        ({"impl": "fastest"}, "impl must be one of .*reference.*, got 'fastest'"),
    ],
)
def test_bad_choices_are_one_sentence_and_leave_no_folder(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(replace(TINY, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; pass a new folder, or resume"):
        train(TINY, tmp_path, progress=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_without_the_buffer_a_resumed_run_fills_it_again(tmp_path):
    config = replace(TINY, save_buffer=False, total_steps=120, eval_every=99)
    train(config, tmp_path / "run", progress=False)
    newest = checkpoints.load_newest(tmp_path / "run" / "checkpoints")[1]
    assert not any(k.startswith("buffer/") for k in newest.shards[0])
    result = train(replace(config, total_steps=160), tmp_path / "run", resume=True, progress=False)
    assert result.env_steps == 120 + 80  # min_buffer_steps in each of 4 environments


def test_evaluation_on_another_task_of_the_same_robot(tmp_path):
    run = deepres.run.Run(replace(TINY, eval_env="point_u_maze_eval", physics="jax"), tmp_path / "run")
    assert run.eval_env.name == "point_u_maze_eval" and run.env.impl == run.eval_env.impl == "jax"
