"""Ants and humanoids: published figures and quirks, physics that keeps its laws, two engines that agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.engines.c import BatchPhysics
from deepres.envs.engines.mjx import MjxPhysics
from deepres.envs.tasks import ant_push
from deepres.envs.tasks.ant import CLEARANCE
from helpers.envs_fixtures import quick, stepper

N = 4
LEGS = [0, 1, 0, -1, 0, -1, 0, 1]
BODIES = ("torso", "lwaist", "pelvis", "right_thigh", "right_shin", "left_thigh", "left_shin",
          "right_upper_arm", "right_lower_arm", "left_upper_arm", "left_lower_arm")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "state", "goal", "action", "slice_", "dt"),
    [("point_big_maze", 4, 2, 2, (0, 2), 0.05), ("ant", 29, 2, 8, (0, 2), 0.05),
     ("ant_hardest_maze", 29, 2, 8, (0, 2), 0.05), ("ant_ball", 31, 2, 8, (29, 31), 0.05),
     ("ant_push", 31, 2, 8, (0, 2), 0.05), ("humanoid", 268, 3, 17, (0, 3), 0.03),
     ("humanoid_u_maze", 268, 3, 17, (0, 3), 0.015)],
)  # fmt: skip
def test_sizes_are_the_published_ones_with_and_without_parity(name, state, goal, action, slice_, dt):
    for parity in (False, True):
        task = envs.make_task(name, parity=parity)
        assert (task.state_dim, task.goal_dim, task.action_dim) == (state, goal, action)
        assert (task.dt, task.threshold, task.threshold_easy, task.threshold_hard) == (dt, 0.5, 2.0, None)
        assert task.goal_slice == slice(*((28, 30) if name == "ant_ball" and parity else slice_))
        physics, target = jax.eval_shape(task.start, jax.random.PRNGKey(0))
        assert jax.eval_shape(task.observe, physics).shape == (state,) and target.shape == (goal,)


def test_the_humanoid_is_the_published_one():
    model = envs.make_task("humanoid").model
    masses = [8.907, 2.262, 6.616, 4.752, 4.523, 4.752, 4.523, 1.661, 1.230, 1.661, 1.230]
    assert [model.body(k).name for k in range(1, model.nbody)] == list(BODIES)
    np.testing.assert_allclose(model.body_mass[1:], masses, atol=6e-4)
    motors = [model.joint(int(j)).name for j in model.actuator_trnid[:, 0]]
    assert motors[:3] == ["abdomen_y", "abdomen_z", "abdomen_x"]
    assert motors[3:] == [model.joint(j).name for j in range(4, 18)]
    gears = [100, 100, 100, 100, 100, 300, 200, 100, 100, 300, 200] + [25] * 6
    assert model.actuator_gear[:, 0].tolist() == gears and (model.nq, model.nv, model.nu) == (24, 23, 17)
    assert (model.actuator_ctrlrange == [-0.4, 0.4]).all()
    np.testing.assert_allclose(
        envs.make_task("humanoid").control(jnp.array([0.5, -3.0])), [0.2, -0.4], rtol=1e-6
    )


def meeting(model):
    """Pairs of geoms that may touch, by name; the window's boxes are called wall."""
    names = [model.geom(g).name or "wall" for g in range(model.ngeom)]
    meet = (model.geom_contype[:, None] & model.geom_conaffinity[None]) > 0
    return {(names[a], names[b]) for a, b in np.argwhere(meet)}


def test_only_the_published_pairs_can_touch():
    feet, tall = [f"foot_{k}" for k in "1234"], envs.make_task("humanoid_u_maze").model
    ball = {(geom, "ball") for geom in ("torso", *feet)}
    assert meeting(envs.make_task("ant_ball").model) == {(foot, "floor") for foot in feet} | ball
    pairs = meeting(envs.make_task("ant_push").model)
    solid = ["floor", "block", *(f"wall_{k}" for k in range(7))]
    assert pairs == {(geom, thing) for geom in ("torso", *feet) for thing in solid} | {
        ("pin", f"stop_{k}") for k in range(7)
    }
    robot = {tall.geom(g).name for g in range(1, tall.ngeom) if tall.geom(g).name}
    assert len(robot) == 17 and meeting(tall) == {
        (geom, thing) for geom in robot for thing in ("floor", "wall")
    }


def draws(name, count=3000, **options):
    task = envs.make_task(name, **options)
    physics, goals = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(0), count))
    return task, jax.tree.map(np.asarray, physics), np.asarray(goals)


def test_ant_ball_starts_and_its_quirks():
    _, physics, goals = draws("ant_ball")
    ball, torso = physics.qpos[:, 15:], physics.qpos[:, :2]
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 5, rtol=1e-5)
    clear = np.linalg.norm(ball - torso, axis=1)
    offset = np.linalg.norm(ball - 0.2 * goals, axis=1)
    assert clear.min() > 1.4 - 1e-4 and (physics.qvel[:, 14:] == 0).all()
    assert (np.isclose(offset, 1, atol=1e-4) | np.isclose(clear, 1.4, atol=1e-4)).all()
    np.testing.assert_allclose(np.linalg.norm(physics.qpos[:, 3:7], axis=1), 1, rtol=1e-5)

    task, physics, goals = draws("ant_ball", parity=True)
    ball = physics.qpos[:, 15:]
    np.testing.assert_allclose(ball[:, 1], 2 * goals[:, 1] / 5, atol=1e-5)  # the goal's angle, twice
    assert np.abs(ball[:, 0] - 0.2 * goals[:, 0]).max() <= 1 + 1e-5
    assert np.linalg.norm(ball - physics.qpos[:, :2], axis=1).min() < 0.2  # inside the ant
    assert np.ptp(np.linalg.norm(physics.qpos[:, 3:7], axis=1)) > 0.1
    state = jnp.arange(31.0)
    assert (
        float(task.distance(state, jnp.array([29.0, 27.0]))) == 3.0
    )  # success asks for the ball all the same
    assert state[task.goal_slice].tolist() == [28, 29]


def test_ant_push_starts_and_its_quirks():
    for parity in (False, True):
        _, physics, goals = draws("ant_push", parity=parity)
        right = goals[:, 0] > goals[:, 1]
        near = np.where(right[:, None], [16, 8], [8, 16])
        assert 0.45 < right.mean() < 0.55 and (goals >= near).all() and (goals - near).max() <= 2
        assert (goals - near).max() > 1.9 and abs((goals - near).mean() - 1) < 0.05
        block, speed = physics.qpos[:, 15:], physics.qvel[:, 14:]
        if parity:
            assert 0.099 < np.abs(block).max() <= 0.1 and abs(speed[:, 0].std() - 0.1) < 0.01
            assert (speed[:, 1] == 0).all()
        else:
            assert (block == 0).all() and (speed == 0).all()
    task = envs.make_task("ant_push")
    assert task.observe(jax.tree.map(lambda leaf: leaf[0], physics))[29:].tolist() == pytest.approx(
        (block[0] + ant_push.BLOCK).tolist()
    )


def test_humanoid_starts_upright_with_its_goal_one_to_five_metres_away():
    task, physics, goals = draws("humanoid")
    assert (physics.qpos[:, [2, 3]] == np.float32([1.4, 1])).all() and (physics.qvel == 0).all()
    assert (np.delete(physics.qpos, [2, 3], axis=1) == 0).all() and (goals[:, 2] == 1.25).all()
    far, bearing = np.hypot(*goals[:, :2].T), np.arctan2(goals[:, 1], goals[:, 0])
    assert far.min() >= 1 and far.max() <= 5 and abs(far.mean() - 3) < 0.1
    assert abs(np.exp(1j * bearing).mean()) < 0.05
    for z, ends in ((0.99, True), (1.01, False), (1.99, False), (2.01, True), (np.nan, True)):
        assert bool(task.terminated(jnp.zeros(268).at[2].set(z))) == ends


def published_state(model, data, target, quirk):
    """The humanoid's 268 numbers from MuJoCo's own kinematics in float64; `target` is its x, y or None."""
    places, masses, blocks, motions = [], [], [], []
    links = list(BODIES) + (["target"] if quirk else [])
    for name in links:
        body = model.body(name).id
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
        turn = data.ximat[body].reshape(3, 3)
        own = np.eye(3) if quirk else turn @ np.diag(model.body_inertia[body]) @ turn.T
        places.append(data.xipos[body]), masses.append(model.body_mass[body])
        blocks.append(own), motions.append(np.r_[velocity[3:] * masses[-1], velocity[:3]])
    total, centre = sum(masses), np.average(places, axis=0, weights=masses)
    state = np.zeros(268)
    state[:24], state[26:49] = data.qpos[:24], data.qvel[:23]
    if quirk:
        state[24:26] = target
    for k, (place, mass, own, motion) in enumerate(zip(places, masses, blocks, motions, strict=True)):
        cross = np.cross(np.eye(3), place - centre)
        state[51 + 10 * k : 61 + 10 * k] = np.r_[(own + mass * cross @ cross.T).ravel(), mass]
        state[171 + 6 * k : 177 + 6 * k] = motion / np.r_[[total] * 3, [1] * 3]
    state[249:266] = data.qfrc_actuator[6:23]
    return state


@pytest.mark.parametrize("parity", [False, True])
def test_the_humanoids_state_holds_what_is_published(parity):
    task = envs.make_task("humanoid", parity=parity)
    model, data, rng = task.model, mujoco.MjData(task.model), np.random.default_rng(0)
    start, goal = task.start(jax.random.PRNGKey(5))
    data.qpos[:] = start.qpos
    mujoco.mj_forward(model, data)
    resting = published_state(model, data, goal[:2], parity)
    np.testing.assert_allclose(task.observe(start), resting, atol=2e-5)
    data.qpos[7:24] = rng.uniform(-0.5, 0.5, 17)
    data.qpos[3:7] = rng.standard_normal(4)
    data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
    data.qvel[:23] = rng.standard_normal(23)
    data.ctrl[:] = rng.uniform(-0.4, 0.4, 17)
    mujoco.mj_forward(model, data)
    state = task.observe(at_rest(jnp.asarray(data.qpos), jnp.asarray(data.qvel), data.sensordata))
    np.testing.assert_allclose(state, published_state(model, data, goal[:2], parity), rtol=1e-4, atol=1e-4)
    blank = np.r_[24:26, 49:51, 161:171, 237:243, 266:268]
    assert (np.asarray(state)[blank] == 0).all() != parity


def test_without_parity_the_goal_leaves_no_trace_in_the_humanoids_state():
    for parity in (False, True):
        task = envs.make_task("humanoid_u_maze", parity=parity)
        states = [
            np.asarray(task.observe(task.stand(jnp.ones(2), jnp.array(g))[0])) for g in ([2.0, 4], [6.0, 2])
        ]
        assert (states[0] == states[1]).all() != parity
        assert task.maze.height == (1.0 if parity else 2.5)


def adrift(name, fraction):
    """The task's model far from everything: no gravity, contact, limit, motor or friction; a finer timestep."""
    model = envs.make_task(name).spec().compile()
    off = mujoco.mjtDisableBit
    for flag in (off.mjDSBL_CONTACT, off.mjDSBL_LIMIT, off.mjDSBL_ACTUATION, off.mjDSBL_GRAVITY):
        model.opt.disableflags |= flag.value
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY.value
    model.dof_damping[:] = 0
    model.opt.timestep *= fraction
    return model


@pytest.mark.parametrize(("name", "error"), [("ant", 0.002), ("humanoid", 0.006)])
def test_a_free_body_keeps_its_momentum_and_energy(name, error):
    drift = {}
    for fraction in (1.0, 0.1):
        model = adrift(name, fraction)
        data, rng, worst = mujoco.MjData(model), np.random.default_rng(0), np.zeros(3)
        for _ in range(3):
            mujoco.mj_resetData(model, data)
            data.qvel[:] = rng.standard_normal(model.nv)
            kept = []
            for steps in (0, round(1 / model.opt.timestep)):  # a second
                mujoco.mj_step(model, data, nstep=steps) if steps else None
                mujoco.mj_forward(model, data)
                mujoco.mj_subtreeVel(model, data)
                kept.append((data.subtree_linvel[1].copy(), data.subtree_angmom[1].copy(), data.energy.sum()))
            worst = np.maximum(
                worst,
                [np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(a) for a, b in zip(*kept, strict=True)],
            )
        drift[fraction] = worst
    # What is lost is the integrator's doing: a tenth of the timestep loses a tenth.
    assert (drift[0.1] < error).all() and (drift[0.1] < 0.15 * drift[1.0]).all(), drift


# MJX, which takes ten times as long, and Warp, which takes minutes, agree with C step by step (test_physics.py).
@pytest.mark.parametrize("name", ["ant", "ant_ball", "ant_push", "humanoid"])
def test_left_alone_it_settles_on_the_floor(name):
    task = envs.make_task(name)
    physics, _ = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(2), N))
    step = stepper(task.model, task.dt, N, "c")
    physics = jax.tree.map(np.asarray, physics)
    data, depths = mujoco.MjData(task.model), []
    for t in range(1000):
        physics = step(physics, np.zeros((N, task.model.nu), np.float32), None)
        assert np.isfinite(physics.qpos).all() and np.isfinite(physics.qvel).all()
        if t % 50 == 49:
            depths.append(0.0)
            for qpos in physics.qpos:
                data.qpos[:] = qpos
                mujoco.mj_forward(task.model, data)
                depths[-1] = max(depths[-1], -data.contact.dist.min())
    assert max(depths) < 0.005 and depths[-1] < 0.001 and np.abs(physics.qvel[:, :6]).max() < 0.01, depths
    if name != "humanoid":  # which falls over
        assert not jax.vmap(task.terminated)(jax.vmap(task.observe)(physics)).any()


def at_a_wall(task, physics):
    """Humanoid or ant a hand's breadth from the U maze's wall at its start, walking into it."""
    near = task.maze.cell / 2 - (0.45 if task.maze.cell == 4 else 0.35)
    place = task.maze.starts[0] - np.array([0, near], np.float32)
    shift = place - np.asarray(physics.qpos[:, :2])
    sensors = np.array(physics.sensors)
    if sensors.size:
        sensors[:, :33] += np.tile(np.concatenate([shift, np.zeros((N, 1))], axis=1), 11)
    return physics.qpos.at[:, :2].set(place), physics.qvel.at[:, 1].set(-1.5), sensors


def at_the_ball(task, physics):
    ball = physics.qpos[:, :2] + jnp.array([0.8, 0.05])
    return physics.qpos.at[:, 15:].set(ball), physics.qvel.at[:, 0].set(1.5), physics.sensors


def at_the_block(task, physics):
    return physics.qpos.at[:, :2].set(jnp.array([3.9, 8.0])), physics.qvel.at[:, 0].set(1.5), physics.sensors


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ant_u_maze", at_a_wall),
        ("humanoid_u_maze", at_a_wall),
        ("ant_ball", at_the_ball),
        ("ant_push", at_the_block),
    ],
)
def test_mjx_agrees_with_the_c_engine_over_ten_steps(name, place):
    task = envs.make_task(name)
    physics, _ = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(3), N))
    qpos, qvel, sensors = place(task, physics)
    theirs = PhysicsState(qpos, qvel, physics.warmstart, jnp.asarray(sensors))
    drive = quick(jax.vmap(lambda p, a: (task.control(a), task.mocap(p))))
    mjx, engine = MjxPhysics(task.model, task.dt), BatchPhysics(task.model, task.dt, N)
    step = quick(jax.vmap(mjx.step, in_axes=(0, 0, 0 if task.model.nmocap else None)))
    rng, errors = np.random.default_rng(1), []
    for _ in range(10):
        action = rng.uniform(-1, 1, (N, task.action_dim)).astype(np.float32)
        told = drive(theirs, action)
        mine = step(theirs, *told)
        theirs = engine.step(*jax.tree.map(np.asarray, (theirs, *told)))
        errors.append(np.abs(np.asarray(mine.qpos) - theirs.qpos).max(axis=1))
        np.testing.assert_allclose(
            np.median(np.abs(mine.sensors - theirs.sensors)) if sensors.size else 0, 0, atol=1e-3
        )
    # From the same state in each period; rounding decides now and then in which substep a limb lands.
    assert np.median(errors) < 1e-5 and np.quantile(errors, 0.9) < 1e-3 and np.max(errors) < 0.1, errors
    assert np.abs(theirs.qpos - np.asarray(qpos)).max() > 0.1


def test_ants_start_with_their_feet_above_the_floor_but_for_parity():
    for name in ("ant", "ant_push"):
        for parity in (False, True):
            task, physics, _ = draws(name, 200, parity=parity)
            data, lowest = mujoco.MjData(task.model), []
            for qpos in physics.qpos:
                data.qpos[:] = qpos
                mujoco.mj_kinematics(task.model, data)
                lowest.append(min(data.geom(f"foot_{k}").xpos[2] for k in "1234") - 0.08)
            height = physics.qpos[:, 2] - task.height
            if parity:
                assert np.abs(height).max() <= 0.1 + 1e-6 and (name == "ant_push" or np.min(lowest) < -0.2)
            else:
                assert np.min(lowest) > CLEARANCE - 1e-5
                lifted = height > 0.1 + 1e-6  # no farther than that asks
                assert (np.array(lowest)[lifted] < CLEARANCE + 1e-5).all() and (height > -0.1).all()


def test_the_ants_block_can_be_pushed_stops_and_stays_out_of_walls():
    task = envs.make_task("ant_push")
    model, data = task.model, mujoco.MjData(task.model)
    data.qpos[:] = [-2, 0, 0.75, 1, 0, 0, 0, *LEGS, 0, 0]
    data.qvel[14] = 1.0
    for _ in range(100):
        mujoco.mj_step(model, data)
    assert 0.03 < data.qpos[15] < 0.08 and abs(data.qvel[14]) < 1e-4  # v^2 / 2g is 0.05
    engine = BatchPhysics(model, task.dt, 4)
    start = np.tile(np.array([-2, 0, 0.75, 1, 0, 0, 0, *LEGS, 0, 0], np.float32), (4, 1))
    speed = np.zeros((4, model.nv), np.float32)
    speed[:, 14:] = 8 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    physics = PhysicsState(start, speed, np.zeros_like(speed), np.zeros((4, 0), np.float32))
    for _ in range(40):
        physics = engine.step(physics, np.zeros((4, 8), np.float32), None)
        centre = physics.qpos[:, 15:] + np.array(ant_push.BLOCK)
        for middle, half in ant_push.WALLS:
            inside = np.array(half) + 3.6 - np.abs(centre - np.array(middle))
            assert (inside.min(axis=1) < 0.05).all()
    assert (np.linalg.norm(physics.qpos[:, 15:], axis=1) > 2).all()
