"""Runs side by side: which are one, what their table says, and what is said of those that are unfinished or unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepres.commands.main import main
from deepres.config import Config
from deepres.report.groups import group
from deepres.runs.files import find_runs, read_run

CONFIG = Config("crl", env="point_u_maze", depth=4, actor_depth=4, total_steps=200)
EVALUATIONS = "env_steps,seconds,time_at_goal,success_any,final_distance,episode_length\n"
METRICS = "env_steps,seconds,env_steps_per_second,gradient_steps_per_second\n"


def leave_run(folder: Path, config: Config, scores: list[float]) -> Path:
    """What a run leaves to read: an evaluation every 100 steps with these times at goal."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    evaluations = [
        f"{100 * i},{3600.0 * i},{score},{score / 10},1.0,100.0\n" for i, score in enumerate(scores)
    ]
    (folder / "evaluations.csv").write_text(EVALUATIONS + "".join(evaluations))
    rounds = [f"{100 * i},{3600.0 * i},1000.0,{20.0 + i}\n" for i in range(1, len(scores))]
    (folder / "metrics.csv").write_text(METRICS + "".join(rounds))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    deep = CONFIG.replace(depth=16, actor_depth=16)
    return [
        leave_run(tmp_path / "a", CONFIG, [0.0, 1.0, 2.0]),
        leave_run(tmp_path / "b", CONFIG.replace(seed=1, threads=1), [0.0, 3.0, 6.0]),
        leave_run(tmp_path / "deep", deep, [0.0, 9.0]),
    ]


def test_runs_that_differ_in_their_seed_alone_are_one(runs):
    shallow, deep = group([read_run(folder) for folder in runs])
    assert [run.folder.name for run in shallow.runs] == ["a", "b"]
    assert shallow.label == "point_u_maze, depth 4" and "16" in deep.label
    assert shallow.curve("time_at_goal") == ([0, 100, 200], [0, 2, 4], [0, 1, 2], [0, 3, 6])
    assert shallow.last("success_any") == [0.2, 0.6]
    assert [run.finished for run in (*shallow.runs, *deep.runs)] == [True, True, False]
    assert shallow.runs[0].gradient_steps_per_second == 21.5


def test_runs_of_two_algorithms_are_told_apart_by_what_both_have(runs, tmp_path):
    """What only one of them has as an option says nothing more than its name."""
    cloned = leave_run(
        tmp_path / "gcbc", Config("gcbc", env="point_u_maze", depth=4, actor_depth=4), [0.0, 1.0]
    )
    contrastive, other = group([read_run(folder) for folder in (runs[0], cloned)])
    assert contrastive.label == "point_u_maze, crl, total steps 200"
    assert other.label == "point_u_maze, gcbc, total steps 100000000"


def test_a_folder_of_runs_stands_for_them(runs):
    assert find_runs([runs[0].parent]) == runs and find_runs([*runs, runs[0]]) == runs


def test_the_command_prints_and_draws(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["compare", *map(str, runs), "--out", str(tmp_path / "c.png")])
    said = " ".join(capsys.readouterr().out.split())
    assert "4.0 (2.0 to 6.0)" in said and "40.0% (20.0% to 60.0%)" in said and "1,000.0" in said
    assert f"{runs[2]} stands at 100 of 200 env steps: deepres train --resume {runs[2]}" in said
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_and_unbegun_runs_get_a_sentence(runs, tmp_path, capsys):
    def refused(*folders: Path) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, folders), "--out", str(tmp_path / "c.png")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        return error

    assert f"no run at {tmp_path / 'mars'}" in refused(runs[0], tmp_path / "mars")
    assert "pass some that `deepres train` wrote" in refused()
    (runs[0] / "evaluations.csv").unlink()
    assert "no run here has been evaluated yet" in refused(runs[0])
    assert not (tmp_path / "c.png").exists()


def test_unlike_runs_have_short_names_and_their_figures(tmp_path, monkeypatch, capsys):
    """On 80 columns every figure is there, what differs is told below, and any name is a name."""
    apart = {"num_envs": 16, "width": 64, "batch_size": 32, "gamma": 0.95, "episode_length": 40}
    folders = [
        leave_run(tmp_path / "a[b]$c", CONFIG, [0.0, 7.5]),
        leave_run(tmp_path / "_second", CONFIG.replace(**apart), [0.0, 2.5]),
    ]
    monkeypatch.setenv("COLUMNS", "80")
    main(["compare", *map(str, folders), "--out", str(tmp_path / "compare.png")])
    said = capsys.readouterr().out
    for name, score in (("a[b]$c ", "7.5"), ("_second ", "2.5")):
        (line,) = [line for line in said.splitlines() if line.startswith(name)]
        assert score in line
    assert "_second: point_u_maze" in said and "num envs 16" in " ".join(said.split())
    assert str(tmp_path / "compare.png") in said
