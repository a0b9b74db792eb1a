"""`deepres train ALGORITHM`: what each has as options, what it refuses, own ones, and the words of version 0.1."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from deepres import algorithms
from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments import grid
from deepres.experiments.jobs import Outcome
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from helpers import tiny_runs

SHORT = {**tiny_runs.SIZES, "eval_every": 99, "total_steps": 120}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """What a command says that ends with one sentence."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == status and error.startswith("deepres: ") and error.count("\n") == 1, error
    return error


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    """The options that a command's help names."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("algorithm", "options", "columns"),
    [
        ("sac", {"hindsight": 0.8}, ["goals", "next_states", "successes", "terminals"]),
        ("sac", {"reward": "dense"}, ["goals", "next_states", "rewards", "terminals"]),
        ("gcbc", {"commanded": 0.25}, ["goals"]),
    ],
)
def test_other_algorithms_train_and_are_evaluated(algorithm, options, columns, tmp_path, capsys):
    run, config = tmp_path / "run", Config(algorithm, **SHORT, **options)
    main(["train", *tiny_runs.words(config), "--run-dir", str(run)])
    said = capsys.readouterr().out
    assert "trained:" in said and f"memory of point_u_maze, {algorithm}: depth 4" in said
    assert read_run(run).config == config and read_run(run).env_steps == 120
    _, saved, _ = checkpoints.load_newest(run / "checkpoints")
    held = [name.removeprefix("buffer/") for name in saved.shards[0] if name.startswith("buffer/")]
    assert sorted(held) == sorted(["states", "actions", "traj_ids", *columns])
    main(["train", "--resume", str(run), "--total-steps", "160"])
    main(["eval", str(run)])
    assert f"{run} at 160 env steps: time at goal" in capsys.readouterr().out


def test_help_shows_what_applies(capsys):
    common = {"--env", "--depth", "--total-steps", "--device", "--actor-lr", "--run-dir", "--resume"}
    crl, sac, gcbc = (help_of(capsys, "train", name) for name in ("crl", "sac", "gcbc"))
    assert common <= crl and common <= sac and common <= gcbc
    assert "--logsumexp-penalty" in crl and "--logsumexp-penalty" not in sac | gcbc
    assert {"--hindsight", "--tau"} <= sac and not {"--hindsight", "--tau"} & (crl | gcbc)
    assert "--commanded" in gcbc and "--commanded" not in crl | sac and "--critic-lr" not in gcbc
    assert help_of(capsys, "train") == crl
    for command, own in (("sweep", "--grid"), ("doctor", "--memory-gb")):
        shown = help_of(capsys, command, "gcbc")
        assert {own, "--commanded"} <= shown and not {"--logsumexp-penalty", "--run-dir"} & shown
    assert help_of(capsys, "eval") == {"--help", "--episodes", "--device", "--seed"}
    assert help_of(capsys, "render") == {"--help", "--out", "--episodes", "--device", "--format", "--seed"}
    assert help_of(capsys, "compare") == {"--help", "--out"}
    assert help_of(capsys, "demo") == {"--help", "--run-dir", "--seed"}
    for command in ("envs", "presets", "algorithms"):
        assert help_of(capsys, command) - {"--preset"} == {"--help"}  # what `presets` is for


def test_every_command_is_listed_with_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for command in (
        "train",
        "eval",
        "render",
        "sweep",
        "compare",
        "doctor",
        "demo",
        "envs",
        "algorithms",
        "presets",
    ):
        assert command in said
    assert "Train one agent." in said and "Put runs side by side" in said


def test_algorithms_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    main(["algorithms"])
    said = capsys.readouterr().out
    assert all(name in said for name in algorithms.names())
    assert "goals, next_states, successes, terminals" in said and "Soft actor-critic" in said


def test_an_algorithm_that_cannot_be_imported_harms_no_command(capsys, monkeypatch):
    monkeypatch.setattr(algorithms, "_ALGORITHMS", dict(algorithms._ALGORITHMS))
    monkeypatch.setenv("COLUMNS", "400")
    algorithms.register("absent", "not_there_at_all:Mine")
    main(["algorithms"])
    said = capsys.readouterr().out
    assert "Soft actor-critic" in said and "not_there_at_all cannot be imported" in said
    owners = ", ".join(algorithms.having("tau"))
    assert f"--tau does not apply to crl: it is an option of {owners}" in refused(
        capsys, "train", "--tau=0.1"
    )
    assert "algorithm 'absent' is registered as" in refused(capsys, "train", "absent", status=1)


def test_an_option_of_another_algorithm_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    owners, names = ", ".join(algorithms.having("tau")), ", ".join(algorithms.names())
    assert "sac" in owners
    for arguments, sentence in (
        (
            ["train", "gcbc", "--logsumexp-penalty", "0.1"],
            "--logsumexp-penalty does not apply to gcbc: it is an",
        ),
        (["train", "--tau=0.1"], f"--tau does not apply to crl: it is an option of {owners}; leave it out"),
        (["train", "sac", "--no-gather-negatives"], "--gather-negatives does not apply to sac"),
        (["sweep", "crl", "--hindsight", "0.8"], "--hindsight does not apply to crl"),
        (["sweep", "crl", "--grid", "hindsight=0,0.8"], "--grid: there is no option 'hindsight' of crl"),
        (["train", "sacc"], f"algorithm must be one of {names}, got 'sacc'; did you mean sac"),
        (
            ["train", "sac", "--reward", "dense", "--hindsight", "0.5"],
            "reward=dense is that of the commanded goal",
        ),
        (["train", "sac", "--hindsight", "1.5"], "hindsight must be a share from 0 to 1, got 1.5"),
        (["train", "sac", "--preset", "humanoid-d64"], "--preset humanoid-d64 is of crl, got sac"),
        (["train", "--import", "not_there_at_all"], "--import not_there_at_all: there is no such module"),
        (
            ["train", "--import", "./m.py"],
            "--import wants a module's name, as my_package.my_module, no path, got",
        ),
        (["train", "--import"], "--import wants the name of a module"),
    ):
        assert refused(capsys, *arguments).startswith(f"deepres: {sentence}"), arguments
    assert list(tmp_path.iterdir()) == []


def stand_in_for_runs(monkeypatch) -> list[Config]:
    """The options of the runs that sweeps ask for from now on; none is run."""
    asked: list[Config] = []

    def read(jobs, *_):
        files = [job.command[job.command.index("--config-file") + 1] for job in jobs]
        asked.extend(Config.from_file(Path(file)) for file in files)
        return Outcome([], False)

    monkeypatch.setattr(grid, "run_jobs", read)
    return asked


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("raise KeyError('gone')", "KeyError: 'gone'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def (", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(text, sentence, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    said = refused(capsys, "envs", "--import", "broken_module", status=1)
    assert said.startswith(f"deepres: --import broken_module: {sentence}")


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("recompute=none,1,auto", ["none", "1", "auto"]),
        ("max-grad-norm=None,0.5,1", [None, 0.5, 1]),
        ("parity=True,false", [True, False]),
        ("eval_env=None,ant_big_maze", [None, "ant_big_maze"]),
        ("env_options=layout=u_maze,layout=u4_maze", [("layout=u_maze",), ("layout=u4_maze",)]),
        ("precision=fp32,bf16", ["fp32", "bf16"]),
        ("actor_depth=4,None", [4, None]),
    ],
)
def test_a_grids_values_are_of_their_options_type(typed, values, tmp_path, monkeypatch):
    asked = stand_in_for_runs(monkeypatch)
    main(["sweep", "sac", "--grid", typed, "--out", str(tmp_path / "sweep")])
    name = typed.partition("=")[0].replace("-", "_")
    assert [config.get(name) for config in asked] == values
    assert all(config.algorithm_name == "sac" for config in asked)


def test_values_that_an_option_cannot_have_are_one_sentence(tmp_path, capsys):
    for typed, sentence in (
        ("depth=4,x", "depth must be a whole number >= 1, got 'x'"),
        ("depth=4,6", "depth must be a multiple of skip_every=4, got 6; use 4"),
        ("precision=fp32,int8", "precision must be one of fp32, tf32, bf16, fp16, got 'int8'"),
        ("depth=4 depth=8", "--grid has depth twice; give all its values at once, depth=value,value,..."),
        ("depth=4 --depths 8", "pass --depths or --grid depth=..., not both"),
        ("seed=4 --seeds 8", "pass --seeds or --grid seed=..., not both"),
        ("seed=4,5 --seed 8", "--seed does not apply where it varies, seed=[4, 5]; leave it out"),
        ("depth", "--grid wants option=value,value,..., e.g. depth=4,16,64, got 'depth'"),
    ):
        said = refused(capsys, "sweep", "sac", "--grid", *typed.split(), "--out", str(tmp_path / "sweep"))
        assert said.startswith(f"deepres: {sentence}"), said
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_leaves_alone_what_is_typed(tmp_path, monkeypatch):
    asked = stand_in_for_runs(monkeypatch)
    main(["sweep", "--seeds", "0", "1", "--depth", "8", "--out", str(tmp_path / "a")])
    assert [(one.network.depth, one.schedule.seed) for one in asked] == [(8, 0), (8, 1)]
    asked.clear()
    main(["sweep", "--seed", "7", "--depths", "4", "--num_envs", "3", "--out", str(tmp_path / "b")])
    assert [(one.network.depth, one.schedule.seed, one.env.num_envs) for one in asked] == [(4, 7, 3)]


def test_a_grid_takes_words_of_version_0_1(tmp_path, capsys, monkeypatch):
    asked = stand_in_for_runs(monkeypatch)
    main(["sweep", "--grid", "critic-depth=4,8", "--out", str(tmp_path / "sweep")])
    assert [config.network.depth for config in asked] == [4, 8]
    assert "deepres: critic_depth is called depth now\n" in capsys.readouterr().err


def test_words_of_version_0_1_still_work_and_are_told(tmp_path, capsys):
    run, config = tmp_path / "run", Config("crl", **{**SHORT, "depth": 64, "actor_depth": None})
    old = ["--critic-depth", "8", "--actor-depth=4", "--physics", "c", "--checkpoint=1"]
    main(["train", *tiny_runs.words(config)[1:], *old, "--run-dir", str(run)])
    told = capsys.readouterr().err.splitlines()
    renamed = (("critic-depth", "depth"), ("physics", "engine"), ("checkpoint", "recompute"))
    assert told == [f"deepres: --{before} is called --{now} now" for before, now in renamed]
    config = read_run(run).config
    assert (config.network.depth, config.network.actor_depth) == (8, 4)
    assert (config.env.engine, config.system.recompute) == ("c", "1")
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--critic_depth", "4"])
    error = capsys.readouterr().err
    assert "deepres: --critic_depth is called --depth now\n" in error
    assert "depth cannot change when a run is resumed: it was started with 8, got 4" in error


OWN = '''
"""An algorithm of one's own: behaviour cloning with a squared error."""

from dataclasses import dataclass

import torch

from deepres import algorithms
from deepres.algorithms.base import Algorithm, Group, Pass
from deepres.data.relabel import FutureGoals
from deepres.networks import GaussianPolicy
from deepres.options import check, option


@dataclass(frozen=True)
class ToyOptions:
    """Cloning, plainly."""

    pull: float = option(1.0, above=0)
    """Factor of the loss."""
    actor_lr: float = option(1e-3, least=0, resume=True)
    """Adam step size."""

    def __post_init__(self):
        check(self)


class Toy(Algorithm):
    """Squared error of the action."""

    Options = ToyOptions
    headline = ("actor_loss",)
    passes = (Pass("actor"),)

    def build(self, networks):
        self.actor = networks.actor(self.sizes.state + self.sizes.goal, self.sizes.action)
        return {"actor": Group(list(self.actor.parameters()), self.options.actor_lr)}

    @property
    def sampler(self):
        return FutureGoals(0.9)

    def losses(self, batch, noise):
        mean, _ = self.actor(torch.cat([batch.state, batch.goal], dim=1))
        loss = self.options.pull * (mean.tanh() - batch.action).square().mean()
        yield {"actor": loss}, {"actor_loss": loss}

    def policy(self):
        return GaussianPolicy(self.actor)


algorithms.register("toy", Toy)
'''


def test_an_algorithm_of_ones_own_is_trained_from_the_shell(tmp_path, capsys, monkeypatch):
    (tmp_path / "own_module.py").write_text(OWN)
    words = tiny_runs.words(Config("gcbc", **SHORT))[1:]
    typed = ["train", "toy", "--import", "own_module", *words, "--pull", "2", "--run-dir", "run"]
    trained = tiny_runs.command(*typed, cwd=tmp_path)
    assert trained.returncode == 0 and "memory of point_u_maze, toy" in trained.stdout, trained.stderr
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["algorithm"] == {"name": "toy", "options": {"pull": 2.0, "actor_lr": 1e-3}}
    rows = tiny_runs.rows(tmp_path / "run" / "metrics.csv")
    assert [row["env_steps"] for row in rows] == ["80", "120"] and float(rows[0]["actor_loss"]) > 0

    monkeypatch.setattr(
        algorithms, "_ALGORITHMS", dict(algorithms._ALGORITHMS)
    )  # what is registered here goes again
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = str(tmp_path / "run")
    assert "one of your own is registered first" in refused(capsys, "eval", run)
    main(["train", "--import=own_module", "--resume", run, "--total-steps", "160"])
    main(["--import", "own_module", "eval", run])
    assert "at 160 env steps" in capsys.readouterr().out
    shown = help_of(capsys, "train", "toy")
    assert "--pull" in shown and "--commanded" not in shown
    assert refused(capsys, "train", "toy", "--pull", "0").startswith(
        "deepres: pull must be a finite number above 0"
    )
