"""InfoNCE in Triton under the options that triton.py's own kernel does not know: two launches, vectors between them.

    statistics   per row of phi and, for softmaxes over state-actions, per goal, as triton.py keeps them
    vectors      [B] and [M], in PyTorch: losses, what each softmax is scaled by, dL/dlogit of the own goals
    gradients    dphi, dpsi, and each row's part of dscale and dbias

Pairs are computed as in triton.py; those of "mrn" from differences alone. No atomics: the same input gives the same
bits. Memory beyond the results and the labels: 13 B + 5 M floats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions, Results
from deepres.kernels.triton_device import Tiles

INSIDE_SQUARE = 1e-6  # the penalty is (lse + 1e-6)^2


class Statistics(NamedTuple):
    """What the first launch leaves."""

    rows: Tensor
    """[7, B], see info_nce_statistics_kernel."""
    cols: Tensor | None
    """[3, M], for a softmax over state-actions."""
    own: Tensor
    """[B] int64: where each row's own goal is."""


def constants(options: InfoNCEOptions) -> dict[str, object]:
    """The constants of both kernels beside their tiles."""
    return {
        "ENERGY": options.energy,
        "COL_LOSS": options.form in ("backward", "symmetric"),
        "BINARY": options.form == "binary",
        "LEAVES_OUT": options.self_offset >= 0,
    }


def forward(
    phi: Tensor, psi: Tensor, operands: InfoNCEOperands, options: InfoNCEOptions, needs: tuple[bool, ...],
    tiles: Tiles,
) -> Results:  # fmt: skip
    """As op.py asks of a backend."""
    from deepres.kernels.info_nce import triton_general_kernels as kernels

    (batch, width), goals = phi.shape, psi.shape[0]
    own = operands.labels
    if own is None:
        own = torch.arange(batch, device=phi.device) + options.positive_offset
    one, zero, ones = phi.new_ones(()), phi.new_zeros(()), phi.new_ones(batch)
    scale = one if operands.scale is None else operands.scale
    bias = zero if operands.bias is None else operands.bias
    weight = ones if operands.row_weight is None else operands.row_weight
    inputs = (phi, psi, batch, goals, width, own, options.self_offset, scale, bias, operands.targets)
    block = tiles.blocks["BX"]
    grid = (-(-batch // block) + -(-goals // block),)
    fixed = {**constants(options), **tiles.arguments()}

    rows = phi.new_empty(7, batch)
    cols = phi.new_empty(3, goals) if fixed["COL_LOSS"] else None
    kernels.info_nce_statistics_kernel[grid](*inputs, weight, rows, cols, **fixed)
    statistics = Statistics(rows, cols, own)
    penalty_weight = ones if operands.penalty_weight is None else operands.penalty_weight
    measures = _measures(statistics, weight, penalty_weight, operands, options, goals)
    if not any(needs):
        return measures
    by_row, by_goal = _scales(statistics, measures.lse, weight, penalty_weight, operands, options, goals)
    dphi = torch.empty_like(phi) if needs[0] else None
    dpsi = torch.empty_like(psi) if needs[1] else None
    sums = phi.new_empty(2, batch) if needs[2] else None
    kernels.info_nce_gradients_kernel[grid](*inputs, by_row, by_goal, sums, dphi, dpsi, **fixed)
    dscale, dbias = (None, None) if sums is None else sums.sum(1).unbind()
    return measures._replace(dphi=dphi, dpsi=dpsi, dscale=dscale, dbias=dbias)


def _own_columns(statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row's own goal, [B]: largest logit, sum exp(logit - largest), weight of its owners."""
    assert statistics.cols is not None
    largest, total, share = statistics.cols[:, statistics.own].unbind()
    return largest, total, share


def _measures(
    statistics: Statistics, weight: Tensor, penalty_weight: Tensor, operands: InfoNCEOperands,
    options: InfoNCEOptions, goals: int,
) -> Results:  # fmt: skip
    """The loss and what is told beside it."""
    largest, total, target_logit, own, plain, soft, mass = statistics.rows.unbind()
    batch = largest.shape[0]
    pairs = batch * (goals - (options.self_offset >= 0))
    lse = largest + total.log()
    soft_targets = operands.targets is not None
    positive = target_logit if soft_targets else own
    loss = torch.zeros_like(lse)
    if options.form in ("forward", "symmetric"):
        loss += mass * lse - positive if soft_targets else (largest - own) + total.log()
    if options.form in ("backward", "symmetric"):
        top, below, _ = _own_columns(statistics)
        loss += (top - positive) + below.log()
    if options.form == "binary":
        loss += (soft - positive) * (batch / pairs)
    rows = weight * loss + options.logsumexp_penalty * penalty_weight * (lse + INSIDE_SQUARE).square()
    counted = mass.sum() if soft_targets else batch
    metrics = torch.stack(
        [
            (own >= largest).to(lse.dtype).mean(),
            positive.sum() / counted,
            (plain.sum() - positive.sum()) / (pairs - counted),
        ]
    )
    return Results(rows.mean(), lse, metrics, rows)


def _scales(
    statistics: Statistics, lse: Tensor, weight: Tensor, penalty_weight: Tensor, operands: InfoNCEOperands,
    options: InfoNCEOptions, goals: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """by_row [4, B] and by_goal [2, M] of info_nce_gradients_kernel."""
    largest, total, _, own, _, _, mass = statistics.rows.unbind()
    batch = largest.shape[0]
    pairs = batch * (goals - (options.self_offset >= 0))
    row_loss, binary = options.form in ("forward", "symmetric"), options.form == "binary"
    soft_targets = operands.targets is not None
    from_penalty = 2 * options.logsumexp_penalty * penalty_weight * (lse + INSIDE_SQUARE)
    share = from_penalty
    if row_loss:
        share = share + (weight * mass if soft_targets else weight)
    sigmoids = weight / pairs
    by_goal = None
    if soft_targets:
        last = weight / batch if row_loss else sigmoids
    else:
        p = (own - largest).exp() / total
        last = p * from_penalty + ((p - 1) * weight if row_loss else 0)
        if statistics.cols is not None:
            top, below, owners = _own_columns(statistics)
            last = last + ((own - top).exp() / below * owners - weight)
        last = last / batch
        if binary:
            last = last - torch.sigmoid(-own) * sigmoids
    if statistics.cols is not None:
        tops, totals, owners = statistics.cols.unbind()
        by_goal = torch.stack([tops, owners / batch / totals])
    return torch.stack([largest, share / batch / total, sigmoids, last]), by_goal
