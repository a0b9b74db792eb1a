"""Whole runs of policies that plan chunks: what was planned and not yet done is saved with the rest."""

from __future__ import annotations

import pytest
import torch

from deepres.config import Config
from deepres.policy import Policy
from deepres.runs.folder import RunFolder
from deepres.training.loop import find_state, save
from deepres.training.run import Run
from helpers.tiny_runs import SIZES, different

CONFIG = Config("crl", **SIZES, feature_dim=8, horizon=4, survival_rows=True, survival_bonus=1.0)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_resumes_in_the_middle_of_a_chunk_to_the_same_bits(overlap, tmp_path):
    config, folder = CONFIG.replace(overlap=overlap), RunFolder(tmp_path / "run")
    run = Run(config)
    for _ in range(2):
        run.round()
    assert run.chunk is not None
    assert run.chunk.used.tolist() == [1] * 4  # 30 steps in episodes of 25: 4 + 1 since the reset
    save(run, folder)
    restored = find_state(folder, config)
    resumed = Run(config, restored=restored)
    for one in (run, resumed):
        one.round()
    assert different(run.state(), resumed.state()) == []

    del (
        restored.shards[0]["chunk/actions"],
        restored.shards[0]["chunk/used"],
        restored.shards[0]["chunk/traj_id"],
    )
    forgot = Run(config, restored=restored)
    forgot.round()
    assert "buffer/actions" in different(run.state(), forgot.state())


def test_the_saved_policy_plans_as_the_run_does(tmp_path):
    run, folder = Run(CONFIG), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(CONFIG.to_json())
    run.round()
    save(run, folder)
    policy = Policy.load(folder.path)
    policy = Policy.load(policy.save(tmp_path / "policy.safetensors"))
    obs = torch.randn(3, policy.sizes.state + policy.sizes.goal)
    assert policy.plan(obs).shape == (3, 4, policy.sizes.action)
    assert torch.equal(policy.plan(obs), run.learner.policy.plan(obs))
    assert torch.equal(policy.act(obs), policy.plan(obs)[:, 0])
    player, ids = policy.player(), torch.zeros(3, dtype=torch.int32)
    done = [player.act(obs + t, ids) for t in range(4)]
    assert torch.equal(torch.stack(done, dim=1), policy.plan(obs))
    assert policy.evaluate()[0] == run.evaluate()[0]
