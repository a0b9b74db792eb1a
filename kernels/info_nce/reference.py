"""InfoNCE in plain PyTorch: what all backends mean, the oracle of the tests, a choice users have.

Arguments are checked by the public function in op.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.autocast import product
from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions

MRN_INSIDE_ROOT = 1e-6  # as published: keeps the slope of the symmetric part finite where a pair meets


class _Distance(torch.autograd.Function):
    """|x_i - y_j| [B, M] of x [B, d] and y [M, d], its slope 0 where a pair meets.

    torch.cdist and its own backward, which has no derivative: with create_graph, backward is made of products,
    dx = x sum_j w_j - sum_j w_j y_j with w = g / distance.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        # Differences first, squares after: nearly equal pairs lose no digits.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, y, distance = ctx.saved_tensors
        if not torch.is_grad_enabled():
            slope = torch.ops.aten._cdist_backward
            dx = slope(g.contiguous(), x, y, 2.0, distance)
            return dx, slope(g.mT.contiguous(), y, x, 2.0, distance.mT.contiguous())
        met = distance == 0
        w = (g / distance.masked_fill(met, 1.0)).masked_fill(met, 0.0)
        dx = x * w.sum(1, keepdim=True) - product(w, y.mT)
        return dx, y * w.sum(0).unsqueeze(1) - product(w.mT, x.mT)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """See `_Distance`; torch.func and forward mode, which that does not serve, are given [B, M, d] differences."""
    if dispatch.transformed() is None:
        return _Distance.apply(x, y)
    squared = (x.unsqueeze(1) - y).square().sum(2)
    met = squared == 0
    return squared.masked_fill(met, 1.0).sqrt().masked_fill(met, 0.0)


def _asymmetric(x: Tensor, y: Tensor) -> Tensor:
    """max_k relu(x_ik - y_jk) [B, M]; of equal ones the first has the slope. No [B, M, d] tensor is made."""
    with torch.no_grad():
        most = x[:, :1] - y[:, 0]
        place = torch.zeros_like(most, dtype=torch.int64)
        for k in range(1, x.shape[1]):
            here = x[:, k : k + 1] - y[:, k]
            more = (here > most) | here.isnan()
            place, most = torch.where(more, k, place), torch.where(more, here, most)
    return F.relu(x.gather(1, place) - y.mT.gather(0, place))


def energies(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """[B, M] between phi [B, d] and psi [M, d] under one of the energies of `deepres.info_nce`."""
    if energy == "dot":
        return product(phi, psi)
    if energy == "cosine":
        return product(F.normalize(phi, dim=1, eps=1e-12), F.normalize(psi, dim=1, eps=1e-12))
    if energy == "mrn":
        half = phi.shape[1] // 2
        squared = _distance(phi[:, half:], psi[:, half:]).square()
        return -(_asymmetric(phi[:, :half], psi[:, :half]) + (squared + MRN_INSIDE_ROOT).sqrt())
    distance = _distance(phi, psi)
    return -distance if energy == "norm" else -distance.square()


def energy_logits(
    phi: Tensor, psi: Tensor, energy: str, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """logits [B, M] = scale * energies + bias."""
    logits = energies(phi, psi, energy)
    logits = logits if scale is None else logits * scale
    return logits if bias is None else logits + bias


def row_multipliers(row_weight: Tensor, divisor: str) -> Tensor:
    """[B]: what each row's loss is multiplied by before the mean over the batch."""
    if divisor == "batch":
        return row_weight
    total = row_weight.sum()
    return row_weight * (row_weight.shape[0] / total.masked_fill(total == 0, 1.0))


def _diagonal(like: Tensor, offset: int) -> Tensor:
    """[B, M] bools: column offset + i of row i."""
    rows, columns = (torch.arange(n, device=like.device) for n in like.shape)
    return columns == (rows + offset).unsqueeze(1)


def likeliest(targets: Tensor, self_offset: int) -> Tensor:
    """[B]: the goal of each row's largest target."""
    kept = targets if self_offset < 0 else targets.masked_fill(_diagonal(targets, self_offset), -1.0)
    return kept.argmax(1)


def info_nce(
    phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions, metrics: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """See `deepres.info_nce`. Stores the [B, M] logits, as everybody does.

    Returns (loss [] or [B], lse [B], [accuracy, mean positive, mean negative]); the last is empty unless asked for.
    """
    logits = energy_logits(phi, psi, options.energy, operands.scale, operands.bias)
    kept, targets, pairs = logits, operands.targets, logits.numel()
    if options.self_offset >= 0:
        left_out = _diagonal(logits, options.self_offset)
        kept, logits = logits.masked_fill(left_out, 0.0), logits.masked_fill(left_out, -math.inf)
        targets = None if targets is None else targets.masked_fill(left_out, 0.0)
        pairs -= phi.shape[0]
    lse = logits.logsumexp(dim=1)
    own, goals = _own(logits, operands, options)
    positive = own if targets is None else (targets * kept).sum(1)

    rows = []
    if options.form in ("forward", "symmetric"):
        rows.append((lse if targets is None else targets.sum(1) * lse) - positive)
    if options.form in ("backward", "symmetric"):
        # Further negatives have no state-action of their own: no softmax starts from them.
        rows.append(logits[:, goals].logsumexp(dim=0) - positive)
    if options.form == "binary":
        # -log sigmoid(positive) - log(1 - sigmoid(negative)); softplus(x) - x = softplus(-x) on the diagonal
        rows.append((F.softplus(logits).sum(1) - positive) * (phi.shape[0] / pairs))
    if operands.row_weight is not None:
        weight = row_multipliers(operands.row_weight, options.row_divisor)
        rows = [weight * row for row in rows]
    penalty = (lse + 1e-6).square()
    if options.reduction == "mean":
        rows, penalty = [row.mean() for row in rows], penalty.mean()
    # A tensor: forward mode makes the tangent of a number times a scalar float64.
    loss = sum(rows) + phi.new_full((), options.logsumexp_penalty) * penalty
    if not metrics:
        return loss, lse.detach(), phi.new_empty(0)
    mass = phi.shape[0] if targets is None else targets.sum()
    with torch.no_grad():
        first = (own >= logits.amax(dim=1)).to(logits.dtype).mean()
        negative = (kept.sum() - positive.sum()) / (pairs - mass)
        return loss, lse.detach(), torch.stack([first, positive.sum() / mass, negative])


def _own(logits: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions) -> tuple[Tensor, Tensor | slice]:
    """The logit of each row's own goal [B], with targets that of its likeliest; and which columns these goals have."""
    labels, targets = operands.labels, operands.targets
    if labels is None and targets is not None:
        labels = likeliest(targets, options.self_offset)
    if labels is None:
        goals = slice(options.positive_offset, options.positive_offset + logits.shape[0])
        return logits[:, goals].diagonal(), goals
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1), labels
