"""The command as typed: real processes, their output and their exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deepres.commands.arguments import Defaults
from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments.presets import PRESETS, Preset
from helpers import tiny_runs

CONFIG = tiny_runs.TINY.replace(eval_every=50, checkpoint_every=50, total_steps=120)
TINY = tiny_runs.words(CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    result = tiny_runs.command("train", *TINY, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "goals reached" in result.stdout and "trained:" in result.stdout
    return folder / "runs" / "point_u_maze-crl-d4-s0"


def test_train_eval_and_resume_agree(run, capsys):
    main(["eval", str(run)])
    first = capsys.readouterr().out
    assert "at 120 env steps: time at goal" in first
    main(["train", "--resume", str(run), "--total-steps", "160"])
    assert "trained:" in capsys.readouterr().out
    main(["eval", str(run), "--episodes", "4"])
    assert "at 160 env steps" in capsys.readouterr().out


def test_render_leaves_a_video_and_the_paths(run, tmp_path, capsys):
    main(["render", str(run), "--out", str(tmp_path), "--episodes", "1", "--format", "gif"])
    assert (tmp_path / "policy.gif").stat().st_size > 1000 and (tmp_path / "paths.png").stat().st_size > 1000
    assert str(tmp_path / "policy.gif") in capsys.readouterr().out


def test_doctor_and_envs_tell_what_is_here(capsys):
    main(["doctor", "--env", "reacher", "--depth", "1024", "--actor-depth", "512"])
    report = capsys.readouterr().out
    for word in ("residual_stack", "reference", "torch", "replay buffer", "activations", "peak", "it fits"):
        assert word in report
    main(["envs"])
    assert "point_u_maze" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (
            ["train", "--depth", "6"],
            2,
            "depth must be a multiple of skip_every=4, got 6; use 4 or 8",
        ),
        (["train", "--env", "mars"], 2, "env must be one of ant"),
        (
            ["train", *TINY, "--eval-env", "reacher", "--run-dir", "new"],
            2,
            "eval_env must have point_u_maze's state_dim 4, got reacher with 10; pass a variant of the same task",
        ),
        (["eval", "nowhere"], 2, "no run at nowhere: config.json is not there; pass a folder that"),
        (["train", "--resume", "nowhere"], 2, "no run at nowhere"),
        (["render", "nowhere", "--format", "avi"], 2, "no run at nowhere"),
        (["train", "--run-dir", "a", "--resume", "."], 2, "no run at .: config.json is not there"),
        (["train", "--config-file", "no.json"], 2, "there is no file no.json; pass a config.json that"),
        (
            ["eval", f"{__file__}/run"],
            2,
            f"no run at {__file__}/run: it is a file or lies in one; pass a folder",
        ),
        (
            ["train", *TINY, "--run-dir", __file__],
            2,
            f"{__file__} is a file or lies in one, where a folder is",
        ),
        (["report", "nowhere"], 2, "no run at nowhere"),
        (["compare", "nowhere", "--out", "."], 2, "the picture must be a file such as compare.png, got ."),
        (
            ["experiment", "depth", "--jobs", "-1"],
            2,
            "jobs must be a number of runs at a time, or 0 for one to",
        ),
        (["trian"], 2, "there is no command 'trian'; did you mean train?"),
        (["learn-it-all"], 2, "there is no command 'learn-it-all'; `deepres --help` lists them"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(arguments, status, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == status
    assert error.startswith(f"deepres: {sentence}") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_installed_is_told_before_anything_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as stop:
        main(["train", *TINY, "--wandb"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(
        "deepres: --wandb needs the package wandb; pip install 'deepres[wandb]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_presets_files_and_runs_are_where_defaults_come_from(tmp_path, capsys, monkeypatch):
    """Options typed beside a preset win over it; two sources at once are refused."""
    monkeypatch.setitem(PRESETS, "tiny", Preset("point_u_maze", 4, 80, None, None))
    typed = CONFIG.replace(env=Config().env.name, total_steps=Config().schedule.total_steps)
    options = tiny_runs.words(typed)[1:]
    main(["train", "--preset", "tiny", *options, "--seed", "5", "--run-dir", str(tmp_path / "run")])
    config = Config.from_file(tmp_path / "run" / "config.json")
    assert (config.env.name, config.schedule.total_steps, config.env.auto_reset) == (
        "point_u_maze",
        80,
        "first",
    )
    assert (config.schedule.seed, config.env.num_envs, config.network.width) == (5, 4, 32)
    assert "memory of point_u_maze" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--preset", "tiny", "--resume", str(tmp_path / "run")])
    assert "pass --resume or --preset, not both" in capsys.readouterr().err
    given = Defaults.read(["--preset", "tiny", "--data", str(tmp_path / "run")], [])
    assert given.config.schedule.total_steps == 1_000_000  # a preset's own are those of a run that acts


def test_unknown_option_names_the_near_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--actor-dept", "8"])
    assert stop.value.code == 2
    assert "--actor-depth" in capsys.readouterr().err
