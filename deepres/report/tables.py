"""Tables for a terminal."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_NAME = 36  # characters of a first column that is left whole on a narrow terminal
_WIDE = 160  # columns of a table that no terminal shows, so that a file or a pipe gets it whole


class _Plain:
    """Prints as a console does, where rich is not installed."""

    def print(self, what: object, **_: object) -> None:
        print(what)


def console() -> Console | _Plain:
    """Where tables are printed: the terminal as it is, or a file or pipe as wide as tables are."""
    try:
        from rich.console import Console
    except ImportError:
        return _Plain()
    made = Console(markup=False, highlight=False)
    wide = made.is_terminal or "COLUMNS" in os.environ
    return made if wide else Console(width=_WIDE, markup=False, highlight=False)


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Any:
    """A titled table for the console."""
    try:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return _plain_table(title, columns, rows)
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        widest = max((len(row[i]) for row in rows), default=0)
        whole = widest < (_NAME if i == 0 else 12)  # only sentences wrap
        drawn.add_column(column, min_width=widest if whole else None, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    return Group(Text(f"\n{title}", style="bold"), drawn)


def _plain_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    shown = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join(["", title, *shown])


def spread(values: list[float], form: str) -> str:
    """ "mean (least to largest)"; the value alone if there is one."""
    if not values:
        return "-"
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
