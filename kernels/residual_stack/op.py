"""The residual stack: every layer of a very deep network in one call.

Forward, layer l of D, on rows a of width W (paper section 3, "Residual block"; Dense, LayerNorm, Swish)

    u = a @ weight[l] + bias[l]
    n = (u - mean(u)) * rstd,            rstd = 1 / sqrt(var(u) + eps)
    z = gamma[l] * n + beta[l]
    a = activation(z), plus the block's input at every `skip_every`-th layer

Backward, given da = dL/da of the layer's output

    dz = da * activation'(z);  dgamma = sum_rows dz * n;  dbeta = sum_rows dz
    dn = dz * gamma;           du = rstd * (dn - mean(dn) - n * mean(dn * n))
    dbias = sum_rows du;       dweight = a_in.T @ du
    da_in = du @ weight[l].T, plus the gradient of the block's output at the block's first layer

Rows never meet, forward or in the input gradient: that is what every fused backend builds on.

A backend module (cpu.py, triton.py, cuda.py; see dispatch.py) serves the op with

    saved_spec(batch, width, depth, options) -> [(shape, dtype), (shape, dtype)]   # of the two saved tensors
    forward(x, weight, bias, gamma, beta, options, save) -> (y, activations, statistics)
    backward(dy, x, y, weight, bias, gamma, beta, activations, statistics, options, needs)
        -> (dx, dweight, dbias, dgamma, dbeta), None where `needs` is False

on contiguous tensors of one device; what the two saved tensors hold is the backend's own business. One that says
`NEEDS_OUTPUT = False` gets an empty y in backward. Of a group of E stacks every tensor has E as its first dimension,
the two saved ones too, and `saved_spec` tells the shapes of one member; a group's results are those of a call for each
member, to the bit.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.arguments import check_tensors
from deepres.kernels.autocast import autocasts, widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.residual_stack import reference
from deepres.kernels.residual_stack.memory import planned_recompute
from deepres.kernels.residual_stack.options import AUTO, StackOptions, checked_options

P = ParamSpec("P")


def _with_old_keyword(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`function`, which takes `recompute` under its old name `checkpoint` too."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if "checkpoint" in kwargs:
            if "recompute" in kwargs:
                raise ValueError("checkpoint= is the old name of recompute=; pass recompute= alone")
            if not torch.compiler.is_compiling():  # which cannot trace a warning
                warnings.warn("checkpoint= is called recompute= now", FutureWarning, stacklevel=2)
            kwargs["recompute"] = kwargs.pop("checkpoint")
        return function(*args, **kwargs)

    return call


@_with_old_keyword
def residual_stack(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    skip_every: int = 4,
    activation: str = "swish",
    norm: bool = True,
    eps: float = 1e-6,
    precision: str = "fp32",
    recompute: str | int = "none",
    impl: str = "auto",
) -> Tensor:
    """All D layers of [Dense, LayerNorm, activation] with a skip around every `skip_every` of them.

        for l in range(D):
            a = act(F.layer_norm(a @ weight[l] + bias[l], (W,), gamma[l], beta[l], eps))
            if (l + 1) % skip_every == 0: a = block = a + block      # a = block = x before the first layer

    Args:
        x: [B, W] float32 (float64 too with impl="reference"); B may be 0.
        weight: [D, W, W], applied as `a @ weight[l]`. bias, gamma, beta: [D, W]. All of x's dtype and device.
            gamma and beta may be None when norm=False. Or E stacks side by side: weight [E, D, W, W], the others
            [E, D, W], and x [E, B, W], or [B, W] for all of them.
        skip_every: layers to a block; D must be a multiple of it. 0 leaves the skips out.
        activation: "swish" (z * sigmoid(z)) or "relu".
        norm: False leaves LayerNorm out, its scale and shift included (the paper's ablation).
        eps: added to the variance inside LayerNorm.
        precision: what the operands of the products are rounded to, "fp32", "tf32", "bf16" or "fp16";
            sums, statistics and the residual stream stay in fp32 whatever it is.
        recompute: "none" keeps what backward needs of every layer; k keeps the input of every k-th block
            and computes the rest again inside backward; "auto" keeps every layer if half of the free memory
            holds that, else k blocks, the smallest k it does hold (logger "deepres" says once which).
        impl: "auto", "reference" (plain PyTorch) or a fused backend (`deepres.backends()` lists them).

    Under torch.autocast the op still computes as `precision` says: 16-bit inputs are taken to float32 first.

    Returns: y [B, W], [E, B, W] of E stacks, differentiable in x and the four parameters. Second derivatives
    (create_graph=True) are the reference's whatever `impl` is; under torch.func and forward-mode differentiation "auto"
    is the reference, and a fused backend asked for by name refuses. Rows whose variance overflows fp32 become NaN in
    the fused backends; PyTorch's own LayerNorm makes NaN or 0 of them, by width.
    Raises: TypeError or ValueError, one sentence for what does not fit; RuntimeError if `impl` cannot serve.
    Source: arXiv 2503.14858, section 3.
    """
    check_tensors(x=x, weight=weight, bias=bias)
    check_tensors(**{name: t for name, t in (("gamma", gamma), ("beta", beta)) if t is not None})
    if autocasts(x):
        x, weight, bias = widened(x), widened(weight), widened(bias)
        gamma, beta = gamma if gamma is None else widened(gamma), beta if beta is None else widened(beta)
    depth = _checked_depth(x, weight, bias, gamma, beta, norm)
    options = checked_options(
        depth, skip_every=skip_every, activation=activation, norm=norm, eps=eps, precision=precision,
        recompute=recompute,
    )  # fmt: skip
    return _served(x, weight, bias, gamma, beta, *options, impl)


def _checked_depth(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: bool
) -> int:
    """The depth that the tensors have once they fit each other; one sentence otherwise."""
    grouped = weight.ndim == 4
    if x.ndim != 2 and not (grouped and x.ndim == 3):
        shapes = "[B, W] or [E, B, W]" if grouped else "[B, W]"
        raise ValueError(f"x must have shape {shapes}, got {list(x.shape)}; flatten leading dimensions first")
    width = x.shape[-1]
    if weight.ndim not in (3, 4) or weight.shape[-2:] != (width, width):
        raise ValueError(
            f"weight must have shape [D, {width}, {width}] to fit x {list(x.shape)}, got {list(weight.shape)}"
        )
    if x.ndim == 3 and len(x) != len(weight):
        raise ValueError(
            f"x must hold rows for each of the {len(weight)} stacks of weight {list(weight.shape)}, "
            f"[{len(weight)}, B, {width}], or [B, {width}] for all of them, got {list(x.shape)}"
        )
    depth, layers = weight.shape[-3], weight.shape[:-1]
    if weight.numel() == 0:
        raise ValueError(f"weight must hold at least one layer of width >= 1, got {list(weight.shape)}")
    if norm and (gamma is None or beta is None):
        raise ValueError("gamma and beta must be tensors of shape [D, W] when norm=True, got None")
    if x.dtype not in (torch.float32, torch.float64):
        hint = ", and pass precision= for products in 16 bits" if x.dtype.itemsize == 2 else ""
        raise TypeError(
            f"x must be float32 (or float64 for the reference), got {x.dtype}; call x.float(){hint}"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("gamma", gamma), ("beta", beta)):
        if tensor is None:
            continue
        if name != "weight" and tensor.shape != layers:
            raise ValueError(f"{name} must have shape {list(layers)}, got {list(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have x's dtype {x.dtype}, got {tensor.dtype}; cast one of them")
        if tensor.device != x.device:
            raise ValueError(
                f"{name} must be on x's device {x.device}, got {tensor.device}; move one of them"
            )
    return depth


# --- The op as PyTorch sees it: the choice of a backend, the fused forward and the fused backward. ---

OPTIONS = "{int} skip_every, str activation, bool norm, float eps, str precision, {int} recompute, str impl"
torch.library.define(
    "deepres::residual_stack",
    f"(Tensor x, Tensor weight, Tensor bias, Tensor? gamma, Tensor? beta, {OPTIONS.format(int='int')}) -> Tensor",
)
torch.library.define(
    "deepres::residual_stack_forward",
    "(Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, "
    f"{OPTIONS.format(int='SymInt')}, bool save) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "deepres::residual_stack_backward",
    "(Tensor dy, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, Tensor activations, "
    f"Tensor statistics, {OPTIONS.format(int='SymInt')}, bool[] needs) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@composite("residual_stack")
def _served(x, weight, bias, gamma, beta, *options_and_impl) -> Tensor:
    *fields, impl = options_and_impl
    options = StackOptions(*fields)
    depth, members = weight.shape[-3], len(weight) if weight.ndim == 4 else None
    rows = x if x.ndim == 2 else x[0]
    chosen = dispatch.choose(
        "residual_stack", impl, lambda backend: backend.unsupported(rows, depth, options)
    )
    if options.recompute == AUTO:
        sizes = (_number(rows.shape[0]), _number(rows.shape[1]), depth)
        picked = planned_recompute(chosen, *sizes, options, str(x.device), members or 1)
        options = options._replace(recompute=picked)
    if members is not None and x.ndim == 2:
        x = x.expand(members, *x.shape)
    if members is not None and chosen == "reference":
        none = [None] * members
        each = (none if t is None else t.unbind() for t in (x, weight, bias, gamma, beta))
        own = (*options, chosen)
        return torch.stack([torch.ops.deepres.residual_stack(*one, *own) for one in zip(*each, strict=True)])
    if chosen == "reference":
        return reference.residual_stack(x, weight, bias, gamma, beta, options)
    if gamma is None or beta is None:  # norm=False: the fused ops take placeholders, never read
        gamma = beta = bias.detach().new_empty(0)
    tensors = [t.contiguous() for t in (x, weight, bias, gamma, beta)]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _fused(*tensors, *options, chosen, save)[0]


def _number(size: int | torch.SymInt) -> int:
    """`size`, or that of the traced example where a compiler leaves it open: choices that hold for every size."""
    hint = size.node.hint if isinstance(size, torch.SymInt) else size
    return 0 if hint is None else int(hint)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    skip_every: int, activation: str, norm: bool, eps: float, precision: str, recompute: int,
    impl: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    options = StackOptions(skip_every, activation, norm, eps, precision, recompute)
    return dispatch.load("residual_stack", impl).forward(x, weight, bias, gamma, beta, options, save)


@torch.library.register_fake("deepres::residual_stack_forward")
def _forward_fake(
    x, weight, bias, gamma, beta, skip_every, activation, norm, eps, precision, recompute, impl, save
):
    options = StackOptions(skip_every, activation, norm, eps, precision, recompute)
    backend = dispatch.load("residual_stack", impl)
    members, (batch, width) = x.shape[:-2], x.shape[-2:]
    specs = backend.saved_spec(batch, width, weight.shape[-3], options) if save else []
    saved = [x.new_empty((*members, *shape), dtype=dtype) for shape, dtype in specs]
    saved = saved or [x.new_empty(0), x.new_empty(0)]
    return x.new_empty(x.shape), saved[0], saved[1]


def _backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    activations: Tensor, statistics: Tensor,
    skip_every: int, activation: str, norm: bool, eps: float, precision: str, recompute: int,
    impl: str, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = StackOptions(skip_every, activation, norm, eps, precision, recompute)
    grads = dispatch.load("residual_stack", impl).backward(
        dy, x, y, weight, bias, gamma, beta, activations, statistics, options, tuple(needs)
    )
    dx, dweight, dbias, dgamma, dbeta = (x.new_empty(0) if g is None else g for g in grads)
    return dx, dweight, dbias, dgamma, dbeta


@torch.library.register_fake("deepres::residual_stack_backward")
def _backward_fake(dy, x, y, weight, bias, gamma, beta, activations, statistics, *options_and_needs):
    needs = options_and_needs[-1]
    return tuple(
        t.new_empty(t.shape if need else 0)
        for t, need in zip((x, weight, bias, gamma, beta), needs, strict=True)
    )


def _setup_context(ctx, inputs, output):
    x, weight, bias, gamma, beta, *ctx.options, _save = inputs
    y, activations, statistics = output
    ctx.mark_non_differentiable(activations, statistics)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as what was saved
    # y itself is the caller's, who may change it in place
    needs_output = getattr(dispatch.load("residual_stack", ctx.options[-1]), "NEEDS_OUTPUT", True)
    kept = y.detach().clone() if needs_output else y.new_empty(0)
    ctx.save_for_backward(x, kept, weight, bias, gamma, beta, activations, statistics)


def _autograd(ctx, dy, _dactivations, _dstatistics):
    norm = ctx.options[2]
    needs = [need and (norm or i < 3) for i, need in enumerate(ctx.needs_input_grad[:5])]
    if torch.is_grad_enabled():  # create_graph=True
        x, _, *parameters = ctx.saved_tensors[:6]
        options = StackOptions(*ctx.options[:-1])._replace(recompute=0)

        def plain(*tensors: Tensor) -> Tensor:
            own = tensors if norm else (*tensors[:3], None, None)
            return torch.ops.deepres.residual_stack(*own, *options, "reference")

        return (*dispatch.differentiable_gradients(plain, (x, *parameters), needs, dy), *[None] * 8)
    grads = _fused_backward(dy.contiguous(), *ctx.saved_tensors, *ctx.options, needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 8)


_fused = FusedOp("residual_stack_forward", _forward, _autograd, _setup_context)
_fused_backward = FusedOp(
    "residual_stack_backward", _backward, dispatch.without_derivative("the fused residual_stack")
)
