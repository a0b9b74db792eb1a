"""Weights in the order in which a kernel takes them, packed once for as long as they stay what they are.

A gradient step runs the same weights several times, forward and backward. Within `packed_once` what a backend has
packed of a tensor serves until the tensor is changed in place or the outermost context ends; without it every call
packs for itself. PyTorch counts the changes, with those of detached views, but its fused optimisers leave that out:
`torch.autograd.graph.increment_version` must follow them. While a CUDA graph is being captured only a context that was
entered in that capture keeps what it packs, and the graph's replays pack anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.kernels import streams


@dataclass(frozen=True)
class _Packed:
    source: Tensor  # held, so that no other tensor gets its place
    result: Tensor
    done: torch.cuda.Event | None
    stream: torch.cuda.Stream | None


class _Kept:
    def __init__(self) -> None:
        self.depth = 0
        self.captured = False  # whether the outermost context is part of the capture under way
        self.found: dict[Hashable, _Packed] = {}
        self.lock = threading.RLock()  # backward runs in autograd's threads


_kept = _Kept()


@contextmanager
def packed_once() -> Iterator[None]:
    """Within, no tensor is packed twice while it stays as it is."""
    with _kept.lock:
        if _kept.depth == 0:
            _kept.captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        _kept.depth += 1
    try:
        yield
    finally:
        with _kept.lock:
            _kept.depth -= 1
            if _kept.depth == 0:
                for packed in _kept.found.values():  # what nobody asked for in the end is joined too
                    _wait(packed)
                _kept.found.clear()


def keeps(source: Tensor) -> bool:
    """Whether what is packed of `source` now would be kept."""
    return _kept.depth > 0 and not source.is_inference()


def packed(source: Tensor, what: Hashable, pack: Callable[[], Tensor]) -> Tensor:
    """`pack()`, or what it gave before for this tensor, in this version, and for the same `what`."""
    if not keeps(source):
        return pack()
    on_gpu = streams.has_streams(source.device)
    if on_gpu and not _kept.captured and torch.cuda.is_current_stream_capturing():
        return pack()  # its memory and its work are that graph's alone
    key = (source.data_ptr(), source.shape, source.dtype, source._version, what)
    with _kept.lock:
        found = _kept.found.get(key)
        if found is None:
            result, done, stream = pack(), None, None
            if on_gpu:
                stream, done = torch.cuda.current_stream(source.device), torch.cuda.Event()
                done.record(stream)
            _kept.found[key] = _Packed(source.detach(), result, done, stream)
            return result
    _wait(found)
    return found.result


def _wait(packed: _Packed) -> None:
    if packed.done is None:
        return
    current = torch.cuda.current_stream(packed.result.device)
    if current != packed.stream:
        current.wait_event(packed.done)
        packed.result.record_stream(current)
