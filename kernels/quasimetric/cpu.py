"""Lengths of unions of intervals on the CPU: C++ over parts side by side, fp32, vectors chosen at run time, threads
over blocks of them. Each part is computed alone, so the same input gives the same bits. See csrc/cpu/unions_kernels.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.extension import extension
from deepres.kernels.info_nce.cpu import unavailable as unavailable
from deepres.kernels.quasimetric.reference import PART


def unsupported(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x must be on the CPU, got {x.device}"
    if x.dtype != torch.float32:
        return f"x must be float32, got {x.dtype}"
    return None


def union_lengths(x: Tensor, y: Tensor) -> Tensor:
    """[B, K] of contiguous [B, K * PART] twice."""
    lengths = x.new_empty(x.shape[0], x.shape[1] // PART)
    extension().union_lengths(
        x.data_ptr(), y.data_ptr(), lengths.numel(), torch.get_num_threads(), lengths.data_ptr()
    )
    return lengths


def union_gradients(d: Tensor, x: Tensor, y: Tensor, needs: list[bool]) -> list[Tensor | None]:
    """Of sum(d * union_lengths(x, y)), d [B, K] contiguous, the gradients of x and y, None where `needs` is False."""
    made = [torch.empty_like(t) if need else None for t, need in zip((x, y), needs, strict=True)]
    dx, dy = (0 if t is None else t.data_ptr() for t in made)
    extension().union_gradients(
        x.data_ptr(), y.data_ptr(), d.data_ptr(), d.numel(), torch.get_num_threads(), dx, dy
    )
    return made
