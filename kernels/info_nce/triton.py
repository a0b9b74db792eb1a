"""InfoNCE in Triton, for NVIDIA GPUs of compute capability 8.0 or newer.

    small batches   one launch (and a 4-byte memset): statistics, a barrier of the whole grid, gradients and
                    loss; while (B + M) / 16 + 1 programs are no more than the multiprocessors
    larger ones     two launches of the same kernel: statistics; gradients and loss

A program owns a tile of rows of phi, or of psi, and walks past all of the other side: the log-sum-exp is kept
online, logits are computed again for the gradients, and each gradient is summed by one program in one order.
No atomics but the barrier's, so the same input gives the same bits. Memory beyond the results: 8 B + 4 M
floats.

Products run in 3xTF32 (three TF32 products for one of fp32). The distance of a far pair, |x - y|^2 >=
(|x|^2 + |y|^2) / 4, comes from products and is within about 2^-20 of itself; tiles that hold a near pair are
computed again from differences, within (d / 2 + 3) 2^-24, and so are the near pairs' gradients.

Options that change which pairs count for what, or logits that are not energies, have kernels of their own
(triton_general.py).

Nothing waits for the device, and all memory comes from PyTorch: a CUDA graph may capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions, Results
from deepres.kernels.triton_device import Tiles, interpreted, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

LARGEST_WIDTH = 512


def unsupported(phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions) -> str | None:
    if phi.dtype != torch.float32:
        return f"phi must be float32, got {phi.dtype}"
    if phi.shape[1] > LARGEST_WIDTH:
        return f"it is built for up to {LARGEST_WIDTH} features, got {phi.shape[1]}"
    return unsupported_device(phi)


def tiles(width: int, small: bool, phase: str) -> Tiles:
    """The work of PHASE, in sizes that spill nothing among the products (bench/compile_report.py).

    small: tiles of 16 rows, to spread a small batch over the multiprocessors.
    """
    padded = max(16, 1 << (width - 1).bit_length())
    rows = {128: 32, 256: 16, 512: 16}.get(padded, 64)
    small = small or rows == 16
    crowded = phase == "gradients" and not small  # gradients of many rows leave few registers for a product
    blocks = {
        "BX": 16 if small else rows,
        "BY": 16 if crowded or (small and padded == 16) else 32,
        "BD": padded,
        "BK": min(padded, 32),
    }
    # All registers: to fit more programs on a multiprocessor, the compiler would spill a few.
    return Tiles(blocks, 4 if padded <= 64 and small else 8, 2, registers=255)


def constants(options: InfoNCEOptions, needs: tuple[bool, ...]) -> dict[str, object]:
    """The constants of info_nce_kernel beside its tiles and PHASE."""
    row_loss = options.form in ("forward", "symmetric")
    return {
        "ENERGY": options.energy,
        "ROW_LOSS": row_loss,
        "COL_LOSS": options.form in ("backward", "symmetric"),
        "BINARY": options.form == "binary",
        "USE_ROW": row_loss or options.logsumexp_penalty > 0,
        "NEED_PHI": needs[0],
        "NEED_PSI": needs[1],
    }


def forward(
    phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions, needs: tuple[bool, ...]
) -> Results:
    """As op.py asks of a backend."""
    from deepres.kernels.info_nce import triton_general
    from deepres.kernels.info_nce.triton_kernels import info_nce_kernel

    if options.general(operands):
        return triton_general.forward(
            phi, psi, operands, options, needs, tiles(phi.shape[1], True, "gradients")
        )

    (batch, width), goals = phi.shape, psi.shape[0]
    rows, cols, summary = phi.new_empty(8, batch), phi.new_empty(4, goals), phi.new_empty(4)
    dphi = torch.empty_like(phi) if needs[0] else None
    dpsi = torch.empty_like(psi) if needs[1] else None
    counter = torch.zeros(1, dtype=torch.int32, device=phi.device)
    arguments = (
        phi, psi, batch, goals, width, options.positive_offset, options.logsumexp_penalty,
        rows, cols, counter, summary, dphi, dpsi,
    )  # fmt: skip
    programs = _programs(batch, goals, tiles(width, True, "both"))
    small = programs <= _multiprocessors(phi)
    # The interpreter runs programs one after the other: no barrier could open.
    phases = ("both",) if small and not interpreted() else ("statistics", "gradients")
    for phase in phases:
        chosen = tiles(width, small, phase)
        info_nce_kernel[(_programs(batch, goals, chosen),)](
            *arguments, **constants(options, needs), **chosen.arguments(), PHASE=phase,
            launch_cooperative_grid=phase == "both",
        )  # fmt: skip
    # parts of memory that nobody else holds, none of which overlap: copies would be three more launches
    return Results(summary[0], rows[3], summary[1:], None, dphi, dpsi)


def _programs(batch: int, goals: int, chosen: Tiles) -> int:
    block = chosen.blocks["BX"]
    return -(-batch // block) + -(-goals // block) + 1


def _multiprocessors(t: Tensor) -> int:
    return torch.cuda.get_device_properties(t.device).multi_processor_count if t.is_cuda else 0
