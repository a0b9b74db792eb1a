"""The ring: what it deals, what it keeps of a number, how it is saved."""

from __future__ import annotations

import pytest
import torch

from deepres import Config, Sizes
from deepres.data.batch import Unroll
from deepres.data.relabel import FutureGoals
from deepres.data.replay import DTYPES, ReplayBuffer, row_bytes
from deepres.data.upload import uploaded
from deepres.training.memory_plan import plan
from helpers.rings import GAMMA, SIZES, draw, filled


def test_a_pass_deals_every_transition_once():
    buffer = filled(num_envs=2, capacity=50, steps=50)
    batches = draw(buffer, 7, 14)  # 2 * 49 transitions, dealt in full
    dealt = torch.cat([b.state[:, :2] for b in batches])
    assert len(torch.unique(dealt, dim=0)) == len(dealt) == 98
    again = draw(buffer, 8, 14)  # a second pass begins with the eighth batch
    assert len(torch.unique(torch.cat([b.state[:, :2] for b in again]), dim=0)) == 98


def test_a_batch_larger_than_a_pass_is_filled_from_the_next():
    (batch,) = draw(filled(num_envs=1, capacity=10, steps=10), 1, 25)
    assert batch.state.shape == (25, 3)
    _, counts = torch.unique(batch.state[:, 1], return_counts=True)
    assert (
        len(counts) == 9 and counts.min() >= 2 and counts.max() <= 3
    )  # 9 transitions, dealt 2 and 7/9 times


def test_windows_reach_every_part_of_the_ring():
    buffer = filled(num_envs=1, capacity=50, steps=137)
    seen = torch.cat([b.state[:, 1] for s in range(200) for b in draw(buffer, 1, 9, window=10, seed=s)])
    assert seen.min() == 87 and seen.max() == 135


def test_same_seed_same_batches():
    a, b = (draw(filled(), 3, 16, seed=4) for _ in range(2))
    assert all(
        torch.equal(x.goal, y.goal) and torch.equal(x.state, y.state) for x, y in zip(a, b, strict=True)
    )
    assert not torch.equal(a[0].state, draw(filled(), 1, 16, seed=5)[0].state)


def test_saved_ring_draws_the_same():
    buffer, other = filled(steps=137), ReplayBuffer(3, 50, SIZES, slice(0, 3))
    other.load_state_tensors({k: v.clone() for k, v in buffer.state_tensors().items()}, buffer.inserted)
    assert all(
        torch.equal(x.goal, y.goal) for x, y in zip(draw(buffer, 5, 8), draw(other, 5, 8), strict=True)
    )


@pytest.mark.parametrize(("name", "lost"), [("fp32", 0.0), ("bf16", 2**-8), ("fp16", 2**-11)])
def test_sixteen_bits_lose_what_is_stated(name, lost):
    sizes, sampler = Sizes(5, 3, 2), FutureGoals(GAMMA)
    buffer = ReplayBuffer(2, 50, sizes, slice(0, 2), dtype=DTYPES[name])
    g = torch.Generator().manual_seed(0)
    states, actions = (torch.randn(50, 2, n, generator=g) * scale for n, scale in ((5, 300), (3, 0.3)))
    ids = torch.ones(50, 2, dtype=torch.int32)
    buffer.insert(Unroll(states, actions, ids, {}, 0.0))
    pairs = sampler.draw(buffer, 6, 16, window=1000, generator=g)
    for i in range(6):
        batch = sampler.batch(buffer, {where: one[i] for where, one in pairs.items()})
        truths = (states.flatten(0, 1)[pairs["now"][i]], actions.flatten(0, 1)[pairs["now"][i]])
        truths += (states.flatten(0, 1)[pairs["later"][i], :2],)
        for got, truth in zip((batch.state, batch.action, batch.goal), truths, strict=True):
            assert got.dtype == torch.float32
            assert ((got - truth).abs() <= lost * truth.abs() + 2**-24).all()
    ring = buffer.state_tensors()
    assert ring["states"].dtype == DTYPES[name]
    config = Config(num_envs=2, buffer_steps=50, min_buffer_steps=50, unroll_length=10, buffer_dtype=name)
    held = sum(t.nbytes for t in ring.values())
    assert (
        plan(config, sizes, device="cpu").parts["replay buffer"]
        == held
        == 100 * row_bytes(sizes, (), DTYPES[name])
    )


def test_a_ring_gone_round_holds_the_last_steps():
    buffer = filled(num_envs=2, capacity=30, steps=130)
    held = buffer.rings["states"][:, 0, 1].roll(-(130 % 30))
    assert held.tolist() == list(range(100, 130))


def test_a_ring_reads_what_another_dtype_saved():
    whole, half = filled(), ReplayBuffer(3, 50, SIZES, slice(0, 3), dtype=torch.bfloat16)
    half.load_state_tensors(whole.state_tensors(), whole.inserted)
    again = ReplayBuffer(3, 50, SIZES, slice(0, 3))
    again.load_state_tensors(half.state_tensors(), half.inserted)
    assert torch.equal(again.rings["states"], whole.rings["states"].bfloat16().float())
    assert torch.equal(again.rings["traj_ids"], whole.rings["traj_ids"])


@pytest.mark.gpu
@pytest.mark.parametrize("place", [{"pinned": True}, {"device": "cuda"}], ids=["host memory", "gpu"])
def test_a_ring_feeds_the_gpu(place):
    whole, generator = filled(), torch.Generator("cuda").manual_seed(0)
    ring = ReplayBuffer(3, 50, SIZES, slice(0, 3), **place)
    ring.load_state_tensors(whole.state_tensors(), whole.inserted)
    assert ring.rings["states"].is_pinned() or ring.rings["states"].is_cuda
    batches = FutureGoals(GAMMA).batches(ring, 5, 16, window=1000, generator=generator)
    for batch in uploaded(batches, torch.device("cuda")):
        env, t, traj = batch.state.T
        assert (
            batch.goal.is_cuda and torch.equal(batch.goal[:, 0], env) and torch.equal(batch.goal[:, 2], traj)
        )
        assert (batch.goal[:, 1] >= t).all() and torch.equal(batch.action[:, 0].cpu(), t.cpu() / 1000)


def test_what_does_not_fit_is_refused():
    buffer = ReplayBuffer(2, 10, SIZES, slice(0, 2))
    with pytest.raises(ValueError, match="must hold at least 2 steps of each environment, got 0"):
        draw(buffer, 1, 4)
    with pytest.raises(ValueError, match="at most 10 steps fit the ring at once, got 11; insert fewer"):
        ids = torch.zeros(11, 2, dtype=torch.int32)
        buffer.insert(Unroll(torch.zeros(11, 2, 3), torch.zeros(11, 2, 1), ids, {}, 0.0))
    with pytest.raises(ValueError, match=r"states must have shape \[4, 2, 3\], got \[4, 3, 3\]"):
        buffer.load_state_tensors({"states": torch.zeros(4, 3, 3)}, 4)
    assert buffer.inserted == 0
