"""A fused op gives the same through PyTorch's dispatcher and past it, and stays visible to what watches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

import deepres
from deepres.kernels import fused_op
from deepres.kernels.quasimetric.op import union_lengths

Made = tuple[Callable[..., Tensor], list[Tensor]]


def _stack(seed: int) -> Made:
    g = torch.Generator().manual_seed(seed)
    depth, width = 4, 24
    draw = [
        torch.randn(shape, generator=g)
        for shape in ((9, width), (depth, width, width), *[(depth, width)] * 3)
    ]
    return deepres.residual_stack, draw


def _contrast(seed: int) -> Made:
    g = torch.Generator().manual_seed(seed)
    return lambda phi, psi: deepres.info_nce(phi, psi)[0], [torch.randn(7, 16, generator=g) for _ in range(2)]


def _hazard(seed: int) -> Made:
    g = torch.Generator().manual_seed(seed)
    model = [torch.randn(shape, generator=g) for shape in ((6, 8), (11, 8), (11,), (6,))]
    return deepres.hazard_value, model


def _hazard_nll(seed: int) -> Made:
    _, model = _hazard(seed)
    lag, event = torch.arange(6), torch.arange(6) % 2 == 0
    return lambda *leaves: deepres.hazard_nll(*leaves, lag, event)[0], model


def _unions(seed: int) -> Made:
    g = torch.Generator().manual_seed(seed)
    return union_lengths, [torch.randn(7, 16, generator=g) for _ in range(2)]


MADE = [_stack, _contrast, _hazard, _unions]


def _gradients(made: Made) -> list[Tensor]:
    function, given = made
    leaves = [t.clone().requires_grad_() for t in given]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("make", MADE)
def test_past_the_dispatcher_the_bits_are_the_same(make, monkeypatch):
    past = _gradients(make(0))
    monkeypatch.setattr(fused_op, "watched", lambda: True)
    through = _gradients(make(0))
    assert all(torch.equal(a, b) for a, b in zip(past, through, strict=True))


@pytest.mark.parametrize("make", MADE)
def test_a_profiler_sees_the_op_by_its_name_and_else_nothing_is_dispatched(make):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        _gradients(make(0))
    names = {event.key for event in seen.key_averages()}
    assert any(name.startswith("deepres::") and name.endswith("_forward") for name in names), names
    assert any(name.startswith("deepres::") and "backward" in name for name in names), names
    assert not fused_op.watched()


def test_a_dispatch_mode_gets_fake_tensors_through():
    function, given = _stack(0)
    with FakeTensorMode() as mode:
        y = function(*(mode.from_tensor(t) for t in given), impl="cpu")
    assert y.shape == (9, 24)


def test_a_trace_chooses_when_it_runs():
    function, given = _stack(0)
    with torch.no_grad():
        recorded = torch.jit.trace(function, tuple(given), check_trace=False)
    leaves = [t.clone().requires_grad_() for t in given]
    got = torch.autograd.grad(recorded(*leaves).square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, _gradients(_stack(0))[1:], strict=True))


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_records_the_op(pre_dispatch):
    function, given = _stack(0)
    recorded = make_fx(lambda x, w, b, g, s: function(x, w, b, g, s), pre_dispatch=pre_dispatch)(*given)
    other = _stack(1)[1]
    assert torch.equal(recorded(*other), function(*other))


class _NoGradient(torch.autograd.Function):
    """As DDP's sink of outputs that no loss has used: its gradient is undefined."""

    forward = staticmethod(lambda ctx, y: y.sum())
    backward = staticmethod(lambda ctx, d: None)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("make", [*MADE, _hazard_nll])
def test_a_gradient_that_is_undefined_stays_so(make, through, monkeypatch):
    if through:
        monkeypatch.setattr(fused_op, "watched", lambda: True)
    function, given = make(0)
    given = [t.clone().requires_grad_() for t in given]
    (_NoGradient.apply(function(*given)) + sum(t.sum() for t in given)).backward()
    assert all(torch.equal(t.grad, torch.ones_like(t)) for t in given)


@pytest.mark.parametrize("make", [*MADE, _hazard_nll])
def test_batched_gradients_are_those_of_each(make):
    function, given = make(0)
    given = [t.clone().requires_grad_() for t in given]
    y = function(*given)
    several = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(y, given, several, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, given, one, retain_graph=True) for one in several]
    for together, alone in zip(got, zip(*each, strict=True), strict=True):
        assert torch.equal(together, torch.stack(alone))


def test_a_negative_view_is_read_as_it_counts():
    function, (x, *rest) = _stack(0)
    assert torch.equal(function(torch._neg_view(x), *rest), function(-x, *rest))


class _Named(Tensor):
    """A tensor of another class."""


def test_a_tensor_of_another_class_is_left_to_the_dispatcher(monkeypatch):
    function, given = _stack(0)
    asked = []
    real = fused_op.FusedOp.__call__

    def call(self, *inputs):
        asked.append([type(t) for t in inputs if isinstance(t, Tensor)])
        return real(self, *inputs)

    monkeypatch.setattr(fused_op.FusedOp, "__call__", call)
    y = function(given[0].as_subclass(_Named), *given[1:])
    assert asked[0][0] is _Named
    assert torch.equal(y.as_subclass(Tensor), function(*given))


@pytest.mark.parametrize("make", MADE[1:])
def test_a_second_derivative_still_raises(make):
    function, given = make(0)
    leaves = [t.clone().requires_grad_() for t in given]
    first = torch.autograd.grad(function(*leaves).sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(first.square().sum(), leaves[0])


def test_what_comes_out_can_be_changed_in_place():
    function, given = _stack(0)
    given = [t.clone().requires_grad_() for t in given]
    want = torch.autograd.grad((2 * function(*given)).sum(), given)
    y = function(*given)
    y.mul_(2)
    got = torch.autograd.grad(y.sum(), given)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
