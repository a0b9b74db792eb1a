"""Processes side by side, one to a place and on a GPU of its own where there are some; a killed parent takes them
along."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.training.stopping import SIGNALS, StopRequest, exit_status

POLL_S = 0.2
_STOPPED = {status for name in SIGNALS for status in (-getattr(signal, name), exit_status(name))}


@dataclass(frozen=True)
class Job:
    """One process. log: the file that what it prints is appended to. finished: whether what it was to leave is there.
    resumed: whether it goes on with something."""

    name: str
    command: Sequence[str]
    log: Path
    finished: Callable[[], bool]
    resumed: bool = False


@dataclass(frozen=True)
class Outcome:
    """failed: names of jobs that ended with an error. signal: the name of the one that stopped them, "SIGINT" (Ctrl-C)
    say."""

    failed: list[str]
    signal: str | None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


def check_places(jobs: int) -> None:
    """Raise ValueError for a number of jobs at a time that is none."""
    if jobs < 0:
        raise ValueError(f"jobs must be a number of runs at a time, or 0 for one to each GPU, got {jobs}")


def run_jobs(
    waiting: Sequence[Job],
    places: int = 0,
    *,
    environment: Mapping[str, str] | None = None,
    ended: Callable[[Job], None] = lambda job: None,
) -> Outcome:
    """Run the jobs, `places` at a time (0: one to each GPU, or one where there is none), and print what becomes of
    each.

    environment: variables that they get beside this process's. ended: called after each, whatever its end.
    Ctrl-C, SIGTERM and SIGHUP are passed on to the jobs, which end as they do; nothing new is started then. A second
    signal ends the jobs at once.
    """
    gpus = torch.cuda.device_count()
    places = places or max(1, gpus)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    waiting, told = list(waiting), False
    failed: list[str] = []
    with StopRequest(tell="waiting for the runs under way to save") as stop:
        try:
            while running or (waiting and not stop.asked):
                for place in range(places):
                    if waiting and place not in running and not stop.asked:
                        job = waiting.pop(0)
                        running[place] = job, _start(job, place % gpus if gpus else None, environment or {})
                asked = stop.asked
                for place, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[place]
                        _tell_end(job, process.returncode, failed, asked)
                        ended(job)
                    elif asked and not told:
                        process.send_signal(getattr(signal, asked))
                told = asked is not None
                time.sleep(POLL_S)
        finally:  # those of a sweep that ends at once
            for _, process in running.values():
                process.kill()
    return Outcome(failed, stop.asked)


def _tell_end(job: Job, status: int, failed: list[str], asked: str | None) -> None:
    """status: of a job that a signal stopped, negative if it had not begun, else 128 and more. asked: the signal that
    asked all of them to end; a job that was stopped alone is missing in what comes out as a failed one is."""
    if status and status not in _STOPPED:
        failed.append(job.name)
        print(f"{job.name}: failed: {_last_line(job.log)} ({job.log})", flush=True)
    else:
        print(f"{job.name}: {'finished' if job.finished() else 'stopped'}", flush=True)
        if status and not asked:
            failed.append(job.name)


def _start(job: Job, gpu: int | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    print(f"{job.name}: {'resumed' if job.resumed else 'started'}", flush=True)
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": _visible(gpu)}
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **own},
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """A killed parent takes its processes along (Linux): asked for again, it alone goes on with their folders."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _visible(gpu: int) -> str:
    """The gpu-th of the devices that this process sees, by the name that its children know it by."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[gpu] if names else str(gpu)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
