"""InfoNCE: the contrastive critic loss over a batch of pairs.

With logits[i, j] = energy(phi_i, psi_j) and lse[i] = logsumexp_j logits[i, j] (paper section 2, equation 1)

    forward    mean_i (lse[i] - logits[i, i])                     softmax over goals, a row per state-action
    backward   mean_j (logsumexp_i logits[i, j] - logits[j, j])   softmax over state-actions
    symmetric  forward + backward
    binary     mean_ij softplus(-logits[i, j] if i == j else logits[i, j])

plus logsumexp_penalty * mean_i (lse[i] + 1e-6)^2 in every form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepres.kernels import dispatch, reference

ENERGIES = ("norm", "l2", "dot", "cosine")
FORMS = ("forward", "backward", "symmetric", "binary")


def info_nce(
    phi: Tensor,
    psi: Tensor,
    *,
    logsumexp_penalty: float = 0.1,
    energy: str = "norm",
    form: str = "forward",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The contrastive loss between state-actions and goals, where row i of phi belongs to row i of psi.

        logits = -torch.cdist(phi, psi); lse = logits.logsumexp(1)            # energy="norm", form="forward"
        loss = (lse - logits.diagonal()).mean() + logsumexp_penalty * (lse + 1e-6).square().mean()

    Args:
        phi: [B, d] float32 (float64 with impl="reference"), the state-action features; B >= 1.
        psi: [M, d], the goal features, M >= B; rows past B are further negatives. phi's dtype and device.
        logsumexp_penalty: coefficient of the penalty, >= 0 (paper: 0.1).
        energy: "norm" -|phi - psi|, "l2" -|phi - psi|^2, "dot" phi . psi, or "cosine". The slope of "norm" at
            phi = psi is taken as 0, so a state-action that meets its own goal gives finite gradients.
        form: "forward", "backward", "symmetric" (their sum) or "binary" (see the module's head).
        impl: "auto", "reference" or a fused backend (`deepres.backends()` lists them).

    Returns: (loss, lse): the scalar loss, differentiable in phi and psi, and lse [B], for logs, without gradient.
    Raises: TypeError or ValueError in one sentence for what does not fit; RuntimeError if `impl` cannot serve.
    Source: arXiv 2503.14858, section 2.
    """
    _check(phi, psi, logsumexp_penalty, energy, form)
    dispatch.choose("info_nce", impl, lambda backend: backend.unsupported(phi, psi, energy, form))
    return reference.info_nce(phi, psi, logsumexp_penalty, energy, form)


def _check(phi: Tensor, psi: Tensor, logsumexp_penalty: float, energy: str, form: str) -> None:
    if phi.ndim != 2 or psi.ndim != 2 or phi.shape[1] != psi.shape[1]:
        raise ValueError(
            f"phi and psi must have shapes [B, d] and [M, d], got {list(phi.shape)} and {list(psi.shape)}"
        )
    if phi.shape[0] == 0 or phi.shape[1] == 0:
        raise ValueError(f"phi must hold at least one row and one feature, got {list(phi.shape)}")
    if psi.shape[0] < phi.shape[0]:
        raise ValueError(
            f"psi must hold a goal for every row of phi ({phi.shape[0]}), got {psi.shape[0]}; "
            "rows past phi's are further negatives"
        )
    if phi.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"phi must be float32 (or float64 for the reference), got {phi.dtype}; call phi.float()"
        )
    if psi.dtype != phi.dtype:
        raise TypeError(f"psi must have phi's dtype {phi.dtype}, got {psi.dtype}; cast one of them")
    if psi.device != phi.device:
        raise ValueError(f"psi must be on phi's device {phi.device}, got {psi.device}; move one of them")
    if not (logsumexp_penalty >= 0 and math.isfinite(logsumexp_penalty)):
        raise ValueError(f"logsumexp_penalty must be a finite number >= 0, got {logsumexp_penalty!r}")
    if energy not in ENERGIES:
        raise ValueError(f"energy must be one of {', '.join(ENERGIES)}, got {energy!r}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
