"""The arm: sizes, starts and goals, servos, contacts, the gripper, what parity brings back, and that tasks can be done.

Physics runs on the C engine, but where the test is of MJX.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs import engines
from deepres.envs.tasks import arm
from deepres.experiments.presets import PRESETS
from helpers.envs_fixtures import hurried, quick
from helpers.scripted_policies import Inverse, PickAndPlace, tips_of

NUM_ENVS = 32
CUBE_SPEED = slice(9, 12)  # in qvel

# state, goal, action, goal slice, thresholds: easy, plain, hard
SIZES = {
    "arm_reach": (13, 3, 4, (7, 10), (0.3, 0.1, 0.03)),
    "arm_push_easy": (17, 3, 5, (0, 3), (0.3, 0.1, 0.03)),
    "arm_push_hard": (17, 3, 5, (0, 3), (0.3, 0.1, 0.03)),
    "arm_binpick_easy": (17, 3, 5, (0, 3), (0.3, 0.1, 0.03)),
    "arm_binpick_hard": (17, 3, 5, (0, 3), (0.3, 0.1, 0.03)),
    "arm_grasp": (23, 7, 5, (16, 23), (0.15, 0.05, 0.02)),
}
# where goals lie (x, y, z), and the cube at the start (x, y)
RANGES = {
    "arm_reach": (((-0.2, 0.2), (0.3, 0.7), (0.1, 0.5)), None),
    "arm_push_easy": (((0, 0.2), (0.5, 0.7), (0.03, 0.03)), ((-0.2, 0), (0.5, 0.7))),
    "arm_push_hard": (((0, 0.5), (0.4, 0.9), (0.03, 0.03)), ((-0.5, 0), (0.4, 0.9))),
    "arm_binpick_easy": (((0.08, 0.26), (0.51, 0.69), (0.03, 0.03)), ((-0.24, -0.06), (0.51, 0.69))),
    "arm_binpick_hard": (((0.15, 0.45), (0.45, 0.75), (0.03, 0.03)), ((-0.45, -0.15), (0.45, 0.75))),
    "arm_grasp": (((-0.2625, 0.3375), (0.3, 0.9), (0.07, 0.07)), ((-0.3, 0.3), (0.3, 0.9))),
}


@cache
def environment(name, engine="c", num_envs=NUM_ENVS, **options):
    env = envs.make(name, num_envs=num_envs, seed=3, engine=engine, **options)
    return env if engine == "c" else hurried(env)


def hold(env, state, action, steps):
    """`state` after `steps` of one and the same action [action_dim] in all environments."""
    actions = np.broadcast_to(np.float32(action), (env.num_envs, env.action_dim))
    for _ in range(steps):
        state = env.step(state, actions)
    return state


def with_cube(state, position=None, velocity=None):
    """`state` with its cubes put at `position` [N, 3] and thrown with `velocity` [N, 3]."""
    physics = state.physics
    if position is not None:
        physics = replace(physics, qpos=physics.qpos.at[:, 9:12].set(position))
    if velocity is not None:
        physics = replace(physics, qvel=physics.qvel.at[:, CUBE_SPEED].set(velocity))
    return replace(state, physics=physics)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_thresholds_are_the_published_ones(name):
    task = envs.make_task(name)
    state_dim, goal_dim, action_dim, goal_slice, thresholds = SIZES[name]
    assert (task.state_dim, task.goal_dim, task.action_dim) == (state_dim, goal_dim, action_dim)
    assert task.goal_slice == slice(*goal_slice) and task.dt == 0.05
    assert (task.threshold_easy, task.threshold, task.threshold_hard) == thresholds
    assert task.model.opt.timestep == 0.002


@pytest.mark.parametrize("name", SIZES)
def test_starts_and_goals_fill_their_published_ranges(name):
    task = envs.make_task(name)
    keys = jax.random.split(jax.random.PRNGKey(0), 2000)
    physics, goals = quick(jax.vmap(task.start))(keys)
    states = np.asarray(jax.vmap(task.observe)(physics))
    ranges, cube_ranges = RANGES[name]
    for values, (low, high) in zip(np.asarray(goals)[:, :3].T, ranges, strict=True):
        assert low - 1e-6 <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high + 1e-6
    np.testing.assert_allclose(physics.qpos[:, :7], np.tile(arm.HOME, (2000, 1)), rtol=1e-6)
    assert not np.asarray(physics.qvel).any()
    flange = slice(7, 10) if name == "arm_reach" else slice(10, 13)
    np.testing.assert_allclose(states[:, flange] - [0.0, 0.678, 0.371], 0, atol=1e-3)
    if cube_ranges is None:
        return
    for values, (low, high) in zip(states[:, :2].T, cube_ranges, strict=True):
        assert low - 1e-6 <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high + 1e-6
    np.testing.assert_allclose(states[:, 2], 0.07, atol=1e-6)
    gap = 0.09 if name == "arm_grasp" else 0.08
    np.testing.assert_allclose(states[:, 22 if name == "arm_grasp" else 16], gap, atol=1e-5)


def test_joints_go_where_they_are_told_and_published_ones_part_of_the_way():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.5, 0.5, (NUM_ENVS, 4)).astype(np.float32) - np.float32(
        [0, 0.4, 0, 0]
    )  # off the table
    told = np.asarray(jax.vmap(environment("arm_reach").task.control)(actions))
    published = np.array([1, 1, 4 / 7, 4 / 7, 0.5, 0.5, 0.5])
    with pytest.warns(RuntimeWarning, match="engine='c' moves arm_reach with parity=True otherwise than"):
        quirky = environment("arm_reach", parity=True)
    for env, share in ((environment("arm_reach"), np.ones(7)), (quirky, published)):
        state = env.reset()
        for _ in range(120):
            state = env.step(state, actions)
        commands = np.asarray(jax.vmap(env.task.control)(actions))
        np.testing.assert_allclose(state.obs[:, :7], share * commands, atol=0.03)
        assert np.abs(state.obs[:, 10:13]).max() < 0.02
    np.testing.assert_allclose(told[:, 6], published[6] * commands[:, 6])  # the wrist comes to the same place


def test_all_of_reach_is_within_reach():
    """An inverse-kinematics policy solves arm_reach; with the published servos half the goals are beyond any pose."""
    env = environment("arm_reach")
    state = env.reset()
    inverse = Inverse(env.task.model)
    actions, off = inverse(np.asarray(state.goal))
    for _ in range(60):
        state = env.step(state, actions)
    assert state.success.mean() >= 0.9 and (off < 0.1).all()
    assert state.physics.sensors[:, 2].min() > 0.05


def test_engines_agree_with_servos_saturated_and_the_default_moves_as_published():
    """MJX and C alike by default; and MJX with the published model moves as C does with the published gains alone."""
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (10, 8, 4)).astype(np.float32)
    small = (0.3 * actions).astype(np.float32)  # away from joint limits, where the two models' inertias show

    class PublishedGains(arm.ArmReach):
        def spec(self):
            spec = super().spec()
            for actuator in spec.actuators:
                actuator.gainprm[0] = arm.PUBLISHED_GAIN.get(actuator.target, actuator.gainprm[0])
            return spec

        def control(self, action):
            return super().control(action).at[6].set(arm.PUBLISHED_JOINT7)

    gains = PublishedGains()
    gains.name = "arm_reach"
    functional = type(environment("arm_reach").functional)(gains)
    only_gains = type(environment("arm_reach"))(functional, 8, 3, "c")
    pairs = (
        (environment("arm_reach", "jax", 8), environment("arm_reach", "c", 8), actions),
        (environment("arm_reach", "jax", 8, parity=True), only_gains, small),
    )
    for one, other, sequence in pairs:
        a, b = one.reset(), other.reset()
        for action in sequence:
            a, b = one.step(a, action), other.step(b, action)
        np.testing.assert_allclose(a.obs, b.obs, atol=2e-4)
        assert np.abs(np.asarray(a.physics.qvel)).max() > 0.3  # and they do move
    saturated = np.abs(
        _servo_force(environment("arm_reach"), environment("arm_reach").reset(), actions[0, 0])
    )
    assert (saturated >= 12).any()


def _servo_force(env, state, action):
    """[7]: unclipped forces of environment 0's servos as an action begins."""
    model, ctrl = env.task.model, np.asarray(env.task.control(jnp.asarray(action)))
    return model.actuator_gainprm[:, 0] * ctrl + model.actuator_biasprm[:, 1] * np.asarray(
        state.physics.qpos[0, :7]
    )


@pytest.mark.parametrize("name", ["arm_push_easy", "arm_binpick_easy"])
def test_the_cube_rests_where_it_fell(name):
    env = environment(name)
    state = hold(env, env.reset(), [0, 0, 0, 0, -1], 20)
    before = np.asarray(state.obs[:, :3])
    np.testing.assert_allclose(before[:, 2], 0.03, atol=1e-3)
    state = hold(env, state, [0, 0, 0, 0, -1], 100)
    np.testing.assert_allclose(state.obs[:, :3], before, atol=5e-4)
    assert np.abs(np.asarray(state.physics.qvel)[:, 9:]).max() < 1e-3


def test_the_gripper_opens_and_closes():
    env = environment("arm_push_easy")
    state = hold(env, env.reset(), [0, 0, 0, 0, 0.01], 15)
    np.testing.assert_allclose(state.obs[:, 16], 0.0, atol=2e-3)
    state = hold(env, state, [0, 0, 0, 0, -0.01], 15)
    np.testing.assert_allclose(state.obs[:, 16], 0.16, atol=5e-3)
    np.testing.assert_allclose(state.physics.qpos[:, 7], state.physics.qpos[:, 8], atol=1e-3)


def test_a_free_cube_keeps_momentum_and_energy():
    env = environment("arm_push_easy")
    rng = np.random.default_rng(2)
    start = np.array([-0.6, 0.2, 1.0]) + rng.uniform(-0.1, 0.1, (NUM_ENVS, 3))
    velocity = rng.uniform([-1, -1, 0.5], [1, 1, 2.5], (NUM_ENVS, 3))
    spin = rng.uniform(-5, 5, (NUM_ENVS, 3))
    state = with_cube(env.reset(), start, velocity)
    qvel = state.physics.qvel.at[:, 12:].set(spin)
    state = hold(env, replace(state, physics=replace(state.physics, qvel=qvel)), np.zeros(5), 6)
    after, speed = np.asarray(state.physics.qpos)[:, 9:12], np.asarray(state.physics.qvel)[:, 9:]
    fall = 9.81 * 6 * env.dt
    np.testing.assert_allclose(speed[:, :3], velocity - [0, 0, fall], atol=1e-5)
    np.testing.assert_allclose(speed[:, 3:], spin, atol=1e-4)  # a cube's inertia is the same about every axis
    energy = [
        0.5 * (v**2).sum(axis=1) + 9.81 * x[:, 2] for v, x in ((velocity, start), (speed[:, :3], after))
    ]
    drift = 0.5 * 9.81 * 0.002 * fall  # of an explicit step: half a timestep's fall
    np.testing.assert_allclose(energy[1], energy[0] - drift, atol=1e-4)


@pytest.mark.parametrize("name", ["arm_push_easy", "arm_binpick_easy", "arm_grasp"])
def test_the_cube_is_read_with_the_joints_and_the_flange_a_timestep_before(name):
    env = environment(name)
    state = with_cube(env.reset(), velocity=np.tile([-1.0, 0.5, 0.5], (NUM_ENVS, 1)))
    before = np.asarray(state.obs[:, :3])
    state = hold(env, state, np.ones(5), 1)
    obs, qpos = np.asarray(state.obs), np.asarray(state.physics.qpos)
    np.testing.assert_array_equal(obs[:, :3], qpos[:, 9:12])
    np.testing.assert_array_equal(obs[:, 3:10], qpos[:, :7])
    assert (np.linalg.norm(obs[:, :3] - before, axis=1) > 0.03).all()
    data = mujoco.MjData(env.task.model)
    data.qpos[:] = qpos[0]
    mujoco.mj_kinematics(env.task.model, data)
    travel = data.body("link7").xpos - obs[0, 10:13]
    np.testing.assert_allclose(travel, 0.002 * obs[0, 13:16], atol=1e-4)
    assert np.linalg.norm(travel) > 1e-3


@pytest.mark.parametrize("name", ["arm_binpick_easy", "arm_binpick_hard"])
def test_a_bin_holds_a_cube_that_is_knocked_about(name):
    env = environment(name)
    state = hold(env, env.reset(), [0, 0, 0, 0, -1], 5)
    centre, half = np.array(env.task.bins[0]), env.task.bin_half
    rng = np.random.default_rng(4)
    touched = np.zeros(NUM_ENVS, bool)
    for _ in range(8):
        bearing = rng.uniform(0, 2 * np.pi, NUM_ENVS)
        state = with_cube(
            state, velocity=np.stack([2 * np.cos(bearing), 2 * np.sin(bearing), 0 * bearing], 1)
        )
        state = hold(env, state, [0, 0, 0, 0, -1], 8)
        off = np.abs(np.asarray(state.obs[:, :2]) - centre).max(axis=1)
        touched |= off > half - 0.05
        assert (off < half - 0.025).all() and (np.asarray(state.obs[:, 2]) < 0.06).all()
    assert touched.mean() > 0.5


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [("arm_push_easy", 70, 0.9), ("arm_binpick_easy", 90, 0.5), ("arm_binpick_hard", 110, 0.4)],
)
def test_a_scripted_gripper_lifts_the_cube_and_brings_it_to_the_goal(name, steps, least):
    env = environment(name)
    state, policy = env.reset(), PickAndPlace(env.task.model, NUM_ENVS)
    highest = np.zeros(NUM_ENVS)
    for _ in range(steps):
        state = env.step(state, policy(np.asarray(state.obs), tips_of(state.physics)))
        highest = np.maximum(highest, np.asarray(state.obs[:, 2]))
    assert (highest > 0.12).mean() >= least
    assert state.success.mean() >= least


def test_a_scripted_gripper_grasps_the_cube():
    env = environment("arm_grasp")
    state, policy, grasped = env.reset(), PickAndPlace(env.task.model, NUM_ENVS), np.zeros(NUM_ENVS)
    for _ in range(50):
        obs = np.asarray(state.obs)
        as_pushed = np.column_stack([obs[:, :17], obs[:, :3]])  # lift it where it lies
        state = env.step(state, policy(as_pushed, tips_of(state.physics)))
        grasped += np.asarray(state.success)
    assert (grasped > 5).mean() >= 0.5


@pytest.mark.parametrize("name", ["arm_push_hard", "arm_grasp"])
def test_success_begins_at_its_threshold(name):
    task = envs.make_task(name)
    physics, goal = task.start(jax.random.PRNGKey(5))
    state = task.observe(physics)
    for off, reached in ((0.98 * task.threshold, True), (1.02 * task.threshold, False)):
        step = jnp.array([0.6, 0.0, 0.8]) * off
        there = goal.at[:3].add(step)
        if name == "arm_grasp":
            there = there.at[3:6].add(step)
        at = state.at[task.goal_slice].set(there)
        assert bool(task.success(at, goal)) is reached
        np.testing.assert_allclose(task.distance(at, goal), off, rtol=1e-4)
        assert float(task.reward(state, jnp.zeros(5), at, goal)) == reached


def test_grasp_wants_the_fingers_a_grip_apart_and_its_goal_follows_the_cube():
    task = envs.make_task("arm_grasp")
    physics, goal = task.start(jax.random.PRNGKey(5))
    at = task.observe(physics).at[task.goal_slice].set(goal)
    for off, reached in ((0.019, True), (-0.019, True), (0.021, False), (-0.021, False)):
        assert bool(task.success(at.at[22].add(off), goal)) is reached
    moved = task.goal_after(at.at[:3].set(jnp.array([0.1, 0.5, 0.2])), goal)
    np.testing.assert_allclose(moved, [0.1375, 0.5, 0.2, 0.0625, 0.5, 0.2, 0.075], rtol=1e-6)
    np.testing.assert_allclose(task.marker(np.asarray(moved)), [0.1, 0.5, 0.2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"cube_noise must be between 0 and 0\.5 metres, got -1"):
        envs.make_task("arm_grasp", cube_noise=-1)


def test_parity_brings_back_the_published_model():
    plain, published = envs.make_task("arm_grasp"), envs.make_task("arm_grasp", parity=True)
    pads = [task.model.geom("left_finger").type[0] for task in (plain, published)]
    assert pads == [mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_BOX]
    assert published.model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    np.testing.assert_array_equal(published.model.dof_armature[:9], [0] * 7 + [0.1] * 2)
    np.testing.assert_array_equal(
        published.model.actuator_gainprm[:7, 0], [4500, 4500, 2000, 2000, 1000, 1000, 1000]
    )
    np.testing.assert_array_equal(plain.model.actuator_gainprm[:7, 0], -plain.model.actuator_biasprm[:7, 1])
    key = jax.random.PRNGKey(0)
    gaps = [float(task.observe(task.start(key)[0])[22]) for task in (plain, published)]
    np.testing.assert_allclose(gaps, [0.09, 0.05], atol=1e-5)


def test_auto_takes_the_engine_that_moves_the_published_arm_as_published():
    assert envs.make("arm_reach", 1, parity=True).engine == "jax"
    assert environment("arm_reach", "auto").engine == engines.pick_engine("auto")
    arms = [one.config.env for one in PRESETS.values() if one.env.startswith("arm_")]
    assert {(env.engine, env.parity) for env in arms} == {("auto", True)}


def test_the_servos_inertia_is_their_damping_over_a_step():
    model = envs.make_task("arm_push_easy").model
    timestep, damping = model.opt.timestep, -model.actuator_biasprm[:, 2]
    np.testing.assert_allclose(model.dof_armature[:9], timestep * damping + np.array([0] * 7 + [0.1] * 2))
