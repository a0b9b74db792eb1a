"""Bias, LayerNorm and activation of a product u [B, W], as a network's stem ends.

    n = (u + bias - mean) rstd,  z = scale n + shift,  a = activation(z)

Backward, given da, with means over a row's columns,

    dz = da activation'(z);  dscale = sum_rows dz n;  dshift = sum_rows dz
    dn = dz scale;           du = rstd (dn - mean(dn) - n mean(dn n));  dbias = sum_rows du

The backend module (triton.py; see dispatch.py) serves it with `forward` and `backward` on contiguous float32 tensors of
one device; nothing but what it is given is kept, row statistics are computed again. Second derivatives are the
reference's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.autocast import autocasts, widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.stem import reference


def norm_activation(
    u: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float = 1e-6,
    activation: str = "swish",
    impl: str = "auto",
) -> Tensor:
    """activation(F.layer_norm(u + bias, (W,), scale, shift, eps)), u [B, W], the others [W] -> [B, W].

    activation: "swish" or "relu". impl: "auto", "reference" or "triton". Under torch.autocast, where a product has 16
    bits, they are widened to float32 first.
    """
    if autocasts(u):
        u, bias, scale, shift = widened(u), widened(bias), widened(scale), widened(shift)
    if impl == "reference" or (impl == "auto" and not u.is_cuda):
        return reference.norm_activation(u, bias, scale, shift, eps, activation)
    return _served(u, bias, scale, shift, eps, activation, impl)


CALL = "Tensor u, Tensor bias, Tensor scale, Tensor shift, float eps, str activation, str impl"
_TAG = torch.Tag.pt2_compliant_tag

torch.library.define("deepres::norm_activation", f"({CALL}) -> Tensor")
torch.library.define("deepres::norm_activation_forward", f"({CALL}) -> Tensor", tags=_TAG)
torch.library.define(
    "deepres::norm_activation_backward",
    f"(Tensor da, {CALL}, bool parameters) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAG,
)


@composite("norm_activation")
def _served(u, bias, scale, shift, eps: float, activation: str, impl: str) -> Tensor:
    chosen = dispatch.choose("stem", impl, lambda backend: backend.unsupported(u, bias, scale, shift))
    if chosen == "reference":
        return reference.norm_activation(u, bias, scale, shift, eps, activation)
    tensors = (t.contiguous() for t in (u, bias, scale, shift))
    return _fused(*tensors, eps, activation, chosen)


def _forward(u, bias, scale, shift, eps: float, activation: str, impl: str):
    return dispatch.load("stem", impl).forward(u, bias, scale, shift, eps, activation)


@torch.library.register_fake("deepres::norm_activation_forward")
def _forward_fake(u, bias, scale, shift, eps, activation, impl):
    return torch.empty_like(u)


def _backward(da, u, bias, scale, shift, eps: float, activation: str, impl: str, parameters: bool):
    backend = dispatch.load("stem", impl)
    du, sums = backend.backward(da.contiguous(), u, bias, scale, shift, eps, activation, parameters)
    return du, *sums


@torch.library.register_fake("deepres::norm_activation_backward")
def _backward_fake(da, u, bias, scale, shift, eps, activation, impl, parameters):
    return torch.empty_like(u), *(u.new_empty(u.shape[1] if parameters else 0) for _ in range(3))


def _context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _autograd(ctx, da):
    needs = ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():  # create_graph=True

        def plain(u: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return reference.norm_activation(u, bias, scale, shift, *ctx.rest[:2])

        grads = dispatch.differentiable_gradients(plain, ctx.saved_tensors, needs, da)
        return *grads, None, None, None
    found = _fused_backward(da, *ctx.saved_tensors, *ctx.rest, any(needs[1:]))
    return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None, None


_fused = FusedOp("norm_activation_forward", _forward, _autograd, _context)
_fused_backward = FusedOp(
    "norm_activation_backward", _backward, dispatch.without_derivative("the fused norm_activation")
)
