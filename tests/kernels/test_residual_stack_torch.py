"""The residual stack among PyTorch's facilities: derivatives of every kind, compilers, process-wide settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import deepres
from deepres import _C
from deepres.kernels.residual_stack import cpu
from deepres.kernels.residual_stack.options import StackOptions

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def arguments(
    batch: int = 3, width: int = 8, depth: int = 4, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    made = [
        draw(batch, width),
        draw(depth, width, width) / width**0.5,
        *(0.1 * draw(depth, width) for _ in "bgb"),
    ]
    made[3] += 1
    return [t.to(dtype) for t in made]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(
        a.double(), b.double(), rtol=tolerance, atol=tolerance * float(b.detach().abs().max())
    )


@pytest.mark.parametrize("recompute", ["none", 1])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tangents_are_those_of_finite_differences(precision: str, recompute: str | int) -> None:
    """Rounding counts as the identity, so that the truth of every precision is fp32's."""
    x, *rest = arguments()
    v, e = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), 1e-6
    exact = [t.double() for t in rest]
    at = lambda x: deepres.residual_stack(x, *exact, impl="reference")  # noqa: E731
    truth = (at(x.double() + e * v) - at(x.double() - e * v)) / (2 * e)
    op = lambda x: deepres.residual_stack(x, *rest, precision=precision, recompute=recompute)  # noqa: E731
    tolerance = 1e-4 if precision == "fp32" else 0.05 if precision == "bf16" else 0.01
    close(jvp(op, (x,), (v,))[1], truth, tolerance)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(op(forward_ad.make_dual(x, v))).tangent, truth, tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_function_transforms(impl: str, precision: str) -> None:
    net = deepres.ResidualStack(8, 4, impl=impl, precision=precision)
    params = {name: p.detach() for name, p in net.named_parameters()}
    x, *_ = arguments()

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, params, (x,)).square().sum()

    loss(dict(net.named_parameters()), x).backward()
    found = grad(loss)(params, x)
    for name, p in net.named_parameters():
        close(found[name], p.grad, 1e-4 if precision == "fp32" else 0.05)
    each = vmap(grad(lambda p, row: loss(p, row[None])), (None, 0))(params, x)
    for name in params:
        close(each[name].sum(0), found[name], 1e-3 if precision == "fp32" else 0.05)
    assert jacrev(net)(x[:1]).shape == (1, 8, 1, 8)
    assert hessian(lambda row: loss(params, row[None]))(x[0]).shape == (8, 8)


def test_an_ensemble_by_vmap_is_the_group() -> None:
    group = deepres.ResidualStack(8, 4, members=3)
    alone = deepres.ResidualStack(8, 4)
    params = {name: p.detach() for name, p in group.named_parameters()}
    x, *_ = arguments()
    close(vmap(lambda p: functional_call(alone, p, (x,)))(params), group(x), 1e-5)


def test_a_fused_backend_asked_for_by_name_refuses_what_it_has_no_rule_for() -> None:
    x, *rest = arguments()
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot serve .* need impl='reference'"):
        grad(lambda x: deepres.residual_stack(x, *rest, impl="cpu").sum())(x)


@pytest.mark.parametrize("options", [{}, {"norm": False}, {"recompute": 1}, {"skip_every": 0}], ids=str)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_second_derivatives(impl: str, options: dict) -> None:
    def penalty(dtype: torch.dtype, impl: str) -> tuple[Tensor, ...]:
        leaves = [t.requires_grad_() for t in arguments(dtype=dtype)]
        y = deepres.residual_stack(*leaves, impl=impl, **options)
        first = torch.autograd.grad(y.square().sum(), leaves[:2], create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)

    for found, truth in zip(penalty(torch.float32, impl), penalty(torch.float64, "reference"), strict=True):
        close(found, truth, 1e-3)


def test_second_derivatives_of_a_group_and_of_one_tensor_in_two_places() -> None:
    x, weight, _, gamma, _ = arguments(dtype=torch.float64)

    def penalty(impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [torch.stack([t, 2 * t]).to(dtype).requires_grad_() for t in (x, weight, gamma)]
        y = deepres.residual_stack(*leaves[:2], leaves[2], leaves[2], leaves[2], impl=impl)
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for found, truth in zip(penalty("cpu", torch.float32), penalty("reference", torch.float64), strict=True):
        close(found, truth, 1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_second_derivatives_of_every_precision_are_fp32s_to_its_rounding(precision: str) -> None:
    def penalty(precision: str, dtype: torch.dtype) -> Tensor:
        leaves = [t.requires_grad_() for t in arguments(16, 32, 8, dtype)]
        y = deepres.residual_stack(*leaves, precision=precision, impl="reference")
        (dx,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
        ((dx.norm(dim=1) - 1) ** 2).mean().backward()
        return leaves[1].grad.double()

    truth = penalty("fp32", torch.float64)
    off = (penalty(precision, torch.float32) - truth).norm() / truth.norm()
    assert off < {"fp32": 1e-4, "tf32": 0.02, "fp16": 0.02, "bf16": 0.15}[precision]


def test_the_reference_goes_through_the_layers_at_a_linear_cost() -> None:
    """No gradient of the size of all layers for each of them: backward writes 2 such sizes for weight, not D."""
    leaves = [t.requires_grad_() for t in arguments(2, 16, 32)]
    y = deepres.residual_stack(*leaves, impl="reference", skip_every=0)
    with torch.profiler.profile(profile_memory=True) as profile:
        y.sum().backward()
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert taken < 4 * sum(t.nbytes for t in leaves) + 32 * 8 * leaves[0].nbytes


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


OPTIONS = [{}, {"precision": "bf16"}, {"recompute": "auto"}, {"skip_every": 0}, {"members": 2}]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batches_of_other_sizes_share_their_graphs(options: dict, dynamic: bool | None) -> None:
    net = deepres.ResidualStack(16, 4, **options)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (9, 1, 2, 17, 5, 30, 12, 7):
        x = torch.randn(size, 16, generator=torch.Generator().manual_seed(size))
        y = compiled(x)
        assert torch.equal(y, net(x))
        (dweight,) = torch.autograd.grad(y.square().sum(), net.weight)
        assert torch.equal(dweight, torch.autograd.grad(net(x).square().sum(), net.weight)[0])
    assert graphs() <= 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_free_batch_is_exported(options: dict) -> None:
    net = deepres.ResidualStack(16, 4, **options)
    free = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(net, (torch.ones(4, 16),), dynamic_shapes=free)
    for size in (1, 9):
        x = torch.randn(size, 16)
        assert torch.equal(program.module()(x), net(x))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("skip_every", [0, 1, 2, 3, 4, 12, 24])
def test_shapes_in_python_are_the_kernels_own(skip_every: int, precision: str) -> None:
    for batch in (0, 1, 7, 512, 3000, 100_000):
        for width in (1, 32, 33, 256):
            for recompute in (0, 1, 5) if skip_every else (0,):
                options = StackOptions(skip_every, precision=precision, recompute=recompute)
                own = _C.StackShape(
                    (1, batch, width, 24), skip_every, True, True, 1e-6, recompute, precision == "bf16"
                )
                [(n, _), (statistics, _)] = cpu.saved_spec(batch, width, 24, options)
                assert n[-1] == own.padded
                if recompute:
                    assert n[0] == -(-24 // own.segment)
                else:
                    assert cpu.span_of(batch, own.padded, 24, options) == own.span
                    assert statistics == (batch * (24 + -(-24 // own.span) * own.padded),)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_the_output_may_be_changed_in_place(impl: str) -> None:
    def gradients(change) -> tuple[Tensor, ...]:
        leaves = [t.requires_grad_() for t in arguments()]
        y = change(deepres.residual_stack(*leaves, impl=impl))
        return torch.autograd.grad(y.square().sum(), leaves)

    assert all(map(torch.equal, gradients(lambda y: y.add_(1).mul_(2)), gradients(lambda y: (y + 1) * 2)))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_parameter_changed_before_backward_is_told(impl: str) -> None:
    leaves = [t.requires_grad_() for t in arguments()]
    y = deepres.residual_stack(*leaves, impl=impl).sum()
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        y.backward()


@pytest.mark.parametrize("scale", [1e20, 1e25, 1e37])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_whose_variance_overflows_is_not_finite(precision: str, scale: float) -> None:
    leaves = arguments(9, 33)
    clean = deepres.residual_stack(*leaves, impl="cpu", precision=precision)
    leaves[0][4] *= scale
    for t in leaves:
        t.requires_grad_()
    y = deepres.residual_stack(*leaves, impl="cpu", precision=precision)
    grads = torch.autograd.grad(y.sum(), leaves)
    others = torch.arange(9) != 4
    assert y[4].isnan().all() and torch.equal(y[others], clean[others])
    assert not any(g.isfinite().all() for g in grads) and grads[0][others].isfinite().all()


SETTINGS = """
import sys, torch
import deepres
torch.manual_seed(0)
args = [torch.randn(5, 16), torch.randn(4, 16, 16) / 4, *(torch.randn(4, 16) for _ in "bgb")]
def outputs():
    leaves = [t.clone().requires_grad_() for t in args]
    y = deepres.residual_stack(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]
before = outputs()
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.use_deterministic_algorithms(True)
after = outputs()
assert all(a.device.type == "cpu" and torch.equal(a, b) for a, b in zip(before, after)), after
with torch.inference_mode():
    assert torch.equal(deepres.residual_stack(*args), before[0])
"""


def test_settings_of_the_process_change_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
