"""The pushers, the half-cheetah and the reacher: starts, goals, contacts, parity, and that they can be done.

Physics runs on the C engine.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs.tasks import pusher
from helpers.envs_fixtures import quick
from helpers.scripted_policies import Push, reacher_policy

NUM_ENVS = 32
DRAWS = 2000

# state, goal, action, goal slice, control period, thresholds: easy, plain, hard
SIZES = {
    "pusher_easy": (20, 3, 7, (10, 13), 0.05, (None, 0.1, 0.05)),
    "pusher_hard": (20, 3, 7, (10, 13), 0.05, (None, 0.1, 0.05)),
    "half_cheetah": (18, 1, 6, (0, 1), 0.05, (2.0, 0.5, None)),
    "reacher": (10, 3, 2, (4, 7), 0.04, (None, 0.05, None)),
}


@cache
def environment(name, num_envs=NUM_ENVS):
    return envs.make(name, num_envs=num_envs, seed=3, engine="c")


def starts(name, **options):
    """Task, physics, state vectors and goals of DRAWS first states."""
    task = envs.make_task(name, **options)
    physics, goals = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(0), DRAWS))
    return task, physics, np.asarray(jax.vmap(task.observe)(physics)), np.asarray(goals)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_thresholds_are_the_published_ones(name):
    task = envs.make_task(name)
    state_dim, goal_dim, action_dim, goal_slice, dt, thresholds = SIZES[name]
    assert (task.state_dim, task.goal_dim, task.action_dim) == (state_dim, goal_dim, action_dim)
    assert task.goal_slice == slice(*goal_slice) and task.dt == dt
    assert (task.threshold_easy, task.threshold, task.threshold_hard) == thresholds


def test_masses_are_the_published_ones():
    model = envs.make_task("pusher_easy").model
    masses = [0, 7.2935, 3.1416, 1.7141, 0.4072, 0.9282, 0.00503, 0.1835, 0.00183]
    np.testing.assert_allclose(model.body_mass, masses, rtol=2e-3)
    model = envs.make_task("half_cheetah").model
    np.testing.assert_allclose(
        model.body_mass, [0, 5.968, 1.474, 1.516, 1.046, 1.373, 1.147, 0.845], rtol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [("pusher_easy", (0.25, 0.65), (-0.6, -0.3)), ("pusher_hard", (-0.1, 0.9), (-0.7, 0.3))],
)
def test_pushers_goals_fill_their_range_objects_begin_apart_and_the_tip_is_the_forks(name, x, y):
    for parity in (False, True):
        _, physics, states, goals = starts(name, parity=parity)
        for values, (low, high) in zip(goals.T[:2], (x, y), strict=True):
            assert low - 1e-6 <= values.min() < low + 0.03 and high - 0.03 < values.max() <= high + 1e-6
        np.testing.assert_allclose(goals[:, 2], -0.323 if parity else -0.275, rtol=1e-6)
        np.testing.assert_allclose(
            states[:, 10:12] - physics.qpos[:, :6:-1], [[0.45, -0.05]] * DRAWS, atol=1e-6
        )
        apart = np.linalg.norm(states[:, 10:12] - goals[:, :2], axis=1)
        assert parity or apart.min() > pusher.APART - 1e-4  # the published way does not keep them apart
        assert (apart > pusher.APART + 1e-3).mean() > 0.7
        if parity and name == "pusher_hard":
            assert apart.min() < 0.1
        reach = (
            0.1 + 0.4 + 0.321 + (0 if parity else 0.1)
        )  # to the wrist, to the point between the fork's ends
        np.testing.assert_allclose(states[:, 7:10], [[reach, -0.6, 0.0]] * DRAWS, atol=1e-5)
    assert not np.asarray(physics.qpos)[:, :7].any() and not np.asarray(physics.qvel)[:, 7:].any()
    assert 0.0049 < np.abs(physics.qvel).max() <= 0.005


def test_pushers_object_moves_only_when_the_fork_touches_it():
    model = envs.make_task("pusher_easy").model
    data, rng, thing = mujoco.MjData(model), np.random.default_rng(0), model.geom("object").id
    touched, moved = np.zeros(10, bool), np.zeros(10, bool)
    for k in range(10):
        mujoco.mj_resetData(model, data)
        data.qpos[7:] = rng.uniform([-0.3, -0.2], [0, 0.2])
        for step in range(400):
            if step % 50 == 0:
                data.ctrl[:] = rng.uniform(-1, 1, 7) * [1, 0, 1, 1, 1, 1, 1] + [0, 0.5, 0, 0, 0, 0, 0]
            mujoco.mj_step(model, data)
            touched[k] |= any(thing in pair for pair in data.contact.geom)
            moved[k] |= data.qvel[7:].any()
            assert touched[k] or not moved[k]
    assert 0 < touched.sum() < 10 and moved.any()


def test_half_cheetah_starts_settles_and_gets_there_by_some_blind_gait():
    _, physics, states, goals = starts("half_cheetah")
    assert (goals == 5.0).all() and 0.099 < np.abs(states[:, :9]).max() <= 0.1
    np.testing.assert_allclose(np.std(physics.qvel), 0.1, rtol=0.03)
    env = environment("half_cheetah", 64)
    state = env.reset()
    for _ in range(200):  # a thousand substeps
        state = env.step(state, np.zeros((64, 6), np.float32))
    rest = np.asarray(state.obs)
    assert np.abs(rest[:, 9:18]).max() < 1e-3 and np.abs(rest[:, 1] + 0.13).max() < 0.02
    rng = np.random.default_rng(0)
    frequency, phase = rng.uniform(1, 4, (64, 1)), rng.uniform(0, 2 * np.pi, (64, 6))
    swing, offset = rng.uniform(0.3, 1.5, (64, 6)), rng.uniform(-0.5, 0.5, (64, 6))
    state, reached = env.reset(), np.zeros(64)
    for t in range(250):
        wave = offset + swing * np.sin(2 * np.pi * frequency * t * env.dt + phase)
        state = env.step(state, wave.clip(-1, 1).astype(np.float32))
        reached = np.maximum(reached, state.success)
    assert 0.05 < reached.mean() < 0.6


def test_half_cheetahs_control_costs_and_under_parity_pays():
    at, goal = jnp.zeros(18), jnp.array([5.0])
    for parity, reward in ((False, -5.6), (True, -4.4)):
        task = envs.make_task("half_cheetah", parity=parity)
        np.testing.assert_allclose(task.reward(at, jnp.ones(6), at, goal), reward, rtol=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_success_begins_at_its_threshold(name):
    task = envs.make_task(name)
    physics, goal = task.start(jax.random.PRNGKey(5))
    state = task.observe(physics)
    for off, reached in ((0.98 * task.threshold, True), (1.02 * task.threshold, False)):
        at = state.at[task.goal_slice].set(goal.at[0].add(off))
        assert bool(task.success(at, goal)) is reached


@pytest.mark.parametrize(("name", "least"), [("pusher_easy", 0.3), ("pusher_hard", 0.1)])
def test_a_scripted_pusher_gets_the_object_to_its_goal(name, least):
    env = environment(name)
    state, policy, reached = env.reset(), Push(env.task.model, NUM_ENVS), np.zeros(NUM_ENVS)
    for _ in range(120):
        state = env.step(state, policy(np.asarray(state.obs)))
        reached = np.maximum(reached, state.success)
    assert reached.mean() >= least


def test_a_scripted_reacher_gets_to_its_target_and_stays():
    env = environment("reacher")
    state = env.reset()
    for t in range(100):
        state = env.step(state, reacher_policy(np.asarray(state.obs)))
        assert t < 80 or state.success.mean() >= 0.9
