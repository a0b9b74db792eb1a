"""The ladder of offline studies: data made once, learners that come after it, what their critics know of episodes."""

from __future__ import annotations

import pytest
import torch

from deepres.experiments import make_data, studies
from deepres.experiments.folder import StudyFolder
from deepres.experiments.outcome import report
from deepres.experiments.studies import offline_methods
from deepres.experiments.study import Trial
from deepres.experiments.trial import run_trial
from deepres.training.loop import load_run

TINY = {
    "width": 8,
    "batch_size": 8,
    "gradient_steps": 2,
    "total_steps": 4,
    "eval_envs": 4,
    "episode_length": 5,
}


def test_learners_come_after_data_that_are_made_once(tmp_path, monkeypatch):
    """Two trials in their folders, and the table, in which data have no score."""
    monkeypatch.setattr(make_data, "AT_ONCE", 8)
    pairs = studies.find("offline-trajectories").trials("cpu", [0])[-1].config
    assert pairs.get("together") == 4 and pairs.get("extraction") == "awr"
    study = studies.find("offline-goal")
    whole = study.trials("cpu", [0])
    learner = next(t for t in whole if t.labels["goal"] == "whole observation" and t.labels["depth"] == 4)
    data = Trial({"goal": "the data 1400", "depth": 0, "seed": 0}, whole[0].config)
    trials = [data, Trial(learner.labels, learner.config.replace(**TINY, eval_every=1), after=data.name)]
    monkeypatch.setattr(StudyFolder, "read", lambda folder: (study, trials))
    folder = StudyFolder(tmp_path / "first")
    for trial in trials:
        run_trial(folder, trial.name)
    made = folder.path / "trials" / data.name / "data.npz"
    before = made.stat().st_mtime_ns
    assert study.run(data, made.parent) == {"transitions": 1400.0} and made.stat().st_mtime_ns == before
    rows = report(study, trials, folder)
    assert len(rows) == 2 and "success" not in rows[0]
    assert 0 <= rows[1]["train_accuracy"] < 0.2 and -1 <= rows[1]["time_rank"] <= 1
    table = (folder.path / "table.md").read_text()
    assert "the data 1400" not in table and "| whole observation | 4 | 1 |" in table

    # a study beside it, with the same data in a file of its own, takes the run and learns as much of it
    beside = StudyFolder(tmp_path / "second")
    monkeypatch.setattr("deepres.training.loop.train", None)
    for trial in trials:
        run_trial(beside, trial.name)
    assert report(study, trials, beside)[1] == rows[1]

    run = load_run(folder.path / "trials" / trials[1].name)
    assert run.sizes.goal == run.sizes.state == 4  # of data that know nothing of goals
    run.learner.algorithm.phi, run.learner.algorithm.psi = Told(run.sizes.goal), torch.nn.Identity()
    monkeypatch.setattr("deepres.training.loop.load_run", lambda folder: run)
    from deepres.experiments.studies.offline import known

    assert known(tmp_path)["val_accuracy"] == pytest.approx(known(tmp_path)["val_accuracy"])
    assert known(tmp_path)["train_accuracy"] > 3 / 256  # places near the goal are likelier to be its own


def test_methods_are_ranked_beside_what_was_published():
    """Of each kind of data: who makes it, who learns from it and how, and the order that came out."""
    study = studies.find("offline-methods")
    trials = study.trials("cpu", [0, 1])
    assert len(trials) == 2 + 2 * 2 * 6 and len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        if trial.after:
            assert trial.after == f"data_{trial.labels['data']}-method_the_data-s0"
            anywhere = 0.5 if trial.labels["data"] == "stitch" else 0.0
            assert trial.config.flat().get("random_actor_goals", anywhere) == anywhere
    longer = studies.find("offline-patience").trials("cpu", [0])
    same = {trial.config for trial in trials} & {trial.config for trial in longer if trial.after}
    assert len(longer) == 1 + 2 * 5 and len(same) == 5  # the shorter ones are taken from offline-methods
    assert {trial.config.schedule.total_steps // trial.config.schedule.eval_every for trial in longer} == {
        800
    }
    published = offline_methods.PUBLISHED["navigate"]
    rows = [
        {"data": "navigate", "method": name, "success": medium / 100 + shift}
        for name, (medium, _) in published.items()
        for shift in (-0.01, 0.01)
    ]
    said = study.says(rows)
    assert said.startswith("navigate: QRL 0.82, HIQL 0.79, GCIVL 0.63, GCIQL 0.53, CRL 0.29, GCBC 0.09")
    assert "pointmaze-medium 1.00, -large 0.94" in said


def test_an_ant_makes_the_data_that_three_methods_learn_from():
    study = studies.find("offline-ant")
    data, *learners = study.trials("cpu", [0, 1, 2])
    assert len(learners) == 3 * 3 * 3 and {trial.after for trial in learners} == {data.name}
    assert {trial.config.env.name for trial in learners} == {"ant_u_maze"}
    assert {trial.config.flat().get("bc_alpha") for trial in learners} == {0.1, 3.0, None}
    assert study.takes(data) == (1_100_000, 0) and study.takes(learners[0]) == (0, 8000)


class Told(torch.nn.Module):
    """A critic that knows the straight line: phi is where the state is."""

    def __init__(self, goal: int):
        super().__init__()
        self.goal = goal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.goal]
