"""Environments as torch sees them: the same numbers as underneath, saved and restored, begun anew in places."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
import torch

from deepres import envs
from deepres.data import environments
from deepres.data.environments import open_environments
from deepres.envs import registry
from helpers.own_environments import Disc, Reach

N = 4
SIZES = (
    "name",
    "num_envs",
    "state_dim",
    "action_dim",
    "goal_dim",
    "goal_slice",
    "episode_length",
    "dt",
    "threshold",
)
FIELDS = ("obs", "terminal_obs", "reward", "success", "distance", "done", "truncation", "traj_id")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    envs.register("disc", Disc)
    envs.register("reach", gymnasium=Reach)


@cache
def opened(name):
    return open_environments(name, N, seed=3, episode_length=5)


def walked(some, step, steps, seed=0):
    """The steps from `step` on under the same random actions each time."""
    generator = torch.Generator().manual_seed(seed)
    walk = [step]
    for _ in range(steps):
        action = torch.rand(N, some.action_dim, generator=generator) * 2 - 1
        walk.append(some.step(walk[-1], action))
    return walk


@pytest.mark.parametrize("name", ["reacher", "disc", "reach"])
def test_what_torch_sees_is_what_is_underneath(name):
    some = opened(name)
    for attribute in SIZES:
        assert getattr(some, attribute) == getattr(some.env, attribute)
    for step in walked(some, some.reset(), 6):
        for field in FIELDS:
            seen, under = getattr(step, field), np.asarray(getattr(step.raw, field))
            assert seen.device == some.device and getattr(step, field) is seen  # made once
            np.testing.assert_array_equal(seen.numpy(), under)
        assert step.done.dtype == step.truncation.dtype == torch.bool and step.traj_id.dtype == torch.int32
    assert step.traj_id.tolist() == [1] * N
    assert some.bytes_per_env() >= 4 * (some.state_dim + some.goal_dim)


def test_seeds_are_those_of_the_environments_underneath():
    some = opened("reacher")
    np.testing.assert_array_equal(some.reset().obs, some.env.reset().obs)
    np.testing.assert_array_equal(some.reset(7).obs, some.env.reset(jax.random.key(7)).obs)
    gym = opened("reach")
    assert torch.equal(gym.reset(7).obs, gym.reset(7).obs) and not torch.equal(
        gym.reset(7).obs, gym.reset().obs
    )


def test_a_step_costs_no_more_tensors_than_are_asked_for(monkeypatch):
    some, asked = opened("disc"), []
    monkeypatch.setattr(some, "_to_torch", lambda leaf, device: asked.append(leaf.shape) or torch.zeros(1))
    step = some.step(some.reset(), torch.zeros(N, 2))
    assert asked == []
    assert step.obs is step.obs and asked == [(N, 6)]


@pytest.mark.parametrize("name", ["reacher", "disc"])
def test_a_saved_step_goes_on_bit_for_bit(name):
    some = opened(name)
    middle = walked(some, some.reset(), 3)[-1]
    saved = some.state_tensors(middle)
    sim = {"reacher": "physics.qpos", "disc": "physics.clock"}[name]
    assert {"obs", "key", "goal", "steps", sim} < set(saved) and all(
        len(leaf) == N for leaf in saved.values()
    )
    assert not any(name.startswith("first") for name in saved)
    again = some.load_state_tensors(some.reset(), {k: v.clone() for k, v in saved.items()})
    for a, b in zip(walked(some, middle, 5), walked(some, again, 5), strict=True):  # over the time limit
        jax.tree.map(np.testing.assert_array_equal, a.raw, b.raw)
    with pytest.raises(ValueError, match=r"must be a state of .* got another: .*obs.* in one of them alone"):
        some.load_state_tensors(middle, {k: v for k, v in saved.items() if k != "obs"})
    with pytest.raises(ValueError, match=r"steps must have shape \[4\], got \[2\]; resume with the num_envs"):
        some.load_state_tensors(middle, {**saved, "steps": saved["steps"][:2]})


def test_gymnasiums_go_on_with_new_episodes_of_later_trajectories():
    some = opened("reach")
    last = walked(some, some.reset(), 7)[-1]
    saved = some.state_tensors(last)
    assert list(saved) == ["traj_id"]
    again = some.load_state_tensors(last, saved)
    assert again.traj_id.tolist() == [2] * N and not again.done.any()
    assert not torch.equal(again.obs, some.reset().obs)
    with pytest.raises(ValueError, match=r"must have traj_id \[4\] of reach"):
        some.load_state_tensors(last, {"traj_id": torch.zeros(2)})


@pytest.mark.parametrize("name", ["reacher", "disc", "reach"])
def test_some_begin_anew_and_the_others_go_on(name):
    some = opened(name)
    step = walked(some, some.reset(), 2)[-1]
    before = {field: getattr(step, field).clone() for field in FIELDS}
    where = torch.tensor([0, 3])
    begun = some.begin_anew(step, where, torch.tensor([8, 9], dtype=torch.int32), seed=5)
    assert begun.traj_id.tolist() == [8, 0, 0, 9]
    for field, was in before.items():
        assert torch.equal(getattr(begun, field)[1:3], was[1:3]), field
    assert (begun.obs[where] != before["obs"][where]).any(dim=1).all()
    after = walked(some, begun, 4)
    assert after[3].done.tolist() == [False, True, True, False]  # they have steps of their own
    assert after[4].traj_id.tolist() == [8, 1, 1, 9]


def test_reached_is_the_tasks_own_verdict():
    class Sideways(Disc):
        def success(self, state, goal):
            return abs(state[1] - goal[1]) < 0.1

    envs.register("sideways", Sideways)
    state = torch.tensor([[0.0, 0, 9, 9], [5, 0, 9, 9], [0, 0.2, 9, 9]])
    goal = torch.zeros(3, 2)
    assert opened("disc").reached(state, goal).tolist() == [True, False, True]
    assert open_environments("sideways", 1).reached(state, goal).tolist() == [True, True, False]
    assert opened("reach").reached(torch.tensor([[9.0, 0.3, 0.3]]), goal[:1]).tolist() == [True]


def test_options_reach_the_environments_and_those_that_do_not_apply_are_refused():
    first = open_environments("disc", 2, episode_length=1, auto_reset="first", engine="jax")
    start = first.reset()
    assert torch.equal(first.step(start, torch.zeros(2, 2)).obs, start.obs)
    assert any(name.startswith("first.physics.") for name in first.state_tensors(start))
    with pytest.raises(ValueError, match="auto_reset='first' does not apply to reach"):
        open_environments("reach", 2, auto_reset="first")
    with pytest.raises(ValueError, match="parity=True does not apply to reach"):
        open_environments("reach", 2, parity=True)
    protocol = {name for name in vars(environments.Environments) if not name.startswith("_")}
    assert protocol <= set(dir(environments.JaxEnvironments)) & set(dir(environments.GymnasiumEnvironments))
