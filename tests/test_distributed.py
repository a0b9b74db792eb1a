"""Several processes: the joint batch's gradients from shares of it, and a run that they make together."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepres.config import Config
from deepres.distributed import ALONE, Ranks, deal, overlap

EXCHANGES = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from deepres import Batch, CheckpointError, Config, Learner, ResidualStack, checkpoint as checkpoints
from deepres.checkpoint import Checkpoint
from deepres.distributed import join

disk, BATCH, SIZES = Path(sys.argv[1]), 12, dict(state_dim=5, action_dim=2, goal_dim=3)
CONFIG = Config(critic_depth=4, actor_depth=4, width=32, feature_dim=8, batch_size=BATCH, num_envs=12)


def learner(config, ranks):
    return Learner(config, **SIZES, generator=torch.Generator().manual_seed(3), ranks=ranks)


def step(learner, rows):
    draw = torch.Generator().manual_seed(4)
    state, action, goal, noise = (torch.randn(BATCH, n, generator=draw)[rows] for n in (5, 2, 3, 2))
    metrics = learner.update(Batch(state, action, goal), noise)
    return {k: p.grad.clone() for k, p in learner.parameters().items()}, metrics


def apart(a, b):
    return max(float((a[k] - b[k]).norm() / b[k].norm().clamp_min(1e-6)) for k in a)


with join(Config(device="cpu")) as ranks:
    part = slice(ranks.rank * BATCH // ranks.size, (ranks.rank + 1) * BATCH // ranks.size)
    for form in ("forward", "backward", "symmetric", "binary"):
        for energy in ("norm", "dot"):
            config = replace(CONFIG, form=form, energy=energy)
            joint, joint_metrics = step(learner(config, type(ranks)()), slice(None))
            gathered, metrics = step(learner(ranks.share(replace(config, gather_negatives=True)), ranks), part)
            assert apart(gathered, joint) < 1e-5, (form, energy, apart(gathered, joint))
            told = ranks.mean({k: float(v) for k, v in metrics.items()})
            for name in ("critic_loss", "actor_loss", "alpha_loss", "logsumexp", "negative_logit"):
                assert abs(told[name] - joint_metrics[name]) < 1e-4, (form, energy, name)
            assert all(torch.equal(other[k], gathered[k]) for other in ranks.gather(gathered) for k in gathered)

    alone, _ = step(learner(CONFIG, ranks), part)
    shares = [step(learner(CONFIG, type(ranks)()), slice(r * BATCH // ranks.size, (r + 1) * BATCH // ranks.size))[0]
              for r in range(ranks.size)]
    mean = {k: sum(s[k] for s in shares) / ranks.size for k in alone}
    assert apart(alone, mean) < 1e-5 and apart(alone, step(learner(CONFIG, type(ranks)()), slice(None))[0]) > 1e-2

    skipping = learner(CONFIG, ranks)
    before = {k: p.detach().clone() for k, p in skipping.parameters().items()}
    noise = torch.full((part.stop - part.start, 2), float("nan") if ranks.rank == 1 else 0.0)
    metrics = skipping.update(Batch(*(torch.zeros(len(noise), n) for n in (5, 2, 3))), noise)
    assert metrics["skipped_steps"] == 1, "what one rank cannot use, none does"
    assert all(torch.equal(p, before[k]) for k, p in skipping.parameters().items())

    stack = ResidualStack(256, 4, generator=torch.Generator().manual_seed(5))  # its weight's gradient travels alone
    x = torch.randn(BATCH, 256, generator=torch.Generator().manual_seed(6))
    stack(x).square().mean().backward()
    joint = {k: p.grad.clone() for k, p in stack.named_parameters()}
    for reduce in ("ours", "ddp"):
        stack.zero_grad()
        wrapped = DistributedDataParallel(stack) if reduce == "ddp" else stack
        wrapped(x[part]).square().mean().backward()
        if reduce == "ours":
            ranks.average([p.grad for p in stack.parameters()])
        assert apart({k: p.grad for k, p in stack.named_parameters()}, joint) < 1e-5, reduce
    del wrapped  # it holds the process group

    def save(env_steps, numbers):
        own = {"ring": torch.full((numbers,), float(ranks.rank))}
        state = Checkpoint({}, {"env_steps": env_steps}, {}, {ranks.rank: own})
        return checkpoints.save(disk, state, keep=3, ranks=ranks)

    save(10, 100)
    try:
        save(20, 2_000_000 if ranks.rank == 1 else 100)
        raise AssertionError("8 MB fitted a disk of 4")
    except CheckpointError as error:
        assert "nothing there was lost" in str(error)  # in every rank, though one alone met the full disk
    save(30, 50)
    loaded = checkpoints.load_newest(disk, ranks)[1]
    assert sorted(os.listdir(disk)) == ["000000000010", "000000000030"] and list(loaded.shards) == [ranks.rank]
    assert torch.equal(loaded.shards[ranks.rank]["ring"], torch.full((50,), float(ranks.rank)))

    def refuse():
        if ranks.rank == ranks.size - 1:
            raise ValueError("the last one would not")

    try:
        with ranks.together():
            refuse()
    except ValueError as error:
        assert ranks.rank == 0 and str(error) == "the last one would not"
    except SystemExit as end:
        assert ranks.rank > 0 and end.code == 1
    assert ranks.any(ranks.rank == 1) and not ranks.any(False) and ranks.first(lambda: ranks.rank) == 0
    if ranks.rank == 0:
        print("all equal", ranks.size)
"""


def torchrun(size: int, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    root = Path(__file__).parents[1]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*command, *arguments], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )  # fmt: skip


@pytest.mark.parametrize("size", [2, 3])
def test_shares_give_the_joint_batchs_gradients_and_agree(tmp_path, small_disk, size):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    process = torchrun(size, str(tmp_path / "exchanges.py"), str(small_disk))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and f"all equal {size}" in output, output


@pytest.mark.parametrize(("saved", "size"), [(1, 3), (2, 1), (2, 3), (3, 2), (4, 6), (6, 4), (5, 5)])
def test_environments_are_dealt_anew_in_their_order(saved, size):
    """Each of the new ranks reads only what it owns, and all of them together own everything once."""
    whole = torch.arange(2 * 60).view(2, 60)
    parts = dict(enumerate(whole.tensor_split(saved, dim=1)))
    dealt = []
    for rank in range(size):
        held = {i: parts[i] for i in overlap(saved, rank, size)}
        dealt.append(deal(held, saved, rank, size, dim=1))
        assert dealt[-1].shape == (2, 60 // size) and len(held) <= -(-saved // size) + 1
    assert torch.equal(torch.cat(dealt, dim=1), whole)


def test_what_does_not_divide_is_one_sentence():
    with pytest.raises(ValueError, match="10 environments cannot be split evenly over 4 processes"):
        deal({0: torch.zeros(5), 1: torch.zeros(5)}, 2, 1, 4, dim=0)
    pair = Ranks(rank=1, size=2, local_rank=1, local_size=2)
    config = Config(num_envs=6, batch_size=8)
    assert (pair.share(config).num_envs, pair.share(config).batch_size) == (3, 4)
    assert ALONE.share(config) == config
    with pytest.raises(
        ValueError, match=r"num_envs is split evenly .* multiple of 2, at least 2, got 7; use 6 or"
    ):
        pair.share(replace(config, num_envs=7))
    with pytest.raises(
        ValueError, match=r"batch_size is split evenly .* multiple of 2, at least 4, got 2; use 4 or"
    ):
        pair.share(replace(config, batch_size=2))
    with pytest.raises(ValueError, match="several processes cannot share cuda:0"):
        pair.place(torch.device("cuda:0"))


def test_each_rank_has_its_own_seeds():
    seeds = [Ranks(rank=r, size=4).seed(s, *p) for r in range(4) for s in (0, 1) for p in ((), ("repair", 3))]
    assert len(set(seeds)) == 16 and all(0 <= s < 2**31 for s in seeds)
    assert ALONE.seed(7) == 7
