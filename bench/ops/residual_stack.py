"""The op residual_stack on PyTorch: plain, compiled, deepres, and its matrix products alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import deepres
from bench.harness.contestants import Case, Prepared
from bench.ops.serving import served_by, settle_precision, waiter
from bench.published.crl import EPS, HALF, PARAMETERS, SKIP_EVERY, Stack, autocast
from deepres.kernels.residual_stack import reference
from deepres.kernels.residual_stack.options import StackOptions


def inputs(case: Case) -> dict[str, Tensor]:
    """x, dy [B, W], weight [D, W, W], bias, gamma, beta [D, W]: the same numbers in every process."""
    random = torch.Generator().manual_seed(case.seed)
    depth, width = case.depth, case.width
    bound = 1 / math.sqrt(width)
    made = {
        "x": torch.randn(case.batch, width, generator=random),
        "weight": torch.empty(depth, width, width).uniform_(-bound, bound, generator=random),
        "bias": torch.randn(depth, width, generator=random) * 0.1,
        "gamma": 1 + torch.randn(depth, width, generator=random) * 0.1,
        "beta": torch.randn(depth, width, generator=random) * 0.1,
        "dy": torch.randn(case.batch, width, generator=random),
    }
    return {name: tensor.to(case.device) for name, tensor in made.items()}


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64 results, plain PyTorch's in the case's own precision), by name, from the reference."""

    def run(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
        options = StackOptions(SKIP_EVERY, precision=precision)
        leaves = [tensors[name].clone().requires_grad_() for name in ("x", *PARAMETERS)]
        y = reference.residual_stack(*leaves, options)
        return _by_name(y, torch.autograd.grad(y, leaves, tensors["dy"]))

    single = inputs(case)
    return run({name: t.double() for name, t in single.items()}, "fp32"), run(single, case.precision)


def eager(case: Case, variant: str) -> Prepared:
    """variant: another precision than the case's, if any."""
    return _plain(replace(case, precision=variant or case.precision), compile=False)


def compiled(case: Case, variant: str) -> Prepared:
    return _plain(case, compile=True)


def _plain(case: Case, *, compile: bool) -> Prepared:
    tensors = inputs(case)
    stack = Stack(*(tensors[name] for name in PARAMETERS)).to(case.device)
    network = torch.compile(stack, dynamic=False) if compile else stack

    def forward(x: Tensor) -> Tensor:
        with autocast(case.device, case.precision):
            return network(x)

    def named(result: Any) -> dict[str, Tensor]:
        y, dx, *grads = result
        return _by_name(y, (dx, *stack.stacked(grads)))

    return _prepared(case, forward, tensors, list(stack.parameters()), named)


def fused(case: Case, variant: str) -> Prepared:
    """variant: `impl`, or `impl:recompute`."""
    impl, _, blocks = variant.partition(":")
    recompute = int(blocks) if blocks else "none"
    tensors = inputs(case)
    leaves = [tensors[name].requires_grad_() for name in PARAMETERS]

    def forward(x: Tensor) -> Tensor:
        return deepres.residual_stack(
            x,
            *leaves,
            skip_every=SKIP_EVERY,
            eps=EPS,
            precision=case.precision,
            recompute=recompute,
            impl=impl,
        )

    server = stack_served_by(case, impl)
    return _prepared(case, forward, tensors, leaves, lambda r: _by_name(r[0], r[1:]), server)


def stack_served_by(case: Case, impl: str) -> str:
    """The backend that will serve the case's stack."""
    x = torch.empty(case.batch, case.width, device=case.device)
    options = StackOptions(SKIP_EVERY, precision=case.precision)
    return served_by("residual_stack", impl, lambda backend: backend.unsupported(x, case.depth, options))


def products(case: Case, variant: str) -> Prepared:
    """The matrix products of the case and nothing else, into memory already there: the machine's own rate."""
    forward, input_gradient, weight_gradient = layer_products(case)

    def run() -> None:
        for l in range(case.depth):
            forward(l)
        if case.mode != "forward":
            for l in reversed(range(case.depth)):
                input_gradient(l)
                weight_gradient(l)

    return Prepared(run, lambda result: {}, waiter(case.device))


def one_product(case: Case, variant: str) -> Prepared:
    """One of the three kinds of product, once for each of `depth` layers."""
    kinds = dict(zip(("forward", "input_gradient", "weight_gradient"), layer_products(case), strict=True))
    product = kinds[case.mode]

    def run() -> None:
        for l in range(case.depth):
            product(l)

    return Prepared(run, lambda result: {}, waiter(case.device))


def layer_products(case: Case) -> tuple[Callable[[int], Any], ...]:
    """Layer l's products: u = a W, da = du W^T, dW = a^T du."""
    tensors = inputs(case)
    dtype = HALF.get(case.precision, torch.float32)
    a, du, weight = (tensors[name].to(dtype) for name in ("x", "dy", "weight"))
    u, da, dweight = torch.empty_like(a), torch.empty_like(a), torch.empty_like(weight)
    settle_precision(case)
    return (
        lambda l: torch.mm(a, weight[l], out=u),
        lambda l: torch.mm(du, weight[l].T, out=da),
        lambda l: torch.mm(a.T, du, out=dweight[l]),
    )


def _prepared(
    case: Case,
    forward: Callable[[Tensor], Tensor],
    tensors: dict[str, Tensor],
    parameters: Sequence[Tensor],
    named: Callable[[Any], dict[str, Tensor]],
    server: str = "",
) -> Prepared:
    """Forward alone, or forward with every gradient: x's and each parameter's."""
    settle_precision(case)
    x, dy = tensors["x"], tensors["dy"]
    if case.mode == "forward":

        def run() -> Any:
            with torch.no_grad():
                return forward(x)

    else:
        x.requires_grad_()

        def run() -> Any:
            y = forward(x)
            return y, *torch.autograd.grad(y, [x, *parameters], dy)

    return Prepared(run, named, waiter(case.device), server)


def _by_name(y: Tensor, grads: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("y", "dx", *(f"d{name}" for name in PARAMETERS)), (y, *grads), strict=True))
