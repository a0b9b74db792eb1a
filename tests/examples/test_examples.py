"""The examples, as a user runs them: they train, and what they leave is evaluated, drawn and gone on with.

All in this process, for an import of JAX and MuJoCo takes longer than most of it; what is killed has one of its own.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest

from deepres import algorithms
from deepres.commands.main import main
from deepres.envs import registry
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from helpers.tiny_runs import ROOT, environ, wait_for

TINY = ["--num-envs", "4", "--episode-length", "20", "--depth", "4", "--width", "8", "--batch-size", "16"]
TINY += ["--unroll-length", "10", "--gradient-steps", "2", "--buffer-steps", "60", "--min-buffer-steps", "20"]
TINY += ["--eval-envs", "4", "--eval-every", "1000", "--checkpoint-every", "1", "--total-steps", "1000000"]


@pytest.fixture
def forget(monkeypatch) -> Callable[[], None]:
    """Makes what examples have registered unknown again; so does the test's end."""
    known = {registry: "_ENTRIES", algorithms: "_ALGORITHMS"}
    plain = {module: dict(getattr(module, name)) for module, name in known.items()}

    def forget() -> None:
        for module, name in known.items():
            monkeypatch.setattr(module, name, dict(plain[module]))
        for name in [name for name in sys.modules if name.startswith("examples.")]:
            monkeypatch.delitem(sys.modules, name)

    forget()
    return forget


def script(name: str, *arguments: str) -> None:
    """`python examples/NAME.py ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", ["own_environment", "own_gymnasium_env", "own_model", "own_algorithm"])
def test_an_example_trains_and_what_it_leaves_is_evaluated_and_drawn(name, tmp_path, capsys, forget):
    run, out = tmp_path / "run", tmp_path / "out"
    script(name, str(run))
    assert "goals reached: " in capsys.readouterr().out
    forget()
    main(["--import", f"examples.{name}", "eval", str(run)])
    evaluations = read_run(run).evaluations
    if name != "own_algorithm":  # regression on a few thousand steps of a maze learns nothing yet
        assert evaluations[-1]["success_any"] >= 0.4 > evaluations[0]["success_any"]
    assert f"goals reached {evaluations[-1]['success_any']:.1%}" in capsys.readouterr().out
    forget()
    main(
        [
            "--import",
            f"examples.{name}",
            "render",
            str(run),
            "--out",
            str(out),
            "--episodes",
            "1",
            "--format",
            "gif",
        ]
    )
    assert (out / "paths.png").stat().st_size > 10_000
    films = name in ("own_model", "own_algorithm")  # the others have no model, or no pictures, of their own
    assert (out / "policy.gif").exists() == films
    assert ("no video: " in capsys.readouterr().out) != films


@pytest.mark.parametrize("name", ["own_environment", "own_gymnasium_env"])
def test_a_run_in_an_own_environment_goes_on_after_kill_9(name, tmp_path, forget):
    run = tmp_path / "run"
    start = ["--import", f"examples.{name}", "train"]
    env = {"own_environment": "ball_mjx", "own_gymnasium_env": "point_gym"}[name]
    process = subprocess.Popen(
        [sys.executable, "-m", "deepres", *start, "crl", "--env", env, *TINY, "--run-dir", str(run)],
        cwd=tmp_path, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wait_for(process, lambda: len(checkpoints.steps(run / "checkpoints")) == 2, pause=0.01)
    process.kill()
    process.wait()
    saved = int(checkpoints.steps(run / "checkpoints")[-1])
    main([*start, "--resume", str(run), "--total-steps", str(saved + 400)])
    assert int(checkpoints.steps(run / "checkpoints")[-1]) >= saved + 400
    rounds = read_run(run).rounds
    assert [row["env_steps"] for row in rounds] == [80 + 40 * i for i in range(len(rounds))]
