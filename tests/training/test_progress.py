"""What a person sees of a run, on any width."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from deepres.training import progress
from deepres.training.evaluate import Evaluation
from deepres.training.loop import train
from deepres.training.progress import Progress
from helpers.tiny_runs import TINY

ROW = {
    "env_steps": 16_000.0, "env_steps_per_second": 16_462.0, "gradient_steps_per_second": 134.3,
    "critic_loss": 2.797, "actor_loss": 1.9,
}  # fmt: skip


def seen(monkeypatch, width: int, *, terminal: bool) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(32_000, Path("runs/[a]"), ("critic_loss", "actor_loss")) as bar:
        bar.evaluation(0, Evaluation(134.25, 0.5, 3.25, 1000.0))
        bar.round(ROW)
        bar.ended("finished: 32,000 steps")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize("width", [20, 80, 200])
def test_off_a_terminal_an_evaluation_is_a_line_whatever_the_width(monkeypatch, width):
    lines = seen(monkeypatch, width, terminal=False).splitlines()
    assert lines == [
        "run folder runs/[a], up to 32,000 env steps",
        "          0 env steps  time at goal  134.2  goals reached  50.0%  distance   3.25",
        "finished: 32,000 steps",
    ]


def test_off_a_terminal_a_long_silence_is_broken_by_a_line(monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    lines = seen(monkeypatch, 80, terminal=False).splitlines()
    assert lines[2] == "     16,000 env steps   50%  16,462 env/s  134.3 grad/s" and len(lines) == 4


@pytest.mark.parametrize(
    ("width", "figures"),
    [(80, ["16,462 env/s"]), (200, ["16,462 env/s", "134.3 grad/s", "critic 2.797", "actor 1.900"])],
)
def test_on_a_terminal_figures_give_way_to_the_bar_and_the_time_left(monkeypatch, width, figures):
    lines = seen(monkeypatch, width, terminal=True).splitlines()
    bar = next(line for line in lines if "16,000 env steps" in line)
    assert len(bar) <= width and "…" not in bar
    assert re.search(r"16,000 env steps \S*[━╸╺]{4,}\S* +50% 0:00:0\d left (-:--:--|0:00:0\d)", bar), bar
    assert [
        figure for figure in ("16,462 env/s", "134.3 grad/s", "critic 2.797", "actor 1.900") if figure in bar
    ] == figures


def test_a_first_round_that_takes_more_than_all_steps_is_told(tmp_path, capsys):
    """Four environments fill the buffer with twenty steps each."""
    result = train(TINY.replace(total_steps=40), tmp_path / "run")
    told = "the first round takes 80 env steps, more than total_steps=40, and the run ends with it: a round is num_envs"
    assert result.env_steps == 80 and told in capsys.readouterr().out
