"""The ops as PyTorch sees them: imported, called, traced, transformed and compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import deepres
from deepres.kernels.info_nce.options import ENERGIES


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


def test_function_transforms_reach_the_reference() -> None:
    phi, psi = features()

    def loss(a, b):
        return deepres.info_nce(a, b, impl="reference")[0]

    leaf = phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, psi), leaf)
    torch.testing.assert_close(grad(loss)(phi, psi), expected)
    both = vmap(grad(loss), (0, None))(torch.stack([phi, phi]), psi)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_info_nce_computes_in_float32_under_autocast(impl: str) -> None:
    """As PyTorch's own losses do: what surrounds it changes nothing but 16-bit features, which are widened."""
    phi, psi = features()
    leaf = phi.clone().requires_grad_()
    expected = deepres.info_nce(leaf, psi, energy="dot", impl=impl)[0]
    (dphi,) = torch.autograd.grad(expected, leaf)
    with torch.autocast("cpu", torch.bfloat16):
        loss = deepres.info_nce(leaf, psi, energy="dot", impl=impl)[0]
        assert torch.equal(loss, expected) and torch.equal(torch.autograd.grad(loss, leaf)[0], dphi)
        encoder = deepres.Encoder(8, 4, width=16, depth=4)
        features_of_16_bits = encoder(phi), encoder(psi)
        assert features_of_16_bits[0].dtype == torch.bfloat16
        loss = deepres.info_nce(*features_of_16_bits, impl=impl)[0]
        assert (
            deepres.info_nce(phi @ torch.eye(8), psi, impl=impl)[0].dtype == torch.float32
        )  # one of 16 bits
    loss.backward()
    assert loss.dtype == torch.float32 and encoder.head.weight.grad.abs().sum() > 0


def test_sixteen_bits_are_widened() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        phi, psi = (t.to(dtype).requires_grad_() for t in features())
        loss, lse = deepres.info_nce(phi, psi)
        assert torch.equal(loss, deepres.info_nce(phi.float(), psi.float())[0]) and lse.dtype == torch.float32
        loss.backward()
        assert phi.grad.dtype == psi.grad.dtype == dtype


def test_info_nce_under_torch_func_and_forward_mode() -> None:
    """impl="auto" goes to the reference there, where the fused ops would lose a tangent without a word."""
    phi, psi = (t.double() for t in features())
    for energy in ENERGIES:

        def loss(a, energy=energy):
            return deepres.info_nce(a, psi, energy=energy)[0]

        leaf = phi.clone().requires_grad_()
        (dphi,) = torch.autograd.grad(loss(leaf), leaf)
        direction = torch.randn(phi.shape, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(grad(loss)(phi), dphi)
        torch.testing.assert_close(jvp(loss, (phi,), (direction,))[1], (dphi * direction).sum())
        torch.testing.assert_close(vmap(grad(loss))(phi.unsqueeze(0))[0], dphi)
        assert torch.autograd.gradgradcheck(loss, (leaf,))
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(phi, direction))).tangent
        torch.testing.assert_close(tangent, (dphi * direction).sum())
    phi, psi = features()
    assert jvp(lambda a: deepres.info_nce(a, psi)[0], (phi,), (phi,))[1].dtype == torch.float32
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot serve .* torch.func .* need impl='reference'"):
        grad(lambda a: deepres.info_nce(a, psi, impl="cpu")[0])(phi)
