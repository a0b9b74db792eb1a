"""Relabelling: the laws it follows, the trajectories it never leaves, and what a row is rewarded for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from deepres import Batch
from deepres.data.relabel import FutureGoals, FutureTransitions, Hindsight, Sampler, truncated_geometric
from helpers.rings import GAMMA, draw, filled, trajectory


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


def test_goals_of_equal_chance():
    """FutureGoals without a gamma: every later step of the trajectory alike, the row's own excepted."""
    counts = _counts(FutureGoals(None), row=9)
    assert counts[0] == 0 and counts[31:].sum() == 0
    assert stats.chisquare(counts[1:31]).pvalue > 1e-3


def test_a_share_of_the_rows_keeps_the_commanded_goal():
    sampler = FutureGoals(GAMMA, commanded=0.3)
    assert sampler.columns == ("goals",) and FutureGoals(GAMMA).columns == ()
    batches = draw(filled(columns=sampler.columns), 100, 64, sampler=sampler)
    state, goal = _joined(batches, "state"), _joined(batches, "goal")
    kept = goal[:, 2] == -1
    assert stats.binomtest(int(kept.sum()), len(kept), 0.3).pvalue > 1e-3
    assert torch.equal(goal[kept], _commanded(state[kept]))
    assert torch.equal(goal[~kept][:, [0, 2]], state[~kept][:, [0, 2]])
    assert (goal[~kept, 1] >= state[~kept, 1]).all()
    assert set(batches[0].tensors()) == {"state", "action", "goal"}


# --- who falls ---


@pytest.mark.parametrize("window", [25, 1000])
@pytest.mark.parametrize("steps", [30, 50, 137])  # not full, just full, gone round the ring
def test_who_falls_and_when_is_known_up_to_the_windows_end(steps, window):
    """Trajectories of environment 1 end for good, the others' at a time limit."""
    sampler = FutureGoals(GAMMA, falls=True)
    buffer = filled(steps=steps, columns=sampler.columns)
    count = 3 * (min(window, steps, 50) - 1)
    (batch,) = draw(buffer, 1, count, window=window, sampler=sampler)  # one pass: whole windows
    env, t, traj = batch.state.long().T
    for e, now, trajectory_of, left, falls in zip(
        *(x.tolist() for x in (env, t, traj, batch.extra["left"], batch.extra["falls"])), strict=True
    ):
        end = int(t[env == e].max()) + 1  # the window's last step, which is no row itself
        last = now
        while last < end and _trajectory(e, last + 1) == trajectory_of:
            last += 1
        assert left == last - now
        assert falls == (e == 1 and _trajectory(e, last + 1) != trajectory_of)
    assert 0 < batch.extra["falls"].float().mean() < 1


def test_lags_follow_the_geometric_law_whatever_is_left():
    sampler = FutureGoals(GAMMA, falls=True)
    buffer = filled(columns=sampler.columns)
    batches = draw(buffer, 200, 64, sampler=sampler)
    lag = torch.cat([batch.extra["lag"] for batch in batches])
    assert lag.dtype == torch.int64 and lag.min() == 1
    law = np.array([(1 - GAMMA) * GAMMA ** (k - 1) for k in range(1, 31)] + [GAMMA**30])
    counts = torch.bincount(lag.clamp_max(31), minlength=32)[1:]
    assert stats.chisquare(counts.double().numpy(), law * len(lag)).pvalue > 1e-3
    with pytest.raises(ValueError, match="falls=True draws lags with the goals' gamma, got None; pass one"):
        FutureGoals(None, falls=True)


def _trajectory(env: int, t: int) -> int:
    return int(trajectory(torch.tensor([env]), torch.tensor([t])))


@pytest.mark.parametrize("terminal", [True, False])
def test_future_transitions_are_future_goals_with_what_followed(terminal):
    sampler = FutureTransitions(GAMMA, terminal=terminal)
    ring = filled(columns=sampler.columns, goal_slice=slice(1, 3))
    whole, pairs = (draw(ring, 4, 64, sampler=one) for one in (sampler, FutureGoals(GAMMA)))
    for batch, pair in zip(whole, pairs, strict=True):
        for name in ("state", "action", "goal"):
            assert torch.equal(getattr(batch, name), getattr(pair, name))
        env, t, traj = batch.state.T.long()
        there = torch.stack([env, t + 1, traj], dim=1).float()  # also where an episode ended
        ends = trajectory(env, t + 1) != traj
        assert torch.equal(batch.next_state, there) and (ends & (env != 1)).any()
        if terminal:
            assert torch.equal(batch.extra["next_achieved"], there[:, 1:])
            assert torch.equal(batch.terminal.bool(), ends & (env == 1))
        else:
            assert torch.equal(batch.extra["achieved"], batch.state[:, 1:]) and batch.terminal is None


# --- hindsight ---


@pytest.mark.parametrize("strategy", ["future", "final"])
@pytest.mark.parametrize("steps", [30, 50, 137])  # not full, just full, gone round the ring
def test_hindsights_goals_were_reached_at_the_row_or_later(steps, strategy):
    sampler = Hindsight(1.0, strategy)
    buffer = filled(steps=steps, columns=sampler.columns)
    for seed in range(10):
        (batch,) = draw(buffer, 1, 3 * 25, window=25, seed=seed, sampler=sampler)  # a pass: whole windows
        env, t, traj = batch.state.T
        goal_env, goal_t, goal_traj = batch.goal.T
        assert torch.equal(env, goal_env) and torch.equal(traj, goal_traj)
        for e in range(3):
            rows = t[env == e]
            assert rows.max() - rows.min() == 24 and len(rows.unique()) == 25
        of_one = (env[:, None] == env) & (traj[:, None] == traj)
        last = torch.where(of_one, t, -1).max(dim=1).values  # of the row's trajectory in its window
        assert (goal_t >= t + 1).all() and (goal_t <= last + 1).all()
        if strategy == "final":
            assert torch.equal(goal_t, last + 1)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_published_goals_are_those_of_trajectories_that_the_time_limit_cut(share):
    """Rows and goals of one trajectory, also beside trajectories that ended for good; judged where the row stands."""
    sampler = Hindsight(share, "published")
    buffer = filled(steps=137, columns=sampler.columns)
    relabelled = eligible = 0
    for seed in range(10):
        (batch,) = draw(buffer, 1, 3 * 25, window=25, seed=seed, sampler=sampler)  # a pass: whole windows
        env, t, traj = batch.state.T.long()
        last = torch.where((env[:, None] == env) & (traj[:, None] == traj), t, -1).max(dim=1).values
        cut = (trajectory(env, last + 1) != traj) & (env != 1)  # within the window, and by the time limit
        own = batch.goal[:, 2] != -1
        assert torch.equal(own, cut) if share == 1 else not (own & ~cut).any()
        assert torch.equal(batch.goal[own], torch.stack([env, last, traj], dim=1)[own].float())
        assert torch.equal(batch.goal[~own], _commanded(batch.state[~own]))
        assert torch.equal(batch.reward, (own & (last - t <= 1)).float())
        relabelled, eligible = relabelled + int(own.sum()), eligible + int(cut.sum())
    assert stats.binomtest(relabelled, eligible, share).pvalue > 1e-3 and eligible < 600


def test_hindsight_draws_every_later_step_alike_and_the_next_one_too():
    counts = _counts(Hindsight(1.0), row=9, rows=40)
    assert counts[0] == 0 and counts[32:].sum() == 0
    assert stats.chisquare(counts[1:32]).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8])
def test_a_row_keeps_goal_and_success_or_is_judged_anew(share):
    sampler = Hindsight(share)
    batches = draw(filled(columns=sampler.columns), 100, 64, sampler=sampler)
    state, goal, reward = (_joined(batches, name) for name in ("state", "goal", "reward"))
    _, t, _ = state.T
    kept = goal[:, 2] == -1
    assert stats.binomtest(int((~kept).sum()), len(kept), share).pvalue > 1e-3
    assert torch.equal(goal[kept], _commanded(state[kept]))
    assert torch.equal(reward[kept], (t[kept] % 3 == 0).float())
    # the verdict of the ring's task on the next state, t + 1: at the goal, or a step before it
    assert torch.equal(reward[~kept], (goal[~kept, 1] - (t[~kept] + 1) <= 1).float())
    assert share == 0 or (0 < reward[~kept].mean() < 1)


def test_the_last_row_of_a_trajectory_leads_to_its_own_last_state():
    """Not to the first one after the reset; a time limit is not terminal."""
    sampler = Hindsight(0.5, truncation=True)
    buffer = filled(columns=sampler.columns)
    batches = draw(buffer, 20, 150, sampler=sampler)
    state, there, terminal = (_joined(batches, name) for name in ("state", "next_state", "terminal"))
    env, t, traj = state.T.long()
    ends = trajectory(env, t + 1) != traj
    assert torch.equal(there, torch.stack([env, t + 1, traj], dim=1).float())
    assert torch.equal(terminal.bool(), ends & (env == 1))
    assert torch.equal(torch.cat([b.extra["truncation"] for b in batches]).bool(), ends & (env != 1))
    assert (ends & (env != 1)).any() and terminal.any()
    step_after = buffer.rings["states"][
        (t + 1) % 50, env
    ]  # what the ring holds there is another trajectory's
    assert (step_after[ends & (t < 49), 2] == traj[ends & (t < 49)] + 1).all()


def test_without_a_share_nothing_is_drawn_for_relabelling():
    sampler, generator = Hindsight(0.0), torch.Generator().manual_seed(0)
    assert sampler.columns == ("goals", "next_states", "successes", "terminals")
    ring = filled(columns=sampler.columns)
    assert sampler.draw(ring, 2, 8, window=1000, generator=generator).keys() == {"now"}
    ring.reached = None  # nobody asks for a verdict
    assert len(draw(ring, 2, 8, sampler=sampler)) == 2
    with pytest.raises(ValueError, match="Hindsight needs the task's verdict; make the ring with reached="):
        draw(ring, 1, 8, sampler=Hindsight(0.5))


def test_a_dense_reward_is_the_environments_and_of_the_commanded_goal():
    sampler = Hindsight(0.0, dense=True)
    assert "rewards" in sampler.columns and "successes" not in sampler.columns
    (batch,) = draw(filled(columns=sampler.columns), 1, 64, sampler=sampler)
    torch.testing.assert_close(batch.reward, batch.state[:, 1] / 10)
    assert torch.equal(batch.goal, _commanded(batch.state))
    with pytest.raises(
        ValueError, match=r"a dense reward is that of the commanded goal: share must be 0, got 0\.5"
    ):
        Hindsight(0.5, dense=True)


def test_a_sampler_asks_for_what_it_reads_and_no_more():
    hindsight = (
        Hindsight(0.0),
        Hindsight(0.5),
        Hindsight(0.0, dense=True),
        Hindsight(0.5, truncation=True),
    )
    for sampler in (FutureGoals(GAMMA), FutureGoals(None, 0.5), FutureTransitions(GAMMA), *hindsight):
        whole = filled(columns=sampler.columns)
        before = {name: ring.clone() for name, ring in whole.rings.items()}
        draw(whole, 3, 16, sampler=sampler)
        assert all(torch.equal(ring, before[name]) for name, ring in whole.rings.items())
        for name in sampler.columns:
            lacks = filled(columns=[c for c in sampler.columns if c != name])
            with pytest.raises(KeyError, match=name):
                draw(lacks, 3, 16, sampler=sampler)


def _counts(sampler: Sampler, row: int, rows: int = 39) -> np.ndarray:
    """How often the goal of step `row`, in one trajectory of 40 steps, lies 0, 1, 2, ... steps ahead."""
    buffer = filled(num_envs=1, capacity=40, steps=40, episode=10_000, columns=sampler.columns)
    counts = torch.zeros(42)
    for batch in draw(buffer, 2000, rows, sampler=sampler):
        t, goal_t = batch.state[:, 1], batch.goal[:, 1]
        counts += torch.bincount((goal_t - t)[t == row].long(), minlength=42)
    assert counts.sum() == 2000
    return counts.double().numpy()


def _joined(batches: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([batch.tensors()[name] for batch in batches])


def _commanded(state: torch.Tensor) -> torch.Tensor:
    return torch.stack([state[:, 0], 1000 + state[:, 2], -torch.ones(len(state))], dim=1)
