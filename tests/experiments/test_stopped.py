"""A sweep and a study that are asked to end, and a second process in their folder."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from deepres.commands import arguments
from deepres.commands.main import main
from deepres.experiments import jobs
from deepres.runs.lock import NAME, Lock
from helpers import tiny_runs


@pytest.fixture(params=["sweep", "study"])
def words(request, tmp_path, monkeypatch) -> list[str]:
    """A command with processes of its own, in the folder "out"."""
    monkeypatch.syspath_prepend(str(tiny_runs.PROGRAMS))
    monkeypatch.setenv("PYTHONPATH", f"{tiny_runs.ROOT}:{tiny_runs.ROOT / 'tests'}:{tiny_runs.PROGRAMS}")
    if request.param == "study":
        return ["--import", "tiny_study", "experiment", "tiny_numbers", "--out", str(tmp_path / "out")]
    options = tmp_path / "options.json"
    options.write_text(tiny_runs.TINY.to_json())
    return ["sweep", "--config-file", str(options), "--seeds", "0", "1", "--out", str(tmp_path / "out")]


def status_of(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(str(ended.value.code))


def test_sigterm_ends_it_with_the_signals_status(words, tmp_path, monkeypatch, capsys):
    """It comes while the first of its processes begins."""
    sleep, asked = time.sleep, [signal.SIGTERM]
    monkeypatch.setattr(jobs.time, "sleep", lambda s: signal.raise_signal(asked.pop()) if asked else sleep(s))
    assert status_of(words) == 143
    said = capsys.readouterr()
    assert "\nSIGTERM: waiting for the runs under way to save" in said.out
    assert said.out.count(": started") == said.out.count(": stopped") == 1  # of two
    assert NAME not in os.listdir(tmp_path / "out")
    if "experiment" in words:
        assert said.err == "deepres: stopped by SIGTERM; the same command goes on where it stopped\n"


@pytest.mark.parametrize("words", ["study"], indirect=True)
def test_a_trial_that_is_stopped_before_it_has_a_figure_has_not_failed(words, capsys, monkeypatch):
    monkeypatch.setattr(arguments, "imported", ["of_an_earlier_command"])  # no concern of this one
    assert status_of([word.replace("numbers", "stops") for word in words]) == 143
    said = capsys.readouterr()
    assert ": stopped\n0 of 2 trials finished" in said.out and "failed" not in said.out + said.err


def test_a_second_process_is_refused_and_a_dead_ones_claim_is_none(words, tmp_path, monkeypatch, capsys):
    out = Path(words[-1])
    out.mkdir()
    with Lock(out):
        claim = json.loads((out / NAME).read_text())
        assert status_of(words) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"deepres: {out} is in use: process {os.getpid()} on ")
        assert ": started" not in said.out and json.loads((out / NAME).read_text()) == claim
    (out / NAME).write_text(json.dumps({**claim, "started": "1"}))
    (out / ("study.json.draft" if "experiment" in words else "sweep.json.draft")).write_text("{")
    begun = []

    def taken(*_, **__):
        begun.append(json.loads((out / NAME).read_text())["started"])
        return jobs.Outcome([], "SIGTERM")

    for module in ("grid", "runner"):
        monkeypatch.setattr(f"deepres.experiments.{module}.run_jobs", taken)
    assert status_of(words) == 143 and begun == [claim["started"]]
