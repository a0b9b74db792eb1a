"""Relabelling: the law it follows, the trajectories it never leaves, and dealing without replacement."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from deepres.buffer import DTYPES, ReplayBuffer, buffer_bytes, truncated_geometric, uploaded
from deepres.config import Config

GAMMA = 0.9


def filled(num_envs=3, capacity=50, steps=50, episode=20, goal_slice=slice(0, 3)) -> ReplayBuffer:
    """A buffer whose states spell (env, absolute step, trajectory), so that a pair tells where it came from."""
    buffer = ReplayBuffer(num_envs, capacity, 3, 1, goal_slice)
    for first in range(0, steps, 10):
        count = min(10, steps - first)
        t = torch.arange(first, first + count)[:, None].expand(count, num_envs)
        env = torch.arange(num_envs)[None].expand(count, num_envs)
        # environments reset at different times, and one far less often
        ids = (t + 7 * env) // torch.tensor([episode, episode // 2, 10 * episode])[:num_envs] + 1
        states = torch.stack([env, t, ids], dim=-1).float()
        buffer.insert(states, states[..., 1:2] / 1000, ids.int())
    return buffer


def draw(buffer: ReplayBuffer, count: int, batch_size: int, window: int = 1000, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return list(buffer.batches(count, batch_size, window=window, gamma=GAMMA, generator=generator))


@pytest.mark.parametrize("steps", [30, 50, 137])  # not full, just full, gone round the ring
def test_goals_lie_ahead_in_the_same_trajectory(steps):
    buffer = filled(steps=steps)
    oldest = max(0, steps - 50)
    for batch in draw(buffer, 40, 64, window=25):
        env, t, traj = batch.state.T
        goal_env, goal_t, goal_traj = batch.goal.T
        assert torch.equal(env, goal_env) and torch.equal(traj, goal_traj)
        assert (t >= oldest).all() and (goal_t < steps).all()
        assert torch.equal(batch.action[:, 0], t / 1000)
        ahead = goal_t - t
        assert (ahead >= 0).all() and (ahead < 25).all()
        # a step pairs with itself only when nothing of its trajectory follows in its window
        for e, first, d in zip(env.tolist(), t.tolist(), ahead.tolist(), strict=True):
            if d == 0:
                later = (first + 1 + 7 * e) // (20, 10, 200)[int(e)] + 1
                assert later != (first + 7 * e) // (20, 10, 200)[int(e)] + 1


@pytest.mark.parametrize("longest", [1, 2, 7, 60])
def test_offsets_follow_the_truncated_geometric_law(longest):
    generator = torch.Generator().manual_seed(longest)
    uniform = torch.rand(200_000, dtype=torch.float64, generator=generator)
    d = truncated_geometric(uniform, torch.full((200_000,), longest), GAMMA)
    law = torch.tensor([GAMMA**k for k in range(1, longest + 1)], dtype=torch.float64)
    expected = law / law.sum() * len(d)
    observed = torch.bincount(d, minlength=longest + 1)
    assert observed[0] == 0 and len(observed) == longest + 1
    if longest > 1:
        assert stats.chisquare(observed[1:].numpy(), expected.numpy()).pvalue > 1e-3


def test_offsets_in_whole_batches_follow_the_law():
    """The same law through the ring: one long trajectory, so every pair's longest offset is known."""
    buffer = filled(num_envs=1, capacity=40, steps=40, episode=10_000)
    counts = torch.zeros(40)
    for batch in draw(buffer, 4000, 39):
        t, goal_t = batch.state[:, 1], batch.goal[:, 1]
        counts += torch.bincount((goal_t - t)[t == 9].long(), minlength=40)
    law = torch.tensor([GAMMA**k for k in range(1, 31)], dtype=torch.float64)
    assert counts[0] == 0 and counts[31:].sum() == 0 and counts.sum() == 4000
    expected = law / law.sum() * 4000  # 17 or more in every bin
    assert stats.chisquare(counts[1:31].double().numpy(), expected.numpy()).pvalue > 1e-3


def test_the_edge_draws_of_the_law():
    below_one = torch.tensor([0.0, torch.finfo(torch.float64).tiny, 1 - 2**-53], dtype=torch.float64)
    assert truncated_geometric(below_one, torch.tensor([5, 5, 5]), 0.99).tolist() == [1, 1, 5]
    assert truncated_geometric(below_one, torch.tensor([0, 0, 0]), 0.99).tolist() == [0, 0, 0]


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
    buffer, other = filled(steps=137), ReplayBuffer(3, 50, 3, 1, slice(0, 3))
    other.load_state_tensors({k: v.clone() for k, v in buffer.state_tensors().items()}, buffer.inserted)
    assert all(
        torch.equal(x.goal, y.goal) for x, y in zip(draw(buffer, 5, 8), draw(other, 5, 8), strict=True)
    )


@pytest.mark.parametrize(("name", "lost"), [("fp32", 0.0), ("bf16", 2**-8), ("fp16", 2**-11)])
def test_sixteen_bits_lose_what_is_stated(name, lost):
    buffer = ReplayBuffer(2, 50, 5, 3, slice(0, 2), dtype=DTYPES[name])
    g = torch.Generator().manual_seed(0)
    states, actions = (torch.randn(50, 2, n, generator=g) * scale for n, scale in ((5, 300), (3, 0.3)))
    ids = torch.ones(50, 2, dtype=torch.int32)
    buffer.insert(states, actions, ids)
    pairs = buffer.draw(6, 16, window=1000, gamma=GAMMA, generator=g)
    for i in range(6):
        batch = buffer.batch(pairs, i)
        truths = (states.flatten(0, 1)[pairs.now[i]], actions.flatten(0, 1)[pairs.now[i]])
        truths += (states.flatten(0, 1)[pairs.later[i], :2],)
        for got, truth in zip((batch.state, batch.action, batch.goal), truths, strict=True):
            assert got.dtype == torch.float32
            assert ((got - truth).abs() <= lost * truth.abs() + 2**-24).all()
    ring = buffer.state_tensors()
    assert ring["states"].dtype == DTYPES[name]
    config = Config(num_envs=2, buffer_steps=50, min_buffer_steps=50, unroll_length=10, buffer_dtype=name)
    assert buffer_bytes(config, state_dim=5, action_dim=3) == sum(t.nbytes for t in ring.values())


def test_a_ring_gone_round_holds_the_last_steps():
    buffer = filled(num_envs=2, capacity=30, steps=130)
    held = buffer.states[:, 0, 1].roll(-(130 % 30))
    assert held.tolist() == list(range(100, 130))


def test_a_ring_reads_what_another_dtype_saved():
    whole, half = filled(), ReplayBuffer(3, 50, 3, 1, slice(0, 3), dtype=torch.bfloat16)
    half.load_state_tensors(whole.state_tensors(), whole.inserted)
    again = ReplayBuffer(3, 50, 3, 1, slice(0, 3))
    again.load_state_tensors(half.state_tensors(), half.inserted)
    assert torch.equal(again.states, whole.states.bfloat16().float())  # whole numbers below 256 survive
    assert torch.equal(again.traj_ids, whole.traj_ids)


@pytest.mark.gpu
def test_a_ring_in_host_memory_feeds_the_gpu():
    whole, generator = filled(), torch.Generator("cuda").manual_seed(0)
    ring = ReplayBuffer(3, 50, 3, 1, slice(0, 3), pinned=True)
    ring.load_state_tensors(whole.state_tensors(), whole.inserted)
    assert ring.states.is_pinned()
    batches = ring.batches(5, 16, window=1000, gamma=GAMMA, generator=generator)
    for batch in uploaded(batches, torch.device("cuda")):
        env, t, traj = batch.state.T
        assert (
            batch.goal.is_cuda and torch.equal(batch.goal[:, 0], env) and torch.equal(batch.goal[:, 2], traj)
        )
        assert (batch.goal[:, 1] >= t).all() and torch.equal(batch.action[:, 0], t / 1000)


def test_what_does_not_fit_is_refused():
    buffer = ReplayBuffer(2, 10, 3, 1, slice(0, 2))
    with pytest.raises(ValueError, match="must hold at least 2 steps of each environment, got 0"):
        draw(buffer, 1, 4)
    with pytest.raises(ValueError, match="at most 10 steps fit the ring at once, got 11; insert fewer"):
        buffer.insert(torch.zeros(11, 2, 3), torch.zeros(11, 2, 1), torch.zeros(11, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"states must have shape \[4, 2, 3\], got \[4, 3, 3\]"):
        buffer.load_state_tensors({"states": torch.zeros(4, 3, 3)}, 4)
    assert buffer.inserted == 0
