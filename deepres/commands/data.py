"""Commands about data sets of episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro


def make(
    env: tyro.conf.Positional[str],
    out: Path,
    kind: Literal["navigate", "stitch", "explore", "replay"] = "navigate",
    episodes: int | None = None,
    length: int | None = None,
    noise: float | None = None,
    policy: Path | None = None,
    seed: int = 0,
) -> None:
    """Make a data set in a maze, or of what a run collected, and a validation set of a tenth beside it.

    In a maze it goes on where it was stopped.

    Args:
        env: A maze, e.g. point_big_maze; for a replay the folder of a run trained with --record all.
        out: The file, NAME.npz.
        kind: navigate from goal to goal, stitch of ways of four cells, explore at random, or replay a run.
        episodes: In the training set, by default 1000; a replay has all that there are.
        length: Transitions of an episode; by default 1000, 200, 500 of the first kinds, a run's usual ones of a replay.
        noise: Standard deviation of what is added to actions; by default as published.
        policy: Run of a robot with joints that walks to a goal on open ground; the ant has a gait and needs none.
        seed: The same seed makes the same file.
    """
    from deepres.experiments.make_data import make_data, plan
    from deepres.experiments.replay_data import replay_data

    if kind == "replay":
        given = {"episodes": episodes, "noise": noise, "policy": policy}
        if none_of := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(none_of)} does not apply to a replay; leave it out")
        written = replay_data(Path(env), out, length, seed)
    else:
        asked = plan(env, kind, 1000 if episodes is None else episodes, length, noise, seed)
        written = make_data(asked, out, policy)
    for path in written:
        print(path)


def info(file: tyro.conf.Positional[Path], picture: Path | None = None) -> None:
    """Check a data set, say what it holds, and draw where it has been.

    Args:
        file: The data set.
        picture: Where to draw it; by default beside the file, NAME.png and NAME.pdf.
    """
    from deepres.data.datasets import read
    from deepres.report.data import draw, rows
    from deepres.report.tables import console, table

    data = read(file)
    console().print(table(str(file), ("", ""), rows(data)))
    print(draw(data, picture or file.with_suffix(".png")))


COMMANDS: dict[str, Callable[..., None]] = {"make": make, "info": info}
