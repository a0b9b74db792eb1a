"""A contact sheet: one small picture of each task at the start of an episode, its goal marked.

python -m deepres.report.sheet docs/tasks.png
python -m deepres.report.sheet docs/tasks.png ant reacher     # of these alone
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepres.envs import make_task, names
from deepres.report.figures import DPI, save

WIDTH, HEIGHT, CAPTION, LETTERS = 240, 180, 22, 13  # pixels
COLUMNS = 6
INK = "#2d3e50"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet that the command line asks for, and say where."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or not given[0].endswith(".png"):
        raise SystemExit("usage: python -m deepres.report.sheet OUT.png [TASK ...]")
    training = [name for name in names() if "_eval" not in name and "_gen_" not in name]
    print(contact_sheet(given[0], given[1:] or training))


def contact_sheet(path: str | Path, tasks: Sequence[str], columns: int = COLUMNS) -> Path:
    """Draw a picture of every one of `tasks`, row by row, each over its name, into `path` and a PDF; returns `path`.

    Raises: RuntimeError without EGL or OSMesa; ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"a contact sheet needs matplotlib ({error}); pip install 'deepres[envs]'"
        ) from None
    across = min(columns, len(tasks))
    size = np.array([across * WIDTH, -(-len(tasks) // across) * (HEIGHT + CAPTION)])
    figure = Figure(figsize=tuple(size / DPI))
    for n, name in enumerate(tasks):
        corner = np.array([n % across * WIDTH, size[1] - n // across * (HEIGHT + CAPTION) - HEIGHT])
        axis = figure.add_axes((*(corner / size), *([WIDTH, HEIGHT] / size)))
        axis.imshow(portrait(name), interpolation="none", aspect="auto")
        axis.set_axis_off()
        x, y = (corner + np.array([WIDTH / 2, -CAPTION / 2])) / size
        figure.text(x, y, name, color=INK, fontsize=LETTERS * 72 / DPI, ha="center", va="center")
    return save(figure, Path(path))[0]


def portrait(name: str, seed: int = 0) -> np.ndarray:
    """[HEIGHT, WIDTH, 3] uint8: the task called `name` at a start that `seed` draws."""
    import jax

    from deepres.report.video import Frame, pictures

    task = make_task(name)
    physics, goal = task.start(jax.random.PRNGKey(seed))
    asked, achieved = (task.marker(np.asarray(x)) for x in (goal, task.observe(physics)[task.goal_slice]))
    frame = Frame(np.asarray(physics.qpos), asked, achieved, success=False)
    return np.ascontiguousarray(next(pictures(task, [frame], WIDTH, HEIGHT)))


if __name__ == "__main__":
    main()
