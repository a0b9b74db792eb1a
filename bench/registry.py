"""What the benches time, as data: each op with its implementations, sizes, flops, bytes and memory.

Builders are named, not imported, so that reading this table needs neither PyTorch nor JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

PRECISIONS = ("fp32", "tf32", "bf16")
DEPTHS = (4, 16, 64, 256, 1024)
ACTOR_DEPTH_LIMIT = 512  # the paper saw the actor's loss explode beyond
BASELINE = "eager"  # every ratio is against this one
SINGLE = "eager-fp32"  # joins where the precision is another: what a user of plain fp32 would gain
CEILING = "products"  # the matrix products of the same case alone, by PyTorch: what shares are a share of


@dataclass(frozen=True)
class Case:
    """One thing to time: an op in one mode at one size. depth counts layers, batch rows, width columns."""

    op: str
    mode: str
    depth: int
    batch: int
    width: int
    precision: str
    device: str
    seed: int = 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    build: "module:function", called in a process of its own as function(case, variant) -> worker.Prepared.
    worse: how many times the reference's error against float64 it may have before it is refused: 2 allows
        another order of summation, 8 also bf16 between the products, as autocast keeps it.
    environment: variables set before that process starts.
    """

    label: str
    build: str
    worse: float = 2.0
    variant: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """modes: what is timed, key and words. truth: "module:function" giving (float64 results, plain PyTorch's)
    for the check before the clock starts; "" where there is nothing to get wrong. memory: bytes the greediest
    contestant needs at its peak, roughly. resident: bytes every other one holds meanwhile. gradients: bytes of the
    gradients that a contestant hands over, which its peak holds too.
    """

    modes: dict[str, str]
    implementations: dict[str, Implementation]
    truth: str
    flops: Callable[[Case], int]
    bytes: Callable[[Case], int]
    memory: Callable[[Case], int]
    resident: Callable[[Case], int]
    gradients: Callable[[Case], int] = lambda case: 0


def stack_flops(case: Case) -> int:
    """Of the matrix products alone: 2 B W^2 a layer forward, and as much again for each of da and dW."""
    forward = 2 * case.batch * case.width**2 * case.depth
    return forward if case.mode == "forward" else 3 * forward


def stack_parameters(case: Case) -> int:
    """weight [D, W, W] and bias, gamma, beta [D, W] each."""
    return case.depth * (case.width**2 + 3 * case.width)


def stack_bytes(case: Case) -> int:
    """The least that must cross memory, in fp32: parameters read once, x and y; backward reads them
    again with dy, and writes their gradients and dx. What a backward keeps of its forward is not counted."""
    rows = case.batch * case.width
    if case.mode == "forward":
        return 4 * (stack_parameters(case) + 2 * rows)
    return 4 * (3 * stack_parameters(case) + 4 * rows)


def stack_memory(case: Case) -> int:
    """What plain PyTorch needs at its peak, roughly: parameters, their gradients, six [B, W] kept a layer."""
    kept = 0 if case.mode == "forward" else 6 * case.depth * case.batch * case.width
    return 4 * (2 * stack_parameters(case) + kept) + 2**28


def stack_gradients(case: Case) -> int:
    """Of every parameter, and dx."""
    return 0 if case.mode == "forward" else 4 * (stack_parameters(case) + case.batch * case.width)


def actor_depth(case: Case) -> int:
    return min(case.depth, ACTOR_DEPTH_LIMIT)


def step_flops(case: Case) -> int:
    """Of the residual stacks of one CRL gradient step, 2 B W^2 for each of these products of each layer.

    forward: phi(s, a), psi(g), phi(s, actor's action); actor(s, g)         3 critic + 1 actor
    backward to the input: the same                                         3 critic + 1 actor
    backward to the weights: phi, psi; actor                                2 critic + 1 actor
    """
    return 2 * case.batch * case.width**2 * (8 * case.depth + 3 * actor_depth(case))


def step_parameters(case: Case) -> int:
    return (2 * case.depth + actor_depth(case)) * (case.width**2 + 3 * case.width)


def step_bytes(case: Case) -> int:
    """The least that must cross memory, in fp32: parameters read forward and backward, and Adam, which reads
    parameter, gradient and two moments, and writes all of them but the gradient, once made."""
    return 4 * step_parameters(case) * (2 + 1 + 4 + 3)


def step_memory(case: Case) -> int:
    """Parameters, gradients, Adam's moments, and six [B, W] kept for each layer of two networks at once."""
    return 4 * (4 * step_parameters(case) + 12 * case.depth * case.batch * case.width) + 2**28


def _deepres(build: str, worse: float) -> dict[str, Implementation]:
    """impl="auto" first; the named backends join where they are there and auto took another."""
    named = {
        f"deepres-{name}": Implementation(f"deepres {name}", build, worse, name)
        for name in ("cpu", "triton", "cuda")
    }
    return {
        "deepres": Implementation("deepres", build, worse, "auto"),
        **named,
        "reference": Implementation("deepres reference", build, worse, "reference"),
    }


OPS: dict[str, Op] = {
    "matrix_product": Op(
        modes={
            "forward": "[B, W] @ [W, W]",
            "input_gradient": "[B, W] @ [W, W].T",
            "weight_gradient": "[B, W].T @ [B, W]",
        },
        implementations={"products": Implementation("PyTorch", "bench.residual_stack:one_product")},
        truth="",
        flops=lambda case: 2 * case.batch * case.width**2 * case.depth,
        bytes=lambda case: 4 * (2 * case.batch * case.width + case.width**2) * case.depth,
        memory=lambda case: 2**28,
        resident=lambda case: 0,
    ),
    "residual_stack": Op(
        modes={"forward": "forward", "forward_backward": "forward + backward"},
        implementations={
            "eager": Implementation("eager PyTorch", "bench.residual_stack:eager", worse=8.0),
            SINGLE: Implementation("eager PyTorch, fp32", "bench.residual_stack:eager", variant="fp32"),
            "compile": Implementation("torch.compile", "bench.residual_stack:compiled", worse=8.0),
            "jax": Implementation("JAX jit", "bench.residual_stack_jax:jitted", worse=8.0),
            **_deepres("bench.residual_stack:fused", worse=2.0),
            "deepres-checkpoint": Implementation(
                "deepres, every 4th block", "bench.residual_stack:fused", variant="auto:4"
            ),
            "products": Implementation("products alone", "bench.residual_stack:products"),
        },
        truth="bench.residual_stack:truth",
        flops=stack_flops,
        bytes=stack_bytes,
        memory=stack_memory,
        resident=lambda case: 2 * 4 * stack_parameters(case) + 2**28,
        gradients=stack_gradients,
    ),
    "gradient_step": Op(
        modes={"step": "one CRL gradient step"},
        implementations={
            "eager": Implementation("eager PyTorch", "bench.gradient_step:eager", worse=8.0),
            "compile": Implementation("torch.compile", "bench.gradient_step:compiled", worse=8.0),
            **_deepres("bench.gradient_step:fused", worse=4.0),
            "products": Implementation("products alone", "bench.gradient_step:products"),
        },
        truth="bench.gradient_step:truth",
        flops=step_flops,
        bytes=step_bytes,
        memory=step_memory,
        resident=lambda case: 4 * 4 * step_parameters(case) + 2**28,
    ),
}
