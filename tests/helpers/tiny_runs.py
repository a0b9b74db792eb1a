"""Runs that take seconds, the processes that make them, and what they leave: for the tests of whole runs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepres.config import Config
from deepres.runs.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs"

SIZES: dict[str, Any] = {
    "env": "point_u_maze", "num_envs": 4, "episode_length": 25, "depth": 4, "actor_depth": 4, "width": 32,
    "batch_size": 16, "unroll_length": 10, "gradient_steps": 4, "buffer_steps": 60, "min_buffer_steps": 20,
    "eval_envs": 4, "eval_every": 4, "checkpoint_every": 1, "total_steps": 4 * 100,
}  # fmt: skip
"""Options of a tiny run of any algorithm."""

TINY = Config("crl", **SIZES, feature_dim=8)


def words(config: Config) -> list[str]:
    """The words of the command line that make `config`: the algorithm, then the options that are not the defaults."""
    plain = Config(config.algorithm_name).flat()
    changed = {name: value for name, value in config.flat().items() if value != plain[name]}
    options = [word for name, value in changed.items() for word in _typed(name.replace("_", "-"), value)]
    return [config.algorithm_name, *options]


def _typed(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def environ() -> dict[str, str]:
    """For a process of this checkout."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONWARNINGS": "ignore"}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`deepres` with these arguments, in a process of its own."""
    line = [sys.executable, "-m", "deepres", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environ())


def start(config: Config, folder: Path, *, resume: bool = False) -> subprocess.Popen[str]:
    """A process that trains."""
    file = folder.parent / f"{folder.name}.json"
    file.write_text(config.to_json())
    mode = "resume" if resume else "new"
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / "trains.py"), str(folder), mode, str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ(),
    )  # fmt: skip


def torchrun(size: int, *arguments: str) -> subprocess.Popen[str]:
    """`size` processes that run a program together."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    alone = {**environ(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*line, *arguments], env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(
    process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 120, pause: float = 0.0
) -> None:
    """Wait for `condition()` while the process lives; without a pause for those that last a millisecond only."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the run ended too early: {process.stdout and process.stdout.read()}")
        assert time.monotonic() < deadline, "the run took too long"
        time.sleep(pause)


def listing(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file in `folder`, byte for byte."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a log without the figures that a clock decides."""
    return {name: value for name, value in row.items() if "second" not in name}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [untimed(row) for row in csv.DictReader(file)]


def different(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Names of the tensors that are not equal in every bit."""
    parts = [(a.tensors, b.tensors), *((a.shards[i], b.shards[i]) for i in a.shards | b.shards)]
    assert all(x.keys() == y.keys() for x, y in parts)
    return [k for x, y in parts for k in x if not torch.equal(x[k], y[k])]
