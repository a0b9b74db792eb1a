"""The tasks' physics and goals: published figures, the C engine's word, walls that hold, goals in reach."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs_fixtures import NUM_ENVS, environment

from deepres import envs


def body_mass(model, name):
    return model.body_mass[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)]


def test_masses_and_motors_are_the_published_ones():
    ant = environment("ant").functional.model
    assert body_mass(ant, "torso") == pytest.approx(0.4839, abs=5e-5)
    for leg in "1234":
        assert body_mass(ant, f"hip_{leg}") == pytest.approx(0.0392, abs=5e-5)
        assert body_mass(ant, f"ankle_{leg}") == pytest.approx(0.0676, abs=5e-5)
    assert ant.body_mass.sum() == pytest.approx(0.911, abs=5e-4)
    motors = [mujoco.mj_id2name(ant, mujoco.mjtObj.mjOBJ_JOINT, j) for j in ant.actuator_trnid[:, 0]]
    assert motors == [f"{joint}_{leg}" for leg in "4123" for joint in ("hip", "ankle")]
    assert (ant.actuator_gear[:, 0] == 150).all() and (ant.nq, ant.nv) == (15, 14)
    ankles = np.rad2deg(ant.jnt_range[[2, 4, 6, 8]])
    np.testing.assert_allclose(ankles, [[30, 70], [-70, -30], [-70, -30], [30, 70]])

    reacher = environment("reacher").functional.model
    assert body_mass(reacher, "body0") == pytest.approx(0.0356, abs=5e-5)
    assert body_mass(reacher, "body1") == pytest.approx(0.0398, abs=5e-5)
    assert (reacher.actuator_gear[:, 0] == 200).all()

    point = environment("point_u_maze").functional.model
    assert body_mass(point, "torso") == pytest.approx(0.327, abs=5e-4)
    assert (point.actuator_gear[:, 0] == 5).all()


def test_only_the_feet_meet_the_floor_and_only_walls_the_point():
    def pairs(name):
        model = environment(name).functional.model
        meet = (model.geom_contype[:, None] & model.geom_conaffinity[None]) > 0
        label = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, g) or "wall" for g in range(model.ngeom)]
        return sorted((label[a], label[b]) for a, b in np.argwhere(meet))

    assert pairs("ant") == [(f"foot_{k}", "floor") for k in "1234"]
    assert pairs("point_u_maze") == [("torso", "wall")] * 3
    assert pairs("reacher") == []


@pytest.mark.parametrize("name", ["ant", "point_u_maze", "reacher"])
def test_mjx_agrees_with_the_c_engine_over_ten_steps(name):
    env = environment(name)
    model = env.functional.model
    state = env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (10, NUM_ENVS, env.action_dim)).astype(np.float32)
    if name == "point_u_maze":  # from near a wall, pressed against it
        qpos = jnp.tile(jnp.array([[4.0, 2.4]]), (NUM_ENVS, 1))
        state = replace(state, physics=replace(state.physics, qpos=qpos))
        actions[..., 1] = -1.0
    start = np.asarray(state.physics.qpos)
    datas = [mujoco.MjData(model) for _ in range(NUM_ENVS)]
    for data, qpos, qvel in zip(datas, state.physics.qpos, state.physics.qvel, strict=True):
        data.qpos[:], data.qvel[:] = qpos, qvel
    contacts, errors = 0, []
    for action in actions:
        state = env.step(state, action)
        assert not state.done.any()
        for data, ctrl in zip(datas, action, strict=True):
            data.ctrl[:] = ctrl
            if model.nmocap:
                xy = jnp.asarray(data.qpos[None, :2], jnp.float32)
                data.mocap_pos[:] = env.task.maze.window(xy, env.task.boxes)
            for _ in range(round(env.dt / model.opt.timestep)):
                mujoco.mj_step(model, data)
                contacts += data.ncon
        truth = np.stack([data.qpos for data in datas])
        errors.append(np.abs(np.asarray(state.physics.qpos) - truth).max(axis=1))
    # Rounding decides now and then in which substep a foot lands, and that ant goes its own way from there.
    assert max(errors[0].max(), errors[1].max()) < 1e-4
    assert np.median(errors[-1]) < 1e-4 and (name == "ant" or errors[-1].max() < 1e-3)
    assert np.abs(truth - start).max(axis=1).min() > 0.01  # they went somewhere
    assert contacts > 0 or name == "reacher"


def test_an_ant_left_alone_stands_and_settles():
    env = environment("ant")
    state = env.reset()
    for _ in range(300):
        state = env.step(state, jnp.zeros((NUM_ENVS, 8)))
    assert (state.traj_id == 0).all()
    assert float(jnp.abs(state.physics.qvel).max()) < 0.1
    assert bool(((state.obs[:, 2] > 0.3) & (state.obs[:, 2] < 0.8)).all())


def route(maze, start, goal):
    """Cell centres from `start` to `goal` (metres), by breadth-first search."""
    start, goal = (tuple(np.round(np.asarray(p) / maze.cell).astype(int)) for p in (start, goal))
    came, queue = {start: None}, deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if not maze.walls[cell] and cell not in came:
                came[cell] = (i, j)
                queue.append(cell)
    path = [goal]
    while came[path[-1]] is not None:
        path.append(came[path[-1]])
    return np.array(path[::-1]) * maze.cell


def test_waypoints_lead_the_point_to_every_goal():
    env = environment("point_u_maze")
    state = env.reset()
    routes = [route(env.task.maze, o[:2], o[4:]) for o in np.asarray(state.obs)]
    at = [0] * NUM_ENVS
    for _ in range(600):
        obs = np.asarray(state.obs)
        for n, path in enumerate(routes):
            if at[n] + 1 < len(path) and np.linalg.norm(obs[n, :2] - path[at[n]]) < 1.0:
                at[n] += 1
        waypoints = np.stack([path[k] for path, k in zip(routes, at, strict=True)])
        action = np.clip(0.5 * (waypoints - obs[:, :2]) - 0.8 * obs[:, 2:4], -1, 1)
        state = env.step(state, action.astype(np.float32))
    assert (state.traj_id == 0).all() and (state.success == 1).all(), state.distance


def test_inverse_kinematics_lead_the_reacher_to_every_goal():
    env = environment("reacher")
    state = env.reset()
    x, y = np.asarray(state.goal)[:, :2].T
    a, b = 0.1, 0.11
    bend = np.arccos(np.clip((x**2 + y**2 - a**2 - b**2) / (2 * a * b), -1, 1))
    shoulder = np.arctan2(y, x) - np.arctan2(b * np.sin(bend), a + b * np.cos(bend))
    target = np.stack([shoulder, np.minimum(bend, 2.9)], 1)
    for _ in range(150):
        error = target - np.asarray(state.physics.qpos)
        action = np.clip((20 * error - 8 * np.asarray(state.physics.qvel)) / 200, -1, 1)
        state = env.step(state, action.astype(np.float32))
    assert (state.success == 1).all(), state.distance


def test_the_reachers_fingertip_is_the_models():
    env, model = environment("reacher"), environment("reacher").functional.model
    state = env.step(env.reset(), jnp.full((NUM_ENVS, 2), 0.3))
    tip = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "fingertip")
    for obs, qpos, qvel in zip(state.obs, state.physics.qpos, state.physics.qvel, strict=True):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, data)
        jacobian = np.zeros((3, 2))
        mujoco.mj_jacGeom(model, data, jacobian, None, tip)
        np.testing.assert_allclose(obs[4:7], data.geom_xpos[tip], atol=1e-6)
        np.testing.assert_allclose(obs[7:10], jacobian @ data.qvel, atol=1e-5)


def draws(name, count=4000):
    physics, goals = jax.jit(jax.vmap(envs.make_task(name).start))(
        jax.random.split(jax.random.PRNGKey(0), count)
    )
    return jax.tree.map(np.asarray, physics), np.asarray(goals)


def test_starts_and_goals_are_drawn_from_the_published_ranges():
    physics, goals = draws("reacher")
    radius, bearing = np.hypot(*goals[:, :2].T), np.arctan2(goals[:, 1], goals[:, 0])
    assert (
        radius.max() <= 0.2 and abs(radius.mean() - 0.1) < 0.004 and (goals[:, 2] == np.float32(0.01)).all()
    )
    assert abs(np.exp(1j * bearing).mean()) < 0.05
    assert 0.099 < np.abs(physics.qpos).max() <= 0.1 and np.abs(physics.qvel).max() <= 0.005

    physics, goals = draws("ant")
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 10.0, rtol=1e-5)
    assert abs(np.exp(1j * np.arctan2(goals[:, 1], goals[:, 0])).mean()) < 0.05
    start = np.array([0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1])
    joints = np.r_[0:2, 7:15]
    assert 0.099 < np.abs(physics.qpos - start)[:, joints].max() <= 0.1 + 1e-6
    np.testing.assert_allclose(np.linalg.norm(physics.qpos[:, 3:7], axis=1), 1, rtol=1e-5)
    assert abs(physics.qvel.std() - 0.1) < 0.002

    physics, goals = draws("point_u_maze")
    assert (physics.qpos == 4.0).all() and abs(physics.qvel.std() - 0.1) < 0.004
    cells, counts = np.unique(goals, axis=0, return_counts=True)
    assert cells.tolist() == [[4, 8], [4, 12], [8, 12], [12, 4], [12, 8], [12, 12]]
    assert (np.abs(counts / 4000 - 1 / 6) < 0.03).all()


def test_rewards_are_the_published_ones():
    before, after, action = np.zeros(29, np.float32), np.zeros(29, np.float32), np.full(8, 0.5, np.float32)
    after[0] = 0.1
    ant = envs.make_task("ant").reward(before, action, after, np.array([10.0, 0.0]))
    assert float(ant) == pytest.approx(0.1 / 0.05 + 1 - 0.5 * 8 * 0.25)
    point = envs.make_task("point_u_maze").reward(None, None, np.array([4.0, 4, 0, 0]), np.array([4.0, 12]))
    assert float(point) == -8.0
