"""Two stacks of one shape on the same rows, as twin critics are: `python bench/throughput.py --op twins`.

deepres    one call of deepres.residual_stack with members=2
calls      two calls of it, one after another
eager      plain PyTorch, one after another
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import deepres
from bench.harness.contestants import Case, Prepared
from bench.ops import residual_stack
from bench.ops.residual_stack import stack_served_by
from bench.ops.serving import waiter
from bench.published.crl import EPS, PARAMETERS, SKIP_EVERY
from deepres.kernels.residual_stack import reference
from deepres.kernels.residual_stack.options import StackOptions

Members = Callable[[Tensor, list[Tensor]], Tensor]


def inputs(case: Case) -> tuple[Tensor, list[Tensor], Tensor]:
    """x [B, W], the parameters of both [2, D, W, W] and [2, D, W], dy [2, B, W]."""
    both = [residual_stack.inputs(replace(case, seed=case.seed + i)) for i in range(2)]
    parameters = [torch.stack([one[name] for one in both]) for name in PARAMETERS]
    return both[0]["x"], parameters, torch.stack([one["dy"] for one in both])


def plain(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    options = StackOptions(SKIP_EVERY)
    return torch.stack([reference.residual_stack(x, *one, options) for one in apart(parameters)])


def apart(parameters: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Each stack's own parameters. By unbind: a slice's gradient is as large as both."""
    return list(zip(*(p.unbind() for p in parameters), strict=True))


def computed(case: Case, members: Members, tensors: tuple[Tensor, list[Tensor], Tensor]) -> Callable[[], Any]:
    x, parameters, dy = tensors
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]

    def run() -> Any:
        if case.mode == "forward":
            with torch.no_grad():
                return (members(x, parameters),)
        y = members(leaves[0], leaves[1:])
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    return run


def named(result: Any) -> dict[str, Tensor]:
    names = ("y", "dx", *(f"d{name}" for name in PARAMETERS))
    return dict(zip(names, result, strict=False))  # forward has y alone


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64 results, plain PyTorch's in fp32)."""
    x, parameters, dy = inputs(case)
    wide = (x.double(), [p.double() for p in parameters], dy.double())
    whole = replace(case, mode="forward_backward")
    return named(computed(whole, plain, wide)()), named(computed(whole, plain, (x, parameters, dy))())


def eager(case: Case, variant: str) -> Prepared:
    return Prepared(computed(case, plain, inputs(case)), named, waiter(case.device))


def calls(case: Case, impl: str) -> Prepared:
    def members(x: Tensor, parameters: list[Tensor]) -> Tensor:
        return torch.stack([_stack(x, one, impl) for one in apart(parameters)])

    server = stack_served_by(case, impl)
    return Prepared(computed(case, members, inputs(case)), named, waiter(case.device), server)


def group(case: Case, impl: str) -> Prepared:
    def members(x: Tensor, parameters: list[Tensor]) -> Tensor:
        return _stack(x, parameters, impl)

    server = stack_served_by(case, impl)
    return Prepared(computed(case, members, inputs(case)), named, waiter(case.device), server)


def _stack(x: Tensor, parameters: Sequence[Tensor], impl: str) -> Tensor:
    return deepres.residual_stack(x, *parameters, skip_every=SKIP_EVERY, eps=EPS, impl=impl)
