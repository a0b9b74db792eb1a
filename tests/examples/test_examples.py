"""The examples, as a user runs them: they train, and what they leave is evaluated, drawn and gone on with.

All in this process, for an import of JAX and MuJoCo takes longer than most of it; what is killed has one of its own.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import deepres
from deepres.commands.main import main
from deepres.config import Config
from deepres.report import show
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from helpers.tiny_runs import ROOT, environ, wait_for

TINY = ["--num-envs", "4", "--episode-length", "20", "--depth", "4", "--width", "8", "--batch-size", "16"]
TINY += ["--unroll-length", "10", "--gradient-steps", "2", "--buffer-steps", "60", "--min-buffer-steps", "20"]
TINY += ["--eval-envs", "4", "--eval-every", "1000", "--checkpoint-every", "1", "--total-steps", "1000000"]


@pytest.fixture
def small(monkeypatch):
    """Whatever sizes an example asks for, a run of seconds; and a video of a second."""
    sizes = {
        "depth": 4,
        "width": 8,
        "num_envs": 4,
        "episode_length": 40,
        "batch_size": 16,
        "unroll_length": 10,
    }
    sizes |= {
        "gradient_steps": 2,
        "buffer_steps": 60,
        "min_buffer_steps": 20,
        "eval_envs": 4,
        "total_steps": 40,
    }
    monkeypatch.setattr(deepres, "Config", lambda name, **given: Config(name, **{**given, **sizes}))
    monkeypatch.setattr(show, "_LONGEST", 1.0)


def script(name: str, *arguments: str) -> dict[str, object]:
    """`python examples/NAME.py ARGUMENTS`; the names that it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", ["own_environment", "own_gymnasium_env", "own_model", "own_algorithm"])
def test_an_example_trains_and_what_it_leaves_is_evaluated_and_drawn(name, tmp_path, capsys, forgotten):
    run, out = tmp_path / "run", tmp_path / "out"
    script(name, str(run))
    assert "goals reached: " in capsys.readouterr().out
    forgotten()
    main(["--import", f"examples.{name}", "eval", str(run)])
    evaluations = read_run(run).evaluations
    if name != "own_algorithm":  # regression on a few thousand steps of a maze learns nothing yet
        assert evaluations[-1]["success_any"] >= 0.4 > evaluations[0]["success_any"]
    assert f"goals reached {evaluations[-1]['success_any']:.1%}" in capsys.readouterr().out
    forgotten()
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
def test_a_run_in_an_own_environment_goes_on_after_kill_9(name, tmp_path, forgotten):
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


def test_the_ops_learn_in_a_plain_loop(capsys):
    script("ops_in_a_loop", "100")
    found = capsys.readouterr().out.rpartition(": ")[2]
    assert int(found.partition("%")[0]) >= 40  # 2 by chance


def test_the_single_file_acts_learns_and_evaluates(capsys):
    tiny = {"num-envs": 4, "episode-length": 20, "depth": 4, "width": 8, "batch-size": 8, "unroll": 10}
    tiny |= {"gradient-steps": 5, "kept-steps": 30, "first-steps": 20, "total-steps": 160, "eval-every": 2}
    left = script("single_file_crl", *(f"--{name}={value}" for name, value in tiny.items()))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["0", "160", "240"] and "critic loss" in shown[-1]
    assert left["inserted"] == 60 > left["kept"]  # the ring went round
    state, action, goal = left["draw"]()
    at = [(left["states"] == one).all(dim=-1).nonzero()[0].tolist() for one in state]
    assert all((left["actions"][row, lane] == a).all() for (row, lane), a in zip(at, action, strict=True))
    newest = (left["inserted"] - 1) % left["kept"]
    for (row, lane), there in zip(at, goal, strict=True):
        of_lane = left["states"][:, lane, left["env"].goal_slice]
        later = (of_lane == there).all(dim=-1).nonzero().flatten().tolist()
        ids = left["trajectories"][:, lane]
        assert any(ids[i] == ids[row] and (newest - i) % 30 < (newest - row) % 30 for i in later)


def test_a_policy_is_trained_and_watched(tmp_path, capsys, small):
    script("train_and_watch", "point_u_maze", str(tmp_path / "run"))
    *told, film, paths = capsys.readouterr().out.splitlines()
    assert any(line.startswith("in other episodes: ") for line in told)
    assert {Path(film).name, Path(paths).name} == {"policy.gif", "paths.png"} and Path(film).is_file()


def test_the_notebook_is_clean_and_its_cells_run_in_order(capsys, small):
    import matplotlib

    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples" / "tour.ipynb").read_text())
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(
        notebook["cells"]
    )
    names: dict[str, object] = {}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    shown = capsys.readouterr().out
    assert "goals reached: " in shown and "metres to the goal:" in shown
