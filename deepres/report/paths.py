"""The paths that a policy walked, seen from above."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepres.report.figures import save

WALL, START, GOAL = "#8d99a8", "#2d3e50", "#e74c3c"
REACHED, MISSED = "#27ae60", "#a0a7b0"


def plot_paths(
    env: Any,
    paths: Sequence[np.ndarray],
    goals: Sequence[np.ndarray],
    path: str | Path,
    title: str | None = None,
) -> Path:
    """Draw the x, y paths walked, seen from above, into `path` and a PDF: walls, starts, goals; green where the goal
    was reached.

    env: what was walked in; its name, threshold and, if its task has one, maze are read. paths: one [T, 2] array (or
    wider; x and y come first) in metres per episode, T >= 1. goals: its goal, [2] or wider. Where there is one
    coordinate alone, it is x. A path counts as reaching its goal if it comes within env.threshold
    of it.
    Returns `path`. Raises: ValueError for paths that are not so; ImportError without matplotlib.
    """
    walks = [_in_plane(np.asarray(walk, np.float64)) for walk in paths]
    ends = [_in_plane(np.asarray(goal, np.float64).reshape(-1))[:2] for goal in goals]
    if len(walks) != len(ends) or not walks:
        raise ValueError(
            f"plot_paths wants one goal per path and at least one, got {len(walks)} paths, {len(ends)} goals"
        )
    for walk in walks:
        if walk.ndim != 2 or walk.shape[0] < 1 or walk.shape[1] < 2:
            raise ValueError(f"a path must have shape [T, 2], T >= 1, got {list(walk.shape)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot_paths needs matplotlib ({error}); pip install 'deepres[envs]'") from None
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.add_subplot()
    reached = _draw_paths(axes, env, walks, ends)
    axes.set_title(title or f"{env.name}: {reached} of {len(walks)} reach their goal", fontsize=11)
    return save(figure, Path(path))[0]


def _in_plane(places: np.ndarray) -> np.ndarray:
    """`places` [..., G]; those of one coordinate lie at y = 0."""
    if places.ndim and places.shape[-1] == 1:
        return np.concatenate([places, np.zeros_like(places)], axis=-1)
    return places


def _draw_paths(axes: Any, env: Any, walks: list[np.ndarray], goals: list[np.ndarray]) -> int:
    """Everything on `axes`; returns how many walks reach their goal."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Rectangle

    maze = getattr(getattr(env, "task", None), "maze", None)
    if maze is not None:
        side = maze.cell
        for x, y in np.argwhere(maze.walls) * side - side / 2:
            axes.add_patch(Rectangle((x, y), side, side, facecolor=WALL, edgecolor=WALL, linewidth=0.5))
    reached = 0
    for walk, goal in zip(walks, goals, strict=True):
        inside = np.linalg.norm(walk[:, :2] - goal, axis=1) < env.threshold
        reached += bool(inside.any())
        colour = REACHED if inside.any() else MISSED
        axes.plot(walk[:, 0], walk[:, 1], color=colour, linewidth=1.3, alpha=0.75, zorder=3)
        axes.plot(*walk[-1, :2], marker="o", markersize=3.5, color=colour, zorder=4)
        axes.add_patch(
            Circle((goal[0], goal[1]), env.threshold, facecolor=GOAL, edgecolor="none", alpha=0.35, zorder=2)
        )
        axes.plot(*goal, marker="*", markersize=9, color=GOAL, markeredgecolor="white", zorder=6)
    starts = np.stack([walk[0, :2] for walk in walks])
    axes.plot(*starts.T, linestyle="none", marker="o", markersize=5, color=START, zorder=5)
    handles = [
        Line2D([], [], color=REACHED, label="reached"),
        Line2D([], [], color=MISSED, label="not reached"),
        Line2D([], [], color=START, marker="o", linestyle="none", label="start"),
        Line2D([], [], color=GOAL, marker="*", markersize=9, linestyle="none", label="goal"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=4, frameon=False)
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")
    axes.margins(0 if maze is not None else 0.05)
    axes.spines[["top", "right"]].set_visible(False)
    return reached
