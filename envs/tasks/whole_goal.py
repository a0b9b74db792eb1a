"""Mazes whose goal is a whole state: where to be, and how to stand there.

The goal that is asked for is the state of the robot put to the goal's place as it is put to a start, at rest but for
the start's noise; any later state of a trajectory can stand as its goal. Reaching it is the maze's own matter, of the
place alone. OGBench (arXiv 2410.20092) asks so for all its goals.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from deepres.envs.engines import PhysicsState
from deepres.envs.tasks.ant import AntMaze
from deepres.envs.tasks.humanoid import HumanoidMaze
from deepres.envs.tasks.maze import Walled
from deepres.envs.tasks.point import PointMaze


class WholeGoal(Walled):
    """What the mazes below share; `place` are the coordinates that the maze judges by."""

    place: slice

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        start_key, pose_key = jax.random.split(key)
        physics, place = super().start(start_key)  # type: ignore[safe-super]
        pose = self.observe(super().start(pose_key)[0])  # type: ignore[safe-super]
        return physics, pose.at[self.place].set(place)

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        return jnp.linalg.norm(state[self.place] - goal[self.place])

    def marker(self, goal: np.ndarray) -> np.ndarray:
        return super().marker(goal[self.place])


class PointMazeWholeGoal(WholeGoal, PointMaze):
    """The point's maze; the goal is a place and a velocity."""

    place, goal_slice = PointMaze.goal_slice, slice(0, PointMaze.state_dim)


class AntMazeWholeGoal(WholeGoal, AntMaze):
    """The ant's maze; the goal is a place, a posture and what moves."""

    place, goal_slice = AntMaze.goal_slice, slice(0, AntMaze.state_dim)


class HumanoidMazeWholeGoal(WholeGoal, HumanoidMaze):
    """The humanoid's maze; the goal is a place, a posture and what moves."""

    place, goal_slice = HumanoidMaze.goal_slice, slice(0, HumanoidMaze.state_dim)
