"""CUDA's streams on a CPU: who waits for whom, and whether what is read was waited for.

Operations run on the CPU in their order; each counts as launched on the stream that is current. A stream knows of
every other stream how far it has waited for it (a vector clock), so that a read of what another stream made without a
wait in between is told, whatever the order in which a GPU would happen to run the two. So is a wait for a stream that
has no part in the capture under way, which CUDA refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepres.kernels import streams


class FakeEvent:
    def __init__(self) -> None:
        self.seen: dict[FakeStream, int] = {}
        self.captured = False

    def record(self, stream: FakeStream) -> None:
        self.seen, self.captured = dict(stream.seen), stream.captured


class FakeStream:
    """seen: of each stream, itself too, how many of its operations come before the next one here. captured: whether it
    has waited for what is being captured. faults: where sentences go."""

    def __init__(self, name: str, faults: list[str]) -> None:
        self.name, self.faults = name, faults
        self.seen: dict[FakeStream, int] = {}
        self.captured = name == "main"

    def wait_stream(self, other: FakeStream) -> None:
        self._wait(other, other.name)

    def wait_event(self, event: FakeEvent) -> None:
        self._wait(event, "an event")

    def _wait(self, other: FakeStream | FakeEvent, name: str) -> None:
        if not other.captured:
            self.faults.append(f"{self.name} waits for {name}, which has no part in what is captured")
        self.captured = self.captured or other.captured
        for stream, count in other.seen.items():
            self.seen[stream] = max(count, self.seen.get(stream, 0))


class Recorder(TorchDispatchMode):
    """Within it, operations belong to streams. faults: a sentence for each read or write that nothing orders, and for
    each tensor made on a side stream and read on another side stream that was not kept for it (`record_stream`).
    used: the streams that ran anything, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.main = FakeStream("main", self.faults)
        self.current = self.main
        self.sides: list[FakeStream] = []
        self.used: list[FakeStream] = [self.main]
        self._made: dict[int, tuple[FakeStream, int]] = {}
        self._read: dict[int, dict[FakeStream, int]] = {}
        self._kept: set[tuple[int, FakeStream]] = set()
        self._alive: list[torch.UntypedStorage] = []  # so that no two have one address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        here = self.current
        if here not in self.used:
            self.used.append(here)
        here.seen[here] = now = here.seen.get(here, 0) + 1
        changed = {
            a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
        }
        named = [(a.name, v) for a, v in zip(func._schema.arguments, args, strict=False)] + [*kwargs.items()]
        for name, value in named:
            for tensor in tree_leaves(value):
                if isinstance(tensor, torch.Tensor):
                    self._visit(str(func), self._key(tensor), now, writes=name in changed)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._made.setdefault(self._key(tensor), (here, now))
        return out

    def launch(self, name: str, reads: list[torch.Tensor], writes: list[torch.Tensor]) -> None:
        """A kernel on the current stream."""
        here = self.current
        here.seen[here] = now = here.seen.get(here, 0) + 1
        if here not in self.used:
            self.used.append(here)
        for tensors, written in ((reads, False), (writes, True)):
            for tensor in tensors:
                self._visit(name, self._key(tensor), now, writes=written)

    def begin_capture(self) -> None:
        """What the side streams have done before is not captured."""
        for side in self.sides:
            side.captured = False

    def keep(self, tensor: torch.Tensor, stream: FakeStream) -> None:
        self._kept.add((self._key(tensor), stream))

    def _visit(self, func: str, key: int, now: int, *, writes: bool) -> None:
        here = self.current
        maker, when = self._made.setdefault(key, (self.main, 0))  # parameters and batches were there before
        if here.seen.get(maker, 0) < when:
            self.faults.append(f"{func} on {here.name} reads what {maker.name} made, and did not wait for it")
        if maker is not here and when and self.main not in (maker, here) and (key, here) not in self._kept:
            self.faults.append(f"{func} on {here.name} reads what {maker.name} may give away meanwhile")
        readers = self._read.setdefault(key, {})
        if writes:
            for reader, read in readers.items():
                if here.seen.get(reader, 0) < read:
                    self.faults.append(f"{func} on {here.name} overwrites what {reader.name} may still read")
            self._made[key] = (here, now)
        readers[here] = now

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._made:
            self._alive.append(storage)
        return storage._cdata


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A recorder, with torch.cuda's streams replaced by those it knows, on CPU tensors."""
    recorder = Recorder()
    sides = recorder.sides

    def new(*_: object) -> FakeStream:
        sides.append(FakeStream(f"side {len(sides)}", recorder.faults))
        return sides[-1]

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        before, recorder.current = recorder.current, stream
        try:
            yield
        finally:
            recorder.current = before

    patch.setattr(streams, "has_streams", lambda _: True)
    patch.setattr(torch.cuda, "Stream", new)
    patch.setattr(torch.cuda, "Event", FakeEvent)
    patch.setattr(torch.cuda, "stream", on)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    patch.setattr(torch.cuda, "current_stream", lambda *_: recorder.current)
    patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorder.keep(tensor, stream))
    with recorder:
        yield recorder
