"""Humanoid: a human figure of eleven bodies that is to walk to a point, on open ground or in a maze.

State (268): the torso's x, y, z (0-2) and quaternion (3-6), 17 joints (7-23), the target's x, y (24-25); their
velocities (26-50); of twelve links, of which the last is the target, the inertia about the common centre of mass and
the mass (51-170: 9 + 1 each), then momentum over total mass and angular velocity (171-242: 3 + 3 each); the actuators'
forces on the 25 coordinates (243-267). What belongs to links is one substep behind the rest. Goal: x, y, z = 1.25.

The goal is no business of the state, whose goals get relabelled: the target's entries are zero, in the sizes that
published figures go with, unless parity asks for them.

Solver: Newton, 1 iteration, 4 of line search, no implicit damping, as published for this robot on MJX: with the warm
start one iteration per 3 ms substep holds a fallen humanoid within a millimetre of the floor's surface.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, at_rest, resting_sensors
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS
from deepres.envs.tasks.maze import WALL_BIT, Maze, Walled

HEIGHT = 1.4  # metres, of the torso at the start
GOAL_HEIGHT = 1.25
HEALTHY = (1.0, 2.0)  # metres: the episode goes on while the torso's height is within
WALL_HEIGHT = 2.5  # metres: above any torso of a running episode
STRENGTH = 0.4  # the control that an action of 1 stands for
JOINTS, LINKS = 17, 11


class Humanoid(Task):
    """The humanoid on open ground; goals lie 1 to 5 m away, in any direction. It starts upright and still.

    Parity: the target stands in the state: its x, y, a body of 1 kg there that counts in the centre of mass and in the
    total; and every link's own inertia counts as the identity. The published runs stepped another physics (springs in
    the joints, gears 350 and 100); this is MuJoCo's, from the published model, in both cases. Under uniformly random
    actions the published humanoid lives 40 steps in the mean, this one 12: 3.3 times shorter.
    """

    state_dim = 268
    goal_slice = slice(0, 3)
    dt = 0.03  # seconds: what the published runs took, though they meant half of it
    threshold = 0.5
    threshold_easy = 2.0

    def __init__(self, parity: bool = False) -> None:
        self.parity = self.own_goals = parity  # a published target is a body of the model
        links = slice(1, 1 + LINKS + parity)
        self._mass = self.model.body_mass[links].astype(np.float32)
        self._inertia = self.model.body_inertia[links].astype(np.float32)  # [links, 3], about principal axes
        self._qpos = np.zeros(self.model.nq, np.float32)
        self._qpos[[2, 3]] = HEIGHT, 1.0
        self._sensors = resting_sensors(self.model, self._qpos)

    def spec(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec.from_file(str(ASSETS / "humanoid.xml"))
        if self.parity:
            target = spec.worldbody.add_body(name="target", pos=[0, 0, GOAL_HEIGHT])
            for name, axis in (("target_x", [1, 0, 0]), ("target_y", [0, 1, 0])):
                target.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis)
            ball = target.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.5, 0, 0], mass=1)
            ball.contype, ball.rgba = 0, [0, 0, 0, 0]
        kinds = mujoco.mjtSensor
        for kind in (
            kinds.mjSENS_FRAMEPOS,
            kinds.mjSENS_FRAMEQUAT,
            kinds.mjSENS_FRAMELINVEL,
            kinds.mjSENS_FRAMEANGVEL,
        ):
            for body in spec.bodies[1:]:  # at a body's centre of mass, along its principal axes
                spec.add_sensor(type=kind, objtype=mujoco.mjtObj.mjOBJ_BODY, objname=body.name)
        for joint in spec.joints[1 : JOINTS + 1]:
            spec.add_sensor(
                type=kinds.mjSENS_JOINTACTFRC, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname=joint.name
            )
        return spec

    def view(self) -> View:
        return View(distance=6.0, elevation=-15.0, follow=True)

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        distance_key, bearing_key = jax.random.split(key)
        distance = jax.random.uniform(distance_key, minval=1.0, maxval=5.0)
        bearing = 2 * jnp.pi * jax.random.uniform(bearing_key)
        return self.stand(jnp.zeros(2), distance * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)]))

    def stand(self, xy: jax.Array, goal: jax.Array) -> tuple[PhysicsState, jax.Array]:
        """The humanoid upright and still at `xy` [2], and the goal [3] over the point `goal` [2]."""
        qpos = jnp.asarray(self._qpos).at[:2].set(xy)
        places = jnp.tile(jnp.append(xy, 0.0), (LINKS, 1))
        if self.parity:
            qpos = qpos.at[-2:].set(goal)
            places = jnp.concatenate([places, jnp.append(goal, 0.0)[None]])
        sensors = jnp.asarray(self._sensors).at[: places.size].add(places.ravel())
        qvel = jnp.zeros(qpos.size - 1)  # a quaternion's velocity has three numbers
        return at_rest(qpos, qvel, sensors), jnp.append(goal, GOAL_HEIGHT)

    def control(self, action: jax.Array) -> jax.Array:
        return STRENGTH * jnp.clip(action, -1.0, 1.0)

    def observe(self, physics: PhysicsState) -> jax.Array:
        n = len(self._mass)
        place, turn, velocity, spin, force = jnp.split(
            physics.sensors, np.cumsum([3 * n, 4 * n, 3 * n, 3 * n])
        )
        place, velocity, spin = (values.reshape(n, 3) for values in (place, velocity, spin))
        mass = jnp.asarray(self._mass)
        share = (mass / mass.sum())[:, None]
        arm = place - (share * place).sum(axis=0)
        inertia = jnp.eye(3) if self.parity else _turned(self._inertia, turn.reshape(n, 4))
        inertia = inertia + mass[:, None, None] * (
            (arm**2).sum(axis=1)[:, None, None] * jnp.eye(3) - arm[:, :, None] * arm[:, None, :]
        )
        links = jnp.concatenate([inertia.reshape(n, 9), mass[:, None]], axis=1)
        motion = jnp.concatenate([share * velocity, spin], axis=1)
        spare = jnp.zeros(2)
        blank = () if self.parity else (spare,)
        return jnp.concatenate(
            [
                physics.qpos,
                *blank,
                physics.qvel,
                *blank,
                _padded(links),
                _padded(motion),
                jnp.zeros(6),
                force,
                spare,
            ]
        )

    def terminated(self, state: jax.Array) -> jax.Array:
        lowest, highest = HEALTHY
        return ~((state[2] >= lowest) & (state[2] <= highest))  # this way round, NaN ends the episode too

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return -self.distance(after, goal) + 5.0 - 0.1 * jnp.sum((STRENGTH * action) ** 2)


class HumanoidMaze(Walled, Humanoid):
    """The humanoid in a maze of 2 m cells: `layout` names one of LAYOUTS, or is a grid's rows.

    All its geoms meet the walls. Legs reach farther than half a cell when it falls, so the window follows its bodies.

    Parity: walls are 1 m high, and the humanoid can lean over them; by default 2.5 m, which no torso gets over
    (pictures show 1 m all the same). And as Humanoid.
    """

    dt = 0.015
    boxes = 4

    def __init__(self, layout: str | Sequence[str] = "u_maze", parity: bool = False) -> None:
        self.maze = Maze.parse(layout, cell=2.0, height=1.0 if parity else WALL_HEIGHT)
        Humanoid.__init__(self, parity)

    def robot(self) -> mujoco.MjSpec:
        spec = Humanoid.spec(self)
        spec.add_numeric(name="max_contact_points", data=[16])  # MJX: of 145 candidates, the nearest
        for geom in spec.geoms:
            if geom.contype:
                geom.contype |= WALL_BIT
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        start_key, goal_key = jax.random.split(key)
        return self.stand(self.maze.draw_start(start_key), self.maze.draw_goal(goal_key))

    def parts(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate(
            [physics.qpos[None, :2], physics.sensors[: 3 * LINKS].reshape(LINKS, 3)[:, :2]]
        )


def _turned(inertia: np.ndarray, quaternion: jax.Array) -> jax.Array:
    """[n, 3, 3]: inertias [n, 3] about principal axes, in the world's axes; quaternion [n, 4]."""
    w, x, y, z = quaternion.T
    turn = jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=-1),
            jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=-1),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1),
        ],
        axis=-2,
    )
    return jnp.einsum("nij,nj,nkj->nik", turn, jnp.asarray(inertia), turn)


def _padded(rows: jax.Array) -> jax.Array:
    """`rows` [LINKS or LINKS + 1, width], flat; where the target's is missing, zeros stand for it."""
    return jnp.pad(rows, ((0, LINKS + 1 - len(rows)), (0, 0))).ravel()
