"""A run's files, read back: its options, the rows of its evaluations and of its rounds."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepres.config import Config
from deepres.runs.folder import RunFolder


@dataclass(frozen=True)
class RunFiles:
    """What a run left to read: rows of its evaluations and of its rounds, as numbers."""

    folder: Path
    config: Config
    evaluations: list[dict[str, float]]
    rounds: list[dict[str, float]]

    @property
    def env_steps(self) -> int:
        return int(self.evaluations[-1]["env_steps"]) if self.evaluations else 0

    @property
    def finished(self) -> bool:
        stop = self.config.schedule.stop_at_success
        if not self.evaluations:
            return False
        reached = stop is not None and self.evaluations[-1]["success_any"] >= stop
        return reached or self.env_steps >= self.config.schedule.total_steps

    @property
    def gradient_steps_per_second(self) -> float | None:
        return _median([row["gradient_steps_per_second"] for row in self.rounds])

    @property
    def env_steps_per_second(self) -> float | None:
        return _median([row["env_steps_per_second"] for row in self.rounds])


def read_run(folder: Path) -> RunFiles:
    """The files of the run at `folder`. Raises FileNotFoundError or ValueError in one sentence if it is none."""
    files = RunFolder(folder)
    return RunFiles(folder, files.read_config(), read_rows(files.evaluations), read_rows(files.metrics))


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs' folders: each one given, or the runs in it if it holds some (a sweep's folder, say)."""
    found: list[Path] = []
    for folder in folders:
        inside = [] if (folder / "config.json").exists() else sorted(folder.glob("*/config.json"))
        found += [path.parent for path in inside] or [folder]
    return list(dict.fromkeys(found))


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a CSV file; none if it is not there yet."""
    if not path.exists():
        return []
    with open(path, newline="", errors="replace") as file:
        rows = csv.reader(file)
        columns = next(rows, [])
        return [row for values in rows if (row := _numbers(columns, values)) is not None]


def _numbers(columns: list[str], values: list[str]) -> dict[str, float] | None:
    """A whole row; None for one that a live run is writing, or that a full disk cut."""
    try:
        return {name: float(value) for name, value in zip(columns, values, strict=True)}
    except ValueError:
        return None
