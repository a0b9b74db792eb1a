"""The parts of a policy's loss in Triton, for NVIDIA GPUs of compute capability 8.0 or newer: a launch for the results
of an op, a launch for its gradients.

No atomics: a number is summed by one program in one order, so the same input gives the same bits. Nothing waits for
the device, and all memory comes from PyTorch: a CUDA graph may capture it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepres.kernels.triton_device import Tiles, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

LARGEST_WIDTH = 1024
ENERGIES = ("norm", "l2", "dot")


def unsupported_rows(dimensions: int, x: Tensor, *others: Tensor) -> str | None:
    """Why not, of tensors of one shape and so many dimensions."""
    for t in others:
        if t.shape != x.shape:
            return f"it takes tensors of one shape, got {list(x.shape)} and {list(t.shape)}"
    for t in (x, *others):
        if t.dtype != torch.float32:
            return f"it takes float32, got {t.dtype}"
    if x.numel() == 0 or x.ndim != dimensions:
        return f"it takes at least one number in {dimensions} dimensions, got shape {list(x.shape)}"
    if x.ndim == 2 and x.shape[1] > LARGEST_WIDTH:
        return f"it is built for up to {LARGEST_WIDTH} columns, got {x.shape[1]}"
    return unsupported_device(x)


def unsupported_energy(energy: str) -> str | None:
    return None if energy in ENERGIES else f"it serves the energies {', '.join(ENERGIES)}, got {energy!r}"


def tiles(width: int) -> Tiles:
    """The work of a program over rows: 4 numbers or more to a thread."""
    columns = 1 << (width - 1).bit_length()
    return Tiles({"BR": max(1, 512 // columns), "BA": columns}, 4, 1)


BLOCK = Tiles({"BR": 1024}, 4, 1)  # of the losses, which are one program, and of their gradients


def squashed_gaussian(
    mean: Tensor, log_std: Tensor, noise: Tensor, bounds: Sequence[float], exact: bool
) -> tuple[Tensor, Tensor]:
    """(action [B, A], log_prob [B]) as op.py asks of a backend."""
    from deepres.kernels.policy.triton_kernels import gaussian_kernel

    batch, width = mean.shape
    action, log_prob, chosen = torch.empty_like(mean), mean.new_empty(batch), tiles(width)
    gaussian_kernel[_grid(batch, chosen)](
        mean, log_std, noise, batch, width, *_range(bounds), action, log_prob,
        BOUNDED=len(bounds) > 0, EXACT=exact, **chosen.arguments(),
    )  # fmt: skip
    return action, log_prob


def squashed_gaussian_backward(
    daction: Tensor, dlog_prob: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor,
    bounds: Sequence[float], exact: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dmean, dlog_std) [B, A]. daction may be columns of a wider matrix."""
    from deepres.kernels.policy.triton_kernels import gaussian_backward_kernel

    batch, width = mean.shape
    if daction.stride(1) != 1:
        daction = daction.contiguous()
    dmean, dlog_std, chosen = torch.empty_like(mean), torch.empty_like(mean), tiles(width)
    gaussian_backward_kernel[_grid(batch, chosen)](
        daction, dlog_prob.contiguous(), mean, log_std, noise, batch, width, daction.stride(0), *_range(bounds),
        dmean, dlog_std, BOUNDED=len(bounds) > 0, EXACT=exact, **chosen.arguments(),
    )  # fmt: skip
    return dmean, dlog_std


def pair_energy(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """[B] as op.py asks of a backend."""
    from deepres.kernels.policy.triton_kernels import pair_kernel

    batch, width = phi.shape
    found, chosen = phi.new_empty(batch), tiles(width)
    pair_kernel[_grid(batch, chosen)](phi, psi, batch, width, found, ENERGY=energy, **chosen.arguments())
    return found


def pair_energy_backward(
    denergy: Tensor, phi: Tensor, psi: Tensor, energy: str, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dphi, dpsi) [B, d], None where `needs` is False."""
    from deepres.kernels.policy.triton_kernels import pair_backward_kernel

    batch, width = phi.shape
    dphi, dpsi = (torch.empty_like(phi) if need else None for need in needs)
    chosen = tiles(width)
    pair_backward_kernel[_grid(batch, chosen)](
        denergy.contiguous(), phi, psi, batch, width, dphi, dpsi,
        ENERGY=energy, NEED_PHI=needs[0], NEED_PSI=needs[1], **chosen.arguments(),
    )  # fmt: skip
    return dphi, dpsi


def policy_losses(
    log_prob: Tensor, value: Tensor, log_alpha: Tensor, target_entropy: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(actor, temperature, alpha, entropy), [] each."""
    from deepres.kernels.policy.triton_kernels import losses_kernel

    actor, temperature, alpha, entropy = (log_prob.new_empty(()) for _ in range(4))
    losses_kernel[(1,)](
        log_prob, value, log_alpha, target_entropy, log_prob.shape[0], actor, temperature, alpha, entropy,
        **BLOCK.arguments(),
    )  # fmt: skip
    return actor, temperature, alpha, entropy


def policy_losses_backward(
    dactor: Tensor, dtemperature: Tensor, log_prob: Tensor, alpha: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dlog_prob [B], dvalue [B], dlog_alpha [])."""
    from deepres.kernels.policy.triton_kernels import losses_backward_kernel

    batch = log_prob.shape[0]
    dlog_prob, dvalue, dlog_alpha = (torch.empty_like(t) for t in (log_prob, log_prob, alpha))
    losses_backward_kernel[_grid(batch, BLOCK)](
        dactor, dtemperature, alpha, temperature, batch, dlog_prob, dvalue, dlog_alpha, **BLOCK.arguments()
    )
    return dlog_prob, dvalue, dlog_alpha


def _range(bounds: Sequence[float]) -> tuple[float, float]:
    """The lower bound, and half of what is between them."""
    low, high = bounds or (0.0, 0.0)
    return low, 0.5 * (high - low)


def _grid(batch: int, chosen: Tiles) -> tuple[int]:
    return (-(-batch // chosen.blocks["BR"]),)
