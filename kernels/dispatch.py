"""Which implementation serves a call: the table of backends, and the choice that `impl=` makes.

A backend of an op is one module, imported only when it is asked for. It offers

    unavailable() -> str | None             why this machine cannot run it at all (a clause and a remedy)
    unsupported(x, ...options) -> str | None   why it cannot serve this very call

and the op's own functions (see its op.py). `impl="auto"` takes the first backend in the op's order of preference that
is available and supports the call; a backend asked for by name either serves the call or raises with its reason.

torch.compile traces neither imports nor caches. So the public function of an op calls a composite op, in which
the choice is made: tracing runs that, and sees the reference's operations or the fused forward and backward.
Ops are registered piece by piece: a mark of torch.compiler imports the whole compiler, and the first call of a
`torch.library.custom_op` does, which nobody should wait for who compiles nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

# op -> impl -> module, fastest first: the order in which impl="auto" tries them.
BACKENDS: dict[str, dict[str, str]] = {
    "residual_stack": {
        "cuda": "deepres.kernels.residual_stack.cuda",
        "triton": "deepres.kernels.residual_stack.triton",
        "cpu": "deepres.kernels.residual_stack.cpu",
        "reference": "deepres.kernels.residual_stack.reference",
    },
    "info_nce": {
        "triton": "deepres.kernels.info_nce.triton",
        "cpu": "deepres.kernels.info_nce.cpu",
        "reference": "deepres.kernels.info_nce.reference",
    },
    "hazard": {
        "triton": "deepres.kernels.hazard.triton",
        "cpu": "deepres.kernels.hazard.cpu",
        "reference": "deepres.kernels.hazard.reference",
    },
    "stem": {
        "triton": "deepres.kernels.stem.triton",
        "reference": "deepres.kernels.stem.reference",
    },
    "policy": {
        "triton": "deepres.kernels.policy.triton",
        "reference": "deepres.kernels.policy.reference",
    },
    "quasimetric": {
        "triton": "deepres.kernels.quasimetric.triton",
        "cpu": "deepres.kernels.quasimetric.cpu",
        "reference": "deepres.kernels.quasimetric.reference",
    },
}


@cache
def load(op: str, impl: str) -> ModuleType:
    """The backend's module."""
    return import_module(BACKENDS[op][impl])


def _unavailable(op: str, impl: str) -> str | None:
    """Why `impl` cannot run here, or None; asked of the backend once in a process."""
    return None if impl == "reference" else _reason(BACKENDS[op][impl])


@cache
def _reason(module: str) -> str | None:
    try:
        return import_module(module).unavailable()
    except ImportError as error:
        return f"{error}"


@cache
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=5)


def backends() -> dict[str, dict[str, str]]:
    """What each op can run on here: `{op: {impl: "available" | reason why not}}`, fastest first."""
    return {
        op: {impl: _unavailable(op, impl) or "available" for impl in table} for op, table in BACKENDS.items()
    }


def choose(op: str, impl: str, unsupported: Callable[[ModuleType], str | None]) -> str:
    """The name of the implementation that serves a call of `op`.

    impl: "auto" or a key of `BACKENDS[op]`. unsupported: asks one backend module about this call.
    Raises ValueError for an unknown name, RuntimeError for one that cannot serve here, with the reason.
    """
    table = BACKENDS[op]
    if impl != "auto":
        if impl not in table:
            raise ValueError(f"impl must be one of {', '.join(['auto', *table])} for {op}, got {impl!r}")
        if impl == "reference":
            return impl
        reason = _unavailable(op, impl) or transformed() or unsupported(load(op, impl))
        if reason is not None:
            raise RuntimeError(f"impl={impl!r} cannot serve this {op}: {reason}; or pass impl='auto'")
        return impl
    for name in table:
        if name == "reference" or transformed() is not None:
            return "reference"
        reason = _unavailable(op, name)
        if reason is not None:
            if name == "cpu":  # the one fused backend that every install is meant to have
                _warn_once(f"deepres runs the plain PyTorch reference on the CPU: {reason}")
            continue
        if unsupported(load(op, name)) is None:
            return name
    raise AssertionError("unreachable: the reference serves every call")


def transformed() -> str | None:
    """Why PyTorch's own operations are wanted, a clause, or None: the fused ops have neither the rules of torch.func
    nor forward-mode derivatives, and a tangent would be lost without a word."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    return "torch.func and forward-mode derivatives need impl='reference'" if inside else None


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needs: Sequence[bool], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `function(*inputs)`, plain PyTorch's, with a graph of their own; None where `needs` is False.

    For the backward of a fused op where grad mode is on, as under create_graph=True: it has no second derivative.
    """
    own = [
        t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)
    ]  # one tensor may come twice
    with torch.enable_grad():
        y = function(*own)
        wanted = [t for t, need in zip(own, needs, strict=True) if need]
        found = torch.autograd.grad(
            y, wanted, dy, create_graph=True, allow_unused=True, materialize_grads=True
        )
    grads = iter(found)
    return tuple(next(grads) if need else None for need in needs)


def without_derivative(op: str) -> Callable[..., None]:
    """What autograd finds behind the backward of a fused `op`: an error, in place of gradients that lack a term."""

    def backward(*_: object) -> None:
        raise RuntimeError(f"no autograd formula for a second derivative of {op}; pass impl='reference'")

    return backward


def beside_gpu(x: Tensor) -> str | None:
    """Why x lies on no GPU that the kernels are compiled for (a clause and a remedy), or None."""
    if x.device.type != "cuda":
        return f"it takes tensors on a CUDA device, got {x.device}; move them with .cuda()"
    major, minor = torch.cuda.get_device_capability(x.device)
    if major < 8:
        return f"it needs compute capability 8.0 (Ampere) or newer, got {major}.{minor}"
    return None
