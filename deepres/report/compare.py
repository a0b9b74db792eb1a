"""Runs side by side: learning curves and a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote

from deepres.report.curves import plot_groups
from deepres.report.groups import Group, group
from deepres.report.tables import console, spread, table
from deepres.runs.files import RunFiles, find_runs, read_run


def compare(folders: Sequence[Path], picture: Path) -> Path:
    """Print the runs' table and what is unfinished, and draw their learning curves into `picture` and a PDF.

    folders: of runs, or of sweeps. Raises ValueError, FileNotFoundError in one sentence.
    """
    if not folders:
        raise ValueError("compare wants the folders of runs; pass some that `deepres train` wrote")
    if picture.is_dir() or not picture.suffix:
        raise ValueError(f"the picture must be a file such as compare.png, got {picture}")
    runs = [read_run(folder) for folder in find_runs(folders)]
    out = console()
    groups = group(runs)
    columns = (
        "runs", "seeds", "env steps", "time at goal", "goals reached", "hours", "env steps/s", "gradient steps/s",
    )  # fmt: skip
    out.print(
        table("runs side by side (mean over seeds, least to largest)", columns, [_row(g) for g in groups])
    )
    for one in groups:
        if one.differing:
            out.print(f"{one.label}: {one.differing}")
    for run in runs:
        if not run.finished:
            print(  # a line to copy from: the console would break it where it is wide
                f"{run.folder} stands at {run.env_steps:,} of {run.config.schedule.total_steps:,} "
                f"{run.config.schedule.unit}: deepres train --resume {quote(str(run.folder))}"
            )
    if not any(run.evaluations for run in runs):
        raise ValueError("no run here has been evaluated yet; let one finish its first evaluation")
    path = plot_groups(groups, picture)
    print(path)
    return path


def _row(one: Group) -> tuple[str, ...]:
    hours = [run.rounds[-1]["seconds"] / 3600 for run in one.runs if run.rounds]

    def rate(value: Callable[[RunFiles], float | None]) -> str:
        known = [v for v in map(value, one.runs) if v is not None]
        return f"{statistics.fmean(known):,.1f}" if known else "-"

    return (
        one.label,
        str(len(one.runs)),
        f"{max(run.env_steps for run in one.runs):,}",
        spread(one.last("time_at_goal"), "{:.1f}"),
        spread(one.last("success_any"), "{:.1%}"),
        spread(hours, "{:.2f}"),
        rate(lambda run: run.env_steps_per_second),
        rate(lambda run: run.gradient_steps_per_second),
    )
