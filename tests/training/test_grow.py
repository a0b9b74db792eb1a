"""A grown run computes what it did, to the bit, and learns on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from deepres.commands.main import main
from deepres.compress.prune import prune
from deepres.config import Config
from deepres.data.batch import Sizes
from deepres.policy import Policy
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import CheckpointError
from deepres.runs.files import read_run
from deepres.runs.folder import RunFolder
from deepres.training.grow import grow, grow_tensors
from deepres.training.loop import load_run, train
from helpers.tiny_runs import SIZES

SHORT = {**SIZES, "total_steps": 4 * 40, "eval_every": 100}


@pytest.mark.parametrize(
    ("name", "options", "depths"),
    [("crl", {"depth": 64, "actor_depth": 64, "width": 16}, (256, 256)), ("sac", {}, (8, 12))],
    ids=["crl", "sac"],
)
def test_growing_changes_nothing_and_learning_goes_on(tmp_path, name, options, depths):
    config = Config(name, **{**SHORT, **options})
    train(config, tmp_path / "small", progress=False)
    grow(tmp_path / "small", depths[0], tmp_path / "large", actor_depth=depths[1])
    small, large = load_run(tmp_path / "small"), load_run(tmp_path / "large")
    assert (large.config.network.depth, large.config.network.actor_depth) == depths
    obs = torch.randn(64, small.sizes.state + small.sizes.goal, generator=torch.Generator().manual_seed(0))
    assert torch.equal(small.learner.act(obs), large.learner.act(obs))
    rows = torch.randn(64, obs.shape[1] + small.sizes.action)
    for network, width in (("q", obs.shape[1] + 2), ("q_slow", obs.shape[1] + 2)) if name == "sac" else (
        ("phi", small.sizes.state + 2), ("psi", small.sizes.goal),
    ):  # fmt: skip
        parts = (getattr(run.learner.algorithm, network)(rows[:, :width]) for run in (small, large))
        assert torch.equal(*parts), network
    before, after = small.learner.state_tensors(), large.learner.state_tensors()
    for key, tensor in before.items():
        kept = after[key][tuple(slice(0, n) for n in tensor.shape)] if tensor.ndim else after[key]
        assert torch.equal(kept, tensor), key
    assert torch.equal(small.generator.get_state(), large.generator.get_state())
    weight = large.learner.parameters()["actor.trunk.stack.weight"].clone()
    train(large.config.replace(total_steps=4 * 60), tmp_path / "large", resume=True, progress=False)
    learned = load_run(tmp_path / "large")
    assert read_run(tmp_path / "large").env_steps == 240
    first = config.network.actor_depth + 3  # the last LayerNorm of the first new block
    moved = (learned.learner.parameters()["actor.trunk.stack.gamma"][first::4]).abs().amax(dim=1)
    assert (moved > 0).all()  # every new block has begun to add something
    assert not torch.equal(learned.learner.parameters()["actor.trunk.stack.weight"], weight)


def test_what_cannot_grow_is_told(tmp_path):
    config = Config("crl", **SHORT)
    train(config, tmp_path / "run", progress=False)
    for depth, sentence in (
        (4, "must grow from 4 and 4, got 4 and 4"),
        (6, "multiple of skip_every=4, got 6"),
    ):
        with pytest.raises(ValueError, match=sentence):
            grow(tmp_path / "run", depth, tmp_path / "no")
    with pytest.raises(ValueError, match="actor_depth must be"):
        grow(tmp_path / "run", 8, tmp_path / "no", actor_depth=0)
    train(config.replace(norm=False), tmp_path / "bare", progress=False)
    with pytest.raises(ValueError, match="end in LayerNorm; this run has norm=False"):
        grow(tmp_path / "bare", 8, tmp_path / "no")
    for name, depth, where in (("crl", 2, "actor"), ("srl", 4, "phi")):
        small = Config(name, **{**SHORT, "depth": depth, "actor_depth": depth})
        with pytest.raises(
            ValueError, match=f"{where} has fewer layers than a residual block and cannot grow"
        ):
            grow_tensors({}, small, small.replace(depth=8, actor_depth=8), Sizes(4, 2, 2), 0)
    train(config.replace(depth=8, actor_depth=8), tmp_path / "long", progress=False)
    with pytest.raises(FileExistsError, match="is not empty"):
        grow(tmp_path / "run", 8, tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="no run at"):
        grow(tmp_path / "nowhere", 8, tmp_path / "no")
    pruned = prune(tmp_path / "long", 4, tmp_path / "pruned", states=20)
    assert pruned.config.network.actor_depth == 4
    with pytest.raises(
        ValueError, match="holds a policy alone and does not learn; grow the run that it was pruned"
    ):
        grow(tmp_path / "pruned", 16, tmp_path / "no")
    edited = json.loads((tmp_path / "run" / "config.json").read_text())
    edited["network"]["activation"] = "relu"
    (tmp_path / "run" / "config.json").write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="activation cannot change when a run is resumed"):
        grow(tmp_path / "run", 8, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_is_grown_is_there_whole_or_not_at_all(tmp_path, small_disk):
    train(Config("crl", **SHORT), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        grow(tmp_path / "run", 4096, small_disk / "deep")
    assert not (small_disk / "deep" / "config.json").exists()
    grow(tmp_path / "run", 8, small_disk / "deep")
    assert Policy.load(small_disk / "deep").config.network.depth == 8


def test_a_grown_run_has_as_many_shards_as_the_one_it_came_from(tmp_path):
    config = Config("crl", **SHORT)
    train(config, tmp_path / "run", progress=False)
    path, old = checkpoints.find(RunFolder(tmp_path / "run").checkpoints)
    halves = {rank: {name: t.clone() for name, t in old.shards[0].items()} for rank in (0, 1)}
    both = replace(old, shards=halves, size=2)
    shutil.rmtree(path)
    checkpoints.save(RunFolder(tmp_path / "run").checkpoints, both, keep=1)
    grow(tmp_path / "run", 8, tmp_path / "deep")
    _, grown = checkpoints.find(RunFolder(tmp_path / "deep").checkpoints)
    assert grown.size == 2 and grown.shards.keys() == {0, 1}


def test_a_run_is_grown_by_command(tmp_path, capsys):
    train(Config("crl", **SHORT), tmp_path / "run", progress=False)
    main(["grow", str(tmp_path / "run"), "--depth", "8", "--out", str(tmp_path / "deep")])
    assert f"deepres train --resume {tmp_path / 'deep'}" in capsys.readouterr().out
    main(["grow", str(tmp_path / "run"), "--depth", "12"])
    assert f"deepres train --resume {tmp_path / 'run-d12'}" in capsys.readouterr().out
    obs = torch.randn(3, 6)
    shallow, deep = (Policy.load(tmp_path / name) for name in ("run", "deep"))
    assert torch.equal(shallow.act(obs), deep.act(obs)) and deep.config.network.depth == 8
