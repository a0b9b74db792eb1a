"""Several processes: the joint batch's gradients from shares of it, and a run that they make together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepres.config import Config
from deepres.ranks import ALONE, Ranks, deal, overlap
from deepres.training.run import Run
from helpers.tiny_runs import PROGRAMS, SIZES, torchrun


def test_shares_give_the_joint_batchs_gradients_and_agree(small_disk):
    size = 3
    process = torchrun(size, str(PROGRAMS / "exchanges.py"), str(small_disk))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and f"all equal {size}" in output, output


def test_ranks_that_train_sac_stay_equal_down_to_its_slow_critics(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(Config("sac", **SIZES, hindsight=0.5).to_json())
    process = torchrun(2, str(PROGRAMS / "agrees.py"), str(file))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "all equal 2" in output, output
    for network in ("actor", "q", "q_slow"):
        assert f"parameters/{network}.trunk.stack.weight" in output, output


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


def test_every_column_of_a_ring_is_dealt_with_its_environment():
    """What two processes had saved of a run of SAC goes on in one."""
    config = Config("sac", **SIZES)
    run = Run(config)
    run.round()
    whole, halves = run.state(), [{}, {}]
    for name, tensor in whole.shards[0].items():
        axis = 1 if name.startswith("buffer/") else 0
        for i, half in enumerate(halves):
            half[name] = tensor if name == "generator" else tensor.chunk(2, dim=axis)[i]
    alone = Run(config, restored=replace(whole, shards=dict(enumerate(halves)), size=2))
    held, dealt = run.buffer.state_tensors(), alone.buffer.state_tensors()
    assert held.keys() == dealt.keys() > {"goals", "next_states", "successes", "terminals"}
    assert all(torch.equal(held[name], dealt[name]) for name in held)
    assert torch.equal(run.standing.obs, alone.standing.obs) and alone.dealt_from == 2
    assert alone.round()["skipped_steps"] == 0


def test_a_run_goes_on_on_another_kind_of_device():
    """Their generators have states of other lengths, a GPU's 16 bytes: the numbers begin anew, the rest goes on."""
    config = Config("sac", **SIZES)
    run = Run(config)
    run.round()
    whole = run.state()
    shard = whole.shards[0] | {"generator": torch.zeros(16, dtype=torch.uint8)}
    moved, same = Run(config, restored=replace(whole, shards={0: shard})), Run(config, restored=whole)
    assert moved.moved and not same.moved and torch.equal(moved.standing.obs, same.standing.obs)
    assert not torch.equal(moved.generator.get_state(), same.generator.get_state())
    assert moved.round()["skipped_steps"] == 0


def test_what_does_not_divide_is_one_sentence():
    with pytest.raises(ValueError, match="10 environments cannot be split evenly over 4 processes"):
        deal({0: torch.zeros(5), 1: torch.zeros(5)}, 2, 1, 4, dim=0)
    pair = Ranks(rank=1, size=2, local_rank=1, local_size=2)
    config = Config(num_envs=6, batch_size=8)
    share = pair.share(config)
    assert (share.env.num_envs, share.schedule.batch_size) == (3, 4)
    assert ALONE.share(config) == config
    with pytest.raises(
        ValueError, match=r"num_envs is split evenly .* multiple of 2, at least 2, got 7; use 6 or"
    ):
        pair.share(config.replace(num_envs=7))
    with pytest.raises(
        ValueError, match=r"batch_size is split evenly .* multiple of 2, at least 4, got 2; use 4 or"
    ):
        pair.share(config.replace(batch_size=2))
    with pytest.raises(ValueError, match="several processes cannot share cuda:0"):
        pair.place(torch.device("cuda:0"))


def test_each_rank_has_its_own_seeds():
    seeds = [Ranks(rank=r, size=4).seed(s, *p) for r in range(4) for s in (0, 1) for p in ((), ("repair", 3))]
    assert len(set(seeds)) == 16 and all(0 <= s < 2**31 for s in seeds)
    assert ALONE.seed(7) == 7
