"""A model of hazards and its labels, and the ops on them with every gradient: for the tests of each backend."""

from __future__ import annotations

import math

import torch

from deepres.kernels.hazard.op import hazard_nll, hazard_value
from deepres.testing import assert_no_worse

MODEL = ("features", "basis", "bias", "l0")


def model(batch, bins, d, seed=0, shift=-2.0, scale=1.0):
    """features, basis, bias, l0: logits of about scale, around shift."""
    g = torch.Generator().manual_seed(seed)
    features, basis = torch.randn(batch, d, generator=g), torch.randn(bins, d, generator=g)
    bias = shift + 0.3 * torch.randn(bins, generator=g)
    return [features, scale * basis / d**0.5, bias, torch.randn(batch, generator=g) - 1]


def labels(batch, bins, seed=0):
    """lag, event, weight with every kind of row: there already, reached, censored early and at the horizon, masked."""
    g = torch.Generator().manual_seed(seed + 1)
    event = torch.rand(batch, generator=g) < 0.6
    lag = torch.where(
        event, torch.randint(bins, (batch,), generator=g), torch.randint(bins + 1, (batch,), generator=g)
    )
    lag[::5] = torch.where(event[::5], 0, bins)
    weight = (torch.rand(batch, generator=g) < 0.8).float() * torch.rand(batch, generator=g).clamp_min(0.1)
    weight[0] = 1.0
    return lag, event, weight


def cast(tensors, dtype):
    return [t.to(dtype) if t.is_floating_point() else t for t in tensors]


def nll_parts(tensors, marks, impl, dtype=torch.float32):
    """(loss, nll, gradients of the model)."""
    leaves = [t.detach().clone().requires_grad_() for t in cast(tensors, dtype)]
    lag, event, weight = cast(marks, dtype)
    loss, nll = hazard_nll(*leaves, lag, event, weight=weight, impl=impl)
    return [loss.detach(), nll, *torch.autograd.grad(loss, leaves)]


def value_parts(tensors, impl, dtype=torch.float32, gamma=0.999, weight=None):
    """(value, gradients of sum(weight * value))."""
    leaves = [t.detach().clone().requires_grad_() for t in cast(tensors, dtype)]
    value = hazard_value(*leaves, gamma=gamma, impl=impl)
    weight = torch.ones_like(value) if weight is None else weight.to(dtype)
    return [value.detach(), *torch.autograd.grad((weight * value).sum(), leaves)]


def assert_all_no_worse(tensors, marks, impl="cpu", hair=2e-7, name=""):
    for parts, names in (
        (lambda i, t: nll_parts(tensors, marks, i, t), ("loss", "nll", *MODEL)),
        (lambda i, t: value_parts(tensors, i, t, weight=marks[2]), ("value", *MODEL)),
    ):
        fused, plain = parts(impl, torch.float32), parts("reference", torch.float32)
        truth = parts("reference", torch.float64)
        for part, *values in zip(names, fused, plain, truth, strict=True):
            assert_no_worse(
                f"{name} {names[0]}: {part} {[list(t.shape) for t in tensors[:2]]}", *values, hair=hair
            )


def assert_certainties_count(impl: str) -> None:
    """A logit of +inf: the goal is surely there, and none survives it; of -inf: it is surely not."""
    features, basis, bias, l0 = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5), torch.zeros(2)
    bias[2], bias[4] = torch.inf, -torch.inf
    value = hazard_value(features, basis, bias, l0, gamma=1.0, impl=impl)
    torch.testing.assert_close(value, torch.full((2,), -0.5 - 0.25 - 0.125))
    l0[0] = torch.inf
    value = hazard_value(features, basis, bias, l0, gamma=1.0, impl=impl)
    torch.testing.assert_close(value, torch.tensor([0.0, -0.875]))
    lag, event = torch.tensor([5, 2]), torch.tensor([False, True])
    nll = hazard_nll(features, basis, bias, torch.zeros(2), lag, event, impl=impl)[1]
    torch.testing.assert_close(nll, torch.tensor([math.inf, 3 * math.log(2)]))
