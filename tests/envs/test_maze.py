"""Mazes: published grids, walls that hold for every robot in every layout, starts and goals at chosen distances."""

from __future__ import annotations

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs.engines import PhysicsState
from deepres.envs.layouts import ANT_LAYOUTS, LAYOUTS
from deepres.envs.tasks.maze import Maze
from helpers.envs_fixtures import quick, stepper

# What a robot's torso may do without ending its episode, metres; the speed that it is thrown at walls with, m/s.
HEALTHY = {"point": (0.0, 1.0), "ant": (0.2, 1.0), "humanoid": (1.0, 2.0)}
THROWN = {"point": 3.0, "ant": 5.0, "humanoid": 4.0}


def mazes(robot):
    """A task for each layout that `robot` is registered in."""
    layouts = [layout for layout in ANT_LAYOUTS if f"{robot}_{layout}" in envs.names()]
    return [envs.make_task(f"{robot}_{layout}") for layout in layouts]


def padded(tasks):
    """bool [len(tasks), rows, columns]: the tasks' walls, the smaller mazes with more wall around them."""
    walls = np.ones((len(tasks), *np.max([task.maze.walls.shape for task in tasks], axis=0)), bool)
    for grid, task in zip(walls, tasks, strict=True):
        rows, columns = task.maze.walls.shape
        grid[:rows, :columns] = task.maze.walls
    return walls


class Crowd:
    """`count` robots in each layout, stepped together by an engine; whoever falls is put back elsewhere."""

    def __init__(self, robot, count, engine="c"):
        tasks = mazes(robot)
        self.task = task = tasks[0]
        self.robot, self.cell = robot, task.maze.cell
        self.walls = np.repeat(padded(tasks), count, axis=0)
        self.n = len(self.walls)
        self.rng = np.random.default_rng(7)
        self.start = jax.tree.map(np.array, task.start(jax.random.PRNGKey(0))[0])
        self.physics = jax.tree.map(lambda leaf: np.repeat(leaf[None], self.n, axis=0), self.start)
        self.advance = stepper(task.model, task.dt, self.n, engine, jax.jit)  # a thousand steps

        def mocap(walls, physics):
            there = copy.copy(task)
            there.maze = replace(task.maze, walls=walls)
            return there.mocap(physics)

        self.drive = quick(
            lambda walls, physics, a: (jax.vmap(task.control)(a), jax.vmap(mocap)(walls, physics))
        )
        self.at = np.zeros((self.n, 2), int)
        for n in range(self.n):
            self.throw(n)

    def throw(self, n):
        """Robot n anywhere in a free cell, thrown at one of the four sides or in any direction."""
        free = np.argwhere(~self.walls[n])
        self.at[n] = free[self.rng.integers(len(free))]
        xy = (self.at[n] + self.rng.uniform(-0.1, 0.1, 2)) * self.cell
        bearing = self.rng.choice([self.rng.integers(4) * np.pi / 2, self.rng.uniform(0, 2 * np.pi)])
        for name in ("qpos", "qvel", "warmstart", "sensors"):
            getattr(self.physics, name)[n] = getattr(self.start, name)
        shift = xy - self.start.qpos[:2]
        self.physics.qpos[n, :2] = xy
        self.physics.qvel[n, :2] = THROWN[self.robot] * np.array([np.cos(bearing), np.sin(bearing)])
        if self.physics.sensors.size:  # the places of the humanoid's links
            self.physics.sensors[n, :33] += np.tile(np.append(shift, 0), 11)

    def step(self, action):
        """Torsos' xy [n, 2] and whether their episode goes on [n]."""
        ctrl, mocap_pos = self.drive(self.walls, self.physics, action.astype(np.float32))
        after = self.advance(self.physics, ctrl, mocap_pos)
        self.physics = PhysicsState(*(np.array(leaf) for leaf in jax.tree.leaves(after)))
        assert np.isfinite(self.physics.qpos).all() and np.isfinite(self.physics.qvel).all()
        low, high = HEALTHY[self.robot]
        z = self.physics.qpos[:, 2] if self.robot != "point" else np.full(self.n, 0.75)
        return self.physics.qpos[:, :2].copy(), (z >= low) & (z <= high)


# Warp on a CPU takes minutes, MJX a quarter of one: the robot whose legs meet walls first. Motors at their limit push
# harder than random ones, which the quickest robot stands for.
@pytest.mark.parametrize(
    ("robot", "engine", "power"),
    [
        ("point", "c", "random"),
        *((robot, "c", "full") for robot in ("point", "ant", "humanoid")),
        ("ant", "jax", "full"),
    ],
)
def test_nobody_passes_a_wall(robot, engine, power):
    crowd = Crowd(robot, {"point": 8, "ant": 3, "humanoid": 8}[robot] if engine == "c" else 2, engine)
    size = crowd.task.action_dim
    action = crowd.rng.uniform(-1, 1, (crowd.n, size))
    hits = np.zeros(crowd.n, int)
    for _ in range(1000):
        if power == "random":
            action = crowd.rng.uniform(-1, 1, (crowd.n, size))
        else:  # every motor at its limit, one way for a second or two; the point also straight along x or y
            turn = crowd.rng.random(crowd.n) < 0.03
            action[turn] = crowd.rng.choice([-1, 0, 1] if robot == "point" else [-1, 1], (turn.sum(), size))
        xy, going = crowd.step(action)
        cells = np.round(xy / crowd.cell).astype(int).clip(0, np.array(crowd.walls.shape[1:]) - 1)
        assert not (crowd.walls[np.arange(crowd.n), cells[:, 0], cells[:, 1]] & going).any()
        for n in np.flatnonzero(
            going & (cells != crowd.at).any(axis=1)
        ):  # to a neighbour, never past a corner
            (a, b), (c, d) = crowd.at[n], cells[n]
            assert abs(a - c) + abs(b - d) == 1 or (
                max(abs(a - c), abs(b - d)) == 1 and not (crowd.walls[n, a, d] and crowd.walls[n, c, b])
            ), f"robot {n} went from {crowd.at[n]} to {cells[n]}"
        crowd.at = cells
        near = np.abs(xy - cells * crowd.cell).max(axis=1) > crowd.cell / 2 - 0.5
        hits += near & going
        for n in np.flatnonzero(~going):
            crowd.throw(n)
    assert (hits > 0).mean() > 0.9  # they did come to walls


def geoms_that_walls_stop(model):
    return [g for g in range(model.ngeom) if model.geom_contype[g] & 2]


def reach(model, qpos):
    """Metres in the plane from qpos's first two to the farthest point of a geom that walls stop."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    farthest = 0.0
    for g in geoms_that_walls_stop(model):
        half = model.geom_size[g, 1] if model.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
        for end in (-half, half):
            point = data.geom_xpos[g] + end * data.geom_xmat[g].reshape(3, 3)[:, 2]
            farthest = max(farthest, np.linalg.norm(point[:2] - qpos[:2]) + model.geom_size[g, 0])
    return farthest


@pytest.mark.parametrize("robot", ["point", "ant"])
def test_three_boxes_suffice_where_the_reach_is_under_half_a_cell(robot):
    task = envs.make_task(f"{robot}_u_maze")
    model, rng, farthest = task.model, np.random.default_rng(0), 0.0
    for _ in range(500):
        qpos = np.zeros(model.nq)
        if robot == "ant":  # its joints anywhere, well beyond their limits, and it may be upside down
            qpos[7:] = rng.uniform(1.5 * model.jnt_range[1:, 0], 1.5 * model.jnt_range[1:, 1])
            qpos[3:7] = rng.standard_normal(4)
        farthest = max(farthest, reach(model, qpos))
    assert farthest < task.maze.cell / 2 - 0.25  # and a period's way at 5 m/s

    maze = Maze.parse("hardest_maze", 4.0)
    free = np.argwhere(~maze.walls)
    xy = (free[rng.integers(len(free), size=4000)] + rng.uniform(-0.5, 0.5, (4000, 2))) * 4.0
    windows = np.asarray(quick(jax.vmap(lambda at: maze.window(at[None], 3)))(jnp.asarray(xy, jnp.float32)))
    centres = np.argwhere(maze.walls) * 4.0
    gap = np.linalg.norm(np.maximum(np.abs(xy[:, None] - centres) - 2.0, 0), axis=-1)
    for n, near in enumerate(gap < 1.99):
        shown = {tuple(w[:2]) for w in windows[n] if w[2] > 0}
        assert {tuple(c) for c in centres[near]} <= shown <= {tuple(c) for c in centres}


def test_the_humanoids_window_holds_every_wall_that_it_touches():
    crowd = Crowd("humanoid", 8)
    model, maze = crowd.task.model, crowd.task.maze
    data = mujoco.MjData(model)
    geoms = np.array(geoms_that_walls_stop(model))
    half = np.where(model.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_CAPSULE, model.geom_size[geoms, 1], 0.0)
    action, most = crowd.rng.choice([-1.0, 1.0], (crowd.n, 17)), 0
    for t in range(240):
        turn = crowd.rng.random(crowd.n) < 0.05
        action[turn] = crowd.rng.choice([-1.0, 1.0], (turn.sum(), 17))
        shown = np.asarray(crowd.drive(crowd.walls, crowd.physics, action.astype(np.float32))[1])
        xy, going = crowd.step(action)
        for n in np.flatnonzero(going)[t % 4 :: 4]:
            data.qpos[:] = crowd.physics.qpos[n]
            mujoco.mj_kinematics(model, data)
            along = data.geom_xmat[geoms].reshape(-1, 3, 3)[:, :2, 2] * half[:, None]
            points = data.geom_xpos[geoms, :2] + np.linspace(-1, 1, 7)[:, None, None] * along  # [7, geoms, 2]
            walls = np.argwhere(crowd.walls[n])
            walls = walls[np.abs(walls * maze.cell - xy[n]).max(axis=1) < 2.5 * maze.cell]
            outside = np.maximum(np.abs(points[..., None, :] - walls * maze.cell) - maze.cell / 2, 0)
            gap = (np.linalg.norm(outside, axis=-1) - model.geom_size[geoms, 0][:, None]).min(axis=(0, 1))
            touched = {tuple(cell) for cell in walls[gap < 0.005].tolist()}
            window = np.round(shown[n, :, :2] / maze.cell).astype(int)
            assert touched <= {tuple(cell) for cell in window[shown[n, :, 2] > 0].tolist()}
            most = max(most, len(touched))
        for n in np.flatnonzero(~going):
            crowd.throw(n)
    assert 2 <= most <= crowd.task.boxes


@pytest.mark.parametrize(
    ("layout", "walls", "goals"),
    [("u_maze", 18, 6), ("u_maze_eval", 18, 3), ("u_maze_single_eval", 18, 1), ("u_maze_eval_1f2f3f", 18, 3),
     ("u_maze_eval_1f2f3f4f", 18, 4), ("u_maze_eval_1f2f3f4f5f", 18, 5), ("u_maze_eval_5f6f", 18, 2),
     ("u2_maze", 21, 8), ("u2_maze_eval", 21, 4), ("u3_maze", 24, 10), ("u3_maze_eval", 24, 5),
     ("u3_maze_single_eval", 24, 1), ("u4_maze", 24, 10), ("u4_maze_eval", 24, 4), ("u5_maze", 39, 16),
     ("u5_maze_eval", 39, 8), ("u5_maze_single_eval", 39, 1), ("u6_maze", 34, 14), ("u6_maze_eval", 34, 7),
     ("u7_maze", 29, 12), ("u7_maze_eval", 29, 6), ("big_maze", 38, 25), ("big_maze_eval", 38, 10),
     ("hardest_maze", 62, 45)],
)  # fmt: skip
def test_published_layouts_have_their_walls_and_goals(layout, walls, goals):
    maze = Maze.parse(layout, 4.0)
    assert (int(maze.walls.sum()), len(maze.goals), len(maze.starts)) == (walls, goals, 1)
    assert envs.make_task(f"ant_{layout}").maze.goals.shape[0] == goals - (layout == "big_maze_eval")


def test_every_layout_is_tested_above_and_registered():
    assert set(ANT_LAYOUTS) == set(LAYOUTS) and len(LAYOUTS) == 24
    assert {f"ant_{layout}" for layout in LAYOUTS} <= set(envs.names())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["####", "#R.#", "####"], r"must have a goal cell \(G\), got none"),
        (["####", "#G.#", "####"], r"must have a start cell \(R\), got none"),
        (["####", "#RG.", "####"], "border must be closed by #"),
        (["####", "#RG#", "#.##"], "border must be closed by #"),
        (["#####", "#R#G#", "#####"], "got one at row 1, column 3 that walls cut off from the start"),
        (["####", "#RG#", "###"], "equally long, got 4 cells in row 0 and 3 in row 2"),
        (["####", "#RX#", "####"], "cells must be # R G or ., got 'X' in row 1"),
        ([], "at least one row"),
        ("v_maze", "layout must be one of big_maze, .*u_maze.*, got 'v_maze'"),
    ],
)  # fmt: skip
def test_bad_grids_are_refused_with_the_reason(rows, reason):
    for robot in ("ant", "humanoid", "point"):
        with pytest.raises(ValueError, match=reason):
            envs.make_task(f"{robot}_maze", layout=rows)


def test_a_grid_of_ones_own_is_a_maze():
    for robot, cell in (("ant", 4.0), ("humanoid", 2.0), ("point", 4.0)):
        task = envs.make_task(f"{robot}_maze", layout=["#####", "#R.G#", "#####"])
        assert task.maze.goals.tolist() == [[cell, 3 * cell]] and task.maze.starts.tolist() == [[cell, cell]]


def steps_apart(walls, start, goal):
    """Cells from `start` to `goal`, by breadth-first search."""
    front, far = {start}, 0
    seen = set(front)
    while goal not in front:
        front = {
            (i + di, j + dj) for i, j in front for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1))
            if not walls[i + di, j + dj]
        } - seen  # fmt: skip
        seen |= front
        far += 1
    return far


@pytest.mark.parametrize(
    ("name", "length", "apart"),
    [
        ("ant_u_maze_gen_1f2f3f", 7, (1, 2, 3)),
        ("ant_u5_maze_gen_4f6f16f", 17, (4, 6, 16)),
        ("point_u4_maze_gen_1f5f", 11, (1, 5)),
    ],
)  # fmt: skip
def test_starts_and_goals_are_as_far_apart_as_the_name_says(name, length, apart):
    task = envs.make_task(name)
    path = task.maze.path()
    assert len(path) == length and path[0].tolist() == task.maze.starts[0].tolist()
    count = 3000
    physics, goals = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(1), count))
    ends = np.round(np.stack([physics.qpos[:, :2], goals], axis=1) / 4).astype(int)
    assert (np.asarray(physics.qpos[:, :2]) == ends[:, 0] * np.float32(4)).all()  # exactly a cell's centre
    pairs, counts = np.unique(ends.reshape(count, 4), axis=0, return_counts=True)
    where = {tuple(cell): k for k, cell in enumerate((path / 4).astype(int).tolist())}
    far = np.array([steps_apart(task.maze.walls, (a, b), (c, d)) for a, b, c, d in pairs.tolist()])
    assert all(where[c, d] - where[a, b] == k for (a, b, c, d), k in zip(pairs.tolist(), far, strict=True))
    assert sorted(set(far.tolist())) == list(apart) and len(pairs) == sum(length - k for k in apart)
    expected = count / len(apart) / (length - far)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(pairs) - 1
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom) + 4


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ant_u_maze_gen_7f", {}, r"apart must be different numbers of cells from 1 to 6, got \(7,\)"),
        ("ant_u_maze_gen_1f1f", {}, r"apart must be different numbers of cells from 1 to 6, got \(1, 1\)"),
        ("ant_big_maze_gen_1f", {}, "need a maze that is a single corridor"),
        ("ant_v_maze_gen_1f", {}, "layout must be one of .*got 'v_maze'"),
        ("ant_u_maze_gen_f", {}, "env must be one of"),
        ("horse_maze", {}, "env must be one of"),
        ("reacher_whole_goal", {}, "env must be one of reacher"),
        ("ant_maze", {"layout": ["######", "#R.RG#", "######"], "apart": (1,)}, "got 2 starts"),
    ],
)  # fmt: skip
def test_bad_distances_get_a_sentence(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        envs.make_task(name, **options)


def test_a_whole_goal_is_a_state_at_the_goals_place():
    """Its place is a goal's of the maze, the rest a start's drawn apart; the place alone is judged and shown."""
    name, place = "point_u_maze_gen_1f2f", 2
    task, whole = envs.make_task(name), envs.make_task(f"{name}_whole_goal")
    assert envs.make_task("ant_big_maze_whole_goal").goal_dim == 29
    assert whole.goal_slice == slice(0, whole.state_dim) and whole.goal_dim == task.state_dim
    physics, goals = quick(jax.vmap(whole.start))(jax.random.split(jax.random.PRNGKey(2), 300))
    states = np.asarray(jax.vmap(whole.observe)(physics))
    asked = {tuple(goal) for goal in np.asarray(goals)[:, :place].tolist()}
    assert asked == set(map(tuple, task.pairs.ends[:, 1].tolist()))
    ours, theirs = np.asarray(goals)[:, place:], states[:, place:]
    assert (ours != theirs).any(axis=1).all()
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), atol=0.03)
    there = states[0].copy()
    there[:place] = np.asarray(goals)[1, :place] + [0.3, 0.3]
    assert whole.success(there, goals[1]) and task.success(there, goals[1, :place])
    assert float(whole.distance(there, goals[1])) == pytest.approx(0.3 * np.sqrt(2), rel=1e-5)
    np.testing.assert_array_equal(
        whole.marker(np.asarray(goals)[1]), task.marker(np.asarray(goals)[1, :place])
    )


def test_goals_are_drawn_from_the_goal_cells_evenly():
    for name in ("humanoid_big_maze_eval", "ant_hardest_maze"):
        task = envs.make_task(name)
        physics, goals = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(0), 4000))
        cells, counts = np.unique(np.asarray(goals)[:, :2], axis=0, return_counts=True)
        np.testing.assert_array_equal(cells, task.maze.goals[np.lexsort(task.maze.goals.T[::-1])])
        assert (np.abs(counts * len(cells) / 4000 - 1) < 5 * np.sqrt(len(cells) / 4000)).all()
        noise = np.abs(np.asarray(physics.qpos)[:, :2] - task.maze.starts[0]).max()
        assert noise == 0 if not name.startswith("ant") else 0.099 < noise <= 0.1 + 1e-5
