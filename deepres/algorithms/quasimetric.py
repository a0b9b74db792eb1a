"""Quasimetrics of feature vectors: d(x, x) = 0, d(x, z) <= d(x, y) + d(y, z), but d(x, y) need not be d(y, x)."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 8  # of iqe: features to an interval's union


def iqe(x: Tensor, y: Tensor, mix: Tensor) -> Tensor:
    """Interval quasimetric embedding (arXiv 2211.15120, with the maxmean reduction): [B, K * 8] twice -> [B].

        u_k = the length of the union of the intervals [x_i, max(x_i, y_i)] over the 8 features i of part k
        d = sigmoid(mix) * u.mean(1) + (1 - sigmoid(mix)) * u.max(1)

    mix: [].
    """
    x, y = x.unflatten(1, (-1, PART)), y.unflatten(1, (-1, PART))
    begin, order = x.sort(dim=-1)
    end = torch.maximum(x, y).gather(-1, order)
    covered = torch.cat([begin[..., :1], end.cummax(dim=-1).values[..., :-1]], dim=-1)  # up to there already
    length = (end - torch.maximum(begin, covered)).clamp_min(0).sum(dim=-1)
    share = mix.sigmoid()
    return share * length.mean(dim=1) + (1 - share) * length.amax(dim=1)


def mrn(x: Tensor, y: Tensor) -> Tensor:
    """Metric residual network's distance (arXiv 2208.08133; as in JaxGCRL): [B, d] twice, d even -> [B].

    (x - y).relu().amax(1) of the first half of the features + ((x - y).square().sum(1) + 1e-6).sqrt() of the second
    """
    one_way, both_ways = (x - y).chunk(2, dim=1)
    return one_way.relu().amax(dim=1) + (both_ways.square().sum(dim=1) + 1e-6).sqrt()
