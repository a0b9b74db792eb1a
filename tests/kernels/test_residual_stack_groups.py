"""Stacks side by side: a group equals its members' own calls, on every backend that runs here."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import deepres
from deepres.kernels import cuda_program, packing
from deepres.kernels.residual_stack import cuda
from deepres.testing import assert_no_worse
from helpers import cuda_on_host

NAMES = ("y", "dx", "dweight", "dbias", "dgamma", "dbeta")


def arguments(members: int, batch: int, width: int, depth: int, *, shared: bool = False) -> list[Tensor]:
    """x and parameters of `members` stacks whose layers keep the scale of their input, in float64."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return [
        normal(*(() if shared else (members,)), batch, width),
        normal(members, depth, width, width) / width**0.5,
        0.1 * normal(members, depth, width),
        1 + 0.1 * normal(members, depth, width),
        0.1 * normal(members, depth, width),
    ]


def dy_for(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)


def outputs(args: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    leaves = [t.to(dtype).requires_grad_() for t in args]
    y = deepres.residual_stack(*leaves, **options)
    grads = torch.autograd.grad(y, leaves, dy_for(y), allow_unused=True, materialize_grads=True)
    return [y.detach(), *grads]


def one_by_one(args: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    """The same of a call for each member, stacked."""
    x, *parameters = args
    leaves = [
        [t.to(dtype).requires_grad_() for t in (own, *p)] for own, *p in zip(x, *parameters, strict=True)
    ]
    ys = [deepres.residual_stack(*own, **options) for own in leaves]
    each = []
    for y, own, dy in zip(ys, leaves, dy_for(torch.stack(ys)), strict=True):
        grads = torch.autograd.grad(y, own, dy, allow_unused=True, materialize_grads=True)
        each.append([y.detach(), *grads])
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


OPTIONS = [
    {},
    {"precision": "bf16"},
    {"recompute": 1},
    {"skip_every": 0, "activation": "relu"},
    {"norm": False},
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 33, 8), (3, 1, 20, 4), (2, 0, 16, 4), (5, 130, 8, 4)], ids=str)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_group_is_a_call_for_each_member_to_the_bit(impl, shape, options):
    args = arguments(*shape)
    group = outputs(args, torch.float32, impl=impl, **options)
    for name, a, b in zip(NAMES, group, one_by_one(args, torch.float32, impl=impl, **options), strict=True):
        assert torch.equal(a, b), name


def test_a_group_of_a_large_batch_to_the_bit():
    args = arguments(2, 8192, 32, 4)
    each = one_by_one(args, torch.float32, impl="cpu")
    assert all(map(torch.equal, outputs(args, torch.float32, impl="cpu"), each))


ON_CUDA = {  # width, what the GPU is, options; one block of layers to a stretch
    "fp16": (64, cuda_on_host.SMALL, {"precision": "fp16"}, False),
    "relu": (64, cuda_on_host.SMALL, {"norm": False, "activation": "relu"}, False),
    "recompute-stretches": (64, cuda_on_host.SMALL, {"precision": "bf16", "recompute": 1}, True),
    "cluster-stretches": (128, cuda_on_host.LARGE, {"precision": "bf16"}, True),
}


@pytest.mark.parametrize(("width", "facts", "options", "cut"), ON_CUDA.values(), ids=ON_CUDA)
def test_cuda_group_to_the_bit(width, facts, options, cut, monkeypatch):
    """On the host: in as many launches as one member takes, gradients of any size, with weights packed once or not."""
    dys = torch.randn(2, 20, width, generator=torch.Generator().manual_seed(1))
    dys *= torch.tensor([1.0, 2.0**-12])[:, None, None]
    launched, run = [], cuda_on_host.HostProgram.launch

    def launch(self, kernel, *rest):
        launched.append(kernel)
        run(self, kernel, *rest)

    def found(dy, tensors, once):
        launched.clear()
        leaves = [t.clone().requires_grad_() for t in tensors]
        with packing.packed_once() if once else nullcontext():
            y = deepres.residual_stack(*leaves, impl="cuda", **options)
            grads = torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                assert torch.equal(y, deepres.residual_stack(*leaves, impl="cuda", **options))
        return [y.detach(), *grads], launched.copy()

    group = [t.float() for t in arguments(2, 20, width, 8)]
    with cuda_on_host.served(monkeypatch):
        monkeypatch.setattr(cuda_program, "device_facts", lambda _: facts)
        monkeypatch.setattr(cuda_on_host.HostProgram, "launch", launch)
        if cut:
            monkeypatch.setattr(cuda, "SCRATCH_BYTES", 1)
        for once in (False, True):
            whole, launches = found(dys, group, once)
            for k in range(2):
                alone, of_one = found(dys[k], [t[k] for t in group], once)
                assert launches == of_one
                for name, a, b in zip(NAMES, whole, alone, strict=True):
                    assert torch.equal(a[k], b), name


@pytest.mark.parametrize("options", [{}, {"recompute": 1}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("batch", [0, 5, 70])
def test_threads_that_take_members_change_no_bit(batch, options):
    """Of two threads, each takes members where a batch of up to 64 rows has too few for both."""
    args, before = arguments(3, batch, 20, 8), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(outputs(args, torch.float32, impl="cpu", **options))
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        assert all(map(torch.equal, found[0], again))


def test_rows_for_all_members_are_those_of_each():
    args = arguments(3, 7, 12, 4, shared=True)
    own = [args[0].expand(3, 7, 12).contiguous(), *args[1:]]
    shared, each = (outputs(a, torch.float32, impl="cpu") for a in (args, own))
    for name, a, b in zip(NAMES, shared, each, strict=True):
        assert torch.equal(a, b.sum(0) if name == "dx" else b), name
    truth, plain = (outputs(args, dtype, impl="reference") for dtype in (torch.float64, torch.float32))
    for name, f, p, t in zip(NAMES, shared, plain, truth, strict=True):
        assert_no_worse(name, f, p, t)


def test_the_groups_reference_passes_gradcheck():
    leaves = [t.requires_grad_() for t in arguments(2, 3, 4, 4)]
    assert torch.autograd.gradcheck(
        lambda *t: deepres.residual_stack(*t, impl="reference"), leaves, fast_mode=True
    )


@pytest.mark.parametrize("wanted", range(5), ids=("x", "weight", "bias", "gamma", "beta"))
def test_each_gradient_of_a_group_alone(wanted: int) -> None:
    args = arguments(2, 33, 20, 8)
    full = outputs(args, torch.float32, impl="cpu")
    leaves = [t.float().requires_grad_(i == wanted) for i, t in enumerate(args)]
    y = deepres.residual_stack(*leaves, impl="cpu")
    y.backward(dy_for(y))
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) if i != wanted else torch.equal(leaf.grad, full[1 + i])


def test_a_group_in_one_graph():
    leaves = [t.float().requires_grad_() for t in arguments(2, 5, 16, 4)]

    def loss(*tensors):
        return deepres.residual_stack(*tensors, impl="cpu").square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert all(map(torch.equal, expected, torch.autograd.grad(compiled(*leaves), leaves)))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (
            torch.ones(3, 4, 8),
            r"for each of the 2 stacks .* \[2, B, 8\], or \[B, 8\] for all of them, got \[3, 4, 8\]",
        ),
        (torch.ones(8), r"x must have shape \[B, W\] or \[E, B, W\], got \[8\]"),
        (torch.ones(2, 4, 9), r"weight must have shape"),
    ],
)
def test_rows_that_fit_no_group_are_told(x, sentence):
    parameters = [t.float() for t in arguments(2, 1, 8, 4)[1:]]
    with pytest.raises(ValueError, match=sentence):
        deepres.residual_stack(x, *parameters)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize("options", [{}, {"recompute": 1}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("shape", [(2, 100, 64, 8), (3, 513, 256, 8)], ids=str)
def test_on_a_gpu_a_group_is_a_call_for_each_member_to_the_bit(impl, shape, options):
    args = [t.cuda() for t in arguments(*shape)]
    group = outputs(args, torch.float32, impl=impl, **options)
    for name, a, b in zip(NAMES, group, one_by_one(args, torch.float32, impl=impl, **options), strict=True):
        assert torch.equal(a, b), name
