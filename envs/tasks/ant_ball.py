"""Ant and ball: the ant is to push a ball to a point on the floor.

State (31): the ant's 29 (see ant.py), then the ball's x, y. Goal: x, y of the ball. The ball slides without rolling
and nothing brakes it, as published: it goes on until the ant, or the edge 10.3 m out, stops it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.tasks.ant import FEET, Ant, on_circle, upkeep

BALL_BIT = 4  # contype of the ant's geoms that the ball meets
RADIUS = 0.5  # metres, of the ball
CLEAR = 1.4  # metres between ant and ball at the start: no nearer ball is clear of all feet


class AntBall(Ant):
    """Ant and ball; goals lie on a circle of 5 m, and the ball starts a metre from a fifth of the way there.

    By default a ball that would start on the ant is moved away from it, to 1.4 m.

    Parity: the slice of the state that goals are relabelled from is off by one (28:30: the last ankle's velocity and
    the ball's x; success always asks for the ball's x, y); the ball's y offset comes from the goal's angle instead of
    its own; the ball may start inside the ant. And as Ant.
    """

    state_dim = 31
    goal_slice = slice(29, 31)

    def __init__(self, goal_distance: float = 5.0, parity: bool = False) -> None:
        super().__init__(goal_distance, parity)
        if parity:
            self.goal_slice = slice(28, 30)

    def spec(self) -> mujoco.MjSpec:
        spec = super().spec()
        ball = spec.worldbody.add_body(name="ball", pos=[0, 0, RADIUS])
        for name, axis in (("ball_x", [1, 0, 0]), ("ball_y", [0, 1, 0])):
            ball.add_joint(spec.find_default("ball"), name=name, axis=axis)
        geom = ball.add_geom(name="ball", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[RADIUS, 0, 0])
        geom.mass, geom.contype, geom.conaffinity, geom.rgba = 0.576, 0, BALL_BIT, [0.95, 0.61, 0.07, 1]
        for name in ("torso", *FEET):
            spec.geom(name).contype |= BALL_BIT
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        body_key, goal_key, ball_key = jax.random.split(key, 3)
        ant, goal = self.stand(body_key, jnp.zeros(2)), on_circle(goal_key, self.goal_distance)
        offset = on_circle(ball_key, 1.0)
        if self.parity:
            ball = 0.2 * goal + jnp.stack([offset[0], goal[1] / self.goal_distance])
        else:
            ball = 0.2 * goal + offset
            gap = ball - ant.qpos[:2]
            far = jnp.linalg.norm(gap)
            away = jnp.where(far > 1e-3, gap / jnp.maximum(far, 1e-3), goal / self.goal_distance)
            ball = jnp.where(far < CLEAR, ant.qpos[:2] + CLEAR * away, ball)
        return at_rest(jnp.concatenate([ant.qpos, ball]), jnp.concatenate([ant.qvel, jnp.zeros(2)])), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([super().observe(physics), physics.qpos[15:]])

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        return jnp.linalg.norm(state[29:31] - goal)

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return upkeep(action) - self.distance(after, goal)
