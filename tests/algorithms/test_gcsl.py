"""GCSL: GCBC with uniform goals, and an actor that sees the steps that are left (arXiv 1912.06088)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from deepres import envs
from deepres.acting import ClockedGaussianPolicy
from deepres.algorithms.gcsl import GCSLOptions
from deepres.config import Config
from deepres.data.collect import collect
from deepres.data.environments import GymnasiumEnvironments, open_environments
from deepres.data.relabel import FutureGoals
from deepres.envs import registry
from deepres.networks import NetworkOptions, Networks
from deepres.policy import Policy
from deepres.training.evaluate import evaluate
from helpers.learners import SIZES, B, batch_for, doubled, learner_of, small
from helpers.own_environments import Flat
from helpers.plain_networks import gaussian, leaves
from helpers.rings import GAMMA, draw, filled


@pytest.mark.parametrize("algorithm", ["gcsl", "gcbc"])
def test_a_step_equals_the_equation(algorithm):
    learner = doubled(learner_of(small(algorithm, impl="reference", horizon_input=True), apart=0.05))
    batch, noise = batch_for(learner)
    batch, noise = batch.map(Tensor.double), noise.double()
    batch = replace(batch, extra={"ahead": torch.arange(B) * 7})
    p = leaves(learner.parameters())
    seen = torch.cat([batch.goal, torch.log(1 + torch.arange(B).double() * 7)[:, None]], dim=1)
    law = gaussian(p, batch.state, seen)
    density = law.log_prob(torch.atanh(batch.action)) - torch.log(1 - batch.action.square())
    loss = -density.sum(1).mean()
    grads = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))

    metrics = learner.update(batch, noise)

    assert metrics["skipped_steps"] == 0
    assert metrics["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-9)
    for name, after in learner.parameters().items():
        assert (after.grad - grads[name]).abs().max() <= 1e-9 * max(1.0, float(grads[name].abs().max())), name
        assert grads[name].abs().max() > 0, name


def test_it_is_gcbc_with_other_defaults():
    options = Config("gcsl").algorithm
    assert (options.goals, options.commanded, options.horizon_input) == ("uniform", 0.2, True)
    assert type(options) is GCSLOptions
    sampler = learner_of(small("gcsl")).algorithm.sampler
    assert (sampler.gamma, sampler.commanded, sampler.lags, sampler.columns) == (None, 0.2, True, ("goals",))
    assert not learner_of(small("gcbc")).algorithm.sampler.lags


@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_how_far_ahead_a_rows_goal_lies(gamma):
    sampler = FutureGoals(gamma, commanded=0.3, lags=True)
    batches = draw(filled(columns=sampler.columns), 40, 147, sampler=sampler)  # 40 passes: whole rings
    kept = torch.cat([batch.goal[:, 2] == -1 for batch in batches])
    state, goal = (torch.cat([getattr(batch, k) for batch in batches]) for k in ("state", "goal"))
    ahead = torch.cat([batch.extra["ahead"] for batch in batches])
    assert torch.equal(ahead[~kept], (goal - state)[~kept, 1].long())
    last: dict[tuple[float, float], float] = {}
    for env, t, trajectory in state.tolist():
        last[env, trajectory] = max(last.get((env, trajectory), 0), t)
    ends = torch.tensor([last[env, trajectory] for env, _, trajectory in state[kept].tolist()])
    ends = ends + (ends == 48)  # the ring's last step is no row itself
    assert torch.equal(ahead[kept], (ends - state[kept, 1]).long())
    assert stats.binomtest(int(kept.sum()), len(kept), 0.3).pvalue > 1e-3


def clocked(env) -> ClockedGaussianPolicy:
    networks = Networks(NetworkOptions(depth=4, width=8), {}, torch.Generator().manual_seed(0))
    return ClockedGaussianPolicy(networks.actor(env.state_dim + env.goal_dim + 1, env.action_dim))


def test_where_it_acts_it_sees_the_steps_left_of_the_episode():
    env = open_environments("point_u_maze", 3, 0, 5, "fresh", "c", False, torch.device("cpu"))
    policy, generator = clocked(env), torch.Generator().manual_seed(1)
    after, unroll = collect(env, env.reset(), policy, 7, generator, ("goals",))
    noise = torch.randn(7, 3, env.action_dim, generator=torch.Generator().manual_seed(1))
    for t, left in enumerate([4, 3, 2, 1, 0, 4, 3]):
        obs = torch.cat([unroll.states[t], unroll.columns["goals"][t]], dim=1)
        mean, log_std = policy.actor(torch.cat([obs, torch.full((3, 1), 1.0 + left).log()], dim=1))
        wanted = torch.tanh(mean + log_std.exp() * noise[t])
        torch.testing.assert_close(unroll.actions[t], wanted, rtol=1e-6, atol=1e-6)
    assert after.elapsed.tolist() == [2, 2, 2]

    seen = []

    class Watched(ClockedGaussianPolicy):
        def actions(self, obs, noise):
            seen.append(obs[:, -1].tolist())
            return super().actions(obs, noise)

    assert evaluate(env, Watched(policy.actor), seed=0)[0].episode_length == 5
    assert seen == [[left] * 3 for left in (4, 3, 2, 1, 0)]


def test_gymnasiums_environments_count_their_steps(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    envs.register("odd", gymnasium=Flat, goal_slice=slice(1, 3), goal=lambda env: env.target, threshold=0.2)
    env = GymnasiumEnvironments(envs.make("odd", 2, episode_length=3))
    step = env.reset()
    counted = [step.elapsed.tolist()]
    for _ in range(4):
        step = env.step(step, torch.zeros(2, env.action_dim))
        counted.append(step.elapsed.tolist())
    assert counted == [[0, 0], [1, 1], [2, 2], [0, 0], [1, 1]]
    step = env.begin_anew(step, torch.tensor([1]), torch.tensor([9]), seed=4)
    assert step.elapsed.tolist() == [1, 0] and step.raw.steps.dtype == np.int32


def test_the_policy_alone_asks_for_the_steps_left():
    algorithm = learner_of(small("gcsl")).algorithm
    policy = Policy(algorithm.policy(), small("gcsl"), SIZES, 0)
    obs = torch.randn(4, SIZES.state + SIZES.goal)
    with pytest.raises(ValueError, match=r"\[N, 10\], .* and the steps left of the episode, got \[4, 9\]"):
        policy.act(obs)
    near, far = (policy.act(torch.cat([obs, torch.full((4, 1), left)], dim=1)) for left in (0.0, 99.0))
    assert near.shape == (4, SIZES.action) and not torch.equal(near, far)
