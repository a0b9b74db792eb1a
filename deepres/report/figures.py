"""Figures made without pyplot, so that the caller's backend and open figures stay, and written for screen and print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` into `path`, whose folder is made, and beside it as a PDF; returns both files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = list(dict.fromkeys([path, path.with_suffix(".pdf")]))
    for file in written:  # laid out once: that takes seconds of many panels, and both are then alike
        # the same rows give the same bytes
        dated = {"CreationDate": None} if file.suffix == ".pdf" else None
        figure.savefig(file, dpi=DPI, metadata=dated)
        figure.set_layout_engine("none")
    return written


def plain(text: str) -> str:
    """`text` as matplotlib shows it: no mathematics between dollars, and no name that it would leave out."""
    return text.replace("$", r"\$") if not text.startswith("_") else f" {plain(text[1:])}"
