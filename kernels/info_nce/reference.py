"""InfoNCE in plain PyTorch: what all backends mean, the oracle of the tests, a choice users have.

Arguments are checked by the public function in op.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels.info_nce.options import InfoNCEOptions


def energy_logits(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """logits [B, M] between phi [B, d] and psi [M, d] under one of the energies of `deepres.info_nce`."""
    if energy == "dot":
        return phi @ psi.T
    if energy == "cosine":
        return F.normalize(phi, dim=1, eps=1e-12) @ F.normalize(psi, dim=1, eps=1e-12).T
    # Differences first, squares after: nearly equal pairs lose no digits, and the slope at distance 0 is 0.
    distance = torch.cdist(phi, psi, compute_mode="donot_use_mm_for_euclid_dist")
    return -distance if energy == "norm" else -distance.square()


def info_nce(
    phi: Tensor, psi: Tensor, options: InfoNCEOptions, metrics: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """See `deepres.info_nce`. Stores the [B, M] logits, as everybody does.

    Returns (loss, lse [B], [accuracy, mean positive, mean negative]); the last is empty unless asked for.
    """
    logits = energy_logits(phi, psi, options.energy)
    own = logits[
        :, options.positive_offset : options.positive_offset + phi.shape[0]
    ]  # psi has a goal for each
    lse, positive = logits.logsumexp(dim=1), own.diagonal()
    if options.form == "binary":
        # -log sigmoid(positive) - log(1 - sigmoid(negative)); softplus(x) - x = softplus(-x) on the diagonal
        loss = (F.softplus(logits).sum() - positive.sum()) / logits.numel()
    else:
        loss = phi.new_zeros(())
        if options.form in ("forward", "symmetric"):
            loss = loss + (lse - positive).mean()
        if options.form in ("backward", "symmetric"):
            # Further negatives have no state-action of their own: no softmax starts from them.
            loss = loss + (own.logsumexp(dim=0) - positive).mean()
    loss = loss + options.logsumexp_penalty * (lse + 1e-6).square().mean()
    return loss, lse.detach(), _measures(logits.detach(), positive.detach()) if metrics else phi.new_empty(0)


def _measures(logits: Tensor, positive: Tensor) -> Tensor:
    """[accuracy, mean positive logit, mean negative logit]; the last is NaN where there are no negatives."""
    first = (positive >= logits.amax(dim=1)).to(logits.dtype).mean()
    negative = (logits.sum() - positive.sum()) / (logits.numel() - positive.numel())
    return torch.stack([first, positive.mean(), negative])
