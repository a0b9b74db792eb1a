"""Instruments tell what every block does, and change nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from deepres.commands.main import main
from deepres.config import Config
from deepres.training.instruments import effective_rank, measure
from deepres.training.loop import load_run, train
from helpers.learners import SIZES as SIZES_OF
from helpers.learners import batch_for, learner_of, small, stream
from helpers.tiny_runs import SIZES


def measured(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "instruments.csv").read_text().splitlines()))


def test_rows_are_what_the_blocks_do():
    """Beside forward hooks on a plain loop over the layers, and autograd."""
    learner = learner_of(small(depth=8, actor_depth=4))
    batch, noise = next(iter(stream(1)))
    rows = {(row["network"], row["block"]): row for row in measure(learner, batch, noise)}
    assert sorted(rows) == [("actor", 0), ("phi", 0), ("phi", 1), ("psi", 0), ("psi", 1)]
    total, _ = learner.losses(batch, noise)
    total.backward()
    inputs = {
        "psi": batch.goal,
        "phi": torch.cat([batch.state, batch.action], dim=1),
        "actor": torch.cat([batch.state, batch.goal], dim=1),
    }
    for name, x in inputs.items():
        trunk = getattr(learner.algorithm, name).trunk
        stack = trunk.stack
        a = torch.nn.functional.silu(trunk.norm(trunk.stem(x))).detach()
        blocks = stack.depth // 4
        for block in range(blocks):
            start = a
            for layer in range(4 * block, 4 * block + 4):
                u = a @ stack.weight[layer].detach() + stack.bias[layer].detach()
                n = torch.nn.functional.layer_norm(u, u.shape[-1:], eps=1e-6)
                a = torch.nn.functional.silu(stack.gamma[layer].detach() * n + stack.beta[layer].detach())
            a = a + start
            row = rows[name, block]
            assert row["stream"] == pytest.approx(float(a.square().mean().sqrt()), rel=1e-4)
            assert row["branch"] == pytest.approx(float((a - start).square().mean().sqrt()), rel=1e-4)
            grad = stack.weight.grad[4 * block : 4 * block + 4]
            assert row["gradient"] == pytest.approx(float(grad.norm()), rel=1e-4)
        assert row["rank"] == pytest.approx(effective_rank(a), rel=1e-3)
        assert blocks == 1 or math.isnan(rows[name, 0]["rank"])
        assert math.isnan(row["saturated"]) == (name != "actor")


def test_saturated_outputs_are_those_that_tanh_has_flattened():
    for algorithm, bias in (("crl", "mean.bias"), ("crl", "log_std.bias"), ("td3", "head.bias")):
        learner = learner_of(small(algorithm, actor_depth=4))
        batch, noise = batch_for(learner)

        def saturated(learner=learner, batch=batch, noise=noise) -> float:
            rows = [row for row in measure(learner, batch, noise) if row["network"] == "actor"]
            return rows[-1]["saturated"]

        assert saturated() == 0
        with torch.no_grad():
            learner.algorithm.get_parameter(f"actor.{bias}")[0] += (
                50.0  # one of three actions, mean or spread
            )
        assert saturated() == pytest.approx(1 / SIZES_OF.action / (2 if algorithm == "crl" else 1), abs=1e-6)


def test_effective_rank_counts_directions():
    draw = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(64, 64, generator=draw)).Q
    for rank in (1, 3, 10):
        x = q[:, :rank] @ torch.randn(rank, 16, generator=draw)
        assert effective_rank(x) <= rank + 1 and (rank == 1 or effective_rank(x) > rank / 2)
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1.0)
    assert math.isnan(
        effective_rank(torch.full((5, 4), torch.inf))
    )  # a step that is skipped, not the run's end


@pytest.mark.parametrize("name", ["crl", "gcbc"])
def test_they_change_no_bit_of_the_training_and_are_drawn(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "140")
    config = Config(name, **{**SIZES, "total_steps": 4 * 50, "eval_every": 100})
    train(config, tmp_path / "plain", progress=False)
    train(config.replace(instruments_every=2), tmp_path / "watched", progress=False)
    plain, watched = (load_run(tmp_path / one).state() for one in ("plain", "watched"))
    assert all(torch.equal(tensor, watched.tensors[key]) for key, tensor in plain.tensors.items())
    rows = measured(tmp_path / "watched")
    networks = {"crl": {"actor", "phi", "psi"}, "sac": {"actor", "q", "q_slow"}, "gcbc": {"actor"}}[name]
    assert {row["network"] for row in rows} == networks
    train(
        config.replace(instruments_every=2, total_steps=4 * 70),
        tmp_path / "watched",
        resume=True,
        progress=False,
    )
    steps = [int(row["env_steps"]) for row in measured(tmp_path / "watched")]
    assert steps == sorted(steps) and len(set(steps)) > len({row["env_steps"] for row in rows})
    main(["report", str(tmp_path / "watched")])
    assert "effective rank" in capsys.readouterr().out
    assert (tmp_path / "watched" / "instruments.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "plain")])
    assert "train it with --instruments-every N" in capsys.readouterr().err
