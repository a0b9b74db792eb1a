"""Studies on real runs in real processes: killed, asked for again, complete, damaged."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments import kept, runner, studies
from deepres.experiments.folder import StudyFolder, options_of, row_text
from deepres.experiments.jobs import Outcome
from deepres.experiments.neighbours import taken
from deepres.experiments.runner import run_study
from deepres.experiments.study import Trial, grid, trained
from deepres.experiments.trial import run_trial
from deepres.runs.lock import InUse, Lock
from helpers import tiny_runs

PROGRAM = Path(__file__).parents[1] / "programs" / "tiny_study.py"


def test_seeds_come_before_settings_and_the_actor_is_as_deep_as_the_critic():
    trials = grid(Config("crl", actor_depth=8), {"depth": [4, 16]}, [0, 1])
    assert [trial.name for trial in trials] == ["d4-s0", "d16-s0", "d4-s1", "d16-s1"]
    assert all(t.config.network.actor_depth is None for t in trials) and trials[3].config.schedule.seed == 1
    wide = grid(Config("crl", actor_depth=8), {"width": [64]}, [0])
    assert wide[0].config.network.actor_depth == 8


@pytest.mark.parametrize("size", ["cpu", "paper"])
@pytest.mark.parametrize("name", studies.names())
def test_every_study_has_trials_of_its_own_names(name, size):
    study = studies.find(name)
    trials = study.trials(size, [0, 1])
    named = {trial.name: trial for trial in trials}
    assert len(named) == len(trials) > 1 and {t.labels["seed"] for t in trials} == {0, 1}
    assert all(study.along in trial.labels for trial in trials)
    assert all(trial.after is None or trial.after in named for trial in trials)
    assert len({tuple(trial.labels) for trial in trials}) == 1


def test_a_killed_study_goes_on_to_the_same_table(tmp_path, monkeypatch):
    """kill -9 at any moment of the second trial: what was finished stays, the trial goes on from its checkpoint, and
    the rows are those of trials that nobody disturbed."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import tiny_study

    path = f"{tiny_runs.ROOT}:{tiny_runs.ROOT / 'tests'}:{PROGRAM.parent}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "study"
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(folder.glob("rows/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.uniform(0, 2))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    first = {file.name: file.read_bytes() for file in folder.glob("rows/*.json")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {name: (folder / "rows" / name).read_bytes() for name in first} == first
    rows = list(csv.DictReader((folder / "rows.csv").open()))
    assert [(r["depth"], r["seed"]) for r in rows] == [("4", "0"), ("8", "0")]
    assert all(float(row["env_steps"]) == 160 for row in rows)
    for trial, row in zip(tiny_study.TRAINED.trials("cpu", [0]), rows, strict=True):
        undisturbed = trained(trial, tmp_path / "undisturbed" / trial.name)
        told = {name: str(value) for name, value in tiny_runs.untimed(undisturbed).items()}
        assert told.items() <= row.items()
    table = (folder / "table.md").read_text()
    assert (
        "2 of 2 trials finished" in table
        and "| 4 | 1 |" in table
        and "Success per doubling of depth" in table
    )
    assert "At equal seconds of training" in table and (folder / "curves.pdf").exists()
    told = list(csv.DictReader((folder / "curves.csv").open()))
    assert [row["env_steps"] for row in told if row["depth"] == "4"][-1] == "160.0"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG") and (folder / "figure.pdf").exists()

    # a study beside it that asks for the same runs takes them, and no others
    def never(*_, **__):
        raise AssertionError("nothing is to be trained again")

    monkeypatch.setattr("deepres.training.loop.train", never)
    [trial, _] = tiny_study.TRAINED.trials("cpu", [0])
    beside = tmp_path / "beside" / "trials" / "another_name"
    beside.parent.mkdir(parents=True)
    found = trained(trial, beside)
    assert {name: str(value) for name, value in found.items()}.items() <= rows[0].items()
    assert (beside / "metrics.csv").read_bytes() == (
        folder / "trials" / trial.name / "metrics.csv"
    ).read_bytes()
    for other in (trial.config.replace(seed=1), trial.config.replace(actor_lr=1e-3)):
        assert taken(other, beside.with_name("other")) is None
    (folder / "rows" / f"{trial.name}.json").unlink()
    assert taken(trial.config, beside.with_name("unfinished")) is None


@pytest.mark.parametrize(
    "name", sorted(folder.parent.name for folder in (tiny_runs.ROOT / "docs/results").glob("*/rows.csv"))
)
def test_kept_rows_are_of_the_trials_that_the_study_has(name):
    """An option that is new, or a study that changed, must not make a kept row another trial's unsaid."""
    folder = tiny_runs.ROOT / "docs" / "results" / name
    asked = json.loads((folder / "study.json").read_text())
    trials = {trial.words: trial for trial in studies.find(name).trials(asked["size"], asked["seeds"])}
    with (folder / "rows.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            trial = trials[tuple(row[label] for label in next(iter(trials.values())).labels)]
            assert row.get("options") in (None, "", options_of(trial)), row


@pytest.fixture
def one_process(monkeypatch):
    """Every trial in this process, for its imports take longer than the trial."""

    def run_jobs(waiting, places, *, environment, ended):
        failed = []
        for job in waiting:
            assert job.command[:3] == [sys.executable, "-m", "deepres.experiments.trial"]
            try:
                run_trial(StudyFolder(Path(job.command[3])), job.command[4])
            except RuntimeError as error:
                failed.append(job.name)
                print(f"{job.name}: failed: RuntimeError: {error}")
            ended(job)
        return Outcome(failed, None)

    monkeypatch.setattr(runner, "run_jobs", run_jobs)


def test_seeds_are_added_to_what_is_there(tmp_path, monkeypatch, capsys, one_process):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import tiny_study  # noqa: F401

    folder = tmp_path / "s"
    asked = {"out": folder, "jobs": 2, "imports": ["tiny_study"]}
    first = run_study("tiny_numbers", seeds=[1], **asked)
    assert [row["success"] for row in first.rows] == [1.4, 1.8] and not first.failed
    before = {file: file.stat().st_mtime_ns for file in folder.glob("rows/*.json")}
    more = run_study("tiny_numbers", seeds=[9], **asked)
    assert sorted(more.failed) == ["d4-s9", "d8-s9"] and len(more.rows) == 2
    assert "d4-s9: failed: RuntimeError: seed 9 is out of luck" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.glob("rows/*.json")} == before
    assert json.loads((folder / "study.json").read_text())["seeds"] == [1, 9]
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(["before", kept.MARKS[0], "an older table", kept.MARKS[1], "after"]))
    target = kept.keep(folder, tmp_path / "docs")
    assert sorted(file.name for file in target.iterdir()) == sorted(
        ["figure.pdf", "figure.png", "rows.csv", "study.json", "table.md"]
    )
    told = (tmp_path / "docs" / "README.md").read_text()
    assert (
        "## Does it grow?" in told
        and "too few seeds (1) to decide" in told
        and "Task: " in told
        and "2 of 4 trials finished" in told
    )
    row = "| Does it grow? | Success per doubling of depth, with its 95% interval: success +0.400, "
    row += "has too few seeds (1) to decide. 2 of 4 trials finished. | 1 | - | < 0.1 | "
    assert row in told and readme.read_text().startswith(f"before\n{kept.MARKS[0]}\n\n| question | what")
    assert row in readme.read_text() and readme.read_text().endswith(f" |\n\n{kept.MARKS[1]}\nafter")

    # on another machine: what is kept is not run again, other seeds are
    elsewhere = tmp_path / "elsewhere"
    assert kept.take_up("tiny_numbers", "cpu", target.parent, elsewhere) == ["d4-s1", "d8-s1"]
    rows = StudyFolder(elsewhere).path.glob("rows/*.json")
    assert {file.name: file.read_text() for file in rows} == {file.name: file.read_text() for file in before}
    again = run_study("tiny_numbers", seeds=[2], **asked | {"out": elsewhere})
    assert [row["seed"] for row in again.rows] == [1, 1, 2, 2] and "d4-s9" in again.failed
    assert kept.take_up("tiny_numbers", "cpu", target.parent, elsewhere) == []
    # a study some of whose trials were another's, measured alike, takes their numbers and none of their labels
    alike = tmp_path / "alike"
    assert kept.take_up("tiny_alike", "cpu", target.parent, alike, [1, 3]) == ["width_32-s1"]
    made = json.loads((alike / "rows" / "width_32-s1.json").read_text())
    (theirs,) = [json.loads(file.read_text()) for file in before if file.name == "d4-s1.json"]
    assert made == theirs | {"labels": {"width": 32, "seed": 1}}
    assert StudyFolder(alike).of("tiny_alike", "cpu")["seeds"] == [1, 3]
    with pytest.raises(ValueError, match="keeps no rows of tiny_otherwise; pass another folder"):
        kept.take_up("tiny_otherwise", "cpu", target.parent, tmp_path / "nowhere", [1])
    with Lock(alike), pytest.raises(InUse, match="is in use"):
        kept.take_up("tiny_alike", "cpu", target.parent, alike)
    with pytest.raises(ValueError, match="keeps no rows of depth; pass another folder"):
        kept.take_up("depth", "cpu", target.parent, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is of size cpu, got paper; pass --size cpu"):
        kept.take_up("tiny_numbers", "paper", target.parent, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()

    rows = target / "rows.csv"
    whole = rows.read_text()
    for damaged in (whole.replace("machine", "place"), whole[: len(whole) // 2], whole.rstrip() + ",more\n"):
        rows.write_text(damaged)
        with pytest.raises(ValueError, match=r"rows.csv is not as a study wrote it"):
            kept.take_up("tiny_numbers", "cpu", target.parent, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    rows.write_text(whole.replace("success", "what_was_measured_then"))
    with pytest.raises(ValueError, match="has no row with success, which tiny_numbers measures now"):
        kept.write(target.parent)
    with pytest.raises(ValueError, match="holds the study tiny_numbers of size cpu, got depth of size cpu"):
        run_study("depth", out=folder)


def test_trials_come_after_the_one_that_they_read(tmp_path, monkeypatch, capsys, one_process):
    """One that failed holds up its readers; one that was finished elsewhere is run again for a new reader."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import tiny_study  # noqa: F401

    folder, where = tmp_path / "s", tmp_path / "docs"
    folder.mkdir()
    asked = {"jobs": 2, "imports": ["tiny_study"]}
    first = run_study("tiny_shared", out=folder, **asked)
    (folder / "no_data").touch()
    failing = tmp_path / "failing"
    (failing / "trials").mkdir(parents=True)
    (failing / "study.json").write_text((folder / "study.json").read_text())
    (failing / "no_data").touch()
    held = run_study("tiny_shared", out=failing, **asked)
    assert (
        sorted(held.failed) == ["what_reads-d4-s0", "what_reads-d8-s0", "what_the_data-d0-s0"]
        and not held.rows
    )
    assert "not run, as what_the_data-d0-s0 has not finished" in capsys.readouterr().out
    assert [row.get("success") for row in first.rows] == [None, 2.0, 4.0] and not first.failed
    kept.keep(folder, where)

    elsewhere = tmp_path / "elsewhere"
    assert len(kept.take_up("tiny_shared", "cpu", where, elsewhere)) == 3
    made = elsewhere / "rows" / "what_the_data-d0-s0.json"
    other = json.loads(made.read_text())
    made.write_text(json.dumps(other | {"numbers": {name: -1.0 for name in other["numbers"]}}))
    more = run_study("tiny_shared", out=elsewhere, seeds=[1], **asked)
    assert [row["seed"] for row in more.rows] == [0, 0, 0, 1, 1] and not more.failed
    said = capsys.readouterr().out  # the data that the kept rows are of were others
    assert all(f"what_reads-d{d}-s0: run again, as what_the_data-d0-s0 has come out" in said for d in (4, 8))
    kept.keep(elsewhere, where)
    with pytest.raises(ValueError, match=r"keeps 2 rows that .* lacks; go on from them"):
        kept.keep(folder, where)
    assert len((where / "tiny_shared" / "rows.csv").read_text().splitlines()) == 6


def test_a_damaged_or_foreign_folder_is_told_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import tiny_study

    folder = StudyFolder(tmp_path / "s")
    trials = tiny_study.TRAINED.trials("cpu", [0])
    made = {"date": "2026-01-01", "version": "0", "machine": "m", "options": "another"}
    with pytest.raises(ValueError, match="seed must be a whole number"):
        run_study("tiny", out=folder.path, seeds=[-1])
    assert not folder.path.exists()
    for text in ("[]", "", '{"study": "tiny", "size": "cpu"}'):
        folder.write(folder.asked, text)
        with pytest.raises(ValueError, match=r"study.json is not as a study wrote it"):
            run_study("tiny", out=folder.path)
    folder.write(folder.asked, json.dumps({"study": "tiny", "size": "cpu", "seeds": [0], "imports": []}))
    for text in ("{}", "", "[]"):
        folder.write(folder.row(trials[0]), text)
        with pytest.raises(ValueError, match=r"d4-s0.json is not as a study wrote it; remove it"):
            run_study("tiny", out=folder.path)
    folder.write(folder.row(trials[0]), row_text(trials[0], {"success": 1.0}, made))
    with pytest.raises(ValueError, match="was made with other options than d4-s0 has now"):
        run_study("tiny", out=folder.path)
    folder.write(
        folder.row(trials[0]),
        row_text(trials[0], {"success": 1.0}, made | {"options": options_of(trials[0])}),
    )
    with Lock(folder.path), pytest.raises(InUse):
        run_study("tiny", out=folder.path)
    twice = [Trial({"what": name, "seed": 0}, trials[0].config) for name in ("a b", "a_b")]
    studies.register(replace(tiny_study.TRAINED, name="twice", trials=lambda size, seeds: twice))
    with pytest.raises(ValueError, match="must give each trial a name of its own, got what_a_b-s0"):
        run_study("twice", out=tmp_path / "twice")


def test_what_cannot_be_run_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["experiment", "dept"])
    assert "there is no study 'dept'; did you mean depth?" in capsys.readouterr().err
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no study"):
        run_study("depth", out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    main(["experiment"])
    assert "does contrastive RL get better with depth?" in capsys.readouterr().out


def test_very_deep_starts_are_measured(tmp_path):
    """A published start saturates with depth, a scaled one does not (arXiv 2503.14858's actor beyond 512)."""
    study = studies.find("starts")
    trials = {(t.labels["start"], t.labels["depth"]): t for t in study.trials("cpu", [0])}
    found = {
        key: study.run(trials[key], tmp_path) for key in trials if key[1] in (4, 256) and key[0] != "zero"
    }
    published, scaled, small = (found[name, 256] for name in ("published", "scaled", "small heads"))
    assert set(study.also) | {study.metric} <= published.keys()
    assert published["live_means"] < 0.85 < scaled["live_means"] == 1.0
    assert published["mean_spread"] > 10 * scaled["mean_spread"] > 10 * small["mean_spread"]
    assert found["published", 4] == found["scaled", 4]  # one block
    assert published["critic_loss"] > 100 * scaled["critic_loss"] and scaled["first_gradient"] > 0


def test_a_run_is_looked_at(tmp_path):
    """A critic that knows the straight line alone ranks places as the line does; pictures are drawn."""
    from deepres.experiments.looks import look
    from deepres.training.loop import load_run, train

    train(
        tiny_runs.TINY.replace(total_steps=80, num_envs=4, eval_every=100), tmp_path / "run", progress=False
    )
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()}
    numbers = look(tmp_path / "run")
    assert set(studies.find("depth").also) - {"time_at_goal", "steps_to_half"} == numbers.keys()
    assert 0.3 < numbers["line_rank"] < 1 and -1 <= numbers["way_rank"] <= 1
    assert numbers["branch_decay"] > 0 and numbers["varying"] > 0
    assert (tmp_path / "run" / "energy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "energy.pdf").exists()
    assert {file: file.stat().st_mtime_ns for file in before} == before
    run = load_run(tmp_path / "run")
    run.learner.algorithm.phi = Straight(run.sizes)
    run.learner.algorithm.psi = torch.nn.Identity()
    from deepres.experiments import looks

    straight = looks._ranks(run, torch.Generator().manual_seed(0))
    assert straight["way_rank"] == pytest.approx(straight["line_rank"], abs=1e-3)


class Straight(torch.nn.Module):
    """phi(s, a) = the place, so that the energy is minus the distance to the goal."""

    def __init__(self, sizes):
        super().__init__()

    def forward(self, x):
        return x[:, :2]


def test_random_actions_are_measured_among_other_walls(monkeypatch):
    """A springy wall throws the sphere back faster than the task's own, and lets nothing through."""
    from deepres.envs import registry
    from deepres.experiments import contact_maze
    from deepres.experiments.studies import contact

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(contact_maze, "STEPS", 40)
    monkeypatch.setattr(contact_maze, "ENVS", 8)
    study = studies.find("wall-contact")
    trials = {t.labels["contact"]: t for t in study.trials("cpu", [0])}
    springy = study.run(trials["springy"], Path())
    assert set(study.also) | {study.metric} <= springy.keys()
    assert springy["escaped"] == 0 and 0 < springy["cells"] < 1 and springy["farthest"] > 0
    assert springy["rebound"] > 2 * contact_maze.rebound(contact_maze.ContactMaze()) > 0
    smooth = contact_maze.ContactMaze(**contact.CONTACTS["smooth walls"])
    assert (smooth.model.geom_condim == 1).all()


COMPRESSING = {
    (640_000, 9500), (320_000, 10_000), (128_000, 4000), (192_000, 6000), (224_000, 7000), (256_000, 8000),
}  # fmt: skip
"""As its rows told after it was run: the teacher and its like, the distilled, the pruned."""
OFFLINE = {(1_100_000, 0), (0, 8000)}


def test_a_studys_cost_is_told_before_it_is_run(capsys, monkeypatch):
    from deepres.experiments import budget
    from deepres.experiments.presets import preset

    monkeypatch.setenv("COLUMNS", "200")
    acted, learned = budget.steps(preset("humanoid-d64"))
    assert 0 <= acted - 100_000_000 < 512 * 62 and learned == 800 * (1 + -(-(10**8 - 512_000) // (512 * 62)))
    assert budget.predicted_hours(64, learned) == pytest.approx(10.99)
    assert budget.predicted_hours(48, learned) == pytest.approx((5.92 + 10.99) / 2)
    between, deep = (budget.predicted_hours(depth, learned) for depth in (1024, 2048))
    assert between == pytest.approx(10.99 * 134.15 / 46.7)
    assert deep - between == pytest.approx((between - 10.99) * 1024 / 960)
    for study, found in (("compression", COMPRESSING), ("offline-goal", OFFLINE), ("starts", {(0, 0)})):
        one = studies.find(study)
        told = [budget.budget(one, trial) for trial in one.trials("cpu", [0])]
        assert {(part.env_steps, part.gradient_steps) for part in told} == found, study
    main(["experiment", "stability", "--size", "paper", "--plan"])
    told = capsys.readouterr().out
    assert "GPU hours" in told and "not measured here" in told and "4096" in told
    main(["experiment", "objectives", "--plan", "--seeds", "7"])
    told = capsys.readouterr().out
    assert "objective: CRL; CRL, binary; CRL, chunks of 3" in told and "depth: 4; 16\nseed: 7\n" in told
