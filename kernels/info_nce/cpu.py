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

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions, Results

ENERGY_CODES = {"norm": 0, "l2": 1, "dot": 2}
FORM_CODES = {"forward": 0, "backward": 1, "symmetric": 2, "binary": 3}
FEATURES_MULTIPLE = 16  # the widest vector, in floats


def unavailable() -> str | None:
    try:
        import_module("deepres._C")
    except ImportError:
        return "deepres._C is not built; install a C++ compiler and run pip install again"
    return None


def unsupported(phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions) -> str | None:
    if phi.device.type != "cpu":
        return f"phi must be on the CPU, got {phi.device}"
    if phi.dtype != torch.float32:
        return f"phi must be float32, got {phi.dtype}"
    return options.beyond_the_first(operands)


def forward(
    phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions, needs: tuple[bool, ...]
) -> Results:
    """As op.py asks of a backend."""
    extension = import_module("deepres._C")
    width = phi.shape[1]
    padding = -width % FEATURES_MULTIPLE
    if padding:  # features that are 0 on both sides change no energy
        phi, psi = F.pad(phi, (0, padding)), F.pad(psi, (0, padding))
    loss, lse, metrics = phi.new_empty(()), phi.new_empty(phi.shape[0]), phi.new_empty(3)
    dphi = torch.zeros_like(phi) if needs[0] else None
    dpsi = torch.zeros_like(psi) if needs[1] else None
    extension.info_nce(
        phi.data_ptr(), psi.data_ptr(), phi.shape[0], psi.shape[0], phi.shape[1], options.positive_offset,
        ENERGY_CODES[options.energy], FORM_CODES[options.form], options.logsumexp_penalty,
        torch.get_num_threads(),
        [0 if t is None else t.data_ptr() for t in (loss, lse, metrics, dphi, dpsi)],
    )  # fmt: skip
    if padding:
        dphi = None if dphi is None else dphi[:, :width].contiguous()
        dpsi = None if dpsi is None else dpsi[:, :width].contiguous()
    return Results(loss, lse, metrics, None, dphi, dpsi)
