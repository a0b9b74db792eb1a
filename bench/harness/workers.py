"""One process for each contestant: its own threads, its own memory, its own death.

Thread pools of two libraries fight when they share a process, and a process's peak memory is everybody's. So
the bench itself computes nothing: it asks workers, one at a time, while the others sleep on their pipes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.harness import memory

GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # three quarters of the card are not JAX's alone


class Unavailable(Exception):
    """This contestant cannot serve here; the message says why in a clause."""


class Failed(Exception):
    """No answer: wrong results ("refused"), "unavailable" here, or "failed"; dead: the process is gone."""

    def __init__(self, status: str, reason: str, *, dead: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.dead = status, reason, dead


class Worker:
    """The bench's end of one contestant's process.

    variables: of its environment, set before it starts. desk: "module:class" of what it can be asked, made in its
    process as class(threads).
    """

    def __init__(self, name: str, variables: dict[str, str], threads: int | None, desk: str):
        context = multiprocessing.get_context("spawn")
        self.name, self.dead = name, False
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, threads, desk), daemon=True)
        with _variables(memory.ALLOCATOR | GPU | variables), _interrupts_ignored():
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
        self._process.join(10)  # a process that a driver holds does not end


class Crew:
    """The workers of a run by contestant: started when first asked for, again if one died, ended together."""

    def __init__(self, threads: int | None, desk: str):
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
def _variables(values: dict[str, str]) -> Iterator[None]:
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
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches the whole process group; a process born inside ignores it, as its parent ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(pipe: Any, threads: int | None, desk_name: str) -> None:
    """The life of a worker process: answers questions until the pipe closes."""
    desk = named_function(desk_name)(threads)
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


def named_function(name: str) -> Callable:
    """What "module:name" stands for, imported now."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def use_threads(threads: int | None) -> None:
    """PyTorch's threads, and the cores that this process may use: XLA counts those and nothing else."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
