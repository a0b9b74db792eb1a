"""Hazards on the CPU: C++ over blocks of rows, fp32, vectors chosen at run time, threads over blocks.

`nll` gives loss and gradients in one call; `value` gives the gradients of its rows, and, where basis or bias are
learned from it, is called again with the rows' weights. The logits of 64 rows for each thread's block are all that
exists (256 KB at K 1000, twice that for the value). See csrc/cpu/hazard.cpp for the order of the sums: it depends on
neither the number of threads nor the run, so the same input gives the same bits.

Sums over bins are compensated (Kahan): rounding does not grow with K. Bins that no row of a block needs are left out:
those behind its rows' events, and those that nothing larger than 1e-38 survives to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels.extension import extension
from deepres.kernels.hazard.options import Hazards, Needs
from deepres.kernels.info_nce.cpu import unavailable as unavailable

FEATURES_MULTIPLE = 16  # the widest vector, in floats
LARGEST_BINS = 2**24


def unsupported(h: Hazards) -> str | None:
    if h.features.device.type != "cpu":
        return f"features must be on the CPU, got {h.features.device}"
    if h.features.dtype != torch.float32:
        return f"features must be float32, got {h.features.dtype}"
    if h.basis.shape[0] > LARGEST_BINS:
        return f"it is built for up to {LARGEST_BINS} bins, got {h.basis.shape[0]}"
    return None


def nll(
    h: Hazards, lag: Tensor, event: Tensor, weight: Tensor, needs: Needs
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(loss [], nll [B], gradients) as op.py asks of a backend."""
    loss, rows = h.features.new_empty(()), h.features.new_empty(h.shape[0])
    return loss, rows, _call("hazard_nll", h, [lag, event, weight], [loss, rows], needs)


def value(
    h: Hazards, discount: Tensor, weight: Tensor | None, needs: Needs
) -> tuple[Tensor, list[Tensor | None]]:
    """(value [B], gradients) as op.py asks of a backend."""
    values = h.features.new_empty(h.shape[0])
    return values, _call("hazard_value", h, [discount, weight], [values], needs)


def _call(
    name: str, h: Hazards, more: list[Tensor | None], results: list[Tensor], needs: Needs
) -> list[Tensor | None]:
    batch, bins, width = h.shape
    padding = -width % FEATURES_MULTIPLE
    if padding:  # features that are 0 on both sides change no logit
        h = h._replace(features=F.pad(h.features, (0, padding)), basis=F.pad(h.basis, (0, padding)))
    made = [
        (torch.empty_like if name in ("features", "l0") else torch.zeros_like)(t) if need else None
        for (name, t), need in zip(h._asdict().items(), needs, strict=True)
    ]
    getattr(extension(), name)(
        _addresses([*h, *more]), (batch, bins, width + padding), torch.get_num_threads(), _addresses(results),
        _addresses(made),
    )  # fmt: skip
    return [g[:, :width].contiguous() if padding and g is not None and g.ndim == 2 else g for g in made]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]
