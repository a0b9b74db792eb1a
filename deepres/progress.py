"""What a person sees while a run goes on: a live bar on a terminal, a line per evaluation anywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepres.evaluate import Evaluation


class Progress:
    """Context manager around a run. total_steps: environment steps at the end. show=False prints nothing."""

    def __init__(self, total_steps: int, run_dir: Path, *, show: bool = True):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(quiet=not show)
        self._bar = Bar(
            TextColumn("{task.fields[env_steps]:>11,} env steps"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[figures]}"),
            console=self._console,
            disable=not (show and self._console.is_terminal),
            expand=True,
        )
        self._task = self._bar.add_task("train", total=total_steps, env_steps=0, figures="")
        self._run_dir = run_dir

    def __enter__(self) -> Progress:
        self._console.print(f"run folder [bold]{self._run_dir}")
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def round(self, row: dict[str, float]) -> None:
        figures = (
            f"{row['env_steps_per_second']:,.0f} env/s  {row['gradient_steps_per_second']:,.1f} grad/s  "
            f"critic {row['critic_loss']:.3f}  actor {row['actor_loss']:.3f}"
        )
        done = int(row["env_steps"])
        self._bar.update(self._task, completed=done, env_steps=done, figures=figures)

    def evaluation(self, env_steps: int, figures: Evaluation) -> None:
        self._console.print(
            f"{env_steps:>11,} env steps  time at goal {figures.time_at_goal:6.1f}  "
            f"goals reached {figures.success_any:6.1%}  distance {figures.final_distance:6.2f}"
        )
