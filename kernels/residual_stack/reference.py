"""The residual stack in plain PyTorch: what all backends mean, the oracle of the tests, a choice users have.

Arguments are checked by the public function in op.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepres.kernels import autocast, dispatch
from deepres.kernels.residual_stack.options import StackOptions


def residual_stack(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None, beta: Tensor | None, options: StackOptions
) -> Tensor:
    """See `deepres.residual_stack`. Runs in x's dtype; float64 gives the truth the backends are judged by."""
    depth = weight.shape[0]
    per_block = options.skip_every or depth
    stretch = per_block * options.recompute or depth
    # one layer at a time out of [D, W, W] would give each a gradient of that size, nearly all zeros
    none = [None] * depth
    parameters = [none if t is None else t.unbind() for t in (weight, bias, gamma, beta)]
    layers = list(zip(*parameters, strict=True))

    def through(block: Tensor, start: int, stop: int) -> Tensor:
        a = block
        for l in range(start, stop):
            own, shift, scale, offset = layers[l]
            z = product(a, own, options.precision) + shift
            if options.norm:
                z = F.layer_norm(z, z.shape[-1:], scale, offset, options.eps)
            a = F.silu(z) if options.activation == "swish" else F.relu(z)
            if options.skip_every and (l + 1) % options.skip_every == 0:
                a = block = a + block
        return a

    again = (
        options.recompute and dispatch.transformed() is None
    )  # torch.func refuses what recomputing hooks into
    for start in range(0, depth, stretch):
        stop = min(start + stretch, depth)
        if again:
            x = checkpoint(through, x, start, stop, use_reentrant=False)
        else:
            x = through(x, start, stop)
    return x


def saved_spec(batch: int, width: int, depth: int, options: StackOptions):
    """What autograd keeps of each layer: the inputs of the product, of the normalisation and of the activation."""
    if options.recompute:
        segments = -(-depth // min(options.recompute * options.skip_every, depth))
        return [((segments, batch, width), torch.float32)]
    return [((depth, 3 if options.norm else 2, batch, width), torch.float32)]


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """`a @ b` with both operands rounded to `precision` and the sums kept in a's own dtype.

    The two products of the gradient round their operands likewise: da = q(dy) @ q(b).T, db = q(a).T @ q(dy). Higher
    derivatives and tangents are those of these products, rounding counted as the identity.
    """
    if precision == "fp32":
        return autocast.product(a, b.mT)
    ab = autocast.product(_Rounded.apply(a, precision), _Rounded.apply(b, precision).mT)
    return _RoundedGradient.apply(ab, precision)


class _Elementwise(torch.autograd.Function):
    """A function of each number for itself, its derivative counted as 1."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.precision = inputs

    @staticmethod
    def backward(ctx, dy: Tensor):
        return dy, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        return tangent.view_as(tangent)  # PyTorch wants a tensor of its own


class _Rounded(_Elementwise):
    @staticmethod
    def forward(t: Tensor, precision: str) -> Tensor:
        return rounded(t, precision)

    @staticmethod
    def vmap(info, in_dims, t: Tensor, precision: str):
        return _Rounded.apply(t, precision), in_dims[0]


class _RoundedGradient(_Elementwise):
    """The identity, whose gradient is rounded."""

    @staticmethod
    def forward(t: Tensor, precision: str) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return _Rounded.apply(dy, ctx.precision), None

    @staticmethod
    def vmap(info, in_dims, t: Tensor, precision: str):
        return _RoundedGradient.apply(t, precision), in_dims[0]


def rounded(t: Tensor, precision: str) -> Tensor:
    """t rounded to nearest even in `precision`'s format, handed back in t's own dtype."""
    if precision == "bf16":
        return t.to(torch.bfloat16).to(t.dtype)
    if precision == "fp16":
        return t.to(torch.float16).to(t.dtype)
    if precision == "tf32":  # fp32 with its 13 lowest mantissa bits rounded away
        bits = t.float().contiguous().view(torch.int32)
        odd = (bits >> 13) & 1
        kept = ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)
        return torch.where(torch.isfinite(t), kept, t.float()).to(t.dtype)
    return t
