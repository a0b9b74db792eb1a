"""Tables for a terminal."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, Group

_WIDE = 160  # columns of a table that no terminal shows, so that a file or a pipe gets it whole


def console() -> Console:
    """Where tables are printed: the terminal as it is, or a file or pipe as wide as tables are."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDE)


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Group:
    """A titled table for rich's console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        widest = max((len(row[i]) for row in rows), default=0)
        drawn.add_column(column, min_width=widest if i == 0 or widest < 12 else None)  # only sentences wrap
    for row in rows:
        drawn.add_row(*row)
    return Group(f"\n[bold]{title}[/]", drawn)


def spread(values: list[float], form: str) -> str:
    """ "mean (least to largest)"; the value alone if there is one."""
    if not values:
        return "-"
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
