"""Safe-CRL's parts (arXiv 2608.26571): what CRL adds where episodes may end in a fall.

Let the row's trajectory end for good L steps ahead, at the step t + L, unless a time limit or the window's end comes
first (FutureGoals(falls=True)). With h an independent lag, P(h) proportional to gamma^h,

    weight    Z = 1 - gamma^L = P(h <= L) where it falls, 1 elsewhere, and 0 on a trajectory's last step
    critic    mean_i Z_i (lse_i - f_ii) + penalty * mean_i (lse_i + 1e-6)^2            (divisor B, not sum Z)
    survival  BCE(z(s, a), Y), Y = 1[T > h], T = L + 1, the actions until it lies, where it falls, else infinity
    actor     mean(alpha log pi - f(phi(s, a'), psi(g)) - bonus * log sigmoid(z(s, a')))

z is one logit of a trunk of depth 4 on concat(s, a). The mean of Y over h is 1 - gamma^L, the same as Z. What T is on a
trajectory's last step was not read in the source: with T = L + 1 the action that falls has survival 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.networks import Networks, Value

DEPTH = 4
"""Layers of the head, whatever the depth of the others."""


def head(networks: Networks, in_dim: int) -> Value:
    """z: concat(state, action) [B, in_dim] -> logit [B] of not falling, made as the others are but for its depth."""
    every = networks.options.skip_every or DEPTH
    depth = -(-DEPTH // every) * every
    return replace(networks, options=replace(networks.options, depth=depth, actor_depth=None)).value(in_dim)


def row_weight(extra: dict[str, Tensor], gamma: float) -> Tensor:
    """Z [B] float64, of a batch's extra "left" [B] int64 and "falls" [B] bool."""
    left = extra["left"].double()
    before_the_fall = -torch.expm1(left * math.log(gamma))
    return torch.where(extra["falls"], before_the_fall, 1.0) * (left > 0)


def survived(extra: dict[str, Tensor]) -> Tensor:
    """Y [B] float32: 0 where the trajectory falls within the row's lag."""
    return (~(extra["falls"] & (extra["left"] < extra["lag"]))).float()


def loss(logit: Tensor, extra: dict[str, Tensor]) -> Tensor:
    """mean BCE(logit [B], Y), over the rows whose chunk is whole where actions come in chunks."""
    target = survived(extra).to(logit.dtype)
    each = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    valid = extra.get("valid")
    if valid is None:
        return each.mean()
    return (valid * each).sum() / valid.sum().clamp_min(1)
