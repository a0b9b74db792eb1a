"""The ops as PyTorch sees them: imported, called, traced, transformed and compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import deepres


def stack_arguments(batch: int = 5, width: int = 16, depth: int = 4) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(batch, width), (depth, width, width), *[(depth, width)] * 3]
    return [torch.randn(s, generator=random) / s[-1] ** 0.5 for s in shapes]


def features(batch: int = 5, goals: int = 7, width: int = 8) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(n, width, generator=random) for n in (batch, goals)]


STEP = """
import sys
import torch
import deepres
assert "torch._dynamo" not in sys.modules, "on import"
x = torch.randn(3, 8, requires_grad=True)
stack = deepres.ResidualStack(8, 4)
deepres.info_nce(stack(x), x)[0].backward()
assert "torch._dynamo" not in sys.modules, "in a call"
assert x.grad is not None and stack.weight.grad is not None
"""


def test_neither_import_nor_call_brings_the_compiler() -> None:
    """`torch._dynamo` alone takes longer to import than the rest of deepres: it is for who compiles."""
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_trace_holds_the_fused_ops(mode: str) -> None:
    def step(x, weight, bias, gamma, beta):
        y = deepres.residual_stack(x, weight, bias, gamma, beta, impl="cpu")
        return torch.autograd.grad(deepres.info_nce(y, y, impl="cpu")[0], (x, weight))

    args = [t.requires_grad_() for t in stack_arguments()]
    trace = make_fx(step, tracing_mode=mode)(*args)
    called = [str(node.target) for node in trace.graph.nodes if str(node.target).startswith("deepres.")]
    ops = ("residual_stack_forward", "info_nce_forward", "info_nce_backward", "residual_stack_backward")
    assert called == [f"deepres.{op}.default" for op in ops]
    assert all(map(torch.equal, trace(*args), step(*args)))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("impl", ["cpu", "reference", "auto"])
def test_one_graph_with_and_without_gradients(impl: str, dynamic: bool) -> None:
    def loss(x, weight, bias, gamma, beta):
        y = deepres.residual_stack(x, weight, bias, gamma, beta, impl=impl)
        value, metrics = deepres.info_nce(2 * y, x, return_metrics=True, impl=impl)
        return value + metrics.lse.sum() + metrics.mean_positive

    args = stack_arguments()
    torch._dynamo.reset()  # its limit of recompilations counts those of the cases before
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        assert torch.equal(compiled(*args), loss(*args))
    leaves = [t.requires_grad_() for t in args]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert all(map(torch.equal, torch.autograd.grad(compiled(*leaves), leaves), expected))


def test_a_second_derivative_says_where_to_get_it() -> None:
    args = [t.requires_grad_() for t in stack_arguments()]
    y = deepres.residual_stack(*args, impl="cpu")
    (dx,) = torch.autograd.grad(y.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula .* residual_stack; pass impl='reference'"):
        dx.sum().backward()
    y = deepres.residual_stack(*args, impl="reference")
    (dx,) = torch.autograd.grad(y.square().sum(), args[0], create_graph=True)
    dx.sum().backward()
    assert args[1].grad is not None


def test_function_transforms_reach_the_reference() -> None:
    phi, psi = features()

    def loss(a, b):
        return deepres.info_nce(a, b, impl="reference")[0]

    leaf = phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, psi), leaf)
    torch.testing.assert_close(grad(loss)(phi, psi), expected)
    both = vmap(grad(loss), (0, None))(torch.stack([phi, phi]), psi)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


def test_info_nce_under_autocast_is_that_of_its_backend() -> None:
    """The fused op computes in fp32 whatever surrounds it; the reference is PyTorch and follows autocast."""
    phi, psi = features()
    fused = deepres.info_nce(phi, psi, energy="dot", impl="cpu")[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deepres.info_nce(phi, psi, energy="dot", impl="cpu")[0], fused)
        plain = deepres.info_nce(phi, psi, energy="dot", impl="reference")[0]
    logits = (phi.bfloat16() @ psi.bfloat16().T).float()
    lse = logits.logsumexp(1)
    expected = (lse - logits.diagonal()).mean() + 0.1 * (lse + 1e-6).square().mean()
    torch.testing.assert_close(plain, expected, rtol=1e-2, atol=0)
    assert plain != fused
