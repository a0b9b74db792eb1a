"""What bench/throughput.py times: each op with its contestants, sizes, flops, bytes and memory.

Builders are named, not imported, so that reading this table needs neither PyTorch nor JAX.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.harness.contestants import CEILING, SINGLE, Case, Implementation, Op

ACTOR_DEPTH_LIMIT = 512  # the paper saw the actor's loss explode beyond
HAZARD_BINS = 1000
BROADCAST_BYTES = 4 * 2**30  # of the broadcast form of info_nce: it takes as many rows at a time as fit


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


def info_nce_memory(case: Case) -> int:
    """Of the forms that hold [B, B] tensors, eight of them."""
    return 8 * 4 * case.batch**2 + 2**28


def info_nce_compiled_memory(case: Case) -> int:
    return info_nce_memory(case) // 2


def info_nce_fused_memory(case: Case) -> int:
    """phi, psi, their gradients, and what a few rows need."""
    return 4 * 4 * case.batch * case.width + 2**28


def info_nce_broadcast_memory(case: Case) -> int:
    return min(BROADCAST_BYTES, 3 * 4 * case.batch**2 * case.width) + 2**28


def hazard_fused_memory(case: Case) -> int:
    """Inputs and gradients, and the logits of a few rows."""
    return 2 * 4 * 4 * (case.batch + HAZARD_BINS) * case.width + 2**28


def _deepres(
    build: str, worse: float, memory: Callable[[Case], int] | None = None
) -> dict[str, Implementation]:
    """impl="auto" first; the named backends join where they are there and auto took another."""
    named = {
        f"deepres-{name}": Implementation(
            f"deepres {name}", build, name, worse, option="backend", memory=memory
        )
        for name in ("cpu", "triton", "cuda")
    }
    return {
        "deepres": Implementation("deepres", build, "auto", worse, memory=memory),
        **named,
        "reference": Implementation("deepres reference", build, "reference", worse, option="reference"),
    }


MATRIX_PRODUCT = Op(
    name="matrix_product",
    modes={
        "forward": "[B, W] @ [W, W]",
        "input_gradient": "[B, W] @ [W, W].T",
        "weight_gradient": "[B, W].T @ [B, W]",
    },
    implementations={CEILING: Implementation("PyTorch", "bench.ops.residual_stack:one_product")},
    truth="",
    flops=lambda case: 2 * case.batch * case.width**2 * case.depth,
    bytes=lambda case: 4 * (2 * case.batch * case.width + case.width**2) * case.depth,
    memory=lambda case: 2**28,
    resident=lambda case: 0,
    sizes=(16,),  # layers' worth of products: weights from cache, as in a stack
)
RESIDUAL_STACK = Op(
    name="residual_stack",
    modes={"forward": "forward", "forward_backward": "forward + backward"},
    implementations={
        "eager": Implementation("eager PyTorch", "bench.ops.residual_stack:eager", worse=8.0),
        SINGLE: Implementation(
            "eager PyTorch, fp32", "bench.ops.residual_stack:eager", "fp32", option="single"
        ),
        "compile": Implementation(
            "torch.compile", "bench.ops.residual_stack:compiled", worse=8.0, option="compile"
        ),
        "jax": Implementation("JAX jit", "bench.ops.residual_stack_jax:jitted", worse=8.0, option="jax"),
        **_deepres("bench.ops.residual_stack:fused", worse=2.0),
        "deepres-recompute": Implementation(
            "deepres, every 4th block", "bench.ops.residual_stack:fused", "auto:4", option="recompute"
        ),
        CEILING: Implementation("products alone", "bench.ops.residual_stack:products"),
    },
    truth="bench.ops.residual_stack:truth",
    flops=stack_flops,
    bytes=stack_bytes,
    memory=stack_memory,
    resident=lambda case: 2 * 4 * stack_parameters(case) + 2**28,
    gradients=stack_gradients,
)
GRADIENT_STEP = Op(
    name="gradient_step",
    modes={"step": "one CRL gradient step"},
    implementations={
        "eager": Implementation("eager PyTorch", "bench.ops.gradient_step:eager", worse=8.0),
        "compile": Implementation(
            "torch.compile", "bench.ops.gradient_step:compiled", worse=8.0, option="compile"
        ),
        **_deepres("bench.ops.gradient_step:fused", worse=4.0),
        CEILING: Implementation("products alone", "bench.ops.gradient_step:products"),
    },
    truth="bench.ops.gradient_step:truth",
    flops=step_flops,
    bytes=step_bytes,
    memory=step_memory,
    resident=lambda case: 4 * 4 * step_parameters(case) + 2**28,
)
FORMULA = 1e-3  # an error of a wrong formula, not of rounding: the product form loses digits by nature
INFO_NCE = Op(
    name="info_nce",
    modes={"forward_backward": "forward + backward"},
    implementations={
        "eager": Implementation("eager PyTorch, cdist", "bench.ops.info_nce:eager", "cdist", hair=FORMULA),
        "eager-matmul": Implementation(
            "eager PyTorch, matmul", "bench.ops.info_nce:eager", "matmul", hair=FORMULA
        ),
        "compile": Implementation(
            "torch.compile, cdist", "bench.ops.info_nce:compiled", "cdist", hair=FORMULA,
            option="compile", memory=info_nce_compiled_memory,
        ),
        "compile-matmul": Implementation(
            "torch.compile, matmul", "bench.ops.info_nce:compiled", "matmul", hair=FORMULA,
            option="compile", memory=info_nce_compiled_memory,
        ),
        "broadcast": Implementation(
            "broadcast, as published", "bench.ops.info_nce:broadcast", worse=8.0,
            memory=info_nce_broadcast_memory,
        ),
        **_deepres("bench.ops.info_nce:fused", worse=2.0, memory=info_nce_fused_memory),
    },
    truth="bench.ops.info_nce:truth",
    flops=lambda case: 3 * 2 * case.batch**2 * case.width,
    bytes=lambda case: 4 * 4 * case.batch * case.width,
    memory=info_nce_memory,
    resident=lambda case: 4 * 4 * case.batch * case.width + 2**28,
    axis="batch",
    sizes=(256, 512, 2048, 8192),
    width=64,
    precisions=("fp32",),
)  # fmt: skip
HAZARD = Op(
    name="hazard",
    modes={"forward_backward": "forward + backward of loss and value"},
    implementations={
        "eager": Implementation("eager PyTorch", "bench.ops.hazard:eager", worse=8.0),
        "compile": Implementation("torch.compile", "bench.ops.hazard:compiled", worse=8.0, option="compile"),
        **_deepres("bench.ops.hazard:fused", worse=2.0, memory=hazard_fused_memory),
    },
    truth="bench.ops.hazard:truth",
    # products: logits, dfeatures and dbasis of the loss, logits and dfeatures of the value
    flops=lambda case: 5 * 2 * case.batch * HAZARD_BINS * case.width,
    bytes=lambda case: 4 * (4 * case.batch + 4 * HAZARD_BINS) * case.width,
    memory=lambda case: 12 * 4 * case.batch * HAZARD_BINS + 2**28,
    resident=lambda case: 4 * 4 * (case.batch + HAZARD_BINS) * case.width + 2**28,
    axis="batch",
    sizes=(256, 512, 2048, 8192),
    width=64,
    precisions=("fp32",),
)
TWINS = Op(
    name="twins",
    modes={"forward": "forward of two stacks", "forward_backward": "forward + backward of two stacks"},
    implementations={
        "eager": Implementation("eager PyTorch", "bench.ops.twins:eager", worse=8.0),
        "calls": Implementation("deepres, two calls", "bench.ops.twins:calls", "auto"),
        **_deepres("bench.ops.twins:group", worse=2.0),
    },
    truth="bench.ops.twins:truth",
    flops=lambda case: 2 * stack_flops(case),
    bytes=lambda case: 2 * stack_bytes(case),
    memory=lambda case: 2 * stack_memory(case),
    resident=lambda case: 4 * 4 * stack_parameters(case) + 2**28,
    gradients=lambda case: 2 * stack_gradients(case),
    precisions=("fp32",),
)
OPS = {op.name: op for op in (MATRIX_PRODUCT, RESIDUAL_STACK, GRADIENT_STEP, INFO_NCE, HAZARD, TWINS)}
