"""Pusher: an arm with a fork at its end that is to push an object over a table to a goal.

State: joint angles (0-6), the point between the fork's ends (7-9), the object (10-12), joint velocities (13-19), in
radians, metres and seconds. Goal: x, y, z of the object. Actions are torques in N m; there is no gravity.
"""

from __future__ import annotations

from functools import cached_property

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, at_rest, resting_sensors
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS

ORIGIN = (0.45, -0.05, -0.275)  # metres: the object, where its slides are at 0
PUBLISHED_GOAL_Z = -0.323
APART = 0.17  # metres: object and goal begin at least as far from each other
OBJECT_LOW, OBJECT_HIGH = (-0.2, -0.3), (0.2, 0.0)  # metres: x, y of the object at the start, from ORIGIN
TIP, WRIST = slice(0, 3), slice(3, 6)  # in sensors


class Pusher(Task):
    """The pusher; goals of the easy one lie behind the object's own range, those of the hard one all around it.

    Parity: published goals lie 0.048 m under the plane in which the object slides, so that no state ever reached
    looks like a commanded goal and the hard threshold leaves 0.014 m; the object is kept off the goal by scaling its
    offset from ORIGIN, which can leave it as near as before; the tip is the wrist, 0.1 m behind the fork's ends.
    By default goals lie in the object's plane, the object is moved straight away from the goal, and the tip
    is between the fork's ends; parity=True brings all three back. Success is judged after the step (published:
    before), which no score of an episode shows.
    """

    state_dim = 20
    goal_slice = slice(10, 13)
    dt = 0.05
    threshold, threshold_hard = 0.1, 0.05

    def __init__(self, hard: bool = False, parity: bool = False) -> None:
        self.parity = parity
        if hard:
            self.goal_low, self.goal_high = (-0.55, -0.65), (0.45, 0.35)
        else:
            self.goal_low, self.goal_high = (-0.2, -0.55), (0.2, -0.25)

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_file(str(ASSETS / "pusher.xml"))

    def view(self) -> View:
        return View(distance=2.2, azimuth=150.0, elevation=-40.0, lookat=(0.35, -0.3, -0.2))

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        object_key, goal_key, speed_key = jax.random.split(key, 3)
        goal = _draw(goal_key, self.goal_low, self.goal_high)
        thing = self._apart(_draw(object_key, OBJECT_LOW, OBJECT_HIGH), goal)
        qpos = jnp.concatenate([jnp.zeros(7), thing[::-1]])
        speeds = jax.random.uniform(speed_key, (7,), minval=-0.005, maxval=0.005)
        z = PUBLISHED_GOAL_Z if self.parity else ORIGIN[2]
        return at_rest(qpos, jnp.append(speeds, jnp.zeros(2)), self._resting), jnp.append(
            goal + jnp.array(ORIGIN[:2]), z
        )

    def _apart(self, thing: jax.Array, goal: jax.Array) -> jax.Array:
        """`thing` [2], moved off where it is nearer than APART to `goal` [2]."""
        offset = thing - goal
        distance = jnp.maximum(jnp.linalg.norm(offset), 1e-6)
        if self.parity:
            moved = thing * APART / distance
        else:
            moved = goal + offset * APART / distance
        return jnp.where(distance < APART, moved, thing)

    @cached_property
    def _resting(self) -> np.ndarray:
        return resting_sensors(self.model, np.zeros(self.model.nq))

    def observe(self, physics: PhysicsState) -> jax.Array:
        y, x = physics.qpos[7:]
        thing = jnp.array(ORIGIN) + jnp.stack([x, y, jnp.zeros(())])
        tip = physics.sensors[WRIST if self.parity else TIP]
        return jnp.concatenate([physics.qpos[:7], tip, thing, physics.qvel[:7]])

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        reach = jnp.linalg.norm(before[10:13] - before[7:10])
        return -self.distance(before, goal) - 0.1 * jnp.sum(action**2) - 0.5 * reach


def _draw(key: jax.Array, low: tuple[float, float], high: tuple[float, float]) -> jax.Array:
    return jax.random.uniform(key, (2,), minval=jnp.array(low), maxval=jnp.array(high))
