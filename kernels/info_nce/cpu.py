"""InfoNCE on the CPU: C++ over tiles of logits, fp32, vectors chosen at run time, threads over tiles.

One call gives the loss, the statistics and, where asked for, the gradients of a loss of 1; backward has only
to scale them. A strip of logits (96 rows or more against all goals: 4 MB, or M * 384 bytes) is all that
exists at a time. See csrc/cpu/info_nce.cpp for the order of the sums: it depends on neither the number of
threads nor the run, so the same input gives the same bits.

Distances are sums of squared differences, never |phi|^2 + |psi|^2 - 2 phi.psi: near pairs lose no digits.
With u = 2^-24 and d features, summed in runs of 64, each distance is within (min(d, 64) / 2 + d / 128 + 3) u
of the exact one, relative to itself and however close the pair, as long as its square does not underflow
(differences above 1e-18). Gradients are sums of weighted differences, too, except in blocks of 24 x 64 pairs
that are all far, |phi - psi|^2 >= (|phi|^2 + |psi|^2) / 4: there x sum_j w_j - sum_j w_j y_j costs half and
each term is at most 4 times the difference that it stands for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels.extension import extension, why_missing
from deepres.kernels.info_nce.checks import check_labels
from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions, Results

ENERGY_CODES = {"norm": 0, "l2": 1, "dot": 2, "mrn": 3}
FORM_CODES = {"forward": 0, "backward": 1, "symmetric": 2, "binary": 3}
FEATURES_MULTIPLE = 16  # the widest vector, in floats


def unavailable() -> str | None:
    try:
        extension()
    except ImportError:
        return why_missing()
    return None


def unsupported(phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions) -> str | None:
    if phi.device.type != "cpu":
        return f"phi must be on the CPU, got {phi.device}"
    if phi.dtype != torch.float32:
        return f"phi must be float32, got {phi.dtype}"
    return None


def forward(
    phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions, needs: tuple[bool, ...]
) -> Results:
    """As op.py asks of a backend."""
    if operands.labels is not None and operands.targets is None:
        check_labels(operands.labels, psi.shape[0], options.self_offset)
    halves = 2 if options.energy == "mrn" else 1
    width = phi.shape[1]
    phi, psi = _padded(phi, halves), _padded(psi, halves)
    batch = phi.shape[0]
    loss, lse, metrics = phi.new_empty(()), phi.new_empty(batch), phi.new_empty(3)
    rows = phi.new_empty(batch) if options.reduction == "none" else None
    dphi = torch.zeros_like(phi) if needs[0] else None
    dpsi = torch.zeros_like(psi) if needs[1] else None
    dscale, dbias = (phi.new_empty(()) if needs[2] else None for _ in range(2))
    inputs = (phi, psi, operands.labels, operands.targets, operands.row_weight, operands.penalty_weight)
    out = (loss, lse, metrics, rows, dphi, dpsi, dscale, dbias)
    extension().info_nce(
        [_address(t) for t in inputs],
        [batch, psi.shape[0], phi.shape[1], options.positive_offset, options.self_offset],
        ENERGY_CODES[options.energy], FORM_CODES[options.form], options.logsumexp_penalty,
        1.0 if operands.scale is None else operands.scale.item(),
        0.0 if operands.bias is None else operands.bias.item(),
        torch.get_num_threads(), [_address(t) for t in out],
    )  # fmt: skip
    dphi, dpsi = (None if t is None else _unpadded(t, width, halves) for t in (dphi, dpsi))
    return Results(loss, lse, metrics, rows, dphi, dpsi, dscale, dbias)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _padded(t: Tensor, halves: int) -> Tensor:
    """t [n, d], each of the `halves` of its features with zeros to the next whole vector: they change no energy."""
    padding = -(t.shape[1] // halves) % FEATURES_MULTIPLE
    return F.pad(t.unflatten(1, (halves, -1)), (0, padding)).flatten(1) if padding else t


def _unpadded(t: Tensor, width: int, halves: int) -> Tensor:
    if t.shape[1] == width:
        return t
    return t.unflatten(1, (halves, -1))[:, :, : width // halves].flatten(1).contiguous()
