"""What a call of `hazard_nll` or `hazard_value` brings."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Hazards(NamedTuple):
    """The model of a batch, contiguous tensors of one device and dtype: l0 [B] and the factors of the logits [B, K],
    features [B, d] @ basis [K, d].T + bias [K]."""

    features: Tensor
    basis: Tensor
    bias: Tensor
    l0: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, K, d)."""
        return (self.features.shape[0], *self.basis.shape)


class Needs(NamedTuple):
    """Of which of `Hazards` a gradient is wanted."""

    features: bool = False
    basis: bool = False
    bias: bool = False
    l0: bool = False
