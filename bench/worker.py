"""One process for each contestant: its own threads, its own memory, its own death.

Thread pools of two libraries fight when they share a process, and a process's peak memory is everybody's. So
the bench itself computes nothing: it asks workers, one at a time, while the others sleep on their pipes.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench import environment, timing
from bench.registry import OPS, Case, Implementation

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(timing.MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(timing.TRIM_THRESHOLD),
}


@dataclass
class Prepared:
    """A contestant ready to run: `run()` computes once, `named(result)` gives its tensors by their names."""

    run: Callable[[], Any]
    named: Callable[[Any], dict[str, Any]]
    wait: Callable[[], None]
    served_by: str = ""


class Unavailable(Exception):
    """This contestant cannot serve here; the message says why in a clause."""


class Failed(Exception):
    """No answer: wrong results ("refused"), "unavailable" here, or "failed"; dead: the process is gone."""

    def __init__(self, status: str, reason: str, *, dead: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.dead = status, reason, dead


class Worker:
    """The bench's end of one contestant's process."""

    def __init__(self, name: str, variables: dict[str, str], threads: int | None, desk: str):
        context = multiprocessing.get_context("spawn")
        self.name, self.dead = name, False
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, threads, desk), daemon=True)
        with _variables(ALLOCATOR | variables), _interrupts_ignored():
            self._process.start()
        theirs.close()

    def ask(self, question: str, *arguments: Any, limit_s: float = 600.0) -> Any:
        """The answer to a method of its desk; raises Failed with a clause that says why there is none."""
        try:
            self._pipe.send((question, arguments))
            if not self._pipe.poll(limit_s):
                self.close()
                raise Failed("failed", f"took longer than {limit_s:.0f} s to {question}", dead=True)
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.close()
            reason = f"its process died while asked to {question} (exit code {code})"
            raise Failed("failed", reason, dead=True) from None
        if kind != "answer":
            raise Failed(kind, answer)
        return answer

    def close(self) -> None:
        self.dead = True
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Crew:
    """The workers of a run by contestant: started when first asked for, again if one died, ended together.

    desk: "module:class" of what a worker can be asked, made in its process as class(threads).
    """

    def __init__(self, threads: int | None, desk: str = "bench.worker:Desk"):
        self._threads, self._desk = threads, desk
        self._workers: dict[str, Worker] = {}

    def get(self, name: str, variables: dict[str, str] | None = None) -> Worker:
        worker = self._workers.get(name)
        if worker is None or worker.dead:
            worker = self._workers[name] = Worker(name, variables or {}, self._threads, self._desk)
        return worker

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()


@contextmanager
def _variables(values: dict[str, str]):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_ignored():
    """Ctrl-C reaches the whole process group; a process born inside ignores it, as its parent ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(pipe: Any, threads: int | None, desk_name: str) -> None:
    """The life of a worker process: answers questions until the pipe closes."""
    desk = _function(desk_name)(threads)
    while True:
        try:
            question, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("answer", getattr(desk, question)(*arguments)))
        except Unavailable as error:
            pipe.send(("unavailable", str(error)))
        except AssertionError as error:
            pipe.send(("refused", str(error)))
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}".splitlines()[0]))


class Desk:
    """What a worker of bench/throughput.py can be asked."""

    def __init__(self, threads: int | None):
        self.threads = threads
        self.prepared: Prepared | None = None
        self.call_s = 0.0

    def best_device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def describe(self, device: str) -> dict[str, Any]:
        self._settle(device)
        return environment.describe(device)

    def check(self, case: Case, entry: Implementation) -> dict[str, Any]:
        """Runs a small size against float64: the worst error, an AssertionError if too large to be timed."""
        from deepres.testing import worst_error

        small = replace(case, mode=list(OPS[case.op].modes)[-1], depth=8, batch=min(case.batch, 96))
        self._settle(case.device)
        prepared = _function(entry.build)(small, entry.variant)
        truth, plain = _function(OPS[case.op].truth)(small)
        got = prepared.named(prepared.run())
        assert set(got) == set(truth), f"gives {sorted(got)}, wanted {sorted(truth)}"
        worst = 0.0
        for name, true in truth.items():
            ours, theirs = worst_error(got[name], true), worst_error(plain[name], true)
            assert ours <= entry.worse * theirs + 2e-7, (
                f"{name} is off by {ours:.1e} of float64's largest, plain PyTorch by {theirs:.1e}"
            )
            worst = max(worst, ours)
        return {"worst_error": worst, "served_by": prepared.served_by}

    def build(self, case: Case, entry: Implementation) -> dict[str, Any]:
        """Gets ready and runs it warm; one warm call's seconds, and what the first call took beyond that."""
        self.drop()
        self._settle(case.device)
        self.prepared = _function(entry.build)(case, entry.variant)
        first, self.call_s = self._timed_call(), self._timed_call()
        if self.call_s < timing.SLOW_CALL_S:
            self.call_s = min(self.call_s, self._timed_call())
        return {
            "compile_s": max(0.0, first - self.call_s),
            "call_s": self.call_s,
            "served_by": self.prepared.served_by,
        }

    def memory(self, case: Case) -> int | None:
        """Peak bytes of one call above parameters and inputs."""
        assert self.prepared is not None
        return timing.peak_bytes(self._call, case.device)

    def turn(self) -> list[float]:
        assert self.prepared is not None
        return timing.turn(self.prepared.run, self.prepared.wait, self.call_s)

    def drop(self) -> None:
        self.prepared = None
        gc.collect()

    def _timed_call(self) -> float:
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start

    def _call(self) -> Any:
        assert self.prepared is not None
        result = self.prepared.run()
        self.prepared.wait()
        return result

    def _settle(self, device: str) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("PyTorch sees no GPU here; pass --device cpu")


def _function(name: str) -> Callable:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)
