"""Reacher: a planar arm of two links whose fingertip is to rest on a target.

State: cos of both joint angles (0-1), their sin (2-3), fingertip position (4-6), fingertip velocity (7-9), in
metres and seconds. Goal: the target's position, at a distance and an angle that are both uniform.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS

UPPER, LOWER, HEIGHT = 0.1, 0.11, 0.01  # metres: joint to joint, joint to fingertip, the plane of motion
TARGET_RADIUS = 0.2


class Reacher(Task):
    """The two-link arm; it never terminates.

    Parity: the published velocity entries (7-9) leave the fingertip's place on its link unturned, so that they are the
    fingertip's only while the arm points along x; by default they are its velocity. JaxGCRL's control period, on
    generalized coordinates, is 0.02 s, and parity has it. The paper's code takes springs and 0.04 s, meaning 0.02, and
    its arm diverges there within ten steps; 0.04 s is the default here. Either way targets are drawn evenly over the
    radius, so that they crowd about the middle.
    """

    state_dim = 10
    goal_slice = slice(4, 7)
    threshold = 0.05

    def __init__(self, parity: bool = False) -> None:
        self.parity = parity
        self.dt = 0.02 if parity else 0.04

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_file(str(ASSETS / "reacher.xml"))

    def view(self) -> View:
        return View(distance=0.6, elevation=-65.0)

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        angle_key, speed_key, radius_key, bearing_key = jax.random.split(key, 4)
        angles = jax.random.uniform(angle_key, (2,), minval=-0.1, maxval=0.1)
        speeds = jax.random.uniform(speed_key, (2,), minval=-0.005, maxval=0.005)
        radius = TARGET_RADIUS * jax.random.uniform(radius_key)
        bearing = 2 * jnp.pi * jax.random.uniform(bearing_key)
        goal = jnp.stack([radius * jnp.cos(bearing), radius * jnp.sin(bearing), jnp.float32(HEIGHT)])
        return at_rest(angles, speeds), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        angles, (speed, relative) = physics.qpos, physics.qvel
        first, both = angles[0], angles[0] + angles[1]
        elbow = UPPER * jnp.stack([jnp.cos(first), jnp.sin(first)])
        lower = LOWER * jnp.stack([jnp.cos(both), jnp.sin(both)])
        tip = elbow + lower
        # Each link's end turns about its joint: the velocity of (x, y) is speed * (-y, x).
        offset = jnp.array([LOWER, 0.0]) if self.parity else lower
        tip_velocity = speed * _turned(elbow) + (speed + relative) * _turned(offset)
        return jnp.concatenate(
            [jnp.cos(angles), jnp.sin(angles), tip, jnp.array([HEIGHT]), tip_velocity, jnp.zeros(1)]
        )

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return -self.distance(after, goal)


def _turned(xy: jax.Array) -> jax.Array:
    return jnp.stack([-xy[1], xy[0]])
