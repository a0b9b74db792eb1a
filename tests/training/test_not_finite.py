"""What is not finite is said to be, and is in no score."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import deepres
from deepres.data.batch import Sizes
from deepres.data.environments import open_environments
from deepres.training.evaluate import NotFiniteError, evaluate
from deepres.training.learner import Learner
from helpers.tiny_runs import TINY


def policy_of(env, config=TINY):
    return Learner(config, Sizes(env.state_dim, env.action_dim, env.goal_dim)).policy


@pytest.mark.parametrize("engine", ["c", "jax"])
def test_a_policy_that_is_not_finite_has_no_score(engine):
    """MuJoCo's C engine takes 0 for a control of NaN: its figures would be those of a passive robot."""
    env = open_environments("point_u_maze", 4, episode_length=20, engine=engine)
    policy = policy_of(env)
    with torch.no_grad():
        policy.actor.mean.bias.fill_(math.nan)
    with pytest.raises(
        NotFiniteError, match="the policy's actions are not finite, so there is nothing to score"
    ):
        evaluate(env, policy, seed=0)


@pytest.mark.parametrize(
    ("engine", "task"), [("c", "point_u_maze"), ("jax", "point_u_maze"), ("c", "arm_reach")]
)
def test_an_action_that_is_not_finite_shows_in_its_environment_alone(engine, task):
    env = deepres.envs.make(task, num_envs=3, episode_length=20, engine=engine)
    action = np.full((3, env.action_dim), 0.5, np.float32)
    action[1, 0] = math.nan
    state = env.step(env.reset(), action)
    finite = np.isfinite(np.asarray(state.obs)[:, : env.state_dim]).all(axis=1)
    assert finite.tolist() == [True, False, True]
    state = env.step(state, np.zeros_like(action))
    assert np.isfinite(np.asarray(state.obs)).all(axis=1).tolist() == [True, False, True]


class Breaking:
    """Environments of which some return NaN from their third step on."""

    def __init__(self, env, which: list[int]):
        self._env, self._which, self._steps = env, which, 0

    def __getattr__(self, name):
        return getattr(self._env, name)

    def step(self, step, action):
        step = self._env.step(step, action)
        self._steps += 1
        if self._steps >= 3:
            for name in ("obs", "terminal_obs", "distance"):
                value = getattr(step, name).clone()
                value[self._which] = math.nan
                step.__dict__[name] = value
        return step


def test_an_environment_that_breaks_is_told_and_in_no_mean():
    env = open_environments("point_u_maze", 4, episode_length=20)
    policy = policy_of(env)
    whole = evaluate(env, policy, seed=0)[0]
    with pytest.warns(
        RuntimeWarning, match="2 of 4 environments returned values that are not finite in this"
    ):
        partly, _ = evaluate(Breaking(env, [0, 2]), policy, seed=0)
    assert whole.broken_envs == 0 and partly.broken_envs == 2
    assert all(math.isfinite(value) for value in partly.as_dict().values())
    assert partly.episode_length == 20 and partly.final_distance != whole.final_distance
    with pytest.raises(NotFiniteError, match="all 4 environments returned values that are not finite"):
        evaluate(Breaking(env, [0, 1, 2, 3]), policy, seed=0)


def test_one_that_breaks_after_its_episode_counts():
    """Only the first episode is scored; what comes later is nobody's business."""
    env = open_environments("point_u_maze", 4, episode_length=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(Breaking(env, [0]), policy_of(env), seed=0)[0].broken_envs == 0


@pytest.mark.parametrize(
    ("task", "easy", "hard"),
    [("point_u_maze", True, False), ("arm_reach", True, True), ("reacher", False, False)],
)
def test_published_thresholds_are_reported_where_there_are_some(task, easy, hard):
    env = open_environments(task, 16, episode_length=5)
    row = evaluate(env, policy_of(env), seed=0)[0].as_dict()
    assert ("success_easy" in row, "success_hard" in row) == (easy, hard)
    assert all(0 <= row[name] <= 1 for name in row if name.startswith("success"))
    if easy:
        assert row["success_easy"] >= row["success_any"]
    if hard:
        assert row["success_any"] >= row["success_hard"]


def test_a_grasp_is_graded_by_its_distance_and_its_gap():
    """Published: within 0.15 m of the cube and 0.05 m of the gap, or 0.02 and 0.005."""
    env = open_environments("arm_grasp", 6, episode_length=3)
    assert env.graded == {"easy": 0.15, "hard": 0.02}
    away, gaps = [0.14, 0.16, 0.14, 0.019, 0.021, 0.019], [0.049, 0.0, 0.051, 0.0049, 0.0, 0.0051]
    easy, hard = [True, False, False, True, True, True], [False, False, False, True, False, False]
    step = env.reset()
    obs = step.obs.clone()
    goal = obs[:, env.state_dim :]
    tips = goal.clone()
    tips[:, [1, 4]] += torch.tensor(away)[:, None]
    tips[:, 6] += torch.tensor(gaps)
    obs[:, env.goal_slice] = tips
    put = replace(step.raw, terminal_obs=jnp.asarray(obs.numpy()))

    class Grasping(Breaking):
        def step(self, step, action):
            return env._step(put)

    found = {level: there.tolist() for level, there in env.within(env._step(put)).items()}
    assert found == {"easy": easy, "hard": hard}
    figures = evaluate(Grasping(env, []), policy_of(env), seed=0)[0]
    assert figures.success_easy == pytest.approx(4 / 6) and figures.success_hard == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seed": 2**64}, f"seed must be a whole number from 0 to {2**64 - 1}, got {2**64}"),
        (
            {"episode_length": 2**31},
            "episode_length must be a whole number from 1 to 2147483647, got 2147483648",
        ),
        ({"num_envs": 2**40}, "num_envs must be a whole number from 1 to 2147483647"),
        ({"parity": "False"}, "parity must be True or False, got 'False'"),
    ],
)
def test_numbers_and_flags_that_would_mean_something_else_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        deepres.envs.make("ant", **options)


def test_an_evaluations_seed_is_not_taken_modulo_anything():
    env = open_environments("point_u_maze", 2)
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to {2**64 - 1}, got {2**64}"):
        env.reset(2**64)
    starts = [env.reset(seed).obs for seed in (7, 7 + 2**32, 7 + 2**62, 2**63 - 1)]
    assert not any(torch.equal(a, b) for a, b in combinations(starts, 2))
