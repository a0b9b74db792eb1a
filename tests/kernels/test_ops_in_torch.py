"""The ops as PyTorch sees them: imported, called, traced, transformed and compiled."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import deepres
from deepres.kernels.info_nce.options import ENERGIES
from deepres.kernels.policy.op import pair_energy, policy_losses, squashed_gaussian
from deepres.kernels.quasimetric.op import union_lengths
from deepres.kernels.stem.op import norm_activation


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


def test_losses_of_other_batch_sizes_share_their_graphs() -> None:
    def loss(x, psi, lag, event):
        ours, rows = deepres.hazard_nll(x, psi[:6], psi[:6, 0], x[:, 1], lag, event)
        return deepres.info_nce(x, psi)[0] + ours + rows.sum()

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for size in (5, 1, 7, 64):
        x, psi = features(size, 70)
        given = [x.requires_grad_(), psi, torch.arange(size) % 6, torch.arange(size) % 3 > 0]
        assert torch.equal(compiled(*given), loss(*given))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("network", [deepres.Encoder, deepres.Actor])
def test_a_network_is_exported_with_a_free_batch(network) -> None:
    made = network(6, 3, width=8, depth=4)
    program = torch.export.export(
        made, (torch.ones(5, 6),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    ).module()
    for size in (1, 2, 9):
        x = torch.randn(size, 6)
        assert all(map(torch.equal, program(x), made(x)))  # rows of one output, or both outputs


def test_function_transforms_reach_the_reference() -> None:
    phi, psi = features()

    def loss(a, b):
        return deepres.info_nce(a, b, impl="reference")[0]

    leaf = phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, psi), leaf)
    torch.testing.assert_close(grad(loss)(phi, psi), expected)
    both = vmap(grad(loss), (0, None))(torch.stack([phi, phi]), psi)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


def hazard_labels() -> list[torch.Tensor]:
    return [torch.tensor([0, 3, 2, 6, 1]), torch.tensor([True, True, False, True, True])]


def autocast_cases() -> dict[str, tuple]:
    """Every op as one number, and its tensors."""
    x, psi = features()
    noise, (rows, value) = psi[2:], x.T[:2]
    hazards = [x, psi, psi[:, 0], x[:, 1]]
    return {
        "residual_stack": (lambda *t, **o: deepres.residual_stack(*t, **o).square().sum(), stack_arguments()),
        "info_nce": (lambda *t, **o: deepres.info_nce(*t, energy="dot", **o)[0], [x, psi]),
        "hazard_nll": (lambda *t, **o: deepres.hazard_nll(*t, *hazard_labels(), **o)[0], hazards),
        "hazard_value": (lambda *t, **o: deepres.hazard_value(*t, **o).square().sum(), hazards),
        "squashed_gaussian": (
            lambda *t, **o: torch.cat([p.square().flatten() for p in squashed_gaussian(*t, noise, **o)]).sum(),
            [x, psi[:5]],
        ),
        "pair_energy": (lambda *t, **o: pair_energy(*t, "cosine", **o).square().sum(), [x, psi[:5]]),
        "policy_losses": (
            lambda *t, **o: sum(policy_losses(*t, -2.0, **o)[:2]), [rows, value, torch.tensor(0.3)],
        ),
        "union_lengths": (lambda *t, **o: union_lengths(*t, **o).square().sum(), [x, psi[:5]]),
        "norm_activation": (
            lambda *t, **o: norm_activation(*t, **o).square().sum(), [x, noise[0], 1 + psi[0], psi[1]],
        ),
    }  # fmt: skip


FUSED_ON_A_CPU = ("residual_stack", "info_nce", "hazard_nll", "hazard_value", "union_lengths")


@pytest.mark.parametrize(
    ("name", "impl"), [*((n, "cpu") for n in FUSED_ON_A_CPU), *((n, "reference") for n in autocast_cases())]
)
def test_autocast_around_an_op_changes_nothing(name: str, impl: str) -> None:
    """Values and gradients, taken inside, too, are those outside; 16 bits, which products then have, are widened."""
    op, tensors = autocast_cases()[name]
    for narrow in (0, 1, len(tensors)):  # how many are of 16 bits
        leaves = [t.clone().requires_grad_() for t in tensors]
        given = [t.bfloat16() if i < narrow else t for i, t in enumerate(leaves)]
        expected = op(*(t.float() for t in given), impl=impl)
        gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = op(*given, impl=impl)
            again = torch.autograd.grad(found, leaves, allow_unused=True)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        for ours, wanted in zip(again, gradients, strict=True):
            assert wanted is None if ours is None else torch.equal(ours, wanted)


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


def test_the_references_backward_makes_what_is_asked_for_and_takes_a_batch_of_gradients() -> None:
    x, weight = torch.randn(6, 8).requires_grad_(), torch.randn(4, 8, 8) / 3
    rest = (torch.zeros(4, 8), torch.ones(4, 8), torch.zeros(4, 8))
    y = deepres.residual_stack(x, weight, *rest, impl="reference")
    with torch.profiler.profile() as seen:
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    assert sum(one.count for one in seen.key_averages() if one.key == "aten::mm") == 4  # none of the weights'
    several = torch.stack([torch.ones_like(y), torch.randn(6, 8)])
    batch = vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(several)
    assert torch.allclose(batch[0], dx, atol=1e-6) and batch.shape == (2, 6, 8)


def test_numbers_of_numpy_are_judged_by_their_value() -> None:
    phi, psi = torch.randn(2, 5, 4).unbind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            deepres.info_nce(phi, psi, energy="dot", temperature=np.float32(0.5))[0],
            deepres.info_nce(phi, psi, energy="dot", temperature=0.5)[0],
        )
        for wrong in (np.float32(0), np.float32("inf"), 10**400):
            with pytest.raises(ValueError, match="temperature must be"):
                deepres.info_nce(phi, psi, energy="dot", temperature=wrong)
