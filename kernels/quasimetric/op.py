"""Interval quasimetric embedding (arXiv 2211.15120, with the maxmean reduction), and what it is made of.

Feature i of a part says where an interval begins, x_i, and where it ends, max(x_i, y_i). The lengths of the parts'
unions are quasimetrics, and so is what mixes their mean and their largest. Such a length has slope -1 in x_i where
interval i begins a piece of the union, +1 in y_i where it ends one, and 0 elsewhere; where ends meet, or x_i = y_i,
backends may differ in which of the slopes beside it they take.

A backend module (cpu.py, triton.py; see dispatch.py) serves the op with

    unsupported(x) -> str | None
    union_lengths(x, y) -> [B, K]
    union_gradients(d, x, y, needs) -> [gradient of x, of y], None where not needed

on contiguous tensors of one device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.arguments import check_tensors
from deepres.kernels.autocast import widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.quasimetric import reference
from deepres.kernels.quasimetric.reference import PART as PART


def union_lengths(x: Tensor, y: Tensor, *, impl: str = "auto") -> Tensor:
    """The lengths of unions of eight intervals each, from x to y where y is larger: [B, K * 8] twice -> [B, K].

        begin, order = x.unflatten(1, (-1, 8)).sort(dim=2)
        end = torch.maximum(x, y).unflatten(1, (-1, 8)).gather(2, order)
        covered = cat([begin[..., :1], end.cummax(dim=2).values[..., :-1]], dim=2)
        lengths = (end - torch.maximum(begin, covered)).clamp_min(0).sum(2)

    Args:
        x, y: float32 (float64 with impl="reference") of one device; 16 bits are widened to float32, in which the op
            computes under torch.autocast, too.
        impl: "auto", "reference" or a fused backend (`deepres.backends()` lists them). The fused ones yield no second
            derivatives.

    Raises: TypeError or ValueError in one sentence for what does not fit; RuntimeError if `impl` cannot.
    """
    check_tensors(x=x, y=y)
    x, y = widened(x), widened(y)
    if x.ndim != 2 or x.shape[1] % PART or x.shape[1] == 0:
        raise ValueError(f"x must have shape [B, columns], a multiple of {PART} of them, got {list(x.shape)}")
    if y.shape != x.shape:
        raise ValueError(f"y must have x's shape {list(x.shape)}, got {list(y.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "x must be float32 (16 bits are widened; float64 for the reference), "
            f"got {x.dtype}; call x.float()"
        )
    if y.dtype != x.dtype:
        raise TypeError(f"y must have x's dtype {x.dtype}, got {y.dtype}; cast one of them")
    if y.device != x.device:
        raise ValueError(f"y must be on x's device {x.device}, got {y.device}; move one of them")
    lengths: Tensor = _lengths(x, y, impl)
    return lengths


def iqe(x: Tensor, y: Tensor, mix: Tensor, *, impl: str = "auto") -> Tensor:
    """Interval quasimetric embedding: distances [B] from x to y, [B, K * 8] each.

        u = union_lengths(x, y)
        d = sigmoid(mix) * u.mean(1) + (1 - sigmoid(mix)) * u.amax(1)

    mix: [], x's dtype and device. x, y and impl, and what is raised: as in `union_lengths`.
    Source: arXiv 2211.15120, with the maxmean reduction.
    """
    check_tensors(mix=mix)
    length, mix = union_lengths(x, y, impl=impl), widened(mix)
    if mix.ndim or mix.dtype != length.dtype or mix.device != length.device:
        raise ValueError(
            f"mix must be one {length.dtype} number, of shape [], on x's device {length.device}, got {mix.dtype} of "
            f"shape {list(mix.shape)} on {mix.device}"
        )
    share = mix.sigmoid()
    return share * length.mean(dim=1) + (1 - share) * length.amax(dim=1)


# --- The op as PyTorch sees it: the choice of a backend, its pass for lengths, its pass for gradients. ---

_TAG = torch.Tag.pt2_compliant_tag
torch.library.define("deepres::union_lengths", "(Tensor x, Tensor y, str impl) -> Tensor")
torch.library.define("deepres::union_lengths_forward", "(Tensor x, Tensor y, str impl) -> Tensor", tags=_TAG)
torch.library.define(
    "deepres::union_lengths_backward",
    "(Tensor d, Tensor x, Tensor y, str impl, bool[] needs) -> (Tensor, Tensor)",
    tags=_TAG,
)


@composite("union_lengths")
def _lengths(x, y, impl: str):
    chosen = dispatch.choose("quasimetric", impl, lambda backend: backend.unsupported(x))
    if chosen == "reference":
        return reference.union_lengths(x, y)
    return _fused_lengths(x.contiguous(), y.contiguous(), chosen)


def _forward(x, y, impl: str):
    return dispatch.load("quasimetric", impl).union_lengths(x, y)


@torch.library.register_fake("deepres::union_lengths_forward")
def _forward_fake(x, y, impl):
    return x.new_empty(x.shape[0], x.shape[1] // PART)


def _backward(d, x, y, impl: str, needs: list[bool]):
    found = dispatch.load("quasimetric", impl).union_gradients(d.contiguous(), x, y, needs)
    return tuple(x.new_empty(0) if g is None else g for g in found)


@torch.library.register_fake("deepres::union_lengths_backward")
def _backward_fake(d, x, y, impl, needs):
    return tuple(t.new_empty(t.shape if need else 0) for t, need in zip((x, y), needs, strict=True))


def _context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.impl = inputs[2]


def _autograd(ctx, d):
    needs = list(ctx.needs_input_grad[:2])
    found = _fused_backward(d, *ctx.saved_tensors, ctx.impl, needs)
    return *(g if need else None for g, need in zip(found, needs, strict=True)), None


_fused_lengths = FusedOp("union_lengths_forward", _forward, _autograd, _context)
_fused_backward = FusedOp(
    "union_lengths_backward", _backward, dispatch.without_derivative("the fused union_lengths")
)
