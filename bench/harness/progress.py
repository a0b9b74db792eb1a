"""What the person at the terminal sees: a progress bar, then tables; plain text where rich is missing."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

from bench.harness import table

try:
    import rich
except ImportError:
    rich = None  # type: ignore[assignment]


class Progress:
    """A bar over the cases on a terminal, a line for each case elsewhere; always on standard error."""

    def __init__(self, total: int):
        self.total, self.done, self.last, self.bar, self.task = total, 0, "", None, None
        if rich is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.description}"),
            )  # fmt: skip
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("starting", total=total)

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        self.last = text
        if self.bar is not None:
            self.bar.update(self.task, description=text)

    def advance(self) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.advance(self.task)
        else:
            print(f"[{self.done}/{self.total}] {self.last}", file=sys.stderr, flush=True)


def show(results: dict[str, Any]) -> None:
    """The tables of a run. On a shared CPU trust the ratios: both sides of one had the same neighbours."""
    print(table.machine(results))
    for line in table.rates(results):
        print(line)
    for heading, rows in table.groups(results):
        lines = [table.full_cells(results, row) for row in rows]
        ours = {i for i, row in enumerate(rows) if row["implementation"].startswith("deepres")}
        firsts = [i == 0 or lines[i - 1][0] != line[0] for i, line in enumerate(lines)]  # of its size
        lines = [line if first else ["", *line[1:]] for line, first in zip(lines, firsts, strict=True)]
        ends = {i - 1 for i, first in enumerate(firsts) if first}
        draw_table(table.full_header(results, rows), lines, title=heading, left={1}, ours=ours, ends=ends)
        for note in table.notes(results, rows):
            print(note)


def draw_table(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    title: str = "",
    left: Collection[int] = (),
    ours: Collection[int] = (),
    ends: Collection[int] = (),
    wrap: bool = False,
) -> None:
    """Prints a table. left: columns aligned to the left; ours: lines that stand out; ends: lines with a rule below;
    wrap: fold what is wider than the terminal."""
    if rich is None:
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        print(f"\n{title}" if title else "")
        for line in (header, *lines):
            cells = zip(line, widths, strict=True)
            print("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        drawn.add_column(name, justify="left" if i in left else "right", no_wrap=not wrap)
    for i, line in enumerate(lines):
        drawn.add_row(*line, style="bold green" if i in ours else None, end_section=i in ends)
    console = Console()
    if not console.is_terminal:  # a log has no width: let the lines be as long as they are
        console.width = 220
    console.print(drawn)
