"""Whole runs on real physics: killed, resumed, starved of disk, and evaluated again."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import deepres
from deepres.config import Config
from deepres.data.batch import COLUMNS
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import CheckpointError
from deepres.training.loop import load_run, train
from deepres.training.run import Run
from deepres.training.stability import TrainingError
from helpers.tiny_runs import SIZES, TINY, contents, different, listing, rows, start, wait_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, deepres.Result]:
    """A run that nothing disturbed; tests that change its folder copy it first."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(TINY, folder, progress=False)


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


def test_a_resumed_run_does_not_hold_its_checkpoint_while_it_trains(finished, tmp_path):
    """It is as large as the weights and their moments together."""
    shutil.copytree(finished[0], tmp_path / "run")
    held = []

    def look(kind, row):
        held.append([one for one in gc.get_objects() if type(one) is checkpoints.Checkpoint])

    train(TINY.replace(total_steps=480), tmp_path / "run", resume=True, progress=False, callback=look)
    assert held and not any(held)


def test_a_killed_run_of_sac_that_collects_ahead_resumes_to_the_same_bits(tmp_path):
    """What the ring keeps more of a step, and the slow critics, are in its checkpoints."""
    config = Config("sac", **SIZES).replace(hindsight=0.8, overlap=True, eval_every=99, total_steps=240)
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(process, lambda: len(checkpoints.steps(run / "checkpoints")) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, saved, skipped = checkpoints.load_newest(run / "checkpoints")
    assert skipped == [] and saved.counters["env_steps"] < 240
    pair = (saved.tensors[f"parameters/q{which}.head.weight"] for which in ("", "_slow"))
    for now, slow in zip(*pair, strict=True):
        assert not torch.equal(now, slow) and torch.allclose(now, slow, atol=1e-2)
    assert {f"buffer/{name}" for name in COLUMNS} - saved.shards[0].keys() == {
        "buffer/rewards",
        "buffer/truncations",
    }

    results = [
        train(config, run, resume=True, progress=False),
        train(config, tmp_path / "whole", progress=False),
    ]
    assert results[0].after == results[1].after
    a, b = (checkpoints.load_newest(r / "checkpoints")[1] for r in (run, tmp_path / "whole"))
    assert a.counters["env_steps"] == b.counters["env_steps"] == 240 and different(a, b) == []
    assert rows(run / "metrics.csv") == rows(tmp_path / "whole" / "metrics.csv")


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
            {"depth": 8},
            "depth cannot change when a run is resumed: it was started with 4, got 8",
        ),
        ({"width": 64}, "width cannot change when a run is resumed: it was started with 32, got 64"),
        ({"num_envs": 8}, "num_envs cannot change when a run is resumed: it was started with 4, got 8"),
    ],
)
def test_another_shape_is_refused_and_the_run_is_untouched(finished, changes, sentence):
    folder, _ = finished
    before = contents(folder)
    with pytest.raises(ValueError, match=sentence):
        train(TINY.replace(**changes), folder, resume=True, progress=False)
    assert before == contents(folder)


def test_another_algorithm_is_refused_and_the_run_is_untouched(finished):
    folder, _ = finished
    before = contents(folder)
    with pytest.raises(
        ValueError,
        match="algorithm cannot change when a run is resumed: it was started with 'crl', got 'gcbc'",
    ):
        train(Config("gcbc", **SIZES), folder, resume=True, progress=False)
    assert before == contents(folder)


def test_a_longer_run_goes_on_where_it_ended(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    result = train(TINY.replace(total_steps=480), run, resume=True, progress=False)
    assert result.env_steps == 480 and result.before == finished[1].before
    assert [int(r["env_steps"]) for r in rows(run / "metrics.csv")] == list(range(80, 481, 40))


def test_a_run_ends_early_at_the_success_it_was_asked_for(tmp_path):
    """The reacher's goals include some within reach of any policy, so a low bar is met at the first look."""
    config = TINY.replace(env="reacher", stop_at_success=0.01, eval_every=1, eval_envs=64, total_steps=10**6)
    result = train(config, tmp_path / "run", progress=False)
    assert result.env_steps < 10**6 and result.after.success_any >= 0.01
    assert checkpoints.steps(tmp_path / "run" / "checkpoints")[-1] == f"{result.env_steps:012d}"


def test_a_full_disk_costs_the_unsaved_steps_only(small_disk):
    """The ring (a megabyte a checkpoint) fills 4 MB; the run trains to its end and then says what it could not do."""
    config = TINY.replace(
        num_envs=64, buffer_steps=200, total_steps=64 * 200, keep_checkpoints=9, eval_every=99
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
        train(config.replace(keep_checkpoints=1), small_disk / "run", resume=True, progress=False).env_steps
        == 12800
    )


def test_ctrl_c_ends_with_a_checkpoint(tmp_path):
    process = start(TINY.replace(total_steps=10**9, checkpoint_every=10**6), tmp_path / "run")
    wait_for(process, lambda: len(listing(tmp_path / "run")) and (tmp_path / "run" / "metrics.csv").exists())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopping after this round, with a checkpoint" in output
    newest = checkpoints.load_newest(tmp_path / "run" / "checkpoints")[1]
    assert rows(tmp_path / "run" / "metrics.csv")[-1]["env_steps"] == str(newest.counters["env_steps"])


def test_divergence_stops_the_run_with_advice(tmp_path):
    with pytest.raises(TrainingError, match=r"training diverged in round .* is not finite"):
        train(TINY.replace(critic_lr=1e30, actor_lr=1e30), tmp_path / "run", progress=False)


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
        train(TINY.replace(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; pass a new folder, or resume"):
        train(TINY, tmp_path, progress=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_without_the_buffer_a_resumed_run_fills_it_again(tmp_path):
    config = TINY.replace(save_buffer=False, total_steps=120, eval_every=99)
    train(config, tmp_path / "run", progress=False)
    newest = checkpoints.load_newest(tmp_path / "run" / "checkpoints")[1]
    assert not any(k.startswith("buffer/") for k in newest.shards[0])
    result = train(config.replace(total_steps=160), tmp_path / "run", resume=True, progress=False)
    assert result.env_steps == 120 + 80  # min_buffer_steps in each of 4 environments


def test_evaluation_on_another_task_of_the_same_robot():
    run = Run(TINY.replace(eval_env="point_u_maze_eval", engine="jax"))
    assert run.eval_env.name == "point_u_maze_eval" and run.env.env.engine == run.eval_env.env.engine == "jax"


def test_a_finished_run_that_is_resumed_has_the_trained_policys_figures(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    again = train(TINY, tmp_path / "run", resume=True)
    assert (again.before, again.after, again.env_steps) == (finished[1].before, finished[1].after, 400)
    assert "the run is finished, at 400 of 400 steps" in capsys.readouterr().out
    assert rows(tmp_path / "run" / "evaluations.csv") == rows(finished[0] / "evaluations.csv")
