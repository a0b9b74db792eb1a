"""The point mazes: a sphere pushed about in a maze, the cheapest of the long-horizon tasks.

State: x, y, vx, vy. Goal: x, y of a goal cell's centre. The sphere starts at rest but for a little noise in
the centre of the start cell. Nothing brakes it but walls. An action of 1 adds 0.188 m/s in a step of 0.05 s: motors of
5 N push the model's 1.33 kg, its armature and its own mass.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.engines import PhysicsState, at_rest
from deepres.envs.tasks import ASSETS
from deepres.envs.tasks.maze import Maze, Walled


class PointMaze(Walled):
    """A point in the maze `layout`: a name of layouts.LAYOUTS, or a grid's rows as text.

    With `apart`, a tuple of numbers of cells, the maze must be a single corridor, and start and goal are that many
    cells apart along it, as the ant's: ours, nothing like it was published.

    Parity: the published springs count the sphere as 1 kg, so that an action of 1 adds 0.250 m/s in a step, a third
    more. parity=True has that mass and the published timestep of 5 ms: away from walls it moves as published.
    """

    state_dim = 4
    goal_slice = slice(0, 2)
    dt = 0.05  # five timesteps: at the U maze's top speed the sphere moves a third of its radius in one
    threshold = 0.5
    threshold_easy = 2.0
    goal_height = 0.75
    boxes = 3  # its radius of 0.25 m is under half a cell

    def __init__(
        self, layout: str | Sequence[str] = "u_maze", apart: Sequence[int] = (), parity: bool = False
    ) -> None:
        self.parity = parity
        self.maze = Maze.parse(layout, cell=4.0)
        self.pairs = self.maze.pairs(apart) if apart else None

    def robot(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec.from_file(str(ASSETS / "point.xml"))
        if self.parity:
            spec.option.timestep = 0.005
            spec.geom("torso").mass = 1.0
            for joint in spec.joints:
                joint.armature = 0.0
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        start_key, goal_key, velocity_key = jax.random.split(key, 3)
        velocity = 0.1 * jax.random.normal(velocity_key, (2,))
        if self.pairs is None:
            return at_rest(self.maze.draw_start(start_key), velocity), self.maze.draw_goal(goal_key)
        start, goal = self.pairs.draw(start_key)
        return at_rest(start, velocity), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([physics.qpos, physics.qvel])

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return -self.distance(after, goal)
