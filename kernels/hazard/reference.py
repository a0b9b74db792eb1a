"""Hazards in plain PyTorch: what all backends mean, the oracle of the tests, a choice users have.

Arguments are checked by the public functions in op.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels.autocast import product
from deepres.kernels.hazard.options import Hazards


def logits(h: Hazards) -> Tensor:
    """[B, K]."""
    return product(h.features, h.basis) + h.bias


def hazard_nll(h: Hazards, lag: Tensor, event: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `deepres.hazard_nll`. Stores the [B, K] logits several times over, as everybody does."""
    x = logits(h)
    bin, lag = torch.arange(x.shape[1], device=x.device), lag[:, None]
    zero = x.new_zeros(())
    survived = torch.where(bin < lag, -F.logsigmoid(-x), zero).sum(dim=1)
    hit = torch.where((bin == lag) & (lag > 0) & event[:, None], -F.logsigmoid(x), zero).sum(dim=1)
    there = event & (lag[:, 0] == 0)
    nll = torch.where(there, -F.logsigmoid(h.l0), -F.logsigmoid(-h.l0) + survived + hit)
    total = weight.sum()
    loss = (weight * nll).sum() / torch.where(total > 0, total, torch.ones_like(total))
    return loss, nll.detach()


def hazard_value(h: Hazards, discount: Tensor) -> Tensor:
    """See `deepres.hazard_value`. discount [K]."""
    survived = F.logsigmoid(-logits(h)).cumsum(dim=1)
    before = F.pad(survived[:, :-1], (1, 0))
    return -((F.logsigmoid(-h.l0)[:, None] + before).exp() * discount).sum(dim=1)
