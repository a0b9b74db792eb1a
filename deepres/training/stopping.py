"""A run that is asked to end: by Ctrl-C, a batch system, a container that is stopped, a terminal that closes."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from typing import Any

from deepres.training.stability import TrainingError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_AT_ONCE_S = 1.0  # torchrun passes a Ctrl-C on that its processes had already


class Stopped(TrainingError):
    """A run that was asked to end before it had any figures. status: what its process ends with."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def exit_status(name: str) -> int:
    """What a process that the signal `name` stopped ends with, as shells have it: 130, 143, 129."""
    return 128 + getattr(signal, name)


class StopRequest:
    """Turns the first signal into a request to end after the round under way; another, later, is the usual one.

    asked: the signal's name. A SIGHUP that is ignored (nohup) stays so. tell: what happens now; "" says nothing.
    """

    def __init__(self, tell: str):
        self._tell = tell
        self.asked: str | None = None

    def __enter__(self) -> StopRequest:
        self._before: dict[int, Any] = {}
        self._since = 0.0
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                before = signal.getsignal(number)
                kept = before is None or (before is signal.SIG_IGN and number == signal.SIGHUP)
                if not kept:  # None: another library's, in C
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: Any) -> None:
        if self.asked is None:
            self.asked, self._since = signal.Signals(number).name, time.monotonic()
            if self._tell:
                with suppress(
                    RuntimeError, OSError
                ):  # in the middle of another print, or nobody there to read
                    print(f"\n{self.asked}: {self._tell}; the same again ends all at once", flush=True)
        elif time.monotonic() - self._since > _AT_ONCE_S:
            self._put_back()
            if signal.getsignal(number) is signal.SIG_IGN:
                raise KeyboardInterrupt
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: Any) -> None:
        self._put_back()
