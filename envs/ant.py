"""Ant: a sphere on four legs that is to walk to a point on the floor.

State (29): qpos, then qvel: torso x, y, z (0-2) and quaternion (3-6), the joints hip_1, ankle_1, ... ankle_4
(7-14), the torso's linear (15-17) and angular (18-20) velocity, the joints' velocities (21-28). Goal: x, y.
Actions are torques of hip_4, ankle_4, hip_1, ankle_1, hip_2, ankle_2, hip_3, ankle_3. A torso too low or too
high ends the episode.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.base import ASSETS, Task, View
from deepres.envs.physics import PhysicsState, at_rest

HEIGHT = 0.55  # metres, of the torso at the start
LEGS = (0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)  # radians at the start
HEALTHY = (0.2, 1.0)  # metres: the episode goes on while the torso's height is within
NOISE = 0.1  # of every starting position and velocity


class Ant(Task):
    """The ant on open ground; goals lie on a circle of `goal_distance` metres around the origin."""

    state_dim = 29
    goal_slice = slice(0, 2)
    dt = 0.05
    threshold = 0.5
    goal_height = 0.5

    def __init__(self, goal_distance: float = 10.0) -> None:
        if not 0 < goal_distance < float("inf"):
            raise ValueError(f"goal_distance must be a number of metres > 0, got {goal_distance!r}")
        self.goal_distance = float(goal_distance)

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))

    def view(self) -> View:
        return View(distance=7.0, elevation=-20.0, follow=True)

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        body_key, bearing_key = jax.random.split(key)
        bearing = 2 * jnp.pi * jax.random.uniform(bearing_key)
        goal = self.goal_distance * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)])
        return self.stand(body_key, jnp.zeros(2)), goal

    def stand(self, key: jax.Array, xy: jax.Array) -> PhysicsState:
        """The ant on its legs at `xy` [2], with the published noise on every coordinate."""
        position_key, velocity_key = jax.random.split(key)
        qpos = jnp.concatenate([xy, jnp.array([HEIGHT, 1.0, 0.0, 0.0, 0.0, *LEGS])])
        qpos = qpos + jax.random.uniform(position_key, (15,), minval=-NOISE, maxval=NOISE)
        qpos = qpos.at[3:7].divide(jnp.linalg.norm(qpos[3:7]))
        return at_rest(qpos, NOISE * jax.random.normal(velocity_key, (14,)))

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([physics.qpos, physics.qvel])

    def terminated(self, state: jax.Array) -> jax.Array:
        lowest, highest = HEALTHY
        return ~((state[2] >= lowest) & (state[2] <= highest))  # this way round, NaN ends the episode too

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        forward = (after[0] - before[0]) / self.dt
        return forward + 1.0 - 0.5 * jnp.sum(action**2)
