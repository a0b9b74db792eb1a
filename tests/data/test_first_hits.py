"""First hits against a search written out step by step, the laws of their goals, what time limits and falls leave."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from deepres import Batch, Sizes
from deepres.data.batch import Unroll
from deepres.data.first_hits import LEVELS, FirstHits, GoalMix
from deepres.data.replay import ReplayBuffer

STEPS, ENVS, BINS = 60, 3, 25
MIX = GoalMix(later=0.5, current=0.1, gamma=0.9)
EDGES = (0, 1, 2, 4, 9, 25)


def ring_of_walks(threshold: float | None = None) -> ReplayBuffer:
    """Walks over a small square, so that trajectories come back to where they were and pass each other's places.

    A state is (x, y, env, step, trajectory); an action its step / 1000 in both numbers. Trajectories have 17 steps in
    environments 0 and 2 and 11 in 1; those of environment 1 end by a fall, the others at a time limit, and the last one
    of environment 2 by a fall at the ring's last step.
    """
    g = torch.Generator().manual_seed(0)
    ring = ReplayBuffer(ENVS, 50, Sizes(5, 2, 2), slice(0, 2), FirstHits.columns, threshold=threshold)
    t, env = torch.arange(STEPS)[:, None].expand(STEPS, ENVS), torch.arange(ENVS).expand(STEPS, ENVS)
    length = torch.where(env == 1, 11, 17)
    ids = (t / length).long()
    place = torch.randint(-1, 2, (STEPS, ENVS, 2), generator=g).cumsum(0).remainder(6).float()
    ends = (t + 1) % length == 0
    terminals = (ends & (env == 1)) | ((t == STEPS - 1) & (env == 2))
    states = torch.cat([place, torch.stack([env, t, ids], dim=2).float()], dim=2)
    for part in (slice(0, 25), slice(25, STEPS)):
        actions = (t[part, :, None] / 1000).expand(-1, -1, 2)
        ring.insert(Unroll(states[part], actions, ids[part].int(), {"terminals": terminals[part]}, 0.0))
    return ring


def drawn(
    sampler: FirstHits, count: int = 4, batch_size: int = 100, window: int = 50, seed: int = 0
) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return list(sampler.batches(ring_of_walks(), count, batch_size, window=window, generator=g))


def place_of(ring: ReplayBuffer, env: int, step: int) -> list[float]:
    return ring.rings["states"][step % 50, env, :2].tolist()


def expected(ring: ReplayBuffer, row: dict[str, float | list[list[float]]], radius: float, censor: str):
    """(lag, event, falls, inside share by bin, observed by bin) of a row by a walk along its trajectory."""
    env, step, traj, goal = row["env"], row["step"], row["traj"], row["goal"]
    end = step
    while end + 1 < STEPS and ring.rings["states"][(end + 1) % 50, env, 4] == traj:
        end += 1
    falls = bool(ring.rings["terminals"][end % 50, env])
    reach = max(0, end - step - (len(goal) - 1))
    worst = [
        max(math.dist(place_of(ring, env, min(step + lag + j, end)), point) for j, point in enumerate(goal))
        for lag in range(reach + 1)
    ]
    hits = [lag for lag, distance in enumerate(worst) if distance <= radius]
    if hits:
        lag = min(hits[0], BINS - 1)
    else:
        lag = BINS if censor == "horizon" or falls else min(reach + 1, BINS)
    inside = [sum(distance <= radius * share for share in LEVELS) / 3 for distance in worst]
    seen = (inside + [0.0] * BINS * falls)[:BINS]
    bins = [seen[a:b] for a, b in pairwise(EDGES)]
    return lag, bool(hits), falls, [sum(b) / max(1, len(b)) for b in bins], [float(len(b) > 0) for b in bins]


@pytest.mark.parametrize("censor", ["horizon", "observed"])
@pytest.mark.parametrize(("radius", "sequence"), [(0.0, 1), (1.0, 1), (2.0, 1), (1.5, 3)])
def test_a_search_along_the_trajectory_finds_the_same(radius, sequence, censor):
    ring = ring_of_walks()
    sampler = FirstHits(BINS, radius=radius, mix=MIX, censor=censor, sequence=sequence, edges=EDGES)
    kinds = set()
    for batch in drawn(sampler):
        extra = batch.extra
        goals = extra["sequence"].view(-1, sequence, 2) if sequence > 1 else batch.goal[:, None]
        assert torch.equal(goals[:, 0], batch.goal)
        for i in range(len(batch.state)):
            env, step, traj = batch.state[i, 2:].long().tolist()
            row = {"env": env, "step": step, "traj": traj, "goal": goals[i].tolist()}
            lag, event, falls, inside, observed = expected(ring, row, radius, censor)
            assert (extra["lag"][i], extra["event"][i], extra["falls"][i]) == (lag, event, falls)
            far = (goals[i] - goals).norm(dim=2).amax(dim=1) > radius
            assert torch.equal(extra["apart"][i], far)
            assert extra["occupancy"][i].tolist() == pytest.approx(inside)
            assert extra["observed"][i].tolist() == observed
            kinds.add((event, falls, lag == BINS))
    wanted = {
        (True, False, False),
        (True, True, False),
        (False, True, True),
        (False, False, censor == "horizon"),
    }
    assert wanted <= kinds


def test_the_search_stops_where_the_answer_is_known():
    """Without occupancy it ends at the first hit; the labels are the same."""
    whole, short = (drawn(FirstHits(BINS, radius=1.0, mix=MIX, edges=edges)) for edges in (EDGES, ()))
    for one, other in zip(whole, short, strict=True):
        assert torch.equal(one.extra["lag"], other.extra["lag"]) and "occupancy" not in other.extra


def test_windows_bound_what_is_seen():
    """In windows of 10 steps nothing further than 9 lags is a goal, a hit or observed."""
    sampler = FirstHits(
        BINS, radius=0.0, mix=GoalMix(later=1.0, current=0.0, gamma=0.99), censor="observed", edges=EDGES
    )
    extra = [batch.extra for batch in drawn(sampler, window=10)]
    lag = torch.cat([e["lag"] for e in extra])
    assert torch.cat([e["event"] for e in extra]).all() and lag.max() <= 9
    falls, seen = (torch.cat([e[name] for e in extra]) for name in ("falls", "observed"))
    assert seen[~falls, -1].sum() < len(seen)
    assert seen[falls].all()


def test_long_lags_are_put_into_the_last_bin():
    mix = GoalMix(later=1.0, current=0.0, gamma=0.999)
    few, many = (
        torch.cat([batch.extra["lag"] for batch in drawn(FirstHits(bins, radius=0.0, mix=mix))])
        for bins in (6, 100)
    )
    assert many.max() > 10 and torch.equal(few, many.clamp(max=5))


def test_goals_come_in_their_shares():
    """In a ring of one trajectory whose points are all different, a goal tells which step it is of."""
    ring = ReplayBuffer(1, 40, Sizes(1, 1, 1), slice(0, 1), FirstHits.columns, threshold=0.1)
    t = torch.arange(40.0)[:, None, None]
    ring.insert(Unroll(t, t, torch.zeros(40, 1).int(), {"terminals": torch.zeros(40, 1).bool()}, 0.0))
    mix, counts = GoalMix(later=0.6, current=0.1, gamma=0.8), torch.zeros(40)
    batches = FirstHits(40, mix=mix).batches(
        ring, 5000, 39, window=40, generator=torch.Generator().manual_seed(3)
    )
    for batch in batches:
        assert torch.equal(batch.extra["event"], batch.goal[:, 0] >= batch.state[:, 0])
        assert torch.equal(
            batch.extra["lag"][batch.extra["event"]],
            (batch.goal - batch.state)[batch.extra["event"], 0].long(),
        )
        counts += torch.bincount(batch.goal[batch.state[:, 0] == 30, 0].long(), minlength=40)
    law = torch.tensor([0.8**d for d in range(1, 10)], dtype=torch.float64)
    chances = torch.full((40,), 0.3 / 40, dtype=torch.float64)
    chances[30] += 0.1
    chances[31:] += 0.6 * law / law.sum()
    assert stats.chisquare(counts.numpy(), (chances * 5000).numpy()).pvalue > 1e-3


def test_a_chunk_lies_in_its_trajectory():
    ring, horizon = ring_of_walks(), 3
    for batch in drawn(FirstHits(BINS, radius=1.0, mix=MIX, horizon=horizon)):
        env, step, traj = batch.state[:, 2:].long().T
        valid = batch.extra["valid"].bool()
        for i in range(len(step)):
            after = [int(step[i]) + j for j in range(horizon)]
            whole = all(s < STEPS and ring.rings["states"][s % 50, env[i], 4] == traj[i] for s in after)
            assert bool(valid[i]) == whole
            chunk = [s / 1000 for s in after for _ in range(2)] if whole else [0.0] * 6
            assert batch.action[i].tolist() == pytest.approx(chunk)
        assert 0 < valid.float().mean() < 1


def test_the_radius_is_the_tasks_unless_given():
    g = torch.Generator().manual_seed(0)
    own, given = (
        next(sampler.batches(ring, 1, 100, window=50, generator=g.manual_seed(0)))
        for ring, sampler in (
            (ring_of_walks(1.5), FirstHits(BINS)), (ring_of_walks(), FirstHits(BINS, radius=1.5)),
        )
    )  # fmt: skip
    assert torch.equal(own.extra["lag"], given.extra["lag"])
    with pytest.raises(ValueError, match=r"pass radius=, or make the ring with threshold="):
        next(FirstHits(BINS).batches(ring_of_walks(), 1, 10, window=50, generator=g))
    with pytest.raises(ValueError, match="at least 4 steps of each environment, got 3"):
        next(FirstHits(BINS, radius=1.0, sequence=3).batches(ring_of_walks(), 1, 10, window=3, generator=g))
