"""A pruned policy is its kept layers and nothing else; what was interrupted goes on; what cannot be is told."""

from __future__ import annotations

import json
import os

import pytest
import torch

import deepres
from deepres import Policy
from deepres.commands.main import main
from deepres.compress import prune as module
from deepres.compress.analyse import SCORES, analyse, visited
from deepres.compress.blocks import Blocks
from deepres.compress.prune import prune, schedule
from deepres.deploy.plain import PlainNetwork
from deepres.runs.lock import NAME, InUse, Lock
from helpers.policies import observations, untrained
from helpers.tiny_runs import contents


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A policy of 4 blocks, of which the second adds nothing."""
    policy = untrained("crl", depth=16, actor_depth=16, width=8)
    stack = policy.network.actor.trunk.stack
    with torch.no_grad():
        stack.gamma[7] = stack.beta[7] = 0
    return policy.save(tmp_path_factory.mktemp("source") / "policy.safetensors")


@pytest.mark.parametrize("score", SCORES)
def test_what_adds_nothing_goes_first_and_changes_no_bit(source, tmp_path, score, monkeypatch):
    monkeypatch.setattr(module, "visited", lambda policy, states, seed: observations(policy, states))
    pruned = prune(source, 12, tmp_path / "pruned", score=score, states=50)
    obs = observations(pruned, 64)
    assert torch.equal(pruned.act(obs), Policy.load(source).act(obs))
    record = json.loads((tmp_path / "pruned" / "pruned.json").read_text())
    assert record["kept"] == [0, 2, 3] and record["done"][0]["scores"] == [0]


def test_a_pruned_run_is_its_kept_layers_and_reads_as_any(source, tmp_path, capsys):
    out = tmp_path / "pruned"
    main(["prune", str(source), "--depth", "8", "--states", "60", "--out", str(out)])
    told = capsys.readouterr().out
    assert "round 2 of 2: 2 of 4 blocks left, action error" in told and "goals reached" in told
    record, pruned, whole = (
        json.loads((out / "pruned.json").read_text()),
        Policy.load(out),
        Policy.load(source),
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints", "config.json", "evaluations.csv", "pruned.json",
    ]  # fmt: skip
    network = PlainNetwork(whole.network)
    layers = [4 * block + layer for block in record["kept"] for layer in range(4)]
    for name in ("weight", "bias", "gamma", "beta"):
        setattr(network, name, getattr(network, name)[layers])
    obs = observations(pruned, 64)
    assert torch.allclose(pruned.act(obs), network(obs), atol=1e-5) and len(record["kept"]) == 2
    # a second round scores what the first one left
    seen = visited(whole, 60)
    scores = analyse(Blocks(whole.network), seen).exact
    first = record["done"][0]["dropped"]
    assert first == [1] == [min(range(4), key=lambda b: scores[b])]
    again = analyse(Blocks(Blocks(whole.network).kept([0, 2, 3])), seen).exact
    assert record["done"][1]["dropped"] == [[0, 2, 3][min(range(3), key=lambda place: again[place])]]
    error = (pruned.act(seen) - whole.act(seen)).square().mean().sqrt()
    assert record["done"][1]["error"] == pytest.approx(float(error), rel=1e-4)
    assert pruned.config.network.actor_depth == 8 and pruned.env_steps == whole.env_steps
    assert pruned.evaluate()[0].success_any == pruned.evaluation["success_any"]
    assert pruned.export(tmp_path / "policy.onnx").is_file()
    with pytest.raises(ValueError, match="holds a pruned policy alone"):
        deepres.load_run(out)
    with pytest.raises(FileExistsError, match="is not empty"):
        prune(source, 8, out)


def test_an_interrupted_pruning_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "visited", lambda policy, states, seed: torch.ones(states, 6).cumsum(0) / states
    )
    prune(source, 8, tmp_path / "whole", states=50)
    scored = []

    def stops(blocks, obs, seed):
        if len(scored) == 1:
            raise KeyboardInterrupt
        scored.append(blocks.count)
        return analyse(blocks, obs, seed)

    monkeypatch.setattr(module, "analyse", stops)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prune(source, 8, out, states=50)
    with pytest.raises(FileNotFoundError, match="no run at"):
        Policy.load(out)
    before = contents(out)
    with pytest.raises(ValueError, match="a pruning under way with score='exact'; ask for the same"):
        prune(source, 8, out, score="norm", states=50)
    assert contents(out) == before
    with Lock(out):
        claim = json.loads((out / NAME).read_text())
        with pytest.raises(InUse, match=rf"is in use: process {os.getpid()} on "):
            prune(source, 8, out, states=50)
    (out / NAME).write_text(json.dumps({**claim, "started": "1"}))  # of a process that is dead
    monkeypatch.setattr(module, "analyse", lambda *asked: scored.append(asked[0].count) or analyse(*asked))
    prune(source, 8, out, states=50)
    assert scored == [4, 3]  # the round that was done is not done again
    assert (out / "pruned.json").read_text() == (tmp_path / "whole" / "pruned.json").read_text()
    assert contents(out).keys() == contents(tmp_path / "whole").keys()


def test_healing_brings_the_actions_nearer(source, tmp_path, monkeypatch):
    monkeypatch.setattr("deepres.compress.distill.BATCH", 32)
    monkeypatch.setattr("deepres.compress.distill.ENVS", 4)
    pruned = prune(source, 4, tmp_path / "pruned", rounds=1, heal=200, states=60)
    (only,) = json.loads((tmp_path / "pruned" / "pruned.json").read_text())["done"]
    assert 0 < only["healed"] < 0.9 * only["error"]
    whole = Policy.load(source)
    seen = visited(whole, 60)
    error = (pruned.act(seen) - whole.act(seen)).square().mean().sqrt()
    assert float(error) == pytest.approx(only["healed"], rel=1e-4)
    assert torch.equal(Policy.load(tmp_path / "pruned").act(seen), pruned.act(seen))
    with pytest.raises(ValueError, match="a teacher's actions must be tanh of a Gaussian"):
        td3 = untrained("td3", depth=8, actor_depth=8, width=8).save(tmp_path / "td3.safetensors")
        prune(td3, 4, tmp_path / "no", heal=10)


def test_rounds_drop_an_eighth_each():
    assert schedule(16, 4) == [14, 12, 10, 8, 6, 4] and schedule(16, 15) == [15]
    assert schedule(4, 1) == [3, 2, 1] and schedule(17, 4) == [15, 13, 11, 9, 7, 5, 4]
    assert schedule(16, 4, 1) == [4] and schedule(16, 4, 5) == [14, 12, 9, 7, 4]


def test_what_cannot_be_pruned_is_one_sentence(source, tmp_path):
    out = tmp_path / "out"
    for asked, sentence in (
        ({"depth": 16}, "depth must be below the 16 layers of this policy, got 16"),
        ({"depth": 6}, "depth must be a multiple of 4, the layers of a block, got 6; use 4"),
        ({"depth": 0}, "depth must be a whole number >= 4, got 0"),
        ({"depth": 8, "heal": -1}, "heal must be a whole number >= 0, got -1"),
        ({"depth": 8, "rounds": 3}, "rounds must be at most the 2 blocks that go, got 3"),
        (
            {"depth": 8, "score": "weight"},
            "score must be one of exact, ablated, gradient, angular, norm, got 'weight'",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            prune(source, out=out, **asked)
    bare = untrained("crl", skip_every=0, width=8).save(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="must have residual blocks, got layers without a skip"):
        prune(bare, 4, out)
    with pytest.raises(FileNotFoundError, match="no run at"):
        prune(tmp_path / "nowhere", 4, out)
    assert not out.exists()
