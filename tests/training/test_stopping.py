"""Runs that are asked to end, or killed, at any moment: what they resume to is what nobody disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deepres.commands.main import main
from deepres.experiments.grid import Cell
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import CheckpointError
from deepres.training import loop
from deepres.training import run as runs
from deepres.training.loop import train
from deepres.training.run import Run
from deepres.training.stopping import Stopped, StopRequest
from helpers.tiny_runs import TINY, contents, different, rows, words

CONFIG = TINY.replace(total_steps=240, checkpoint_every=2, eval_every=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(CONFIG, folder, progress=False)
    return folder


def same(run: Path, undisturbed: Path) -> bool:
    """Whether both ended in the same bits and logs, and nobody holds them."""
    a, b = (checkpoints.load_newest(folder / "checkpoints")[1] for folder in (run, undisturbed))
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(run / name) == rows(undisturbed / name)
    assert not (run / "lock.json").exists()
    return a.counters["env_steps"] == b.counters["env_steps"] == 240 and different(a, b) == []


def at_call(monkeypatch, owner, name: str, number: int, do: Callable[[], None]) -> None:
    """`do` in the midst of the number-th call of owner.name."""
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            do()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def ask(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_run_that_is_asked_to_end_saves_after_its_round(
    undisturbed, tmp_path, monkeypatch, capsys, request, name, status
):
    run = tmp_path / "run"
    handler = signal.default_int_handler  # under nohup SIGHUP is ignored, and stays so in a run
    before = signal.signal(getattr(signal, name), handler)
    request.addfinalizer(lambda: signal.signal(getattr(signal, name), before))
    at_call(monkeypatch, Run, "round", 3, ask(name))
    result = train(CONFIG, run)
    assert (result.ended, result.interrupted, result.status) == (name, True, status)
    assert result.env_steps == 160 and checkpoints.steps(run / "checkpoints")[-1] == "000000000160"
    assert signal.getsignal(getattr(signal, name)) is handler
    said = capsys.readouterr().out
    assert f"{name}: stopping after this round, with a checkpoint" in said
    assert (
        f"stopped by {name} at 160 of 240 steps, with a checkpoint; go on with deepres train --resume" in said
    )
    again = train(CONFIG, run, resume=True, progress=False)
    assert (again.ended, again.status) == ("total_steps", 0) and same(run, undisturbed)


def test_asked_in_the_first_evaluation_there_is_a_checkpoint_and_no_figure(
    undisturbed, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    at_call(monkeypatch, runs, "evaluate", 1, ask("SIGINT"))
    with pytest.raises(
        Stopped, match="SIGINT: stopped before the first evaluation was done; begin with"
    ) as stop:
        train(CONFIG, run, progress=False)
    assert stop.value.status == 130 and checkpoints.steps(run / "checkpoints") == ["000000000000"]
    train(CONFIG, run, resume=True, progress=False)
    assert same(run, undisturbed)


def test_asked_in_a_later_evaluation_it_is_made_up_for(undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    at_call(monkeypatch, runs, "evaluate", 2, ask("SIGTERM"))
    result = train(CONFIG, run, progress=False)
    assert result.env_steps == 120 and [r["env_steps"] for r in rows(run / "evaluations.csv")] == ["0"]
    train(CONFIG, run, resume=True, progress=False)
    assert same(run, undisturbed)


class Killed(BaseException):
    """As if by kill -9: nobody catches it."""


def killed() -> None:
    raise Killed


def test_killed_before_its_first_checkpoint_it_begins_anew(undisturbed, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    at_call(monkeypatch, loop, "save", 1, killed)
    with pytest.raises(Killed):
        train(CONFIG, run, progress=False)
    assert len(rows(run / "metrics.csv")) == 2 and not (run / "checkpoints").exists()
    with pytest.raises(ValueError, match="width cannot change when a run is resumed"):
        train(CONFIG.replace(width=16), run, resume=True, progress=False)
    assert Cell(run, CONFIG, {}).job([]).command[-2:] == ["--resume", str(run)]
    train(CONFIG, run, resume=True, progress=False)
    assert "the run ended before its first, and begins anew" in capsys.readouterr().out
    assert same(run, undisturbed)


def test_a_folder_in_which_nothing_began_has_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        train(CONFIG, tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == {}


def test_a_run_that_reached_its_success_is_finished(tmp_path, capsys):
    config = TINY.replace(env="reacher", stop_at_success=0.01, eval_every=1, eval_envs=64, total_steps=10**6)
    first = train(config, tmp_path / "run", progress=False)
    again = train(config, tmp_path / "run", resume=True)
    assert first == again and first.ended == "stop_at_success" and first.status == 0
    assert "the run is finished, at 80 steps: it reached stop_at_success=0.01" in capsys.readouterr().out


def test_a_callback_sees_every_row_and_may_end_the_run(undisturbed, tmp_path, capsys):
    run, seen = tmp_path / "run", []

    def enough(what: str, row: dict[str, float]) -> bool:
        seen.append((what, row["env_steps"]))
        return what == "train" and row["critic_loss"] > 0 and row["env_steps"] >= 160

    result = train(CONFIG, run, callback=enough)
    assert (result.ended, result.interrupted, result.status) == ("callback", False, 0)
    assert seen == [("eval", 0), ("train", 80), ("train", 120), ("eval", 120), ("train", 160), ("eval", 160)]
    assert "ended by its callback: 160 of 240 steps, with a checkpoint" in capsys.readouterr().out
    train(CONFIG, run, resume=True, progress=False, callback=print)
    assert same(run, undisturbed)


def test_a_run_goes_on_when_nobody_reads_what_it_says(undisturbed, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        train(CONFIG, tmp_path / "run")
        assert sys.stdout is gone
        print("and so does who called it")
    assert same(tmp_path / "run", undisturbed)


def test_the_command_ends_with_the_signals_status(tmp_path, monkeypatch, capsys):
    at_call(monkeypatch, Run, "round", 1, ask("SIGTERM"))
    with pytest.raises(SystemExit) as stop:
        main(["train", *words(CONFIG), "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 143
    said = capsys.readouterr().out
    assert "stopped by SIGTERM at 80 of 240 steps" in said and "trained:" not in said


def test_a_folder_in_use_is_refused(undisturbed, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(undisturbed, tmp_path / "run")

    def another() -> None:
        with pytest.raises(SystemExit) as stop:
            main(["train", "--resume", str(run)])
        assert stop.value.code == 1

    at_call(monkeypatch, Run, "round", 1, another)
    train(CONFIG.replace(total_steps=280), run, resume=True, progress=False)
    assert "is in use: process" in capsys.readouterr().err


def test_the_second_signal_is_the_usual_one(monkeypatch):
    """Two that come at once, as from a terminal and from torchrun, are one."""
    with StopRequest(tell="") as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked == "SIGINT"
        stop._since -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopRequest(tell="") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_a_scripts_background_can_be_interrupted():
    """Shells start it with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(tell="") as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked == "SIGINT"
            stop._since -= 2
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
