"""Hazards, likelihood and value with their gradients, fused against plain PyTorch: `python bench/throughput.py --op
hazard`.

What a step of survival RL asks for, with 1000 bins: the mean negative log-likelihood and its gradients of features,
basis, bias and l0; the mean value of other features and its gradients of features and l0 alone, as the actor reads it.

    deepres    deepres.hazard_nll, deepres.hazard_value
    eager      binary_cross_entropy_with_logits, weighted, for the first; logsigmoid, cumsum, exp for the second
               (also under torch.compile)

A case's batch counts the rows, its width the features. Of the rows 85% reach their goal at a lag drawn as P(lag) ~
0.99^lag, the others are censored at the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import deepres
from bench.harness.contestants import Case, Prepared
from bench.ops.serving import served_by, waiter
from deepres.kernels.hazard.options import Hazards

BINS, GAMMA = 1000, 0.999
RESULTS = ("loss", "dfeatures", "dbasis", "dbias", "dl0", "value", "dfeatures_of_value", "dl0_of_value")

Loss = Callable[[list[Tensor], Tensor, Tensor], Tensor]
Value = Callable[[list[Tensor]], Tensor]


def inputs(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """(features, basis, bias, l0), (features, l0) of the value, lag, event: hazards of about a hundredth."""
    g = torch.Generator().manual_seed(case.seed)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    basis, bias = normal(BINS, case.width) / case.width**0.5, 0.1 * normal(BINS) - 4.5
    model = [normal(case.batch, case.width), basis, bias, normal(case.batch) - 2]
    other = [normal(case.batch, case.width), normal(case.batch) - 2]
    event = torch.rand(case.batch, generator=g) < 0.85
    ahead = (torch.rand(case.batch, generator=g).log() / math.log(0.99)).long().clamp(max=BINS - 1)
    lag = torch.where(event, ahead, BINS)
    on = lambda tensors: [t.to(case.device).requires_grad_() for t in tensors]  # noqa: E731
    return on(model), on(other), lag.to(case.device), event.to(case.device)


def plain_loss(model: list[Tensor], lag: Tensor, event: Tensor) -> Tensor:
    features, basis, bias, l0 = model
    logits = torch.addmm(bias, features, basis.T)
    bin, there = torch.arange(BINS, device=lag.device), event & (lag == 0)
    hit = ((bin == lag[:, None]) & (event & (lag > 0))[:, None]).to(logits.dtype)
    asked = (bin < lag[:, None]).to(logits.dtype) + hit
    rows = F.binary_cross_entropy_with_logits(logits, hit, weight=asked, reduction="sum")
    start = F.binary_cross_entropy_with_logits(l0, there.to(l0.dtype), reduction="sum")
    return (rows + start) / len(features)


def plain_value(model: list[Tensor]) -> Tensor:
    features, basis, bias, l0 = model
    survived = F.logsigmoid(-torch.addmm(bias, features, basis.T)).cumsum(dim=1)
    discount = GAMMA ** torch.arange(BINS, dtype=torch.float64, device=l0.device)
    survival = (F.logsigmoid(-l0)[:, None] + F.pad(survived[:, :-1], (1, 0))).exp()
    return -(survival @ discount.to(l0.dtype)).mean()


def step_of(
    case: Case, loss: Loss, value: Value, dtype: torch.dtype = torch.float32
) -> Callable[[], tuple[Tensor, ...]]:
    model, other, lag, event = inputs(case)
    model, other = ([t.detach().to(dtype).requires_grad_() for t in tensors] for tensors in (model, other))

    def step() -> tuple[Tensor, ...]:
        nll = loss(model, lag, event)
        of_nll = torch.autograd.grad(nll, model)
        worth = value([other[0], model[1].detach(), model[2].detach(), other[1]])
        return nll.detach(), *of_nll, worth.detach(), *torch.autograd.grad(worth, other)

    return step


def named(result: Any) -> dict[str, Tensor]:
    return dict(zip(RESULTS, result, strict=True))


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64 results, plain PyTorch's in fp32)."""
    exact = step_of(case, plain_loss, plain_value, torch.float64)()
    return named(exact), named(step_of(case, plain_loss, plain_value)())


def eager(case: Case, variant: str) -> Prepared:
    return Prepared(step_of(case, plain_loss, plain_value), named, waiter(case.device))


def compiled(case: Case, variant: str) -> Prepared:
    forms = (torch.compile(form, dynamic=False) for form in (plain_loss, plain_value))
    return Prepared(step_of(case, *forms), named, waiter(case.device))


def fused(case: Case, impl: str) -> Prepared:
    model, _, _, _ = inputs(case)
    server = served_by("hazard", impl, lambda backend: backend.unsupported(Hazards(*model)))

    def loss(model: list[Tensor], lag: Tensor, event: Tensor) -> Tensor:
        return deepres.hazard_nll(*model, lag, event, impl=impl)[0]

    def value(model: list[Tensor]) -> Tensor:
        return deepres.hazard_value(*model, gamma=GAMMA, impl=impl).mean()

    return Prepared(step_of(case, loss, value), named, waiter(case.device), server)
