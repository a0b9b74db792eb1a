"""The stem's end in Triton, for NVIDIA GPUs of compute capability 8.0 or newer: one launch forward; one back for du,
and one more for the sums over rows where bias, scale or shift are learned.

No atomics: rows are summed by one program after another in one order, so the same input gives the same bits. Nothing
waits for the device, and all memory comes from PyTorch: a CUDA graph may capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.triton_device import Tiles, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

LARGEST_WIDTH = 1024
ROWS = 8  # that a program of the backward pass sums


def unsupported(u: Tensor, *vectors: Tensor) -> str | None:
    for t in (u, *vectors):
        if t.dtype != torch.float32:
            return f"it takes float32, got {t.dtype}"
    if u.ndim != 2 or u.numel() == 0 or any(t.shape != u.shape[1:] for t in vectors):
        shapes = ", ".join(str(list(t.shape)) for t in (u, *vectors))
        return f"it takes u [B, W] and three vectors [W], got {shapes}"
    if u.shape[1] > LARGEST_WIDTH:
        return f"it is built for up to {LARGEST_WIDTH} columns, got {u.shape[1]}"
    return unsupported_device(u)


def tiles(width: int) -> Tiles:
    """Up to four rows at once, as many as fill no registers."""
    columns = 1 << (width - 1).bit_length()
    return Tiles({"BR": min(4, 1024 // columns), "BW": columns}, 4, 1)


SUMS = Tiles({"BP": 16, "BW": 64}, 4, 1)


def forward(u: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, activation: str) -> Tensor:
    from deepres.kernels.stem.triton_kernels import forward_kernel

    (batch, width), a = u.shape, torch.empty_like(u)
    chosen = tiles(width)
    forward_kernel[(-(-batch // chosen.blocks["BR"]),)](
        u, bias, scale, shift, eps, batch, width, a, SWISH=activation == "swish", **chosen.arguments()
    )
    return a


def backward(
    da: Tensor, u: Tensor, bias: Tensor, scale: Tensor, shift: Tensor,
    eps: float, activation: str, parameters: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """du [B, W], and (dbias, dscale, dshift) [W], empty unless `parameters`."""
    from deepres.kernels.stem.triton_kernels import backward_kernel, sums_kernel

    (batch, width), du = u.shape, torch.empty_like(u)
    programs = -(-batch // ROWS)
    partials = u.new_empty(3, programs, width) if parameters else None
    backward_kernel[(programs,)](
        da, u, bias, scale, shift, eps, batch, width, du, partials,
        SWISH=activation == "swish", SUMS=parameters, ROWS=ROWS, **tiles(width).arguments(),
    )  # fmt: skip
    held = width if parameters else 0
    sums = u.new_empty(held), u.new_empty(held), u.new_empty(held)
    if parameters:
        sums_kernel[(-(-width // SUMS.blocks["BW"]), 3)](partials, programs, width, *sums, **SUMS.arguments())
    return du, sums
