"""Ant and block: the ant is to reach a pocket behind a movable block, which it must push out of the way.

State (31): the ant's 29 (see ant.py), then the block's x, y. Goal: x, y of the ant. The room is open on two sides,
to a corridor each; a goal lies in one of the two, and the block must be pushed into the other.

Solver: Newton, 4 iterations as published: a block of 0.2 g between a heavy ant and walls needs more than the ant
alone. 12 of line search, where 8 were published: with 8 the block creeps on at 2 cm/s for ever, and with 12 it stops.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.task import View
from deepres.envs.tasks.ant import FEET, NOISE, Ant, upkeep
from deepres.envs.tasks.maze import WALL_BIT, WALL_RGBA

# Centre x, y and half size x, y of the walls, metres; all are 4 m high.
WALLS = (
    ((-4, 20), (8, 8)), ((8, 24), (4, 4)), ((20, 20), (8, 8)), ((-8, 4), (4, 8)),
    ((24, 8), (4, 4)), ((20, -4), (8, 8)), ((0, -8), (12, 4)),
)  # fmt: skip
BLOCK = (8.0, 8.0)  # metres: where the block's centre starts
BLOCK_SIZE = (3.6, 3.6, 1.8)  # metres: half of it
BLOCK_MASS = 0.0002  # kg
PIN = 0.1  # metres: radius of the ball in the block's centre that keeps the block out of walls
BLOCK_BIT, PIN_BIT = 4, 8


class AntPush(Ant):
    """The ant (eight times as heavy as the plain one), walls and the block; goals are 2 m squares in two pockets.

    The block only shifts, along x and y. So that it need not be tested box against box, a ball in its centre meets
    walls that are larger by the block's size: the same but for walls' outer edges, rounded by 0.1 m. It stands on the
    floor from the start, and the floor's grip is friction in its slides (the published block also falls 0.2 m).

    Parity: the published noise of the start moves the block too (position, and velocity along x) and leaves the
    quaternion at the length it has.
    """

    state_dim = 31
    height = 0.75

    def __init__(self, parity: bool = False) -> None:
        super().__init__(parity=parity)

    def spec(self) -> mujoco.MjSpec:
        spec = super().spec()
        spec.option.iterations, spec.option.ls_iterations = 4, 12
        spec.add_numeric(name="max_contact_points", data=[16])  # MJX: of 52 candidates, the nearest
        box, sphere = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE
        for geom in spec.geoms:
            geom.density = 40
        block = spec.worldbody.add_body(name="block", pos=[*BLOCK, BLOCK_SIZE[2]])
        for name, axis in (("block_x", [1, 0, 0]), ("block_y", [0, 1, 0])):
            joint = block.add_joint(spec.find_default("block"), name=name, axis=axis)
            joint.frictionloss = BLOCK_MASS * 9.81
        body = block.add_geom(name="block", type=box, size=BLOCK_SIZE, mass=BLOCK_MASS)
        body.contype, body.conaffinity, body.rgba = 0, BLOCK_BIT, [0.95, 0.61, 0.07, 1]
        pin = block.add_geom(name="pin", type=sphere, size=[PIN, 0, 0], mass=0)
        pin.contype, pin.conaffinity, pin.rgba = PIN_BIT, 0, [0, 0, 0, 0]
        for k, (centre, half) in enumerate(WALLS):
            for name, bit, larger, rgba in (
                ("wall", WALL_BIT, 0.0, WALL_RGBA),
                ("stop", PIN_BIT, BLOCK_SIZE[0] - PIN, (0, 0, 0, 0)),
            ):
                size = [half[0] + larger, half[1] + larger, 2]
                wall = spec.worldbody.add_geom(name=f"{name}_{k}", type=box, pos=[*centre, 2], size=size)
                wall.contype, wall.conaffinity, wall.rgba = 0, bit, rgba
        for name in ("torso", *FEET):
            spec.geom(name).contype = 1 | WALL_BIT | BLOCK_BIT
        for one in (*spec.geoms, *spec.pairs):  # the feet's with the floor are listed, and have their own
            one.solimp[:3] = 0.995, 0.995, 0.01
        return spec

    def view(self) -> View:
        return View(distance=42.0, elevation=-75.0, lookat=(8.0, 8.0, 0.0))

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        body_key, side_key, goal_key, block_key, speed_key = jax.random.split(key, 5)
        ant = self.stand(body_key, jnp.zeros(2))
        pocket = jnp.where(jax.random.bernoulli(side_key), jnp.array([16.0, 8.0]), jnp.array([8.0, 16.0]))
        goal = pocket + jax.random.uniform(goal_key, (2,), maxval=2.0)
        block, speed = jnp.zeros(2), jnp.zeros(2)
        if self.parity:
            block = jax.random.uniform(block_key, (2,), minval=-NOISE, maxval=NOISE)
            speed = speed.at[0].set(NOISE * jax.random.normal(speed_key))
        return at_rest(jnp.concatenate([ant.qpos, block]), jnp.concatenate([ant.qvel, speed])), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([super().observe(physics), physics.qpos[15:] + jnp.array(BLOCK)])

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return upkeep(action) - self.distance(after, goal)
