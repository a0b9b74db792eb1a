"""What the residual stack keeps for backward, in bytes, and how much to recompute so that it fits the free memory."""

from __future__ import annotations

import logging
import math
from functools import cache
from types import ModuleType

import torch

from deepres.kernels import dispatch
from deepres.kernels.free_memory import free_bytes
from deepres.kernels.residual_stack.options import AUTO, StackOptions

SHARE = 0.5  # of the free memory, what "auto" lets activations take


def kept_bytes(
    backend: ModuleType, batch: int, width: int, depth: int, options: StackOptions, members: int = 1
) -> tuple[int, int]:
    """Bytes (kept from forward to backward, computed again and dropped inside backward) of one call for `members`
    stacks side by side."""

    def saved(layers: int, options: StackOptions) -> int:
        specs = backend.saved_spec(batch, width, layers, options)
        return members * sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs)

    if not options.recompute:
        return saved(depth, options), 0
    segment = min(options.recompute * options.skip_every, depth)
    return saved(depth, options), saved(segment, options._replace(recompute=0))


def saved_bytes(
    batch: int,
    width: int,
    depth: int,
    options: StackOptions,
    *,
    members: int = 1,
    impl: str = "auto",
    device: str = "cpu",
    free: int | None = None,
) -> tuple[int, int]:
    """`kept_bytes` of the backend that would serve such a call, for plans made before anything is allocated.

    options.recompute: AUTO stands for what "auto" would pick with `free` bytes (by default, the device's) to be had.
    device: "cpu", or "cuda", whether there is one here or not. Raises what `dispatch.choose` raises.
    """
    if (
        device == "cuda" and not torch.cuda.is_available()
    ):  # for another machine; all GPU backends keep the same
        chosen = "triton" if impl == "auto" else impl
    else:
        x = torch.empty((0, width), device=device)
        chosen = dispatch.choose("residual_stack", impl, lambda one: one.unsupported(x, depth, options))
    backend = dispatch.load("residual_stack", chosen)
    if options.recompute == AUTO:
        room = int(SHARE * (free_bytes(torch.device(device)) if free is None else free))
        picked = fitting_recompute(backend, batch, width, depth, options, room, members)
        options = options._replace(recompute=picked)
    return kept_bytes(backend, batch, width, depth, options, members)


def packed_bytes(width: int, depth: int, options: StackOptions, orders: int) -> int:
    """Bytes of one stack's weights as impl="cuda" packs them, kept for a whole gradient step (deepres.kernels.packing);
    0 for a width that it does not serve, or weights past what it keeps. orders: 1 for forward alone, 2 with backward.
    """
    from deepres.kernels.residual_stack import cuda

    if width not in (*cuda.WIDTHS, *cuda.CLUSTERED):
        return 0
    each = depth * width**2 * cuda.Geometry(width, options).operand_bytes
    return orders * each if each <= cuda.PACKED_BYTES else 0


@cache
def planned_recompute(
    impl: str, batch: int, width: int, depth: int, options: StackOptions, device: str, members: int = 1
) -> int:
    """What recompute="auto" stands for in such calls: picked, and logged ("deepres"), once in a process."""
    backend, room = dispatch.load("residual_stack", impl), int(SHARE * free_bytes(torch.device(device)))
    picked = fitting_recompute(backend, batch, width, depth, options, room, members)
    need, whole = (
        sum(kept_bytes(backend, batch, width, depth, options._replace(recompute=k), members))
        for k in (picked, 0)
    )
    stacks = "residual_stack" if members == 1 else f"{members} residual_stacks"
    logging.getLogger("deepres").info(
        "%s of %d layers, width %d, batch %d: recompute='auto' picks %s "
        "(%.0f MB of activations; %.0f MB allowed, %.0f MB without recomputing)",
        stacks, depth, width, batch, picked or "none", need / 1e6, room / 1e6, whole / 1e6,
    )  # fmt: skip
    return picked


def fitting_recompute(
    backend: ModuleType,
    batch: int,
    width: int,
    depth: int,
    options: StackOptions,
    room: int,
    members: int = 1,
) -> int:
    """0 (keep every layer) if that takes at most `room` bytes, else the smallest power of two of blocks to
    recompute at a time that does; if none does, the one that needs least."""

    def total(recompute: int) -> int:
        again = options._replace(recompute=recompute)
        return sum(kept_bytes(backend, batch, width, depth, again, members))

    blocks = depth // options.skip_every if options.skip_every else 0
    candidates = [0, *(2**i for i in range(blocks.bit_length()))]
    return next((k for k in candidates if total(k) <= room), min(candidates, key=total))
