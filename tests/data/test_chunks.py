"""Action chunks: planned at once, done open loop, planned anew at a reset, gathered whole or not at all."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from deepres.data.chunks import Chunk, Player
from deepres.data.collect import Ahead, collect
from deepres.data.environments import open_environments
from deepres.data.relabel import FutureGoals
from deepres.networks import GaussianPolicy, NetworkOptions, Networks
from deepres.training.evaluate import evaluate
from deepres.training.faults import drop_broken
from helpers.rings import GAMMA, draw, filled, trajectory

H, STEPS, LENGTH = 3, 11, 7


@cache  # they compile once, and their state is not in them
def environments():
    return open_environments("point_u_maze", 3, 0, LENGTH, "fresh", "c", False, torch.device("cpu"))


def chunk_policy(env, horizon: int = H) -> GaussianPolicy:
    networks = Networks(NetworkOptions(depth=4, width=8), {}, torch.Generator().manual_seed(0))
    actor = networks.actor(env.state_dim + env.goal_dim, horizon * env.action_dim)
    return GaussianPolicy(actor, horizon)


class Spelled:
    """Plans that spell what was seen: action k of the plan made at obs is obs + k / 10."""

    horizon = H

    def __init__(self) -> None:
        self.rows: list[int] = []

    def plan(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        self.rows.append(len(obs))
        steps = torch.arange(H)[None, :, None] / 10
        return obs[:, None, :1] + steps + (0 if noise is None else noise.unflatten(1, (H, -1)))


def test_a_chunk_is_done_to_its_end_or_to_the_reset():
    player = Player(Spelled())
    ids = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1], [0, 1], [0, 1]], dtype=torch.int32)
    done = [player.act(torch.full((2, 4), float(10 * t)), ids[t])[:, 0].tolist() for t in range(6)]
    wanted = [[0, 0.1, 0.2, 30, 30.1, 30.2], [0, 0.1, 20, 20.1, 20.2, 50]]
    torch.testing.assert_close(torch.tensor(done).T, torch.tensor(wanted))
    assert player.policy.rows == [2, 1, 1, 1]  # only those that plan are computed


def test_the_environments_may_write_to_the_numbers_they_gave():
    player, ids = Player(Spelled()), torch.zeros(2, dtype=torch.int32)
    player.act(torch.zeros(2, 4), ids)
    ids[1] = 1  # in place, as numpy environments may
    assert player.act(torch.ones(2, 4), ids)[:, 0].tolist() == pytest.approx([0.1, 1.0])


def test_noise_is_read_where_a_chunk_is_planned():
    player, ids = Player(Spelled()), torch.zeros(2, dtype=torch.int32)
    noise = torch.arange(2 * H).view(2, H).float()
    got = [player.act(torch.zeros(2, 4), ids, noise * 10**t)[:, 0].tolist() for t in range(H)]
    torch.testing.assert_close(torch.tensor(got).T, torch.tensor([[0, 1.1, 2.2], [3, 4.1, 5.2]]))


def test_what_is_collected_was_planned_at_the_chunks_first_state():
    env = environments()
    policy, generator = chunk_policy(env), torch.Generator().manual_seed(1)
    _, unroll = collect(env, env.reset(), policy, STEPS, generator, ("goals",))
    noise = torch.randn(STEPS, 3, H * env.action_dim, generator=torch.Generator().manual_seed(1))
    begun = [
        0,
        0,
        0,
        3,
        3,
        3,
        6,
        7,
        7,
        7,
        10,
    ]  # an episode has 7 steps: its last chunk is cut after one action
    for t, first in enumerate(begun):
        seen = torch.cat([unroll.states[first], unroll.columns["goals"][first]], dim=1)
        plan = policy.plan(seen, noise[first])
        torch.testing.assert_close(unroll.actions[t], plan[:, t - first], rtol=1e-6, atol=1e-6)
    assert unroll.chunk is not None and unroll.chunk.used.tolist() == [1, 1, 1]


def test_what_was_planned_is_ended_by_the_next_unroll():
    env, generator = environments(), torch.Generator().manual_seed(1)
    policy = chunk_policy(env)
    step, first = collect(env, env.reset(), policy, 4, generator)
    planned = first.chunk
    with torch.no_grad():
        policy.actor.mean.bias.add_(1)  # learning changes no plan
    _, second = collect(env, step, policy, 3, generator, (), planned)
    assert planned.used.tolist() == [1, 1, 1]
    assert torch.equal(second.actions[:2], planned.actions[:, 1:].transpose(0, 1))
    assert not torch.equal(second.actions[2], planned.actions[:, 0])
    ahead = Ahead(env).start(step, policy, 3, seed=4, chunk=planned).result()[1]
    assert torch.equal(ahead.actions[:2], second.actions[:2])
    saved = Chunk.of(planned.state_tensors(), torch.device("cpu"))
    assert torch.equal(collect(env, step, policy, 2, generator, (), saved)[1].actions, second.actions[:2])


def test_an_environment_that_broke_plans_anew():
    env, generator = environments(), torch.Generator().manual_seed(1)
    step, unroll = collect(env, env.reset(), chunk_policy(env), 4, generator)
    unroll.states[2, 1] = torch.nan
    unroll.chunk.actions[1] = torch.nan
    begun, mended, dropped = drop_broken(env, step, unroll, seed=3)
    assert dropped == 1 and mended.chunk.used.tolist() == [1, H, 1]
    _, after = collect(env, begun, chunk_policy(env), 3, generator, (), mended.chunk)
    assert after.actions.isfinite().all()


def test_a_policy_of_one_action_has_no_chunks():
    env = environments()
    policy = chunk_policy(env, 1)
    _, unroll = collect(env, env.reset(), policy, STEPS, torch.Generator().manual_seed(1))
    assert unroll.chunk is None
    obs = torch.randn(5, env.state_dim + env.goal_dim)
    assert torch.equal(policy.act(obs)[:, None], policy.plan(obs))


def test_act_gives_the_plans_first_action():
    env = environments()
    policy = chunk_policy(env)
    obs, noise = torch.randn(5, env.state_dim + env.goal_dim), torch.randn(5, H * env.action_dim)
    assert policy.plan(obs).shape == (5, H, env.action_dim)
    assert torch.equal(policy.act(obs, noise), policy.plan(obs, noise)[:, 0])
    assert policy.copy().horizon == H


def test_an_evaluation_keeps_to_the_chunks():
    env = environments()
    policy, acted = chunk_policy(env), []

    class Watched:
        """The environments, and every action that they are given."""

        def __getattr__(self, name):
            return getattr(env, name)

        def step(self, step, action):
            acted.append((step.obs.clone(), action.clone()))
            return env.step(step, action)

    figures, _ = evaluate(Watched(), policy, seed=0)
    assert figures.episode_length == LENGTH == len(acted)
    for t, (_, action) in enumerate(acted):
        plan = policy.plan(acted[t - t % H][0])
        torch.testing.assert_close(action, plan[:, t % H], rtol=1e-6, atol=1e-6)


# --- what a batch holds of them ---


@pytest.mark.parametrize("steps", [30, 50, 137])  # not full, just full, gone round the ring
@pytest.mark.parametrize("window", [25, 1000])
def test_a_chunk_is_gathered_whole_or_not_at_all(steps, window):
    sampler, buffer = FutureGoals(GAMMA, horizon=H), filled(steps=steps)
    plain = draw(buffer, 1, 3 * (min(window, steps, 50) - 1), window=window)[0]
    (batch,) = draw(buffer, 1, len(plain.state), window=window, sampler=sampler)  # one pass: whole windows
    assert torch.equal(batch.state, plain.state) and torch.equal(batch.goal, plain.goal)
    env, t, traj = batch.state.long().T
    last = torch.stack([t[env == e].max() + 1 for e in range(3)])[env]  # of the window; it is no row itself
    whole = (trajectory(env, t + H - 1) == traj) & (t + H - 1 <= last)
    assert torch.equal(batch.extra["valid"], whole.float()) and 0 < whole.float().mean() < 1
    wanted = (t[:, None] + torch.arange(H)) / 1000 * whole[:, None]
    torch.testing.assert_close(batch.action, wanted)
    assert "valid" not in plain.extra


def test_chunks_ask_the_ring_for_nothing_more():
    assert FutureGoals(GAMMA, horizon=H).columns == ()
