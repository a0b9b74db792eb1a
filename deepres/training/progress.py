"""What a person sees while a run goes on: a live bar on a terminal, else a line per evaluation and one a minute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepres.training.evaluate import Evaluation

_BAR = 60  # columns of a line with a short bar and no figures
SILENCE = 60.0  # seconds between lines off a terminal, at least


class Progress:
    """Context manager around a run.

    total_steps: environment steps at the end, or whatever `unit` says. headline: names of the metrics that the bar
    shows. show=False prints nothing.
    """

    def __init__(
        self,
        total_steps: int,
        run_dir: Path,
        headline: Sequence[str] = (),
        *,
        unit: str = "env steps",
        show: bool = True,
    ):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._console = Console(quiet=not show)
        self._bar = Bar(
            TextColumn("{task.fields[env_steps]:>11,} " + unit),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("[dim]{task.fields[figures]}"),
            console=self._console,
            disable=not (show and self._console.is_terminal),
            expand=True,
        )
        self._task = self._bar.add_task("train", total=total_steps, env_steps=0, figures="")
        self._run_dir, self._headline, self._unit, self._total = run_dir, headline, unit, total_steps
        self._lines, self._told = not self._console.is_terminal, time.monotonic()

    def __enter__(self) -> Progress:
        where = f"run folder {self._run_dir}, up to {self._total:,} {self._unit}"
        self._console.print(where, soft_wrap=True, markup=False, highlight=False)
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def round(self, row: dict[str, float]) -> None:
        speed = [
            f"{row['env_steps_per_second']:,.0f} env/s",
            f"{row['gradient_steps_per_second']:,.1f} grad/s",
        ]
        losses = [
            f"{name.removesuffix('_loss').replace('_', ' ')} {row[name]:.3f}" for name in self._headline
        ]
        figures = self._fitting([*speed, *losses])
        done = int(row["env_steps"])
        self._bar.update(self._task, completed=done, env_steps=done, figures=figures)
        if self._lines and time.monotonic() - self._told >= SILENCE:
            self._line(f"{done:>11,} {self._unit}  {done / self._total:4.0%}  {'  '.join(speed)}")

    def _fitting(self, figures: list[str]) -> str:
        """As many of them as leave room for the bar and the time left."""
        text = ""
        for figure in figures:
            longer = f"{text}  {figure}" if text else figure
            if len(longer) > self._console.width - _BAR:
                break
            text = longer
        return text

    def ended(self, why: str) -> None:
        self._console.print(why, soft_wrap=True, markup=False, highlight=False)

    def evaluation(self, env_steps: int, figures: Evaluation) -> None:
        self._line(
            f"{env_steps:>11,} {self._unit}  time at goal {figures.time_at_goal:6.1f}  "
            f"goals reached {figures.success_any:6.1%}  distance {figures.final_distance:6.2f}"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
        self._told = time.monotonic()
