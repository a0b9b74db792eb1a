"""Standard output that goes away, or that a disk is full for, ends no run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_FULL = (errno.ENOSPC, errno.EDQUOT)  # there may be room again


class _Lasting:
    """A text stream: what cannot be written is dropped, and once nobody reads it, all that follows."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # a path of bytes that are no text, or a terminal of few characters
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._gone(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._gone(error)

    def _gone(self, error: OSError) -> None:
        if error.errno in _FULL:
            return
        with suppress(OSError, ValueError):  # what Python still holds, and writes at its end, goes to nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """While it lasts, sys.stdout and sys.stderr whose reader is gone (a closed pipe, a lost terminal) or whose disk is
    full raise nothing."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: _Lasting(stream) for name, stream in before.items() if stream is not None}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            stream.flush()
            if getattr(sys, name) is stream:  # else somebody else's, who puts it back
                setattr(sys, name, before[name])
