"""Half-cheetah: a planar runner that is to come to a place on its line.

State: x, z, pitch and the six joints (0-8; back thigh, shin, foot, then front), their velocities (9-17), in metres,
radians and seconds. Goal: x. No episode ends early.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS

GOAL = 5.0  # metres
NOISE = 0.1  # of every starting position and velocity


class HalfCheetah(Task):
    """The runner; its goal is always 5 m ahead.

    Parity: the published reward adds the cost of control, 0.1 sum(action^2), where it should take it off. By
    default it is taken off; parity=True adds it. No policy learns from the reward here.
    """

    state_dim = 18
    goal_slice = slice(0, 1)
    dt = 0.05
    threshold, threshold_easy = 0.5, 2.0

    def __init__(self, parity: bool = False) -> None:
        self.parity = parity

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_file(str(ASSETS / "half_cheetah.xml"))

    def view(self) -> View:
        return View(distance=7.5, elevation=-12.0, lookat=(2.5, 0.0, 0.6))

    def marker(self, goal: np.ndarray) -> np.ndarray:
        return np.array([goal[0], 0.0, 0.5])

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        position_key, velocity_key = jax.random.split(key)
        qpos = jax.random.uniform(position_key, (9,), minval=-NOISE, maxval=NOISE)
        qvel = NOISE * jax.random.normal(velocity_key, (9,))
        return at_rest(qpos, qvel), jnp.array([GOAL])

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([physics.qpos, physics.qvel])

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        control = 0.1 * jnp.sum(action**2)
        return (control if self.parity else -control) - self.distance(after, goal)
