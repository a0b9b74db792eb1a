"""A grid of runs over any options: each in its own process, one after another or one to a GPU, and resumable.

    runs/sweep/sweep.json            what was asked for
               d64-s0.json           the options of one run
               d64-s0/, d64-s0.log   its folder, and what it printed
               depth.png, .pdf       score against the option that varies

Asked for again, a sweep leaves out the runs that are finished, resumes those that are not, and starts the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.envs.registry import find
from deepres.experiments.jobs import Job, check_places, run_jobs
from deepres.experiments.presets import ACTOR_DEPTH_LIMIT
from deepres.report.groups import Group
from deepres.report.tables import console, spread, table
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import RunFiles, read_run
from deepres.runs.folder import RunFolder, draft_of, write_whole
from deepres.runs.lock import Lock, leftovers

Grid = Mapping[str, Iterable[Any]]
"""Options by their flat names, with the values that each takes; a NumPy array will do."""

_SHORT = {"depth": "d", "seed": "s"}
SWEEP_FILE = "sweep.json"
ENDS = (
    "total_steps",
    "stop_at_success",
)  # how far a run goes; `Cell.finished` judges by what is asked for now


@dataclass(frozen=True)
class Cell:
    """One run of the grid. varied: the options that make it this one."""

    folder: Path
    config: Config
    varied: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def options(self) -> Path:
        return self.folder.with_name(f"{self.name}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    @property
    def files(self) -> RunFiles | None:
        """What the run left so far; None before it began."""
        return read_run(self.folder) if RunFolder(self.folder).config.exists() else None

    @property
    def finished(self) -> bool:
        """Whether it ran as far as is asked for now, with its last checkpoint written."""
        saved = checkpoints.steps(RunFolder(self.folder).checkpoints)
        files = self.files
        if not saved or files is None:
            return False
        asked = RunFiles(
            files.folder, self.config, files.evaluations, files.rounds
        )  # more steps than before make it unfinished again
        return asked.finished and int(saved[-1]) >= files.env_steps

    def differing(self, *, resumable: bool) -> dict[str, Any]:
        """Options of the run in the folder that are not as asked for now: those that may change when it is resumed,
        or those that may not."""
        files = self.files
        if files is None:
            return {}
        asked, fields = self.config.flat(), self.config.fields()
        may_change = {name for name, one in fields.items() if one.metadata.get("resume")}
        return {
            name: was
            for name, was in files.config.flat().items()
            if (name in may_change) == resumable and was != asked.get(name)
        }

    def check_same_run(self) -> None:
        """Raise ValueError if the folder holds a run that is not this one."""
        for name, was in self.differing(resumable=False).items():
            raise ValueError(
                f"{self.folder} was run with {name}={was!r}, got {self.config.flat().get(name)!r}; "
                "pass another folder (--out)"
            )

    @property
    def kept(self) -> str:
        """ ", with actor_lr=0.0003": what a finished run has otherwise than asked for, where it tells on its scores."""
        fields = self.config.fields()
        told = [
            f"{name}={was!r}"
            for name, was in self.differing(resumable=True).items()
            if name not in ENDS and not fields[name].metadata.get("aside")
        ]
        return f", with {', '.join(told)}" if told else ""

    def job(self, imports: Sequence[str]) -> Job:
        """The process that runs it, or goes on with it. imports: modules that it imports first."""
        resumed = RunFolder(self.folder).config.exists()
        arguments = [
            "train",
            self.config.algorithm_name,
            "--config-file",
            str(self.options),
            "--resume" if resumed else "--run-dir",
            str(self.folder),
            *(word for module in imports for word in ("--import", module)),
        ]
        command = [sys.executable, "-m", "deepres", *arguments]
        return Job(self.name, command, self.log, lambda: self.finished, resumed)


@dataclass(frozen=True)
class SweepResult:
    """cells: of the grid. failed: names of runs that ended with an error. signal: the name of the one that stopped it,
    "SIGINT" (Ctrl-C) say."""

    cells: list[Cell]
    failed: list[str]
    signal: str | None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


def sweep(
    config: Config, grid: Grid, folder: Path, *, jobs: int = 0, imports: Sequence[str] = ()
) -> SweepResult:
    """Run every combination of the grid's values, print a table and draw the scores into `folder`.

        sweep(Config("crl", env="ant"), {"depth": [4, 16, 64], "seed": [0, 1, 2]}, Path("runs/sweep"))

    config: everything else. Where the depth varies and no actor_depth is given, that is the same up to 512. jobs: runs
    at a time; 0 is one to each GPU, or one where there is none. imports: modules that a run imports first (own
    environments and algorithms). Raises ValueError in one sentence, with nothing written, for a grid that cannot be,
    or for a folder that holds another sweep or a run of other options; InUse if another process runs the sweep.
    """
    check_places(jobs)
    values = {name: _values(name, given) for name, given in grid.items()}
    cells = _cells(config, values, folder)
    _check_names(cells, imports)
    _check_folder(config, values, folder)
    for cell in cells:
        cell.check_same_run()
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder):
        asked = {"grid": values, "config": config.to_dict()}
        write_whole(folder / SWEEP_FILE, json.dumps(asked, indent=2) + "\n")
        for cell in cells:
            write_whole(cell.options, cell.config.to_json())
        waiting = [cell for cell in cells if not cell.finished]
        for cell in cells:
            if cell not in waiting:
                print(f"{cell.name}: finished already{cell.kept}", flush=True)
        outcome = run_jobs([cell.job(imports) for cell in waiting], jobs)
        report(cells, folder)
    return SweepResult(cells, outcome.failed, outcome.signal)


def _values(name: str, values: Any) -> list[Any]:
    """The values that an option takes, as Python's own. Raises ValueError unless there are some, all different."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must take a list of values, got {values!r}; put it in brackets")
    found = [value.tolist() if hasattr(value, "tolist") else value for value in values]  # NumPy's, PyTorch's
    if not found or any(value in found[:i] for i, value in enumerate(found)):
        raise ValueError(f"{name} must take different values, at least one, got {found}")
    return found


def _cells(config: Config, grid: dict[str, list[Any]], folder: Path) -> list[Cell]:
    """The grid's runs. Raises ValueError where one cannot be, or two would have one folder."""
    if not grid:
        raise ValueError("a sweep varies one option at least, e.g. seed=0,1,2, got none")
    cells: dict[str, Cell] = {}
    for combination in product(*grid.values()):
        varied = dict(zip(grid, combination, strict=True))
        options = dict(varied)
        free = config.network.actor_depth is None and "actor_depth" not in varied
        if isinstance(varied.get("depth"), int) and free:
            options["actor_depth"] = min(varied["depth"], ACTOR_DEPTH_LIMIT)
        asked = config.replace(**options)
        varied = {option: _told(asked.get(option), value) for option, value in varied.items()}
        name = "-".join(f"{_SHORT.get(option, option + '_')}{value}" for option, value in varied.items())
        cell = Cell(folder / name.replace("/", "_"), asked, varied)
        if cell.name in cells:
            raise ValueError(
                f"two runs would have the folder {cell.folder}: {cells[cell.name].varied} and {varied}; "
                "leave one of them out"
            )
        cells[cell.name] = cell
    return list(cells.values())


def _told(taken: Any, given: Any) -> Any:
    """An option's value as a folder and a table have it: of several words, such as a task's own options, one text."""
    return " ".join(map(str, taken)) if isinstance(taken, tuple) else given


def _check_names(cells: list[Cell], imports: Sequence[str]) -> None:
    """Raise ValueError for an environment that is not there."""
    for name in dict.fromkeys(
        n for cell in cells for n in (cell.config.env.name, cell.config.env.eval_env) if n
    ):
        try:
            find(name)
        except ValueError:
            if all(module in sys.modules for module in imports):  # else the runs' own modules may bring it
                raise


def _check_folder(config: Config, grid: dict[str, list[Any]], folder: Path) -> None:
    """Raise ValueError if `folder` holds something else than a sweep of `config`."""
    file = folder / SWEEP_FILE
    if not file.exists():
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if there - leftovers(folder) - {draft_of(file).name}:
            raise ValueError(f"{folder} is not empty and holds no sweep; pass another folder (--out)")
        return
    before, fields = _asked_before(file).flat(), config.fields()
    derived = {*grid, *(("actor_depth",) if "depth" in grid else ())}
    for name, value in config.flat().items():
        may_change = name in fields and fields[name].metadata.get("resume")
        if name not in derived and not may_change and before.get(name, value) != value:
            raise ValueError(
                f"{folder} holds a sweep with {name}={before[name]!r}, got {value!r}; pass another folder (--out)"
            )


def _asked_before(file: Path) -> Config:
    """The config of the sweep that wrote `file`."""
    damaged = f"{file} is not as a sweep wrote it; restore it from a copy, or pass another folder (--out)"
    try:
        values = json.loads(file.read_text())["config"]
        return Config.from_dict(values, str(file))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(damaged) from None


def report(cells: list[Cell], folder: Path) -> None:
    """Print the scores of every combination but for the seed, and draw them against the option that varies first into
    `folder`, from what the runs have left so far."""
    from deepres.report.curves import plot_scores

    left = [(cell, files) for cell in cells if (files := cell.files) is not None and files.evaluations]
    if not left:
        return
    options = [name for name in cells[0].varied if name != "seed"]
    places: dict[tuple[Any, ...], list[tuple[Cell, RunFiles]]] = {}
    for cell, files in left:
        places.setdefault(tuple(cell.varied[name] for name in options), []).append((cell, files))
    rows = []
    lines: dict[str, dict[Any, Group]] = {}
    for values, runs in places.items():
        one = Group("", [files for _, files in runs])
        finished = sum(cell.finished for cell, _ in runs)
        hours = [run.rounds[-1]["seconds"] / 3600 for run in one.runs if run.rounds]
        scores = spread(one.last("time_at_goal"), "{:.1f}"), spread(one.last("success_any"), "{:.1%}")
        counts = str(len(runs)), str(finished)
        rows.append((*map(str, values), *counts, *scores, spread(hours, "{:.2f}")))
        others = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in zip(options[1:], values[1:], strict=True)
        )
        lines.setdefault(others, {})[values[0] if values else "all"] = one
    env, first = left[0][1].config.env.name, options[0] if options else "seed"
    columns = (
        *(o.replace("_", " ") for o in options),
        "seeds",
        "finished",
        "time at goal",
        "goals reached",
        "hours",
    )
    out = console()
    out.print(table(f"{env}: score against {first.replace('_', ' ')}", columns, rows))
    print(plot_scores(first, lines, env, folder / f"{first}.png"))
