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

WIDTH, HEIGHT, CAPTION = 240, 180, 22  # pixels
COLUMNS = 6
PAPER, INK = (255, 255, 255), (45, 62, 80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet that the command line asks for, and say where."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or not given[0].endswith(".png"):
        raise SystemExit("usage: python -m deepres.report.sheet OUT.png [TASK ...]")
    training = [name for name in names() if "_eval" not in name and "_gen_" not in name]
    print(contact_sheet(given[0], given[1:] or training))


def contact_sheet(path: str | Path, tasks: Sequence[str], columns: int = COLUMNS) -> Path:
    """Write a PNG with a picture of every one of `tasks`, row by row, each over its name; returns its path.

    Raises: RuntimeError without EGL or OSMesa; ImportError without Pillow.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(f"a contact sheet needs Pillow ({error}); pip install 'deepres[envs]'") from None
    columns = min(columns, len(tasks))
    rows = -(-len(tasks) // columns)
    sheet = Image.new("RGB", (columns * WIDTH, rows * (HEIGHT + CAPTION)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for n, name in enumerate(tasks):
        x, y = n % columns * WIDTH, n // columns * (HEIGHT + CAPTION)
        sheet.paste(Image.fromarray(portrait(name)), (x, y))
        pen.text((x + WIDTH / 2, y + HEIGHT + CAPTION / 2), name, INK, font, anchor="mm")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


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
