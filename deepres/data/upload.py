"""Batches on their way to the device that learns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from deepres.data.batch import Batch


def uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, the next one already on its way there while the last one is in use.

    From pinned memory to a GPU the copies run on a stream of their own; elsewhere this only looks one batch ahead.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    coming: tuple[Batch, torch.cuda.Event | None] | None = None
    for batch in batches:
        ready, coming = coming, _sent(batch, device, stream)
        if ready is not None:
            yield _arrived(*ready)
    if coming is not None:
        yield _arrived(*coming)


def _sent(
    batch: Batch, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[Batch, torch.cuda.Event | None]:
    with torch.cuda.stream(stream):  # None: where we are
        sent = batch.map(lambda t: t.to(device, non_blocking=True))
    return sent, None if stream is None else stream.record_event()


def _arrived(batch: Batch, event: torch.cuda.Event | None) -> Batch:
    if event is not None:
        user = torch.cuda.current_stream(batch.state.device)
        user.wait_event(event)
        for t in batch.tensors().values():
            t.record_stream(user)
    return batch
