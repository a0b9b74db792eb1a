"""Goals by mixed laws: exact frequencies on tiny episodes, which they never leave unless they are drawn anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from deepres.data.batch import Batch
from deepres.data.datasets import Dataset
from deepres.data.episodes import Episodes
from deepres.data.goal_laws import ANYWHERE, LATER_OR_ANYWHERE, TD_VALUES, GoalLaw, MixedGoals
from helpers.rings import filled

L, E, GAMMA, DRAWN = 5, 3, 0.7, 40_000
ROWS = L + 1


def episodes() -> Episodes:
    """Row t of episode e: state (e, t, e * ROWS + t), action its row / 100; a goal is the row's number."""
    row = np.arange(E * ROWS, dtype=np.float32)
    states = np.stack([row // ROWS, row % ROWS, row], axis=1)
    return Episodes(Dataset(states, row[:, None] / 100, ROWS), slice(2, 3), MixedGoals.columns)


def drawn(sampler: MixedGoals, ring=None, count: int = DRAWN, seed: int = 0, window: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    (batch,) = sampler.batches(ring or episodes(), 1, count, window=window, generator=generator)
    return batch


def expected(law: GoalLaw, t: int, clipped: bool) -> np.ndarray:
    """[E * ROWS] P(goal | row t of episode 1), summed up from the law's words, step by step."""
    chance, first = np.zeros(E * ROWS), ROWS
    last = L - 1 if clipped else L  # the last row that a trajectory goes on to
    chance[first + t] += law.current
    for e in range(E):
        chance[e * ROWS : e * ROWS + L] += law.anywhere / (E * L)
    later = range(t + 1, last + 1)
    if not later:
        chance[first + t] += law.geometric + law.uniform
        return chance
    soon = np.array([(1 - GAMMA) * GAMMA ** (row - t - 1) for row in later])
    alike = np.ones(len(later))
    if clipped:
        soon[-1] = GAMMA ** (len(later) - 1)
        if len(later) > 1:
            alike[[0, -1]] = 0.5
    for place, row in enumerate(later):
        chance[first + row] += (
            law.geometric * soon[place] / soon.sum() + law.uniform * alike[place] / alike.sum()
        )
    return chance


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("law", [TD_VALUES, LATER_OR_ANYWHERE, GoalLaw(0.1, 0.4, 0.5), ANYWHERE])
def test_goals_of_values_and_policy_follow_their_laws(law, clipped):
    other = GoalLaw(geometric=1.0) if law is TD_VALUES else TD_VALUES
    for sampler, name in (
        (MixedGoals(law, gamma=GAMMA, clipped=clipped), "goal"),
        (MixedGoals(other, law, gamma=GAMMA, clipped=clipped), "actor_goal"),
    ):
        batch = drawn(sampler)
        tensors = {"goal": batch.goal, **batch.extra}
        episode, t, _ = batch.state.T.long()
        goal = tensors[name][:, 0].long()
        assert set(tensors) == {"goal", name}
        assert torch.equal(torch.bincount(t).bool(), torch.ones(L, dtype=torch.bool))  # the last row is none
        for at in range(L):
            mine = (episode == 1) & (t == at)
            seen = torch.bincount(goal[mine], minlength=E * ROWS).numpy()
            chance = expected(law, at, clipped)
            assert seen[chance == 0].sum() == 0  # of another episode, before the row, beyond the end
            likely = chance > 0
            if likely.sum() > 1:
                assert stats.chisquare(seen[likely], chance[likely] * seen.sum()).pvalue > 1e-3


def test_rows_are_rewarded_where_their_goal_is_themselves():
    batch = drawn(MixedGoals(TD_VALUES, LATER_OR_ANYWHERE, gamma=GAMMA))
    row, t = batch.state[:, 2], batch.state[:, 1]
    at_goal = batch.goal[:, 0] == row
    assert torch.equal(batch.reward, torch.where(at_goal, 0.0, -1.0)) and 0.2 < at_goal.float().mean() < 0.5
    assert at_goal[t == L - 1].float().mean() > 0.65  # no later transition: geometric goals are its own state
    assert torch.equal(batch.next_state[:, 2], row + 1) and torch.equal(batch.action[:, 0], row / 100)
    assert batch.terminal.sum() == 0
    apart = batch.goal != batch.extra["actor_goal"]
    assert 0.5 < apart.float().mean() < 1  # two draws a row


def test_hierarchies_are_led_towards_the_policys_goal():
    for law in (GoalLaw(current=0.3, uniform=0.7), ANYWHERE):
        batch = drawn(MixedGoals(TD_VALUES, law, gamma=GAMMA, subgoal=2))
        t, row = batch.state[:, 1], batch.state[:, 2]
        near, waypoint, goal = (batch.extra[name][:, 0] for name in ("near", "waypoint", "actor_goal"))
        assert torch.equal(near, row + (L - 1 - t).clamp(max=2))
        # what lies anywhere is led to along the row's own trajectory, as far as it goes
        assert torch.equal(waypoint, near if law is ANYWHERE else torch.minimum(goal, row + 2))
        assert torch.equal(batch.extra["waypoint_state"][:, 2], waypoint)
    with pytest.raises(ValueError, match=r"subgoal= leads towards the policy's goals; pass policy="):
        MixedGoals(TD_VALUES, subgoal=2)


@pytest.mark.parametrize("steps", [30, 137])  # not full, gone round the ring
def test_an_online_ring_serves_too_and_the_same_state_gives_the_same_bits(steps):
    sampler = MixedGoals(GoalLaw(0.2, 0.3, 0.3, 0.2), LATER_OR_ANYWHERE, gamma=GAMMA, subgoal=3)
    ring = filled(steps=steps, columns=sampler.columns)
    batch = drawn(sampler, ring, 2000, window=25)
    assert (batch.goal[:, 1] >= max(0, steps - 50)).all() and (batch.goal[:, 1] < steps).all()
    same = (batch.goal[:, [0, 2]] == batch.state[:, [0, 2]]).all(dim=1)
    assert 0.75 < same.float().mean() < 1
    waypoint = batch.extra["waypoint_state"]
    assert torch.equal(waypoint[:, [0, 2]], batch.state[:, [0, 2]])
    assert ((waypoint - batch.state)[:, 1] <= 3).all() and (waypoint[:, 1] >= batch.state[:, 1]).all()
    generator = torch.Generator().manual_seed(1)
    held = generator.get_state()
    first, second = (
        list(sampler.batches(ring, 2, 64, window=25, generator=generator.set_state(held))) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_shares_that_are_none_are_refused():
    for shares in ((0.5, 0.2, 0.0, 0.0), (1.5, -0.5, 0.0, 0.0)):
        with pytest.raises(ValueError, match="must be at least 0 and add up to 1, got"):
            GoalLaw(*shares)
