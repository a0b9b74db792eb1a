"""A process for each thing that may break a GPU's context or never come back; the parent keeps what they find.

An illegal access leaves every later call of its process failing, and a hang ends with its process alone. The parent
opens no context of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from bench.harness.workers import Failed, Worker


class Outcome(NamedTuple):
    """The answer, or why there is none: "refused" by an assertion, "unavailable" here, or "failed"."""

    answer: Any
    status: str = "measured"
    reason: str | None = None


def each(
    desk: str, question: str, tasks: Iterable[tuple[Any, ...]], *, limit_s: float, at_once: int = 1
) -> Iterator[tuple[tuple[Any, ...], Outcome]]:
    """(task, what became of it) as they end: `question` is asked of a desk in a process of its own.

    desk: "module:class" (see harness/workers.py). task: the question's arguments. limit_s: of one task. The next
    process starts, and imports what it needs, while the ones before it work.
    """
    waiting, running = deque(tasks), dict[Future[Any], tuple[tuple[Any, ...], Worker]]()
    ready: list[Worker] = []

    def start() -> None:  # in this thread: a worker's start sets how signals are handled
        ready.append(Worker(question, {}, None, desk))

    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    if not ready:
                        start()
                    task, worker = waiting.popleft(), ready.pop()
                    running[pool.submit(worker.ask, question, *task, limit_s=limit_s)] = task, worker
                if waiting and not ready:
                    start()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task, worker = running.pop(future)
                    worker.close()
                    yield task, _outcome(future)
        finally:
            for worker in [*ready, *(worker for _, worker in running.values())]:
                worker.close()


def _outcome(future: Future[Any]) -> Outcome:
    try:
        return Outcome(future.result())
    except Failed as failure:
        return Outcome(None, failure.status, failure.reason)


def without_gpu(script: str) -> str | None:
    """Why `script` has nothing to do on this machine, or None."""
    try:
        import torch
    except ImportError as error:
        return f"{script} takes PyTorch, which cannot be imported ({error})"
    if torch.cuda.is_available():
        return None
    return f"{script} takes a CUDA device, and PyTorch sees none"
