"""Ant: a sphere on four legs that is to walk to a point, on open ground or in a maze.

State (29): qpos, then qvel: torso x, y, z (0-2) and quaternion (3-6), the joints hip_1, ankle_1, ... ankle_4
(7-14), the torso's linear (15-17) and angular (18-20) velocity, the joints' velocities (21-28). Goal: x, y.
Actions are torques of hip_4, ankle_4, hip_1, ankle_1, hip_2, ankle_2, hip_3, ankle_3. A torso too low or too
high ends the episode: random torques throw the ant too high within a second or two, as they do gymnasium's ant from
this height, which has the same gears, armatures and total mass.

Solver: Newton, 1 iteration, 4 of line search, no implicit damping, as published for this robot on MJX: with the
warm start one iteration per 10 ms substep keeps four feet on the floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.layouts import ANT_LAYOUTS
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS
from deepres.envs.tasks.maze import WALL_BIT, Maze, Walled

LEGS = (0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)  # radians at the start
HEALTHY = (0.2, 1.0)  # metres: the episode goes on while the torso's height is within
NOISE = 0.1  # of every starting position and velocity
FOOT = 0.08  # metres: radius of a foot
CLEARANCE = (
    0.01  # metres between the feet and the floor at the start: rounding would decide about one just on it
)
CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)  # which way the legs 1 to 4 go
DOWNWARDS = np.array([1, -1, -1, 1], np.float32)  # sign of the ankle's angle that bends a leg down
FEET = tuple(f"foot_{leg}" for leg in "1234")


class Ant(Task):
    """The ant on open ground; goals lie on a circle of `goal_distance` metres around the origin.

    Parity: the published noise leaves nine starts of ten with a foot inside the floor, up to 0.3 m deep, and being
    thrown out ends the episode of one ant in eight that does not even move; by default it is lifted until all feet
    are clear. It leaves the quaternion at the length it has, and the first observation shows it so; by default it is
    normalised. The published runs stepped another physics (springs in the joints, every
    mass and inertia 1); this is MuJoCo's, from the published model, in both cases. Under uniformly random actions the
    published ant lives 773 of at most 1000 steps in the mean, this one 41: 19 times shorter.
    """

    state_dim = 29
    goal_slice = slice(0, 2)
    dt = 0.05
    threshold = 0.5
    threshold_easy = 2.0
    goal_height = 0.5
    height = 0.55  # metres, of the torso at the start

    def __init__(self, goal_distance: float = 10.0, parity: bool = False) -> None:
        if not 0 < goal_distance < float("inf"):
            raise ValueError(f"goal_distance must be a number of metres > 0, got {goal_distance!r}")
        self.goal_distance = float(goal_distance)
        self.parity = parity

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))

    def view(self) -> View:
        return View(distance=7.0, elevation=-20.0, follow=True)

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        body_key, bearing_key = jax.random.split(key)
        return self.stand(body_key, jnp.zeros(2)), on_circle(bearing_key, self.goal_distance)

    def stand(self, key: jax.Array, xy: jax.Array) -> PhysicsState:
        """The ant on its legs at `xy` [2], with the published noise on every coordinate."""
        position_key, velocity_key = jax.random.split(key)
        qpos = jnp.concatenate([xy, jnp.array([self.height, 1.0, 0.0, 0.0, 0.0, *LEGS])])
        qpos = qpos + jax.random.uniform(position_key, (15,), minval=-NOISE, maxval=NOISE)
        if not self.parity:
            qpos = qpos.at[3:7].divide(jnp.linalg.norm(qpos[3:7]))
            qpos = qpos.at[2].add(jnp.maximum(FOOT + CLEARANCE - jnp.min(_feet(qpos)), 0.0))
        return at_rest(qpos, NOISE * jax.random.normal(velocity_key, (14,)))

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([physics.qpos[:15], physics.qvel[:14]])

    def terminated(self, state: jax.Array) -> jax.Array:
        lowest, highest = HEALTHY
        return ~((state[2] >= lowest) & (state[2] <= highest))  # this way round, NaN ends the episode too

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return (after[0] - before[0]) / self.dt + upkeep(action)


class AntMaze(Walled, Ant):
    """The ant in a maze of 4 m cells: `layout` is a name of layouts.ANT_LAYOUTS, or a grid's rows as text.

    It starts near the centre of a start cell; the goal is the centre of a goal cell. With `apart`, a tuple of
    numbers of cells, the maze must be a single corridor, and start and goal are that many cells apart along it:
    each number equally likely, the start any cell that has the goal ahead, the ant exactly at its centre.

    Walls stop the feet, the torso and the roots of the legs. The root of a leg is a sphere at its end here, not the
    published capsule from the torso's centre, which reaches no farther; feet cannot reach each other or the torso,
    so those pairs are left out.

    Parity: as Ant.
    """

    boxes = 3  # its reach of 1.21 m is under half a cell

    def __init__(
        self, layout: str | Sequence[str] = "u_maze", apart: Sequence[int] = (), parity: bool = False
    ) -> None:
        Ant.__init__(self, parity=parity)
        self.maze = Maze.parse(layout, cell=4.0, layouts=ANT_LAYOUTS)
        self.pairs = self.maze.pairs(apart) if apart else None

    def robot(self) -> mujoco.MjSpec:
        spec = Ant.spec(self)
        spec.add_numeric(name="max_contact_points", data=[12])  # MJX: of 31 candidates, the nearest
        torso = spec.body("torso")
        for x, y in 0.2 * CORNERS:
            root = torso.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.08, 0, 0], pos=[x, y, 0])
            root.mass, root.contype = 0, WALL_BIT
        for name in ("torso", *FEET):
            spec.geom(name).contype |= WALL_BIT
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        body_key, start_key, goal_key = jax.random.split(key, 3)
        if self.pairs is None:
            start, goal = self.maze.draw_start(start_key), self.maze.draw_goal(goal_key)
            return self.stand(body_key, start), goal
        start, goal = self.pairs.draw(start_key)
        physics = self.stand(body_key, start)
        return at_rest(physics.qpos.at[:2].set(start), physics.qvel), goal

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return upkeep(action) - self.distance(after, goal)


def _feet(qpos: jax.Array) -> jax.Array:
    """[4]: heights of the feet's centres, metres, of an ant at `qpos` [15] with a quaternion of length 1."""
    w, x, y, z = qpos[3:7]
    upwards = jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])
    # A leg goes out from its root at a corner, by a thigh of 0.2 m and a shin of 0.4 m along both axes.
    bearing = qpos[7::2] + jnp.arctan2(CORNERS[:, 1], CORNERS[:, 0])
    bend = qpos[8::2] * DOWNWARDS
    out = jnp.sqrt(2.0) * (0.2 + 0.4 * jnp.cos(bend))
    planar = 0.2 * CORNERS + out[:, None] * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)], axis=1)
    return qpos[2] + planar @ upwards[:2] - jnp.sqrt(2.0) * 0.4 * jnp.sin(bend) * upwards[2]


def upkeep(action: jax.Array) -> jax.Array:
    """What every reward of the ant's holds: 1 for its health, less half the action's square."""
    return 1.0 - 0.5 * jnp.sum(action**2)


def on_circle(key: jax.Array, radius: float) -> jax.Array:
    """A point [2] at `radius` from the origin, in any direction."""
    bearing = 2 * jnp.pi * jax.random.uniform(key)
    return radius * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)])
