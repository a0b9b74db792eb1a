"""Hazards in Triton, for NVIDIA GPUs of compute capability 8.0 or newer.

    nll     one launch: rows walk past the bins that they need, bins past all rows
    value   one launch over rows, forwards for the value and backwards for its gradients, logits computed again; where
            basis or bias are learned from it, a second one over bins

No atomics: each number is summed by one program in one order, so the same input gives the same bits. Products run in
3xTF32. Memory beyond the results: 2 (K / 64) B floats for the value, 1 B for the likelihood.

Nothing waits for the device, and all memory comes from PyTorch: a CUDA graph may capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.hazard.options import Hazards, Needs
from deepres.kernels.triton_device import Tiles, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

LARGEST_WIDTH = 128


def unsupported(h: Hazards) -> str | None:
    if h.features.dtype != torch.float32:
        return f"features must be float32, got {h.features.dtype}"
    if h.features.shape[1] > LARGEST_WIDTH:
        return f"it is built for up to {LARGEST_WIDTH} features, got {h.features.shape[1]}"
    return unsupported_device(h.features)


def tiles(width: int) -> Tiles:
    """The work of a program, in sizes that spill nothing among the products (bench/compile_report.py)."""
    blocks = {"BR": 16, "BK": 64 if width <= 32 else 32, "BD": max(16, 1 << (width - 1).bit_length())}
    return Tiles(blocks, 4, 2)


def nll(
    h: Hazards, lag: Tensor, event: Tensor, weight: Tensor, needs: Needs
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(loss [], nll [B], gradients) as op.py asks of a backend."""
    from deepres.kernels.hazard.triton_kernels import nll_kernel

    batch, bins, width = h.shape
    total = weight.sum()
    scale = weight / torch.where(total > 0, total, 1.0)
    rows = torch.empty_like(h.l0)
    need_rows, need_bins = needs.features or needs.l0, needs.basis or needs.bias
    dfeatures, dl0 = (torch.empty_like(t) if need_rows else None for t in (h.features, h.l0))
    dbasis, dbias = (torch.empty_like(t) if need_bins else None for t in (h.basis, h.bias))
    chosen = tiles(width)
    programs = _cdiv(batch, chosen.blocks["BR"]) + (_cdiv(bins, chosen.blocks["BK"]) if need_bins else 0)
    nll_kernel[(programs,)](
        *h, lag, event.view(torch.uint8), scale, batch, bins, width, rows, dfeatures, dbasis, dbias, dl0,
        NEED_ROWS=need_rows, NEED_BINS=need_bins, **chosen.arguments(),
    )  # fmt: skip
    loss = torch.dot(weight.double(), rows.double()) / torch.where(total > 0, total, 1.0)
    return loss.float(), rows, _asked((dfeatures, dbasis, dbias, dl0), needs)


def value(
    h: Hazards, discount: Tensor, weight: Tensor | None, needs: Needs
) -> tuple[Tensor, list[Tensor | None]]:
    """(value [B], gradients) as op.py asks of a backend."""
    from deepres.kernels.hazard.triton_kernels import bins_kernel, value_kernel

    batch, bins, width = h.shape
    weight = torch.ones_like(h.l0) if weight is None else weight
    values = torch.empty_like(h.l0)
    need_rows, need_bins = needs.features or needs.l0, needs.basis or needs.bias
    dfeatures, dl0 = (torch.empty_like(t) if need_rows else None for t in (h.features, h.l0))
    dbasis, dbias = (torch.empty_like(t) if need_bins else None for t in (h.basis, h.bias))
    chosen = tiles(width)
    columns = _cdiv(bins, chosen.blocks["BK"])
    carried = h.l0.new_empty(2, columns, batch)
    value_kernel[(_cdiv(batch, chosen.blocks["BR"]),)](
        *h, discount, weight, batch, bins, width, carried, values, dfeatures, dl0,
        NEED_TAILS=need_rows or need_bins, NEED_ROWS=need_rows, **chosen.arguments(),
    )  # fmt: skip
    if need_bins:
        bins_kernel[(columns,)](
            h.features, h.basis, h.bias, discount, weight, carried, batch, bins, width, dbasis, dbias,
            **chosen.arguments(),
        )  # fmt: skip
    return values, _asked((dfeatures, dbasis, dbias, dl0), needs)


def _asked(gradients: tuple[Tensor | None, ...], needs: Needs) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]


def _cdiv(count: int, block: int) -> int:
    return -(-count // block)
