"""A fused op as PyTorch sees it: known to its dispatcher, and called past it where nothing watches.

The dispatcher reaches a kernel written in Python through Python of its own, some 0.1 ms forward and 0.15 ms
backward: as much as a shallow stack computes. Compilers, tracers, profilers, dispatch modes and tensor subclasses need
it; a plain eager call does not, and runs the same forward and the same gradients as one torch.autograd.Function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from deepres.kernels.autocast import own_precision
from deepres.kernels.dispatch import transformed

P = ParamSpec("P")
R = TypeVar("R")


def traced() -> bool:
    """Whether calls are being recorded, to run later on other tensors: by a compiler, torch.jit.trace or make_fx."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
    )


def watched() -> bool:
    """Whether something may want to see ops by their names: a tracer, a profiler, a dispatch mode."""
    return (
        traced()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd._profiler_enabled()
        or transformed() is not None
    )


def _plain(t: Tensor) -> bool:
    """Whether t's numbers lie in its memory as they are, to be read by their address."""
    own = type(t) is Tensor or type(t) is nn.Parameter
    return own and not t.is_neg() and not torch._C._functorch.is_legacy_batchedtensor(t)


def composite(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers a function as the op `deepres::name` of other ops, and gives what to call.

    What records gets the op, whose choice of a backend then waits for the tensors it will run on; all else gets the
    function itself, and may see what it is made of, as torch.func must. Neither is subject to torch.autocast. The first
    argument is a tensor.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def computed(*inputs: P.args, **options: P.kwargs) -> R:
            first: Any = inputs[0]
            with own_precision(first):
                return function(*inputs, **options)

        torch.library.impl(f"deepres::{name}", "CompositeImplicitAutograd")(computed)
        op = getattr(torch.ops.deepres, name)

        @wraps(function)
        def call(*inputs: P.args, **options: P.kwargs) -> R:
            chosen = op if traced() else computed
            result: R = chosen(*inputs, **options)
            return result

        return call

    return register


class FusedOp:
    """The op `deepres::name`, which torch.library.define has declared, with its kernel and its derivative.

    kernel: computes it. gradients(ctx, *d_outputs): as of torch.autograd.Function, one for each argument; it is not
    called where every one of d_outputs is None. context(ctx, inputs, output): what they keep; None for an op whose
    derivative only raises.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        gradients: Callable[..., Any],
        context: Callable[..., None] | None = None,
    ):
        torch.library.impl(f"deepres::{name}", "CompositeExplicitAutograd")(kernel)
        inputs_taken = len(getattr(torch.ops.deepres, name).default._schema.arguments)

        def derivative(ctx: Any, *d_outputs: Any) -> Any:
            if all(d is None for d in d_outputs):  # what was made of the outputs had no gradient to give
                return (None,) * inputs_taken
            return gradients(ctx, *d_outputs)

        torch.library.register_autograd(f"deepres::{name}", derivative, setup_context=context)
        self.kernel, self.differentiable = kernel, context is not None
        self.op = getattr(torch.ops.deepres, name)
        kinds = [str(one.type) for one in self.op.default._schema.arguments]
        self.alone = [place for place, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")]

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = kernel(*inputs)
            assert context is not None
            context(ctx, inputs, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(derivative)}
        self.function: Any = type(name, (torch.autograd.Function,), methods)

    def __call__(self, *inputs: Any) -> Any:
        tensors = [t for place in self.alone if (t := inputs[place]) is not None]
        if watched() or not all(map(_plain, tensors)):
            return self.op(*inputs)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return self.kernel(*inputs)
        return self.function.apply(*inputs) if self.differentiable else self.op(*inputs)
