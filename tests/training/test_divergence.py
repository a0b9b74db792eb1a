"""Whole runs that diverge and go back, and runs that collect while they learn."""

from __future__ import annotations

import pytest
import torch

from deepres.config import Config
from deepres.data.collect import Ahead, collect
from deepres.runs.folder import RunFolder
from deepres.training.loop import find_state, roll_back, save, train
from deepres.training.run import Run
from deepres.training.stability import Diverged
from helpers.tiny_runs import SIZES, TINY, rows

CAREFUL = TINY.replace(eval_every=99, total_steps=240, on_divergence="rollback", max_skipped=0.3)


def poison(run: Run) -> None:
    run.buffer.rings["states"][:, 0] = (
        torch.nan
    )  # one of four environments: near every batch holds some of it


def state(run: Run) -> dict[str, torch.Tensor]:
    tensors = {**run.learner.state_tensors(), **run.buffer.state_tensors()}
    return {k: v.clone() for k, v in tensors.items() if k != "lr_scale"}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_goes_back_to_its_checkpoint_and_learns_slower(tmp_path):
    run, folder = Run(CAREFUL), RunFolder(tmp_path / "run")
    run.round()
    save(run, folder)
    before = state(run)
    poison(run)
    with pytest.raises(
        Diverged, match=r"diverged in round 2: loss or gradient is not finite in \d of 4"
    ) as reason:
        run.round()
    roll_back(run, folder, reason.value)
    assert same(before, state(run)) and run.learner.lr_scale == 0.5
    assert (run.rounds, run.env_steps) == (1, 80)
    assert run.round()["skipped_steps"] == 0
    save(run, folder)
    assert Run(CAREFUL, restored=find_state(folder, CAREFUL)).learner.lr_scale == 0.5


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    run = Run(CAREFUL)
    with pytest.raises(Diverged, match="went wrong -- and nothing to go back to: there is no checkpoint in"):
        roll_back(run, RunFolder(tmp_path / "run"), Diverged("went wrong"))


@pytest.mark.parametrize("choice", ["rollback", "stop"])
def test_training_goes_on_or_stops_as_configured(tmp_path, monkeypatch, choice):
    plain, diverged = Run.round, []

    def disturbed(run: Run) -> dict[str, float]:
        if run.rounds == 3 and not diverged:
            diverged.append(True)
            poison(run)
        return plain(run)

    monkeypatch.setattr(Run, "round", disturbed)
    config, folder = CAREFUL.replace(on_divergence=choice), tmp_path / "run"
    if choice == "stop":
        with pytest.raises(Diverged, match="training diverged in round 4"):
            train(config, folder, progress=False)
        return
    with pytest.warns(RuntimeWarning, match="going on from 160 env steps with learning rates x 0.5"):
        result = train(config, folder, progress=False)
    assert result.env_steps == 240
    assert [int(row["env_steps"]) for row in rows(folder / "metrics.csv")] == [80, 120, 160, 200, 240]


@pytest.mark.parametrize("algorithm", ["crl", "sac"])
def test_collecting_ahead_repeats_itself_and_resumes_to_the_same_bits(algorithm, tmp_path):
    config = Config(algorithm, **SIZES).replace(overlap=True)
    one, other, folder = Run(config), Run(config), RunFolder(tmp_path / "other")
    for _ in range(2):
        one.round()
        other.round()
    assert same(state(one), state(other))
    save(other, folder)
    resumed = Run(config, restored=find_state(folder, config))
    for run in (one, resumed):
        run.round()
    assert same(state(one), state(resumed)) and one.env_steps == resumed.env_steps == 160


def test_what_is_collected_ahead_is_of_the_policy_before_the_round():
    run = Run(CAREFUL.replace(overlap=True))
    run.round()
    begun, policy = run.standing, run.learner.policy.copy()
    pending = Ahead(run.env).start(begun, run.learner.policy, 10, seed=3)
    run.round()  # changes the learner's weights in place meanwhile
    _, ahead = pending.result()
    _, here = collect(run.env, begun, policy, 10, torch.Generator().manual_seed(3))
    assert torch.equal(ahead.states, here.states) and torch.equal(ahead.actions, here.actions)
    assert not torch.equal(policy.act(torch.ones(1, 6)), run.learner.act(torch.ones(1, 6)))
