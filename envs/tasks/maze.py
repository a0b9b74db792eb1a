"""Mazes from text grids, and the walls that physics sees of them.

A grid has one character a cell: `#` wall, `R` a start, `G` a possible goal, `.` free. Row i, column j is
centred at world (x, y) = (i, j) * cell. A wall cell is a box, half a cell high unless a task says otherwise.

Physics never holds all the walls. A few boxes serve every maze (the "window"), put at each control step on the
wall cells nearest to the robot, so that one compiled model serves all layouts and a maze's cost does not grow with
its size. That is exact where no more walls than boxes can be touched at once: a robot whose reach from its centre
is under half a cell meets only the three cells around the quadrant of its cell, and needs three.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState
from deepres.envs.layouts import LAYOUTS
from deepres.envs.task import Task, View

AROUND = np.array([(i, j) for i in (0, -1, 1) for j in (0, -1, 1)])  # a cell, then its eight neighbours
WALL_BIT = 2  # robots' geoms that walls stop have this contype
PARKED_Z = -100.0  # metres: where a box of the window waits that no wall needs
WALL_RGBA = (0.55, 0.60, 0.68, 1.0)


@dataclass(frozen=True)
class Pairs:
    """Starts and goals, ends: float32 [n, 2, 2], cell centres in metres; chances: [n], which add up to 1."""

    ends: np.ndarray
    chances: np.ndarray

    def draw(self, key: jax.Array) -> jax.Array:
        """A start and a goal, [2, 2]."""
        return jnp.asarray(self.ends)[jax.random.choice(key, len(self.ends), p=jnp.asarray(self.chances))]


@dataclass(frozen=True)
class Maze:
    """A checked grid. walls: bool [rows, columns]; starts, goals: float32 [n, 2], cell centres in metres.

    cell: metres to a cell's side. height: metres, of the walls.
    """

    rows: tuple[str, ...]
    walls: np.ndarray
    starts: np.ndarray
    goals: np.ndarray
    cell: float
    height: float

    @classmethod
    def parse(
        cls,
        layout: str | Sequence[str],
        cell: float,
        height: float | None = None,
        layouts: Mapping[str, str] = LAYOUTS,
    ) -> Maze:
        """The maze of a name in `layouts` or of a grid's rows; height: by default half a cell.

        Raises ValueError with the reason if the grid is not a closed maze in which every goal can be reached.
        """
        if isinstance(layout, str):
            if layout not in layouts:
                raise ValueError(
                    f"layout must be one of {', '.join(sorted(layouts))}, or rows, got {layout!r}"
                )
            layout = layouts[layout].split()
        rows = tuple(layout)
        _check_grid(rows)
        grid = np.array([list(row) for row in rows])
        starts, goals = np.argwhere(grid == "R"), np.argwhere(grid == "G")
        _check_reachable(grid == "#", starts, goals)
        centres = (starts * cell).astype(np.float32), (goals * cell).astype(np.float32)
        return cls(rows, grid == "#", *centres, cell, height or cell / 2)

    def draw_start(self, key: jax.Array) -> jax.Array:
        """A start cell's centre [2], uniformly."""
        return jnp.asarray(self.starts)[jax.random.randint(key, (), 0, len(self.starts))]

    def draw_goal(self, key: jax.Array) -> jax.Array:
        """A goal cell's centre [2], uniformly."""
        return jnp.asarray(self.goals)[jax.random.randint(key, (), 0, len(self.goals))]

    def pairs(self, apart: Sequence[int]) -> Pairs:
        """All starts and goals that are `apart` cells from each other along the path, the goal ahead; each number of
        cells is equally likely. Raises ValueError for a number that the path does not have, or a maze without one."""
        path, apart = self.path(), tuple(apart)
        longest = len(path) - 1
        whole = all(isinstance(k, int) and 1 <= k <= longest for k in apart)
        if not whole or len(set(apart)) != len(apart):
            raise ValueError(f"apart must be different numbers of cells from 1 to {longest}, got {apart}")
        ends = [np.stack([path[:-k], path[k:]], axis=1) for k in apart]
        chances = [np.full(len(pairs), 1 / len(pairs) / len(apart), np.float32) for pairs in ends]
        return Pairs(np.concatenate(ends), np.concatenate(chances))

    def path(self) -> np.ndarray:
        """[L, 2] float32: the centres of all free cells, in the order of a walk from the start.

        Raises ValueError unless the maze is one corridor that begins at its only start.
        """
        free = {tuple(cell) for cell in np.argwhere(~self.walls).tolist()}
        beside = {
            (i, j): [c for c in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if c in free]
            for i, j in free
        }
        walk = [tuple(np.round(self.starts[0] / self.cell).astype(int).tolist())]
        while onward := [cell for cell in beside[walk[-1]] if cell not in walk]:
            walk.append(onward[0])
        links = sum(map(len, beside.values())) // 2
        if len(self.starts) > 1 or len(walk) < len(free) or links >= len(free):
            raise ValueError(
                "goals at a chosen distance along the path need a maze that is a single corridor from its only "
                f"start, got {len(self.starts)} starts and {len(free)} free cells of which one walk takes {len(walk)}"
            )
        return (np.array(walk) * self.cell).astype(np.float32)

    def window(self, parts: jax.Array, boxes: int) -> jax.Array:
        """[boxes, 3]: centres of the wall cells nearest to any of `parts`; boxes that no wall needs are parked.

        parts: [P, 2], x and y of the robot's parts, its centre first; walls are sought in the centre's cell and
        the eight around it.
        """
        cells = jnp.round(parts[0] / self.cell).astype(jnp.int32) + AROUND
        inside = ((cells >= 0) & (cells < jnp.array(self.walls.shape))).all(axis=1)
        wall = inside & jnp.asarray(self.walls)[cells[:, 0], cells[:, 1]]
        outside = jnp.maximum(jnp.abs(parts[:, None] - cells * self.cell) - self.cell / 2, 0)  # [P, 9, 2]
        gap = jnp.where(wall, (outside**2).sum(axis=-1).min(axis=0), jnp.inf)
        nearest = jax.lax.top_k(-gap, boxes)[1]
        z = jnp.where(wall[nearest], self.height / 2, PARKED_Z)
        return jnp.concatenate([cells[nearest] * self.cell, z[:, None]], axis=1)

    def add_window(self, spec: mujoco.MjSpec, boxes: int) -> None:
        """Give `spec` the window's boxes, as mocap bodies that pictures leave out."""
        for k in range(boxes):
            body = spec.worldbody.add_body(name=f"window_{k}", mocap=True, pos=[0, 0, PARKED_Z])
            geom = self._add_box(body, self.height)
            geom.contype, geom.conaffinity, geom.rgba = 0, WALL_BIT, [0, 0, 0, 0]

    def add_walls(self, spec: mujoco.MjSpec) -> None:
        """Give `spec` a box for every wall cell, for pictures: nothing collides with it, and it is never higher
        than half a cell, lest it hide what is behind.
        """
        for i, j in np.argwhere(self.walls):
            body = spec.worldbody.add_body(pos=[i * self.cell, j * self.cell, self.cell / 4])
            geom = self._add_box(body, self.cell / 2)
            geom.contype, geom.conaffinity, geom.rgba = 0, 0, WALL_RGBA

    def view(self) -> View:
        """A camera that sees the whole maze from above, a little from the side."""
        size = np.array(self.walls.shape) * self.cell
        middle = (size - self.cell) / 2
        return View(distance=1.25 * float(size.max()), elevation=-68.0, lookat=(*middle.tolist(), 0.0))

    def _add_box(self, body: mujoco.MjsBody, height: float) -> mujoco.MjsGeom:
        size = [self.cell / 2, self.cell / 2, height / 2]
        return body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=size)


class Walled(Task):
    """A robot in a maze. Subclasses give `robot`, and `maze` before they ask for the model."""

    maze: Maze
    boxes: ClassVar[int]  # of the window: at least as many walls as the robot can touch at once

    @abstractmethod
    def robot(self) -> mujoco.MjSpec:
        """The model without walls, whose geoms that walls stop have WALL_BIT in their contype."""

    def spec(self) -> mujoco.MjSpec:
        spec = self.robot()
        self.maze.add_window(spec, self.boxes)
        return spec

    def scene(self) -> mujoco.MjSpec:
        spec = self.spec()
        self.maze.add_walls(spec)
        return spec

    def view(self) -> View:
        return self.maze.view()

    def parts(self, physics: PhysicsState) -> jax.Array:
        """[P, 2]: x and y of the robot's parts that walls are shown to, its centre first."""
        return physics.qpos[None, :2]

    def mocap(self, physics: PhysicsState) -> jax.Array:
        return self.maze.window(self.parts(physics), self.boxes)


def _check_grid(rows: tuple[str, ...]) -> None:
    if not rows or not rows[0]:
        raise ValueError("a maze must have at least one row of cells, got none")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"a maze's rows must be equally long, got {len(rows[0])} cells in row 0 "
                f"and {len(row)} in row {i}"
            )
        strange = sorted(set(row) - set("#RG."))
        if strange:
            raise ValueError(f"a maze's cells must be # R G or ., got {strange[0]!r} in row {i}")
    border = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
    if set(border) != {"#"}:
        raise ValueError("a maze's border must be closed by # on all four sides, got an open cell in it")
    for letter, what in (("R", "start"), ("G", "goal")):
        if not any(letter in row for row in rows):
            raise ValueError(f"a maze must have a {what} cell ({letter}), got none")


def _check_reachable(walls: np.ndarray, starts: np.ndarray, goals: np.ndarray) -> None:
    """Every goal from every start, by steps between cells that share a side."""
    for start in starts:
        reached = np.zeros_like(walls)
        front = [tuple(start)]
        while front:
            i, j = front.pop()
            if not walls[i, j] and not reached[i, j]:
                reached[i, j] = True
                front += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        for i, j in goals:
            if not reached[i, j]:
                raise ValueError(
                    f"every goal of a maze must be reachable, got one at row {i}, column {j} "
                    f"that walls cut off from the start at row {start[0]}, column {start[1]}"
                )
