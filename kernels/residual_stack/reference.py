"""The residual stack in plain PyTorch: what all backends mean, the oracle of the tests, a choice users have.

Arguments are checked by the public function in op.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepres.kernels.residual_stack.options import StackOptions


def residual_stack(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None, beta: Tensor | None, options: StackOptions
) -> Tensor:
    """See `deepres.residual_stack`. Runs in x's dtype; float64 gives the truth the backends are judged by."""
    depth = weight.shape[0]
    per_block = options.skip_every or depth
    stretch = per_block * options.recompute or depth

    def layers(block: Tensor, start: int, stop: int) -> Tensor:
        a = block
        for l in range(start, stop):
            z = product(a, weight[l], options.precision) + bias[l]
            if options.norm:
                assert gamma is not None and beta is not None
                z = F.layer_norm(z, z.shape[-1:], gamma[l], beta[l], options.eps)
            a = F.silu(z) if options.activation == "swish" else F.relu(z)
            if options.skip_every and (l + 1) % options.skip_every == 0:
                a = block = a + block
        return a

    for start in range(0, depth, stretch):
        stop = min(start + stretch, depth)
        if options.recompute:
            x = checkpoint(layers, x, start, stop, use_reentrant=False)
        else:
            x = layers(x, start, stop)
    return x


def saved_spec(batch: int, width: int, depth: int, options: StackOptions):
    """What autograd keeps of each layer: the inputs of the product, of the normalisation and of the activation."""
    if options.recompute:
        segments = -(-depth // min(options.recompute * options.skip_every, depth))
        return [((segments, batch, width), torch.float32)]
    return [((depth, 3 if options.norm else 2, batch, width), torch.float32)]


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """`a @ b` with both operands rounded to `precision` and the sums kept in a's own dtype.

    The two products of the gradient round their operands likewise: da = q(dy) @ q(b).T, db = q(a).T @ q(dy).
    """
    if precision == "fp32":
        return a @ b
    return _RoundedProduct.apply(a, b, precision)


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, precision: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.precision = precision
        return rounded(a, precision) @ rounded(b, precision)

    @staticmethod
    def backward(ctx, dy: Tensor):
        a, b = ctx.saved_tensors
        dy = rounded(dy, ctx.precision)
        da = dy @ rounded(b, ctx.precision).mT if ctx.needs_input_grad[0] else None
        db = rounded(a, ctx.precision).mT @ dy if ctx.needs_input_grad[1] else None
        return da, db, None


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
