"""A grid of runs, depths by seeds: each in its own process, one after another or one to a GPU, and resumable.

    runs/sweep/sweep.json            what was asked for
               d64-s0.json           the options of one run
               d64-s0/, d64-s0.log   its folder, and what it printed
               depth.png             score against depth

Asked for again, a sweep leaves out the runs that are finished, resumes those that are not, and starts the rest.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from deepres import checkpoint as checkpoints
from deepres.compare import Group, RunFiles, group, read_run, spread
from deepres.config import CHANGEABLE, Config
from deepres.presets import ACTOR_DEPTH_LIMIT

POLL_S = 0.2


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    folder: Path
    config: Config

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
        return read_run(self.folder) if (self.folder / "config.json").exists() else None

    @property
    def finished(self) -> bool:
        """Whether it ran as far as is asked for now, with its last checkpoint written."""
        saved = checkpoints.steps(self.folder / "checkpoints")
        files = self.files
        if not saved or files is None:
            return False
        asked = replace(files, config=self.config)  # more steps than before make it unfinished again
        return asked.finished and int(saved[-1]) >= files.env_steps

    @property
    def command(self) -> list[str]:
        where = "--resume" if checkpoints.steps(self.folder / "checkpoints") else "--run-dir"
        arguments = ["train", "--config-file", str(self.options), where, str(self.folder)]
        return [sys.executable, "-m", "deepres", *arguments]


@dataclass(frozen=True)
class SweepResult:
    """cells: of the grid. failed: names of runs that ended with an error. interrupted: Ctrl-C came."""

    cells: list[Cell]
    failed: list[str]
    interrupted: bool


def sweep(
    config: Config, depths: Sequence[int], seeds: Sequence[int], folder: Path, *, jobs: int = 0
) -> SweepResult:
    """Run every depth with every seed, print a table and draw `folder`/depth.png.

    config: everything else. depths: of the critic; the actor has the same up to 512. jobs: runs at a time; 0 is one
    to each GPU, or one where there is none. Raises ValueError in one sentence for a grid that cannot be, or for a
    folder that holds another sweep.
    """
    if jobs < 0:
        raise ValueError(f"jobs must be a number of runs at a time, or 0 for one to each GPU, got {jobs}")
    cells = _cells(config, depths, seeds, folder)
    gpus = torch.cuda.device_count()
    for cell in cells:
        cell.options.write_text(cell.config.to_json())
    waiting = [cell for cell in cells if not cell.finished]
    for cell in cells:
        if cell not in waiting:
            print(f"{cell.name}: finished already", flush=True)
    failed, interrupted = _run(waiting, jobs or max(1, gpus), gpus)
    report(cells, folder)
    return SweepResult(cells, failed, interrupted)


def _cells(config: Config, depths: Sequence[int], seeds: Sequence[int], folder: Path) -> list[Cell]:
    """The grid's runs; writes sweep.json. Raises ValueError before anything is written."""
    for name, values in (("depths", depths), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be different whole numbers, at least one, got {list(values)}")
    cells = [
        Cell(
            folder / f"d{depth}-s{seed}",
            replace(config, critic_depth=depth, actor_depth=min(depth, ACTOR_DEPTH_LIMIT), seed=seed),
        )
        for depth in depths
        for seed in seeds
    ]
    file = folder / "sweep.json"
    own = {k: v for k, v in asdict(config).items() if k not in ("critic_depth", "actor_depth", "seed")}
    if file.exists():
        before = json.loads(file.read_text())["config"]
        for name, value in own.items():
            if name not in CHANGEABLE and before.get(name, value) != value:
                raise ValueError(
                    f"{folder} holds a sweep with {name}={before[name]!r}, got {value!r}; pass another folder (--out)"
                )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no sweep; pass another folder (--out)")
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"depths": list(depths), "seeds": list(seeds), "config": own}
    file.write_text(json.dumps(asked, indent=2) + "\n")
    return cells


def _run(waiting: list[Cell], jobs: int, gpus: int) -> tuple[list[str], bool]:
    """Run the cells, `jobs` at a time; (names of those that failed, whether Ctrl-C came).

    Ctrl-C reaches the runs too, which end their round and save; nothing new is started then.
    """
    running: dict[int, tuple[Cell, subprocess.Popen[bytes]]] = {}
    waiting, failed, interrupted = list(waiting), [], False
    while running or (waiting and not interrupted):
        try:
            for place in range(jobs):
                if waiting and place not in running and not interrupted:
                    cell = waiting.pop(0)
                    running[place] = cell, _start(cell, place % gpus if gpus else None)
            for place, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[place]
                    stopped = process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
                    if process.returncode and not stopped:
                        failed.append(cell.name)
                        print(f"{cell.name}: failed: {_last_line(cell.log)} ({cell.log})", flush=True)
                    else:
                        print(f"{cell.name}: {'finished' if cell.finished else 'stopped'}", flush=True)
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            if interrupted:
                for _, process in running.values():
                    process.kill()
            interrupted = True
            print("waiting for the runs under way to save; Ctrl-C again ends them at once", flush=True)
    return failed, interrupted


def _start(cell: Cell, gpu: int | None) -> subprocess.Popen[bytes]:
    print(f"{cell.name}: {'resumed' if '--resume' in cell.command else 'started'}", flush=True)
    environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": _visible(gpu)})
    with open(cell.log, "ab") as log:
        return subprocess.Popen(
            cell.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """A killed sweep takes its runs along (Linux): asked for again, it alone goes on with their folders."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _visible(gpu: int) -> str:
    """The gpu-th of the devices that this process sees, by the name that its children know it by."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[gpu] if names else str(gpu)


def report(cells: list[Cell], folder: Path) -> None:
    """Print score against depth, and draw it into `folder`/depth.png, from what the runs have left so far."""
    from rich.console import Console

    from deepres.doctor import table
    from deepres.plots import plot_depths

    runs = [files for cell in cells if (files := cell.files) is not None and files.evaluations]
    if not runs:
        return
    columns = ("depth", "seeds", "finished", "time at goal", "goals reached", "hours")
    depths = by_depth(runs)
    done = {cell.folder for cell in cells if cell.finished}
    rows = []
    for depth, one in depths.items():
        hours = [run.rounds[-1]["seconds"] / 3600 for run in one.runs if run.rounds]
        finished = sum(run.folder in done for run in one.runs)
        scores = spread(one.last("time_at_goal"), "{:.1f}"), spread(one.last("success_any"), "{:.1%}")
        rows.append((str(depth), str(len(one.runs)), str(finished), *scores, spread(hours, "{:.2f}")))
    console = Console()
    console.print(table(f"{runs[0].config.env}: score against depth", columns, rows))
    console.print(str(plot_depths(depths, folder / "depth.png")))


def by_depth(runs: Sequence[RunFiles]) -> dict[int, Group]:
    """The runs by their critic's depth, shallow first."""
    groups = {one.runs[0].config.critic_depth: one for one in group(runs)}
    return dict(sorted(groups.items()))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
