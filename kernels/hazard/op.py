"""Hazards: when a goal is first reached, as a discrete-time survival model (arXiv 2605.31273).

l0 says whether the goal is reached already, and the logit l_k, k = 0..K-1, whether it is at lag k, given that it was
not before. With S_k = sigmoid(-l0) prod_{j<k} sigmoid(-l_j), the chance that lag k is come to, and D_k = gamma^k,

    nll     -log sigmoid(l0)                                     an event at lag 0
            -log S_k - log sigmoid(l_k)                          an event at lag k > 0
            -log S_c                                             nothing until lag c (censored)
    value   -sum_k D_k S_k                                       minus the discounted time until the goal

Gradients need no scan for the first, and one from the front and one from the back for the second:

    dnll/dl_j    sigmoid(l_j) for j < lag;  -sigmoid(-l_j) for j = lag, an event;  0 after
    dnll/dl0     sigmoid(l0);  -sigmoid(-l0) for an event at lag 0
    dvalue/dl_j  sigmoid(l_j) sum_{k>j} D_k S_k
    dvalue/dl0   -sigmoid(l0) value

A backend module (cpu.py, triton.py; see dispatch.py) serves the ops with

    unsupported(hazards) -> str | None
    nll(hazards, lag, event, weight, needs) -> (loss [], nll [B], gradients)
    value(hazards, discount, weight | None, needs) -> (value [B], gradients)

on contiguous tensors of one device: gradients of features, basis, bias and l0, None where `needs` is False; those of
the loss itself (dloss = 1), and of sum_i weight_i value_i (None: ones). Backward only scales; but where basis or bias
are learned from values it calls `value` again, with the values' own gradients as the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.arguments import ABOVE_ZERO, check_number, check_tensors
from deepres.kernels.autocast import widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.hazard import reference
from deepres.kernels.hazard.options import Hazards, Needs


def hazard_nll(
    features: Tensor,
    basis: Tensor,
    bias: Tensor,
    l0: Tensor,
    lag: Tensor,
    event: Tensor,
    *,
    weight: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of when each row's goal was first reached.

        logits = features @ basis.T + bias                                        # [B, K], never stored
        nll = softplus(l0) + (softplus(logits) * (bin < lag)).sum(1) + (softplus(-logits) * (bin == lag) * event).sum(1)
        nll = where(event & (lag == 0), softplus(-l0), nll)
        loss = (weight * nll).sum() / weight.sum()

    Args:
        features: [B, d] float32 (float64 with impl="reference"); B >= 1. 16 bits are widened to float32, in which the
            op computes under torch.autocast, too.
        basis: [K, d], bias: [K], l0: [B]; features' dtype and device.
        lag: [B] int64. Of an event the lag at which it was, 0..K-1, 0 being there from the start; of a censored row
            the number of lags, 0..K, until which nothing was. A lag beyond them counts as nothing in the K.
        event: [B] bool, whether the goal was reached.
        weight: [B] >= 0, features' dtype, of each row in the mean; no gradient flows to it. None: ones. The loss is 0
            where all are 0.
        impl: "auto", "reference" or a fused backend (`deepres.backends()` lists them). The fused ones yield no second
            derivatives.

    Returns: (loss, nll): the weighted mean, differentiable in features, basis, bias and l0, and the rows' own [B], for
        logs, without gradient.
    Raises: TypeError or ValueError in one sentence for what does not fit; RuntimeError if `impl` cannot.
    Source: arXiv 2605.31273.
    """
    h = _model(features, basis, bias, l0)
    weight = torch.ones_like(h.l0) if weight is None else weight
    check_tensors(lag=lag, event=event, weight=weight)
    weight = widened(weight)
    for name, t, dtype in (
        ("lag", lag, torch.int64),
        ("event", event, torch.bool),
        ("weight", weight, h.l0.dtype),
    ):
        _check_rows(name, t, dtype, h.features)
    return _nll(*h, lag, event, weight, impl)


def hazard_value(
    features: Tensor, basis: Tensor, bias: Tensor, l0: Tensor, *, gamma: float = 0.999, impl: str = "auto"
) -> Tensor:
    """Minus the discounted time until the goal is first reached, as the hazards tell it.

        log_survival = -softplus(l0) - softplus(features @ basis.T + bias).cumsum(1), shifted by one bin
        value = -(gamma ** bin * log_survival.exp()).sum(1)

    Args: features [B, d], basis [K, d], bias [K], l0 [B] and impl as in `hazard_nll`. gamma: in (0, 1], the discount
        of a lag.

    Returns: value [B] in [-K, 0], differentiable in all four.
    Raises: as `hazard_nll`.
    Source: arXiv 2605.31273.
    """
    h = _model(features, basis, bias, l0)
    check_number("gamma", gamma, "a number in (0, 1]", least=ABOVE_ZERO, most=1)
    return _value(*h, float(gamma), impl)


def _model(features: Tensor, basis: Tensor, bias: Tensor, l0: Tensor) -> Hazards:
    """The four, 16 bits widened, once they fit each other."""
    check_tensors(features=features, basis=basis, bias=bias, l0=l0)
    features, basis, bias, l0 = widened(features), widened(basis), widened(bias), widened(l0)
    if features.ndim != 2 or basis.ndim != 2 or features.shape[1] != basis.shape[1]:
        raise ValueError(
            f"features and basis must have shapes [B, d] and [K, d], got {list(features.shape)} and {list(basis.shape)}"
        )
    if 0 in features.shape or 0 in basis.shape:
        raise ValueError(
            f"features and basis must hold at least one row and one column, got {list(features.shape)} and "
            f"{list(basis.shape)}"
        )
    if bias.shape != basis.shape[:1]:
        raise ValueError(f"bias must have shape [K] = {[basis.shape[0]]}, got {list(bias.shape)}")
    if features.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "features must be float32 (16 bits are widened; float64 for the reference), "
            f"got {features.dtype}; call features.float()"
        )
    _check_rows("l0", l0, features.dtype, features)
    for name, t in (("basis", basis), ("bias", bias)):
        if t.dtype != features.dtype:
            raise TypeError(
                f"{name} must have features' dtype {features.dtype}, got {t.dtype}; cast one of them"
            )
        if t.device != features.device:
            raise ValueError(
                f"{name} must be on features' device {features.device}, got {t.device}; move one of them"
            )
    return Hazards(features, basis, bias, l0)


def _check_rows(name: str, t: Tensor, dtype: torch.dtype, features: Tensor) -> None:
    if t.shape != features.shape[:1]:
        raise ValueError(f"{name} must have shape [B] = {[features.shape[0]]}, got {list(t.shape)}")
    if t.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {t.dtype}; cast it")
    if t.device != features.device:
        raise ValueError(
            f"{name} must be on features' device {features.device}, got {t.device}; move one of them"
        )


def discounts(bins: int, gamma: float, like: Tensor) -> Tensor:
    """[K]: gamma^k, rounded once, in the dtype and on the device of `like`."""
    bin = torch.arange(bins, dtype=torch.float64, device=like.device)
    return (gamma**bin).to(like.dtype)


# --- The ops as PyTorch sees them: the choice of a backend, its pass for results and gradients, their scaling. ---

MODEL = "Tensor features, Tensor basis, Tensor bias, Tensor l0"
LABELS = "Tensor lag, Tensor event, Tensor weight"
FOUR = "Tensor, Tensor, Tensor, Tensor"
_TAG = torch.Tag.pt2_compliant_tag

torch.library.define("deepres::hazard_nll", f"({MODEL}, {LABELS}, str impl) -> (Tensor, Tensor)")
torch.library.define(
    "deepres::hazard_nll_forward", f"({MODEL}, {LABELS}, str impl, bool[] needs) -> (Tensor, Tensor, {FOUR})",
    tags=_TAG,
)  # fmt: skip
torch.library.define("deepres::hazard_value", f"({MODEL}, float gamma, str impl) -> Tensor")
torch.library.define(
    "deepres::hazard_value_forward", f"({MODEL}, float gamma, str impl, bool[] needs) -> (Tensor, Tensor, Tensor)",
    tags=_TAG,
)  # fmt: skip
torch.library.define(  # of sum(weight * value); basis and bias alone
    "deepres::hazard_value_weights",
    f"({MODEL}, Tensor weight, float gamma, str impl) -> (Tensor, Tensor)",
    tags=_TAG,
)
torch.library.define(  # gradients times d [] or [B]; the model is there so that a second derivative raises
    "deepres::hazard_backward",
    f"(Tensor d, Tensor dfeatures, Tensor dbasis, Tensor dbias, Tensor dl0, {MODEL}) -> ({FOUR})",
    tags=_TAG,
)


def _unsupported(h: Hazards):
    return lambda backend: backend.unsupported(h)


def _contiguous(h: Hazards) -> Hazards:
    return Hazards(*(t.contiguous() for t in h))


def _filled(gradients: list[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if g is None else g for g in gradients]


def _wanted(h: Hazards) -> list[bool]:
    return [torch.is_grad_enabled() and t.requires_grad for t in h]


@composite("hazard_nll")
def _nll(features, basis, bias, l0, lag, event, weight, impl: str) -> tuple[Tensor, Tensor]:
    h = Hazards(features, basis, bias, l0)
    weight = weight.detach()
    chosen = dispatch.choose("hazard", impl, _unsupported(h))
    if chosen == "reference":
        return reference.hazard_nll(h, lag, event, weight)
    labels = (t.contiguous() for t in (lag, event, weight))
    loss, nll, *_ = _fused_nll(*_contiguous(h), *labels, chosen, _wanted(h))
    return loss, nll


def _nll_forward(features, basis, bias, l0, lag, event, weight, impl: str, needs: list[bool]):
    backend = dispatch.load("hazard", impl)
    loss, nll, gradients = backend.nll(Hazards(features, basis, bias, l0), lag, event, weight, Needs(*needs))
    return loss, nll, *_filled(gradients, features)


@torch.library.register_fake("deepres::hazard_nll_forward")
def _nll_forward_fake(features, basis, bias, l0, lag, event, weight, impl, needs):
    gradients = [
        t.new_empty(t.shape if n else 0) for t, n in zip((features, basis, bias, l0), needs, strict=True)
    ]
    return features.new_empty(()), torch.empty_like(l0), *gradients


@composite("hazard_value")
def _value(features, basis, bias, l0, gamma: float, impl: str) -> Tensor:
    h = Hazards(features, basis, bias, l0)
    chosen = dispatch.choose("hazard", impl, _unsupported(h))
    if chosen == "reference":
        return reference.hazard_value(h, discounts(basis.shape[0], gamma, features))
    value: Tensor = _fused_value(*_contiguous(h), gamma, chosen, _wanted(h))[0]
    return value


def _value_forward(features, basis, bias, l0, gamma: float, impl: str, needs: list[bool]):
    h = Hazards(features, basis, bias, l0)
    value, gradients = dispatch.load("hazard", impl).value(
        h, discounts(basis.shape[0], gamma, features), None, Needs(features=needs[0], l0=needs[3])
    )
    dfeatures, _, _, dl0 = _filled(gradients, features)
    return value, dfeatures, dl0


@torch.library.register_fake("deepres::hazard_value_forward")
def _value_forward_fake(features, basis, bias, l0, gamma, impl, needs):
    gradients = [t.new_empty(t.shape if n else 0) for t, n in ((features, needs[0]), (l0, needs[3]))]
    return torch.empty_like(l0), *gradients


def _value_weights(features, basis, bias, l0, weight, gamma: float, impl: str) -> tuple[Tensor, Tensor]:
    h = Hazards(features, basis, bias, l0)
    needs = Needs(basis=True, bias=True)
    _, gradients = dispatch.load("hazard", impl).value(
        h, discounts(basis.shape[0], gamma, features), weight.contiguous(), needs
    )
    _, dbasis, dbias, _ = gradients
    return dbasis, dbias


@torch.library.register_fake("deepres::hazard_value_weights")
def _value_weights_fake(features, basis, bias, l0, weight, gamma, impl):
    return torch.empty_like(basis), torch.empty_like(bias)


def _backward(d: Tensor, *gradients_and_model: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        (d[:, None] if d.ndim and g.ndim == 2 else d) * g if g.numel() else g.clone()
        for g in gradients_and_model[:4]
    )


@torch.library.register_fake("deepres::hazard_backward")
def _backward_fake(d, *gradients_and_model):
    return tuple(map(torch.empty_like, gradients_and_model[:4]))


def _nll_context(ctx, inputs, output):
    _, *rest = output
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as what was saved
    ctx.save_for_backward(*rest[1:], *inputs[:4])


def _nll_autograd(ctx, dloss, *_):
    *gradients, features, basis, bias, l0 = ctx.saved_tensors
    scaled = _fused_backward(dloss, *gradients, features, basis, bias, l0)
    needs = ctx.needs_input_grad[:4]
    return (*(g if need else None for g, need in zip(scaled, needs, strict=True)), *[None] * 5)


def _value_context(ctx, inputs, output):
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *inputs[:4])
    ctx.gamma, ctx.impl = inputs[4:6]


def _value_autograd(ctx, dvalue, *_):
    own_features, own_l0, *model = ctx.saved_tensors
    none = own_l0.new_empty(0)  # these two follow
    dfeatures, _, _, dl0 = _fused_backward(dvalue, own_features, none, none, own_l0, *model)
    needs = ctx.needs_input_grad[:4]
    dbasis = dbias = None
    if needs[1] or needs[2]:
        dbasis, dbias = _fused_weights(*model, dvalue, ctx.gamma, ctx.impl)
    found = (dfeatures, dbasis, dbias, dl0)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 3)


_second = dispatch.without_derivative("the fused hazards")
_fused_nll = FusedOp("hazard_nll_forward", _nll_forward, _nll_autograd, _nll_context)
_fused_value = FusedOp("hazard_value_forward", _value_forward, _value_autograd, _value_context)
_fused_weights = FusedOp("hazard_value_weights", _value_weights, _second)
_fused_backward = FusedOp("hazard_backward", _backward, _second)
