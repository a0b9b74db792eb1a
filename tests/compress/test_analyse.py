"""What each block does, beside plain PyTorch that takes the network apart layer by layer."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepres import Policy
from deepres.acting import GaussianPolicy
from deepres.commands.main import main
from deepres.compress.analyse import analyse, angle, visited
from deepres.compress.blocks import Blocks
from deepres.deploy.plain import PlainNetwork
from deepres.report.blocks import agreement
from deepres.training.evaluate import EVAL_SEED
from helpers.policies import observations, untrained

COUNT = 3


def small(algorithm: str = "crl", **options) -> Policy:
    return untrained(algorithm, depth=4 * COUNT, actor_depth=4 * COUNT, width=8, **options)


def plain(network: PlainNetwork, x: torch.Tensor, block: int) -> torch.Tensor:
    """What the block adds to x, layer by layer."""
    for l in range(4 * block, 4 * block + 4):
        x = F.layer_norm(
            x @ network.weight[l] + network.bias[l], (8,), network.gamma[l], network.beta[l], 1e-6
        )
        x = F.silu(x)
    return x


def streams(network: PlainNetwork, obs: torch.Tensor, change=lambda block, x, branch: branch) -> list:
    """x_0 ... x_B and the action; change: (block, x, F) -> what is added."""
    x = F.silu(F.layer_norm(obs @ network.stem_weight.T + network.stem_bias, (8,), network.stem_gamma,
                            network.stem_beta, 1e-6))  # fmt: skip
    seen = [x]
    for block in range(COUNT):
        seen.append(seen[-1] + change(block, seen[-1], plain(network, seen[-1], block)))
    return [*seen, torch.tanh(seen[-1] @ network.head_weight.T + network.head_bias)]


@pytest.mark.parametrize("algorithm", ["crl", "td3", "gcsl"])
def test_every_measure_is_that_of_a_plain_loop(algorithm, monkeypatch):
    monkeypatch.setattr("deepres.compress.analyse._ROWS", 20)  # several chunks
    policy = small(algorithm)
    obs = observations(policy, 50)
    found = analyse(Blocks(policy.network), obs)
    seen = torch.cat([obs[:, :-1], obs[:, -1:].log1p()], dim=1) if policy.network.clocked else obs
    network = PlainNetwork(policy.network)
    *x, action = streams(network, seen)
    for b in range(COUNT):
        added = (x[b + 1] - x[b]).mean(dim=0)
        without = streams(network, seen, lambda at, _, f, b=b: f * (at != b))[-1]
        biased = streams(network, seen, lambda at, _, f, b=b, m=added: m if at == b else f)[-1]
        assert found.exact[b] == pytest.approx(float((without - action).square().mean().sqrt()), rel=1e-4)
        assert found.ablated[b] == pytest.approx(float((biased - action).square().mean().sqrt()), rel=1e-4)
        assert found.norm[b] == pytest.approx(
            float(((x[b + 1] - x[b]).norm(dim=1) / x[b].norm(dim=1)).mean()), rel=1e-4
        )
        for n in (n for n in (1, 2) if b + n <= COUNT):
            one, other = (s - s.mean(dim=0) for s in (x[b], x[b + n]))
            wanted = (F.cosine_similarity(one, other).arccos() / torch.pi).mean()
            assert found.runs[n][b] == pytest.approx(float(wanted), rel=1e-3)
    assert found.states == 50 and list(found.runs) == [1, 2]


def test_the_gradient_is_the_error_to_first_order():
    """Of blocks that add a thousandth, whichever signs are drawn: the mean over the signs is the error itself."""
    policy = small()
    with torch.no_grad():
        policy.network.actor.trunk.stack.gamma[3::4] *= 1e-3
        policy.network.actor.trunk.stack.beta[3::4] *= 1e-3
    obs, blocks = observations(policy, 400), Blocks(policy.network)
    drawn = [analyse(blocks, obs, seed) for seed in range(8)]
    mean = np.sqrt(np.mean([np.square(one.gradient) for one in drawn], axis=0))
    assert mean == pytest.approx(np.array(drawn[0].exact), rel=0.1)
    assert drawn[0].gradient != drawn[1].gradient and drawn[0].gradient == analyse(blocks, obs, 0).gradient


def test_a_block_that_adds_nothing_has_0_in_every_measure():
    policy = small()
    silence(policy, 1)
    found = analyse(Blocks(policy.network), observations(policy, 50))
    for measure in (found.exact, found.ablated, found.gradient, found.angular, found.norm):
        assert measure[1] == 0 and measure[0] > 0 and measure[2] > 0


def silence(policy: Policy, block: int) -> None:
    stack = policy.network.actor.trunk.stack
    with torch.no_grad():
        stack.gamma[4 * block + 3] = 0
        stack.beta[4 * block + 3] = 0


def test_angles_near_0_keep_their_digits():
    x = torch.randn(5, 16)
    y = torch.randn(5, 16)
    assert torch.allclose(angle(x, y), F.cosine_similarity(x, y).arccos() / torch.pi, rtol=1e-4)
    across = y - (y * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    across *= 1e-5 * x.norm(dim=1, keepdim=True) / across.norm(dim=1, keepdim=True)
    assert torch.allclose(angle(x, x + across), torch.full((5,), 1e-5 / torch.pi), rtol=0.05)
    assert angle(x, 0 * x).eq(0).all() and angle(x, -x) == pytest.approx(1)


def test_a_run_is_analysed_by_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    policy = small()
    file = policy.save(tmp_path / "policy.safetensors")
    main(["analyse", str(file), "--states", "60"])
    told = " ".join(capsys.readouterr().out.split())
    obs = visited(Policy.load(file), 60)
    goals = policy.environments().reset(EVAL_SEED).obs[:, 4:]
    assert obs.shape == (60, 6) and torch.equal(obs[:, 4:].unique(dim=0), goals.unique(dim=0))
    found = analyse(Blocks(policy.network), obs)
    assert f"{COUNT} blocks of 4 layers on 60 visited states" in told
    assert f"gradient {agreement(found)['gradient']:.2f}, angular" in told
    assert len(visited(policy, 1000)) == 4 * 25
    with open(tmp_path / "blocks.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["exact"]) for row in rows] == found.exact
    assert [row["angular_2"] for row in rows][-1] == "" and float(rows[0]["angular_2"]) == found.runs[2][0]
    for kind in ("png", "pdf"):
        assert (tmp_path / f"blocks.{kind}").stat().st_size > 5000


def test_what_has_no_blocks_is_one_sentence(tmp_path, capsys):
    bare = untrained("crl", skip_every=0, width=8)
    with pytest.raises(ValueError, match="must have residual blocks, got layers without a skip"):
        Blocks(bare.network)
    with pytest.raises(ValueError, match="got layers without a skip"):
        Blocks(untrained("crl", depth=2, actor_depth=2, width=8).network)
    with pytest.raises(ValueError, match=r"must be an actor of deepres\.networks, got a Linear"):
        Blocks(GaussianPolicy(torch.nn.Linear(6, 2)))
    with pytest.raises(ValueError, match="only acts, its network is not there"):
        Blocks(small().compiled().network)
    with pytest.raises(ValueError, match="states must be a whole number >= 2, got 1"):
        visited(small(), 1)
    with pytest.raises(SystemExit):
        main(["analyse", str(tmp_path / "nowhere")])
    assert "no run at" in capsys.readouterr().err
