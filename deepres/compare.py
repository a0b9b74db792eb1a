"""Runs side by side: learning curves and a table. Runs that differ in their seed alone are one, with their spread."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deepres.config import Config

# What does not make a run another one: its seed, and how and where it was computed and kept.
_ASIDE = frozenset({
    "seed", "threads", "device", "impl", "checkpoint", "cuda_graph", "buffer_device", "rank_timeout", "wandb",
    "checkpoint_every", "keep_checkpoints", "save_buffer",
})  # fmt: skip


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
        stop = self.config.stop_at_success
        if not self.evaluations:
            return False
        reached = stop is not None and self.evaluations[-1]["success_any"] >= stop
        return reached or self.env_steps >= self.config.total_steps

    @property
    def gradient_steps_per_second(self) -> float | None:
        return _median([row["gradient_steps_per_second"] for row in self.rounds])

    @property
    def env_steps_per_second(self) -> float | None:
        return _median([row["env_steps_per_second"] for row in self.rounds])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; label: what tells them from the other groups."""

    label: str
    runs: list[RunFiles]

    def curve(self, column: str) -> tuple[list[float], list[float], list[float], list[float]]:
        """(environment steps, mean, least, largest) of an evaluation's figure over the seeds."""
        values: dict[float, list[float]] = {}
        for run in self.runs:
            for row in run.evaluations:
                values.setdefault(row["env_steps"], []).append(row[column])
        steps = sorted(values)
        rows = [values[step] for step in steps]
        return steps, [statistics.fmean(r) for r in rows], [min(r) for r in rows], [max(r) for r in rows]

    def last(self, column: str) -> list[float]:
        """Each run's last evaluation."""
        return [run.evaluations[-1][column] for run in self.runs if run.evaluations]


def read_run(folder: Path) -> RunFiles:
    """The files of the run at `folder`. Raises FileNotFoundError or ValueError in one sentence if it is none."""
    config = Config.from_file(folder / "config.json")
    return RunFiles(folder, config, _rows(folder / "evaluations.csv"), _rows(folder / "metrics.csv"))


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs' folders: each one given, or the runs in it if it holds some (a sweep's folder, say)."""
    found: list[Path] = []
    for folder in folders:
        inside = [] if (folder / "config.json").exists() else sorted(folder.glob("*/config.json"))
        found += [path.parent for path in inside] or [folder]
    return list(dict.fromkeys(found))


def group(runs: Sequence[RunFiles]) -> list[Group]:
    """The runs by everything but their seed, in the order given."""
    keyed: dict[str, list[RunFiles]] = {}
    for run in runs:
        own = {name: value for name, value in asdict(run.config).items() if name not in _ASIDE}
        keyed.setdefault(json.dumps(own), []).append(run)
    settings = [json.loads(key) for key in keyed]
    differing = [name for name in settings[0] if len({json.dumps(one[name]) for one in settings}) > 1]
    labels = [
        ", ".join([one["env"]] * ("env" not in differing) + [_label(name, one[name]) for name in differing])
        for one in settings
    ]
    return [Group(label, members) for label, members in zip(labels, keyed.values(), strict=True)]


def compare(folders: Sequence[Path], picture: Path) -> Path:
    """Print the runs' table and what is unfinished, and draw their learning curves into the PNG `picture`.

    folders: of runs, or of sweeps. Raises ValueError, FileNotFoundError in one sentence.
    """
    from rich.console import Console

    from deepres.doctor import table

    if not folders:
        raise ValueError("compare wants the folders of runs; pass some that `deepres train` wrote")
    runs = [read_run(folder) for folder in find_runs(folders)]
    console = Console()
    groups = group(runs)
    columns = (
        "runs", "seeds", "env steps", "time at goal", "goals reached", "hours", "env steps/s", "gradient steps/s",
    )  # fmt: skip
    console.print(
        table("runs side by side (mean over seeds, least to largest)", columns, [_row(g) for g in groups])
    )
    for run in runs:
        if not run.finished:
            console.print(
                f"{run.folder} stands at {run.env_steps:,} of {run.config.total_steps:,} env steps: "
                f"deepres train --resume {run.folder}"
            )
    if not any(run.evaluations for run in runs):
        raise ValueError("no run here has been evaluated yet; let one finish its first evaluation")
    from deepres.plots import plot_groups

    path = plot_groups(groups, picture)
    console.print(str(path))
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


def spread(values: list[float], form: str) -> str:
    """ "mean (least to largest)"; the value alone if there is one."""
    if not values:
        return "-"
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def _label(name: str, value: object) -> str:
    return str(value) if name == "env" else f"{name.replace('_', ' ')} {value}"


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a CSV file; none if it is not there yet."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
            if all(row.values())  # whole ones: a live run may be writing its last
        ]
