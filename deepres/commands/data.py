"""Commands about data sets of episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro


def make(
    env: tyro.conf.Positional[str],
    out: Path,
    kind: Literal["navigate", "stitch", "explore"] = "navigate",
    episodes: int = 1000,
    length: int | None = None,
    noise: float | None = None,
    policy: Path | None = None,
    seed: int = 0,
) -> None:
    """Make a data set in a maze, and a validation set of a tenth beside it; goes on where it was stopped.

    Args:
        env: A maze, e.g. point_big_maze.
        out: The file, NAME.npz.
        kind: navigate from goal to goal, stitch of ways of four cells, or explore at random.
        episodes: In the training set.
        length: Transitions of an episode; by default 1000, 200, 500 of the three kinds.
        noise: Standard deviation of what is added to actions; by default as published.
        policy: Run of a robot with joints that walks to a goal on open ground.
        seed: The same seed makes the same file.
    """
    from deepres.experiments.make_data import make_data, plan

    for path in make_data(plan(env, kind, episodes, length, noise, seed), out, policy):
        print(path)


def info(file: tyro.conf.Positional[Path], picture: Path | None = None) -> None:
    """Check a data set, say what it holds, and draw where it has been.

    Args:
        file: The data set.
        picture: Where to draw it; by default beside the file, NAME.png.
    """
    from deepres.data.datasets import read
    from deepres.report.data import draw, rows
    from deepres.report.tables import console, table

    data = read(file)
    console().print(table(str(file), ("", ""), rows(data)))
    print(draw(data, picture or file.with_suffix(".png")))


COMMANDS: dict[str, Callable[..., None]] = {"make": make, "info": info}
