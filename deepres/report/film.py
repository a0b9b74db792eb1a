"""Video files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def check_writer(path: Path) -> None:
    """Raise ImportError, with what to install, if a file like `path` (.gif or .mp4) cannot be written here."""
    needs = ("imageio", "PIL") if path.suffix.lower() == ".gif" else ("imageio", "imageio_ffmpeg")
    for module in needs:
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"writing {path.suffix} needs {module.replace('_', '-')}; pip install 'deepres[envs]'"
            )


def write_video(path: Path, pictures: Iterator[np.ndarray], fps: float) -> Path:
    """Write `pictures`, RGB [height, width, 3] uint8, into `path` (.gif or .mp4), `fps` of them a second."""
    check_writer(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    import imageio.v2 as imageio

    # Left to itself imageio starts ffmpeg by a bare fork, which can hang a process that has JAX's threads.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    gif = {"duration": 1000 / fps, "loop": 0}
    mp4 = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2}
    writer: Any = imageio.get_writer(path.absolute(), **(gif if path.suffix.lower() == ".gif" else mp4))
    with writer:
        for picture in pictures:
            writer.append_data(picture)
    return path
