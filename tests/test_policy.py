"""A policy alone: saved, loaded, asked for actions, and loaded where the run that trained it would not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deepres
from deepres import CheckpointError, Config, Policy
from deepres.algorithms import register
from deepres.algorithms.crl import CRL
from deepres.networks import NetworkOptions
from deepres.ranks import ALONE
from deepres.runs import checkpoint as checkpoints
from deepres.runs.folder import RunFolder
from deepres.training.learner import Learner
from helpers.tiny_runs import SIZES, contents

SIZE = deepres.Sizes(state=4, action=2, goal=2, env_bytes=100)


def leave_run(folder: Path, config: Config) -> Learner:
    """What of a run a policy is loaded from: its options, and a checkpoint of an untrained learner."""
    RunFolder(folder).claim(config, resume=False)
    learner = Learner(config, SIZE, generator=torch.Generator().manual_seed(5), ranks=ALONE)
    sizes = {"state": 4, "action": 2, "goal": 2, "env_bytes": 100}
    counters = {"env_steps": 120}
    state = checkpoints.Checkpoint(learner.state_tensors(), counters, config.to_dict(), {0: {}}, sizes)
    checkpoints.save(RunFolder(folder).checkpoints, state, keep=1)
    return learner


@pytest.fixture(params=["crl", "sac", "gcbc", "td3"])
def run(request, tmp_path) -> tuple[Path, Learner]:
    config = Config(request.param, **SIZES)
    return tmp_path / "run", leave_run(tmp_path / "run", config)


def test_it_acts_as_the_learner_that_it_is_of(run):
    folder, learner = run
    policy = Policy.load(folder)
    obs, noise = torch.randn(5, 6), torch.randn(5, 2)
    assert policy.env_steps == 120 and policy.sizes == SIZE and policy.config == learner.config
    assert torch.equal(policy.act(obs), learner.act(obs))
    assert torch.equal(policy.act(obs, noise), learner.act(obs, noise))
    assert not torch.equal(policy.act(obs), policy.act(obs, noise))


def test_saved_and_loaded_it_is_the_same(run, tmp_path):
    policy = Policy.load(run[0])
    file = policy.save(tmp_path / "new folder" / "policy.safetensors")
    assert list(file.parent.iterdir()) == [file]
    again = Policy.load(file)
    obs = torch.randn(5, 6)
    assert torch.equal(policy.act(obs), again.act(obs))
    assert (again.config, again.sizes, again.env_steps) == (policy.config, policy.sizes, policy.env_steps)
    assert file.stat().st_size < 4 * sum(p.numel() for p in policy.network.actor.parameters()) + 10_000
    before = contents(file.parent)
    longer = Policy.load(file, eval_envs=7)
    assert longer.config.schedule.eval_envs == 7 and contents(file.parent) == before


def test_it_is_loaded_where_its_ring_would_not_fit(tmp_path):
    config = Config("sac", **SIZES).replace(buffer_steps=10**11)
    leave_run(tmp_path / "run", config)
    with pytest.raises(MemoryError, match=r"needs .* TB and .* are there"):
        deepres.load_run(tmp_path / "run")
    policy = Policy.load(tmp_path / "run", episode_length=10)
    assert policy.act(torch.zeros(3, 6)).shape == (3, 2)
    assert policy.evaluate()[0].episode_length == 10


def test_what_it_cannot_act_on_is_one_sentence(run):
    policy = Policy.load(run[0])
    for shape in ((6,), (3, 5), (3, 2, 6)):
        with pytest.raises(
            ValueError, match=r"obs must have shape \[N, 6\], a state of 4 and a goal of 2"
        ) as error:
            policy.act(torch.zeros(shape))
        assert str(error.value).endswith(f"got {list(shape)}")


@pytest.mark.parametrize(
    ("noise", "error", "sentence"),
    [
        (torch.zeros(2), ValueError, r"noise must have shape \[3, 2\], got \[2\]; pass torch.randn\(3, 2\)"),
        (torch.zeros(3, 1), ValueError, r"noise must have shape \[3, 2\], got \[3, 1\]"),
        ([0.0], TypeError, "noise must be a torch tensor, got list"),
    ],
)
def test_noise_is_of_every_row_and_number(run, noise, error, sentence):
    policy = Policy.load(run[0])
    with pytest.raises(error, match=sentence):
        policy.act(torch.zeros(3, 6), noise)
    assert policy.act(torch.zeros(3, 6), torch.zeros(3, 2).double()).dtype == torch.float32


class Scaled(CRL):
    """An actor with a buffer, as one that normalises what it sees has."""

    persistent = True

    def build(self, networks):
        groups = super().build(networks)
        self.actor.register_buffer("scale", torch.full((), 3.0), persistent=self.persistent)
        return groups


@pytest.mark.usefixtures("forgotten")
def test_an_actors_buffers_are_saved_and_loaded(tmp_path):
    register("scaled", Scaled)
    leave_run(tmp_path / "run", Config("scaled", **SIZES))
    policy = Policy.load(tmp_path / "run")
    assert policy.network.actor.scale == 3.0
    again = Policy.load(policy.save(tmp_path / "policy.safetensors"))
    assert again.network.actor.scale == 3.0
    Scaled.persistent = False
    try:
        with pytest.raises(
            ValueError, match="got scale as buffers that are not persistent; register them with"
        ):
            Policy.load(tmp_path / "run")
    finally:
        Scaled.persistent = True


def test_damaged_files_are_one_sentence(run, tmp_path):
    from safetensors.torch import save_file

    whole = Policy.load(run[0]).save(tmp_path / "policy.safetensors")
    data, damaged = whole.read_bytes(), tmp_path / "damaged.safetensors"
    sentence = r"damaged.safetensors is not a policy that deepres saved .*; pass a run's folder or a file of"
    for wrong in (b"", b"thesis", data[:-100], data[: len(data) // 3]):
        damaged.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=sentence):
            Policy.load(damaged)
    (program := tmp_path / "policy.pt2").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"a program of torch.export, which torch.export.load\('policy.pt2'\)"
    ):
        Policy.load(program)
    for metadata in (None, {"made": "elsewhere"}, {"deepres": "{"}, {"deepres": "{}"}):
        save_file({"a": torch.zeros(3)}, damaged, metadata=metadata)
        with pytest.raises(CheckpointError, match=sentence):
            Policy.load(damaged)


def test_a_full_disk_keeps_what_was_there(tmp_path, small_disk):
    leave_run(tmp_path / "run", Config("gcbc", **SIZES).replace(width=512))  # 4 MB of weights
    policy, file = Policy.load(tmp_path / "run"), small_disk / "policy.safetensors"
    file.write_text("the one before")
    with pytest.raises(OSError, match=r"cannot write the policy to .*; save it on another disk"):
        policy.save(file)
    assert list(contents(small_disk).values()) == [b"the one before"]


@pytest.mark.parametrize(("group", "name", "value"), [("network", "width", 64), ("network", "skip_every", 0)])
def test_options_that_are_not_the_policys_are_refused(run, group, name, value):
    """An edited config.json would load another policy than the one that was trained, or none."""
    folder, _ = run
    options = json.loads((folder / "config.json").read_text())
    options[group][name] = value
    (folder / "config.json").write_text(json.dumps(options))
    sentence = rf"config\.json is not that of the policy beside it: {name} cannot change"
    with pytest.raises(ValueError, match=sentence):
        Policy.load(folder)


def test_what_was_learned_cannot_be_set_otherwise(run):
    with pytest.raises(ValueError, match="activation belongs to what was learned and cannot change"):
        Policy.load(run[0], activation="relu")
    with pytest.raises(ValueError, match="network belongs to what was learned and cannot change"):
        Policy.load(run[0], network=NetworkOptions(activation="relu"))


def test_a_file_of_another_network_is_refused(run, tmp_path):
    folder, _ = run
    policy = Policy.load(folder)
    wide = replace(policy, config=policy.config.replace(width=64))
    with pytest.raises(
        ValueError, match=r"does not hold this policy: parameters/actor.* must have shape \[64, 6\]"
    ):
        Policy.load(wide.save(tmp_path / "wide.safetensors"))


def test_it_takes_what_an_environment_gives(run):
    folder, _ = run
    policy, obs = Policy.load(folder), torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(policy.act(obs), policy.act(obs.float()))
    with pytest.raises(
        TypeError, match=r"obs must be a torch tensor, got ndarray; pass torch.as_tensor\(obs\)"
    ):
        policy.act(obs.numpy())
    with pytest.raises(
        ValueError, match="eval_env must have point_u_maze's state_dim 4, got reacher with 10"
    ):
        Policy.load(folder, eval_env="reacher").evaluate()


def test_there_is_no_policy_where_nothing_was_trained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run at .*; pass a folder that `deepres train` wrote"):
        Policy.load(tmp_path / "nowhere")
    RunFolder(tmp_path / "begun").claim(Config("crl", **SIZES), resume=False)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*; train a run there first"):
        Policy.load(tmp_path / "begun")
