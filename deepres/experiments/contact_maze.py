"""The point's maze with other contacts: what a sphere and a wall do where they meet, and what random actions reach."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from deepres.envs import make
from deepres.envs.tasks.point import PointMaze
from deepres.experiments.study import Numbers

ENVS, STEPS = 64, 1000  # of random actions: one published episode of each environment
SPEED = 2.0  # m/s, with which the sphere meets a wall
SUBSTEPS = 400


class ContactMaze(PointMaze):
    """PointMaze whose geoms and solver are given.

    solref, solimp, friction: of the sphere and of the walls (MuJoCo's geom attributes). timestep: seconds.
    iterations: of the solver in each timestep. None leaves what the model says.
    """

    def __init__(
        self,
        layout: str = "u_maze",
        *,
        solref: tuple[float, float] | None = None,
        solimp: tuple[float, ...] | None = None,
        friction: float | None = None,
        timestep: float | None = None,
        iterations: int | None = None,
    ) -> None:
        super().__init__(layout)
        geoms: dict[str, Any] = {"solref": solref, "solimp": solimp}
        self._geoms = {name: value for name, value in geoms.items() if value is not None}
        self._friction, self._timestep, self._iterations = friction, timestep, iterations

    def spec(self) -> mujoco.MjSpec:
        spec = super().spec()
        for geom in spec.geoms:
            for name, value in self._geoms.items():
                setattr(geom, name, list(value))
            if self._friction is not None:
                geom.friction = [self._friction, *geom.friction[1:]]
                geom.condim = 3 if self._friction else 1
        if self._timestep is not None:
            spec.option.timestep = self._timestep
        if self._iterations is not None:
            spec.option.iterations, spec.option.ls_iterations = self._iterations, 50
        return spec


def explored(env_name: str, seed: int) -> Numbers:
    """One episode of uniformly random actions in each of 64 environments, means over them.

    cells: share of the maze's free cells that the sphere's centre was in. farthest: largest distance from the start,
    metres. random_success: share that came within the threshold of their goal. escaped: share that a wall did not hold.
    """
    env: Any = make(env_name, num_envs=ENVS, seed=seed, episode_length=STEPS + 1)
    draw = np.random.default_rng(seed)
    state = env.reset()
    start = np.asarray(state.obs[:, :2])
    maze = env.task.maze
    visited = np.zeros((ENVS, *maze.walls.shape), bool)
    farthest, reached, escaped = np.zeros(ENVS), np.zeros(ENVS, bool), np.zeros(ENVS, bool)
    for _ in range(STEPS):
        state = env.step(state, draw.uniform(-1, 1, (ENVS, env.action_dim)).astype(np.float32))
        place = np.asarray(state.obs[:, :2])
        cell = np.clip(np.round(place / maze.cell).astype(int), 0, np.array(maze.walls.shape) - 1)
        visited[np.arange(ENVS), cell[:, 0], cell[:, 1]] = True
        escaped |= maze.walls[cell[:, 0], cell[:, 1]]
        farthest = np.maximum(farthest, np.linalg.norm(place - start, axis=1))
        reached |= np.asarray(state.success) > 0
    return {
        "cells": float(visited[:, ~maze.walls].mean()),
        "farthest": float(farthest.mean()),
        "random_success": float(reached.mean()),
        "escaped": float(escaped.mean()),
        "rebound": rebound(env.task),
    }


def rebound(task: PointMaze) -> float:
    """The speed with which the sphere leaves a wall that it met head-on at 2 m/s, over that speed."""
    import jax.numpy as jnp

    from deepres.envs.engines import at_rest

    start = task.maze.starts[0]
    data = mujoco.MjData(task.model)
    data.qpos[:], data.qvel[:] = start, [-SPEED, 0.0]
    data.mocap_pos[:] = np.asarray(task.mocap(at_rest(jnp.asarray(start), jnp.zeros(2))))
    fastest = 0.0
    for _ in range(SUBSTEPS):
        mujoco.mj_step(task.model, data)
        fastest = max(fastest, float(data.qvel[0]))
    return fastest / SPEED
