"""The examples, as a user runs them: they train, and what they leave is evaluated, drawn and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepres.runs import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent

TINY = ["--num-envs", "4", "--episode-length", "20", "--depth", "4", "--width", "8", "--batch-size", "16"]
TINY += ["--unroll-length", "10", "--gradient-steps", "2", "--buffer-steps", "60", "--min-buffer-steps", "20"]
TINY += ["--eval-envs", "4", "--eval-every", "1000", "--checkpoint-every", "1", "--total-steps", "4000"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words], cwd=cwd, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["own_environment", "own_gymnasium_env", "own_model", "own_algorithm"])
def test_an_example_trains_and_what_it_leaves_is_evaluated_and_drawn(name, tmp_path):
    run = tmp_path / "run"
    assert "goals reached: " in command(str(ROOT / "examples" / f"{name}.py"), str(run), cwd=tmp_path)
    evaluations = read_run_of(name, run)
    if name != "own_algorithm":  # regression on a few thousand steps of a maze learns nothing yet
        assert evaluations[-1]["success_any"] >= 0.4 > evaluations[0]["success_any"]
    told = command("-m", "deepres", "--import", f"examples.{name}", "eval", str(run), cwd=tmp_path)
    assert f"goals reached {evaluations[-1]['success_any']:.1%}" in told
    out = tmp_path / "out"
    words = ["render", str(run), "--out", str(out), "--episodes", "1", "--format", "gif"]
    told = command("-m", "deepres", "--import", f"examples.{name}", *words, cwd=tmp_path)
    assert (out / "paths.png").stat().st_size > 10_000
    films = name in ("own_model", "own_algorithm")  # the others have no model, or no pictures, of their own
    assert (out / "policy.gif").exists() == films
    assert ("no video: " in told) != films


@pytest.mark.parametrize("name", ["own_environment", "own_gymnasium_env"])
def test_a_run_in_an_own_environment_goes_on_after_kill_9(name, tmp_path):
    run = tmp_path / "run"
    start = [sys.executable, "-W", "ignore", "-m", "deepres", "--import", f"examples.{name}", "train"]
    env = {"own_environment": "ball_mjx", "own_gymnasium_env": "point_gym"}[name]
    process = subprocess.Popen(
        [*start, "crl", "--env", env, *TINY, "--total-steps", "1000000", "--run-dir", str(run)],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(checkpoints.steps(run / "checkpoints")) < 2:
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = int(checkpoints.steps(run / "checkpoints")[-1])
    words = ["--resume", str(run), "--total-steps", str(saved + 400)]
    command(*start[1:], *words, cwd=tmp_path)
    assert int(checkpoints.steps(run / "checkpoints")[-1]) >= saved + 400
    rounds = read_run_of(name, run, rounds=True)
    assert [row["env_steps"] for row in rounds] == [80 + 40 * i for i in range(len(rounds))]


def read_run_of(name: str, run: Path, *, rounds: bool = False) -> list[dict[str, float]]:
    """A run's rows; the algorithm that it is of may be an example's."""
    script = f"""
import json, sys
import examples.{name}
from pathlib import Path
from deepres.runs.files import read_run
files = read_run(Path(sys.argv[1]))
print(json.dumps(files.rounds if {rounds} else files.evaluations))
"""
    return json.loads(command("-c", script, str(run), cwd=run.parent))
