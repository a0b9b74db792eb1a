"""Lengths of unions of intervals: the reference against its definition, the CPU kernels against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres import _C
from deepres.kernels.quasimetric.op import iqe, union_lengths
from helpers.union_calls import EDGES, SHAPES, assert_all_no_worse, found, pair


def covered(x: Tensor, y: Tensor, points: int = 4000) -> float:
    """The length of one part's union, by asking points on a fine grid whether they lie in an interval."""
    grid = torch.linspace(-6, 6, points, dtype=torch.double)[:, None]
    return ((x <= grid) & (grid <= y)).any(1).double().mean().item() * 12


def test_reference_is_the_measure_of_what_is_covered():
    x, y = (t.double() for t in pair(20, 1))
    wanted = [covered(*one) for one in zip(x, y, strict=True)]
    assert union_lengths(x, y)[:, 0].tolist() == pytest.approx(wanted, abs=0.02)


def test_reference_gradients():
    leaves = [t.double().requires_grad_() for t in pair(6, 2)]
    assert torch.autograd.gradcheck(lambda x, y: union_lengths(x, y, impl="reference"), leaves)
    mix = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(iqe, (*leaves, mix))


@pytest.fixture(params=_C.isas())
def isa(request):
    """Every instruction set of this processor serves in turn."""
    chosen = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(chosen)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_no_worse_than_plain(isa, scale):
    for shape in SHAPES:
        assert_all_no_worse(*shape, "cpu", scale=scale, name=isa)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("check", EDGES)
def test_edges(check):
    check("cpu")


def test_threads_and_runs_give_the_same_bits():
    x, y = pair(900, 7)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            runs.append(found(x, y, "cpu", torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_views_one_gradient_and_an_empty_batch():
    x, y = pair(10, 4)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(union_lengths(leaf.T.contiguous().T, y), union_lengths(x, y))
    (dx,) = torch.autograd.grad(union_lengths(leaf, y).sum(), leaf)
    double = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(union_lengths(double, y.double()).sum(), double)
    torch.testing.assert_close(dx.double(), wanted)
    assert union_lengths(x[:0], y[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.ones(3, 12), torch.ones(3, 12), ValueError, r"a multiple of 8 of them, got \[3, 12\]"),
        (torch.ones(8), torch.ones(8), ValueError, r"shape \[B, columns\], .* got \[8\]"),
        (torch.ones(3, 0), torch.ones(3, 0), ValueError, r"got \[3, 0\]"),
        (torch.ones(3, 8), torch.ones(2, 8), ValueError, r"y must have x's shape \[3, 8\], got \[2, 8\]"),
        (torch.ones(3, 8).int(), torch.ones(3, 8).int(), TypeError, r"got torch.int32; call x.float\(\)"),
        (torch.ones(3, 8), torch.ones(3, 8).double(), TypeError, "y must have x's dtype torch.float32"),
        (torch.ones(3, 8), torch.ones(3, 8, device="meta"), ValueError, "y must be on x's device cpu"),
        (torch.ones(3, 8), [1.0], TypeError, "y must be a torch.Tensor"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(x, y, error, message):
    with pytest.raises(error, match=message):
        union_lengths(x, y)


@pytest.mark.parametrize("mix", [torch.ones(1), torch.ones(3), torch.tensor(1), torch.tensor(1.0).to("meta")])
def test_the_mix_is_one_number(mix):
    with pytest.raises(
        ValueError, match=r"mix must be one torch.float32 number, of shape \[\], on x's device cpu"
    ):
        iqe(*pair(3, 2), mix)
    with pytest.raises(TypeError, match=r"mix must be a torch\.Tensor, got float"):
        iqe(*pair(3, 2), 0.0)


def test_a_backend_asked_for_serves_or_says_why():
    x, y = pair(2, 1)
    with pytest.raises(RuntimeError, match="impl='cpu' cannot serve this quasimetric: x must be float32"):
        union_lengths(x.double(), y.double(), impl="cpu")
    with pytest.raises(
        ValueError, match="impl must be one of auto, triton, cpu, reference for quasimetric, got 'cuda'"
    ):
        union_lengths(x, y, impl="cuda")


def test_as_pytorch_sees_it():
    leaves = [t.requires_grad_() for t in pair(5, 2)]
    torch.library.opcheck(torch.ops.deepres.union_lengths_forward.default, (*leaves, "cpu"))
    lengths = torch.compile(lambda x, y: union_lengths(x, y) * 2, backend="aot_eager")(*leaves)
    torch.testing.assert_close(lengths, 2 * union_lengths(*leaves))
    (dx,) = torch.autograd.grad(union_lengths(*leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula for a second derivative of the fused union"):
        dx.sum().backward()
