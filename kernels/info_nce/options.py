"""What a call of `info_nce` may ask for."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from torch import Tensor

ENERGIES = ("norm", "l2", "dot", "cosine", "mrn")
FORMS = ("forward", "backward", "symmetric", "binary")
ROW_DIVISORS = ("batch", "sum")
REDUCTIONS = ("mean", "none")


class InfoNCEMore(TypedDict, total=False):
    """The keywords of `info_nce` that most calls leave out."""

    labels: Tensor | None
    """[B] integers: row i's own goal is psi[labels[i]], in place of positive_offset + i. Rows may share a goal, and
    psi may then hold fewer goals than phi has rows."""
    targets: Tensor | None
    """[B, M], >= 0: soft labels in place of own goals, a constant; forms "forward" and "binary"."""
    self_offset: int | None
    """Row i is psi[self_offset + i] itself: that pair is left out of every sum, as in NT-Xent."""
    row_weight: Tensor | None
    """[B], >= 0, numbers or bools, a constant: what each row's loss is multiplied by. The penalty keeps 1."""
    row_divisor: str
    """What the weighted sum of rows is divided by: "batch" B, "sum" the sum of row_weight (a loss of 0 where that is
    0)."""
    reduction: str
    """"mean", or "none" for the loss of each row [B], whose mean is that of "mean"."""
    scale: Tensor | float | None
    """One number > 0 that multiplies the energies; a tensor [] gets its gradient (CLIP's learned temperature)."""
    temperature: float | None
    """1 / scale, in its place."""
    bias: Tensor | float | None
    """One number added to every logit; a tensor [] gets its gradient (SigLIP's, with form="binary")."""


class InfoNCEOptions(NamedTuple):
    """What a call of `info_nce` asks for, checked."""

    logsumexp_penalty: float = 0.1
    energy: str = "norm"
    form: str = "forward"
    positive_offset: int = 0
    self_offset: int = -1  # none
    row_divisor: str = "batch"
    reduction: str = "mean"

    def general(self, operands: InfoNCEOperands) -> bool:
        """Whether the call asks for more than rows of one weight, each with one goal of its own at an offset."""
        return (
            self.energy == "mrn"
            or self.self_offset >= 0
            or self.reduction == "none"
            or any(t is not None for t in operands)
        )


class InfoNCEOperands(NamedTuple):
    """The tensors of a call beside phi and psi, None where not given; of phi's device, labels int64, the others of
    phi's dtype."""

    labels: Tensor | None = None
    targets: Tensor | None = None
    row_weight: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    penalty_weight: Tensor | None = None
    """[B], what each row of the penalty is multiplied by: for the gradients of reduction="none", inside."""


class Results(NamedTuple):
    """What a backend gives; gradients are those of the loss itself (dloss = 1), None where not asked for."""

    loss: Tensor
    """[]"""
    lse: Tensor
    """[B]"""
    metrics: Tensor
    """[3]: the accuracy, the mean positive and the mean negative logit."""
    rows: Tensor | None = None
    """[B], the loss of each row, with reduction="none"."""
    dphi: Tensor | None = None
    """[B, d]"""
    dpsi: Tensor | None = None
    """[M, d]"""
    dscale: Tensor | None = None
    """[]"""
    dbias: Tensor | None = None
    """[]"""
