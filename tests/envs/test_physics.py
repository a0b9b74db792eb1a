"""The engines: they agree, they keep what physics keeps, and a state is all that decides how they go on."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs.engines import ENGINES, PhysicsState, at_rest, resting_sensors
from deepres.envs.engines.c import BatchPhysics
from deepres.envs.engines.mjx import candidate_contacts
from deepres.envs.env import GoalEnv
from helpers.envs_fixtures import NUM_ENVS, environment, quick, stepper

_STEPS = {}
# Among them is a task for each model: a robot's mazes share one.
MODELS = ["ant", "ant_ball", "ant_push", "ant_u_maze", "arm_binpick_easy", "arm_binpick_hard", "arm_grasp",
          "arm_push_easy", "arm_reach", "half_cheetah", "humanoid", "humanoid_u_maze", "point_u_maze",
          "pusher_easy", "reacher"]  # fmt: skip


def converged(task):
    """The task's model with a solver that ends: one that stops half-way stops elsewhere in every engine."""
    model = copy.copy(task.model)
    model.opt.iterations, model.opt.ls_iterations = 8, 16
    return model


def mjx_step(model, dt, engine):
    """MJX's jitted step of `model`, compiled once for all tasks with the same model."""
    key = engine, saved(model)
    if key not in _STEPS:
        _STEPS[key] = stepper(model, dt, NUM_ENVS, engine)
    return _STEPS[key]


def saved(model):
    raw = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, raw)
    return raw.tobytes()


def test_every_model_has_a_task_that_stands_for_it():
    standing = {saved(envs.make_task(name).model) for name in MODELS}
    assert {saved(envs.make_task(name).model) for name in envs.names()} == standing and len(standing) == 14


@pytest.mark.parametrize(
    ("name", "engine"),
    [("ant_ball", "jax"), ("half_cheetah", "jax"), ("point_u_maze", "jax"), ("pusher_easy", "jax"), ("ant", "warp"),
     ("arm_reach", "warp"), ("reacher", "warp")],
)  # fmt: skip
def test_mjx_and_the_c_engine_agree_over_ten_control_steps(name, engine):
    """Each goes its own way from the same start; MJX's step is compiled once and gives the same bits twice.

    A model of each robot: those of the same robot differ in what stands about it. Arms under load are in test_arm.py,
    ants and humanoids at walls in test_walk.py.
    """
    env = environment(name)
    task, model = env.task, converged(env.task)
    step, batch = mjx_step(model, task.dt, engine), BatchPhysics(model, task.dt, NUM_ENVS)
    control, mocap = quick(jax.vmap(task.control)), quick(jax.vmap(task.mocap))
    start = ours = theirs = on_host(env.reset().physics)
    shape = (10, NUM_ENVS, env.action_dim)
    errors = []
    for action in np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32):
        ctrl = on_host(control(action))
        ours = batch.step(ours, ctrl, on_host(mocap(ours)))
        given = theirs, ctrl, on_host(mocap(theirs))
        theirs = on_host(step(*given))
        errors.append(np.abs(theirs.qpos - ours.qpos).max(axis=1))
    # Rounding decides now and then in which substep something touches, and that environment goes its own way from
    # there: so three of four are asked about the beginning, half about the end.
    early, late = np.quantile(errors[0], 0.75), np.median(errors[-1])
    gone = np.abs(ours.qpos - start.qpos).max(axis=1)
    assert early < 1e-4 and late < 0.02 * np.median(gone), [error.max() for error in errors]
    assert gone.min() > 0.01  # they went somewhere
    assert np.isfinite(theirs.sensors).all() and np.isfinite(ours.sensors).all()
    assert theirs.sensors.shape == ours.sensors.shape == (NUM_ENVS, task.model.nsensordata)
    assert step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, on_host(step(*given)), theirs)


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def test_warp_steps_whole_environments_and_prints_nothing(capfd):
    """Left alone it prints a line for every kernel that it loads and every solver that stops when told to."""
    env = envs.make("ant", 3, engine="warp", episode_length=4)
    capfd.readouterr()  # that there is no GPU is said once
    action = np.full((3, 8), 0.5, np.float32)
    ends = []
    for _ in range(2):
        state = env.reset()
        for _ in range(5):
            state = env.step(state, action)
        ends.append(on_host(state))
    assert (ends[0].traj_id == 1).all() and np.isfinite(ends[0].obs).all()
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert capfd.readouterr().out == ""


def test_threads_and_restarts_change_no_bit(monkeypatch):
    env = environment("ant_u_maze")
    actions = np.random.default_rng(1).uniform(-1, 1, (40, NUM_ENVS, 8)).astype(np.float32)
    ends = []
    for count in ("1", "3"):
        monkeypatch.setenv("DEEPRES_ENV_THREADS", count)
        batch = BatchPhysics(env.task.model, env.dt, NUM_ENVS)
        state = on_host(env.reset().physics)
        for action in actions:
            state = batch.step(state, action, on_host(jax.vmap(env.task.mocap)(state)))
        ends.append(state)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    monkeypatch.setenv("DEEPRES_ENV_THREADS", "many")
    with pytest.raises(ValueError, match="DEEPRES_ENV_THREADS must be a number of threads >= 1, got 'many'"):
        envs.make("ant", engine="c")


def test_what_is_no_number_stays_in_its_own_environment_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = environment("ant")
    state = on_host(env.reset().physics)
    batch = BatchPhysics(env.task.model, env.dt, NUM_ENVS)
    good = batch.step(state, np.zeros((NUM_ENVS, 8)), None)
    broken = replace(state, qvel=np.where(np.arange(NUM_ENVS)[:, None] == 2, np.nan, state.qvel))
    after = batch.step(broken, np.zeros((NUM_ENVS, 8)), None)
    others = np.arange(NUM_ENVS) != 2
    assert np.isnan(after.qpos[2]).any()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), after, good)
    again = batch.step(state, np.zeros((NUM_ENVS, 8)), None)
    jax.tree.map(np.testing.assert_array_equal, again, good)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_free_body_keeps_momentum_and_energy_and_falls_as_bodies_do(engine):
    def thrown(gravity):
        model = mujoco.MjModel.from_xml_string(
            f"""<mujoco><option timestep="0.002" gravity="0 0 {gravity}"/>
            <worldbody><body name="free"><freejoint/><geom type="box" size="0.1 0.2 0.3" mass="2"/></body></worldbody>
            <sensor><subtreelinvel body="free"/><subtreeangmom body="free"/></sensor></mujoco>"""
        )
        qpos = np.tile(np.float32([0, 0, 5, 1, 0, 0, 0]), (2, 1))
        qvel = np.float32([[1, 2, 3, 0.5, 1, -2], [0, -1, 2, 3, 0, 0.1]])
        sensors = np.stack([resting_sensors(model, qpos[0])] * 2)
        state = start = PhysicsState(qpos, qvel, np.zeros_like(qvel), sensors)
        step = stepper(model, 0.1, 2, engine)
        momenta = []
        for _ in range(10):
            state = step(state, np.zeros((2, 0), np.float32), None)
            momenta.append(np.asarray(state.sensors))
        inertia = model.body_inertia[1]
        spin = [
            (np.asarray(s.qvel, np.float64)[:, 3:] ** 2 * inertia).sum(axis=1) / 2 for s in (start, state)
        ]
        return np.stack(momenta), np.asarray(state.qpos), spin

    momenta, _, (spin_before, spin_after) = thrown(gravity=0)
    np.testing.assert_allclose(momenta, np.broadcast_to(momenta[0], momenta.shape), atol=2e-3)
    np.testing.assert_allclose(spin_after, spin_before, rtol=5e-3)
    velocity = np.array([[1, 2, 3], [0, -1, 2]])
    np.testing.assert_allclose(momenta[-1][:, :3], velocity, atol=1e-5)
    _, qpos, _ = thrown(gravity=-9.81)
    height = 5 + velocity[:, 2] - 9.81 / 2  # after one second; the Euler step is 9.81 * dt / 2 off
    np.testing.assert_allclose(qpos[:, 2], height, atol=0.011)
    np.testing.assert_allclose(qpos[:, :2], velocity[:, :2], atol=1e-4)


def test_a_task_whose_start_lacks_its_models_sensors_is_told(monkeypatch):
    task = envs.make_task("arm_reach")
    monkeypatch.setattr(task, "start", lambda key: (at_rest(jnp.zeros(9), jnp.zeros(9)), jnp.zeros(3)))
    with pytest.raises(ValueError, match=r"a start of ArmReach must have sensors \[\d+\].*resting_sensors"):
        GoalEnv(task)


def test_candidate_contacts_are_those_of_the_pairs_that_can_meet():
    assert candidate_contacts(environment("ant").functional.model) == 4  # four feet and the floor
    assert candidate_contacts(environment("reacher").functional.model) == 0


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


def test_an_action_adds_to_the_points_speed_what_its_mass_lets_it_and_under_parity_what_is_published():
    """Published: ten steps of springs, 5 ms each, of 1 kg pushed by 5 N and 2.5 N."""
    force = np.float32([[5.0, -2.5]])
    for parity, mass, timesteps, speed in (
        (False, 1 + 5 * 4 / 3 * np.pi * 0.25**3, 5, 0.188),
        (True, 1.0, 10, 0.25),
    ):
        task = envs.make_task("point_u_maze", parity=parity)
        physics = at_rest(task.maze.starts[0], np.zeros(2, np.float32))
        mocap = np.asarray(task.mocap(physics))[None]
        step = stepper(task.model, task.dt, 1, "c")
        after = step(jax.tree.map(lambda leaf: np.asarray(leaf)[None], physics), force / 5, mocap)
        assert after.qvel[0, 0] == pytest.approx(speed, abs=5e-4)
        np.testing.assert_allclose(after.qvel, force / mass * 0.05, rtol=1e-4)
        way = force / mass * 0.05**2 * (timesteps + 1) / (2 * timesteps)
        np.testing.assert_allclose(after.qpos - physics.qpos, way, atol=1e-6)


def test_the_reachers_fingertip_is_the_models():
    """And under parity the velocity entries leave its place on its link unturned: elbow's velocity + (0, 0.11 spin)."""
    env, published = environment("reacher"), envs.make_task("reacher", parity=True)
    assert (env.dt, published.dt) == (0.04, 0.02)
    model = env.task.spec().compile()  # env.functional.model leaves out what touches nothing
    state = env.step(env.reset(), jnp.full((NUM_ENVS, 2), 0.3))
    tip = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "fingertip")
    quirky = jax.vmap(published.observe)(state.physics)
    for obs, quirk, qpos, qvel in zip(state.obs, quirky, state.physics.qpos, state.physics.qvel, strict=True):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, data)
        jacobian = np.zeros((3, 2))
        mujoco.mj_jacGeom(model, data, jacobian, None, tip)
        np.testing.assert_allclose(obs[4:7], data.geom_xpos[tip], atol=1e-6)
        np.testing.assert_allclose(obs[7:10], jacobian @ data.qvel, atol=1e-5)
        mujoco.mj_jacBody(model, data, jacobian, None, model.body("body1").id)
        published_velocity = jacobian @ data.qvel + [0, 0.11 * qvel.sum(), 0]
        np.testing.assert_allclose(quirk, np.append(obs[:7], published_velocity), atol=1e-5)


def draws(name, count=4000):
    physics, goals = quick(jax.vmap(envs.make_task(name).start))(
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
    noisy = np.r_[0:2, 7:15]  # the height, too, but a foot in the floor lifts it
    assert 0.099 < np.abs(physics.qpos - start)[:, noisy].max() <= 0.1 + 1e-6
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
