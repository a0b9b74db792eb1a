"""Streams of a GPU on which a part of the work runs beside the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def has_streams(device: torch.device) -> bool:
    return device.type == "cuda"


class SecondStream:
    """A stream of a GPU's own on which a part of a step runs beside the rest; elsewhere the part runs in its turn.

    All of it can be captured in a CUDA graph, as long as what was begun is joined.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @staticmethod
    def of_current(device: torch.device) -> SecondStream:
        """The one that belongs to the current stream: callers on other streams have others."""
        stream = torch.cuda.current_stream(device) if has_streams(device) else None
        return _of_stream.setdefault(stream, SecondStream())

    @staticmethod
    def wait(device: torch.device, event: torch.cuda.Event | None) -> None:
        """The current stream waits for a `mark`."""
        if event is not None:
            torch.cuda.current_stream(device).wait_event(event)

    @staticmethod
    def mark(device: torch.device) -> torch.cuda.Event | None:
        """How far the current stream is now: `beside` may begin from there, whatever follows."""
        if not has_streams(device):
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event

    @contextmanager
    def beside(self, device: torch.device, after: torch.cuda.Event | None = None) -> Iterator[None]:
        """What is within runs beside what follows, until `join`; it begins when the current stream is where it is now,
        or where it was at `after`."""
        if not has_streams(device):
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        if after is None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        else:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            yield

    def reads(self, tensor: Tensor) -> Tensor:
        """`tensor`, made on another stream and read on this one, backward included: its memory goes to nobody else
        before. Call it within `beside`."""
        if self._stream is not None and has_streams(tensor.device):
            tensor.record_stream(self._stream)
        return tensor

    def join(self, device: torch.device, *made: Tensor) -> None:
        """The current stream waits for what ran beside. made: tensors from there that are read here, backward included,
        and kept for that."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)


_of_stream: dict[torch.cuda.Stream | None, SecondStream] = {}
