"""Lengths of unions of intervals in Triton, for NVIDIA GPUs of compute capability 8.0 or newer: a launch for them, a
launch for their gradients, where PyTorch's operators take some fifteen and thirty.

Each part is computed alone, so the same input gives the same bits. Nothing waits for the device, and all memory comes
from PyTorch: a CUDA graph may capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.quasimetric.reference import PART
from deepres.kernels.triton_device import Tiles, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

TILES = Tiles({"BP": 16}, 4, 1)  # 1024 pairs of intervals, 8 to a thread


def unsupported(x: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"it takes float32, got {x.dtype}"
    if x.numel() == 0:
        return f"it takes at least one row, got shape {list(x.shape)}"
    return unsupported_device(x)


def union_lengths(x: Tensor, y: Tensor) -> Tensor:
    """[B, K] as op.py asks of a backend."""
    from deepres.kernels.quasimetric.triton_kernels import lengths_kernel

    lengths = x.new_empty(x.shape[0], x.shape[1] // PART)
    lengths_kernel[_grid(lengths)](x, y, lengths.numel(), lengths, **TILES.arguments())
    return lengths


def union_gradients(d: Tensor, x: Tensor, y: Tensor, needs: list[bool]) -> list[Tensor | None]:
    """[dx, dy] as op.py asks of a backend."""
    from deepres.kernels.quasimetric.triton_kernels import gradients_kernel

    dx, dy = made = [torch.empty_like(t) if need else None for t, need in zip((x, y), needs, strict=True)]
    gradients_kernel[_grid(d)](
        d, x, y, d.numel(), dx, dy, NEED_X=needs[0], NEED_Y=needs[1], **TILES.arguments()
    )
    return made


def _grid(lengths: Tensor) -> tuple[int]:
    return (-(-lengths.numel() // TILES.blocks["BP"]),)
