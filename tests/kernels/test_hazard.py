"""Hazards: the reference against its definition, the CPU kernels against float64."""

import math

import numpy as np
import pytest
import torch

import deepres
from deepres import _C
from deepres.kernels.hazard.op import hazard_nll, hazard_value
from deepres.testing import worst_error
from helpers.hazard_calls import (
    assert_all_no_worse,
    assert_certainties_count,
    cast,
    labels,
    model,
    nll_parts,
    value_parts,
)

SHAPES = ((1, 1, 1), (2, 2, 3), (7, 13, 5), (65, 49, 64), (130, 1000, 64), (513, 100, 20))


# --- The reference ---


def test_reference_gradients():
    tensors = [t.double().requires_grad_() for t in model(6, 5, 3)]
    lag, event, weight = cast(labels(6, 5), torch.float64)

    def loss(*leaves):
        return hazard_nll(*leaves, lag, event, weight=weight, impl="reference")[0]

    assert torch.autograd.gradcheck(loss, tensors)
    assert torch.autograd.gradcheck(lambda *t: hazard_value(*t, gamma=0.9, impl="reference"), tensors)


def test_reference_is_the_definition():
    """Bin by bin, as chances; and all that can happen adds up to 1."""
    features, basis, bias, l0 = (t.double() for t in model(1, 6, 3))
    hazard = torch.sigmoid(features @ basis.T + bias)[0].tolist()
    there = torch.sigmoid(l0).item()

    def survival(k):
        return (1 - there) * math.prod(1 - h for h in hazard[:k])

    chances = [there, *(survival(k) * hazard[k] for k in range(1, 6))]
    for event, expected in ((True, chances), (False, [survival(c) for c in range(7)])):
        for lag, chance in enumerate(expected):
            marks = torch.tensor([lag]), torch.tensor([event])
            loss, nll = hazard_nll(features, basis, bias, l0, *marks, impl="reference")
            assert loss.item() == nll.item() == pytest.approx(-math.log(chance))
    assert sum(chances) + survival(0) * hazard[0] + survival(6) == pytest.approx(1)
    value = -sum(0.9**k * survival(k) for k in range(6))
    assert hazard_value(features, basis, bias, l0, gamma=0.9, impl="reference").item() == pytest.approx(value)


def test_gradients_are_the_closed_forms():
    """What op.py's head says, in float64."""
    features, basis, bias, l0 = tensors = [t.double() for t in model(8, 12, 4)]
    lag, event, weight = cast(labels(8, 12), torch.float64)
    _, _, dfeatures, dbasis, dbias, dl0 = nll_parts(tensors, (lag, event, weight), "reference", torch.float64)
    logits, bin = features @ basis.T + bias, torch.arange(12)
    hit = (bin == lag[:, None]) & (event & (lag > 0))[:, None]
    share = (weight / weight.sum())[:, None]
    g = share * (torch.sigmoid(logits) * (bin < lag[:, None]) - torch.sigmoid(-logits) * hit)
    torch.testing.assert_close([dfeatures, dbasis, dbias], [g @ basis, g.T @ features, g.sum(0)])
    there = event & (lag == 0)
    torch.testing.assert_close(dl0, share[:, 0] * torch.where(there, -torch.sigmoid(-l0), torch.sigmoid(l0)))

    value, dfeatures, _, _, dl0 = value_parts(tensors, "reference", torch.float64, gamma=0.9)
    survival = torch.sigmoid(-l0)[:, None] * torch.cat(
        [torch.ones(8, 1), torch.sigmoid(-logits)[:, :-1].cumprod(1)], 1
    )
    later = (0.9**bin * survival).flip(1).cumsum(1).flip(1) - 0.9**bin * survival
    torch.testing.assert_close(dfeatures, (torch.sigmoid(logits) * later) @ basis)
    torch.testing.assert_close(dl0, -torch.sigmoid(l0) * value)


# --- The CPU kernels against float64 ---


@pytest.fixture(params=_C.isas())
def isa(request):
    """Every instruction set of this processor serves in turn."""
    chosen = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(chosen)


@pytest.mark.usefixtures("poisoned")
def test_no_worse_than_plain(isa):
    for shape in SHAPES:
        assert_all_no_worse(model(*shape), labels(*shape[:2]), name=isa)


def test_a_batch_of_eight_thousand():
    assert_all_no_worse(model(8192, 33, 16), labels(8192, 33))


def test_lags_beyond_the_bins_are_nothing_in_them():
    tensors, (lag, event, weight) = model(30, 20, 8), labels(30, 20)
    lag[1:4], lag[4:6] = 2**40, -3
    assert_all_no_worse(tensors, (lag, event, weight))
    beyond = nll_parts(tensors, (lag, event, weight), "cpu")
    within = nll_parts(tensors, (lag.clamp(0, 20), event & (lag >= 0), weight), "cpu")
    assert all(map(torch.equal, beyond, within))


@pytest.mark.parametrize("shift", [-7.0, -30.0, 0.0, 5.0, 40.0])
def test_hazards_from_none_to_certain(shift):
    """From all surviving all bins to none surviving the first: sums neither drift nor stop too early."""
    assert_all_no_worse(model(100, 700, 16, shift=shift), labels(100, 700))


@pytest.mark.parametrize("largest", [30.0, 1e4])
def test_extreme_logits(largest):
    tensors = model(70, 90, 16, scale=largest)
    tensors[3] *= largest
    assert_all_no_worse(tensors, labels(70, 90))
    assert all(
        t.isfinite().all() for t in nll_parts(tensors, labels(70, 90), "cpu") + value_parts(tensors, "cpu")
    )


def test_nan_passes_through():
    tensors, marks = model(20, 30, 16), labels(20, 30)
    tensors[0][3, 2] = math.nan
    marks[0][3], marks[1][3], marks[2][3] = 30, False, 1.0
    loss, nll, dfeatures, *_ = nll_parts(tensors, marks, "cpu")
    assert loss.isnan() and nll.isnan().nonzero().tolist() == [[3]] and dfeatures[3].isnan().all()
    value, dfeatures, *_ = value_parts(tensors, "cpu")
    assert value.isnan().nonzero().tolist() == [[3]] and dfeatures[3].isnan().all()


# --- Properties ---


def test_same_bits_whatever_the_threads():
    tensors, marks = model(300, 120, 40), labels(300, 120)
    threads = torch.get_num_threads()
    runs = []
    for n in (threads, threads, 1, 3):
        torch.set_num_threads(n)
        runs.append(nll_parts(tensors, marks, "cpu") + value_parts(tensors, "cpu"))
    torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_rows_do_not_meet():
    tensors, marks = model(150, 40, 24), labels(150, 40)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    here = nll_parts(tensors, marks, "cpu") + value_parts(tensors, "cpu")
    moved = [tensors[0][order], *tensors[1:3], tensors[3][order]]
    there = nll_parts(moved, [t[order] for t in marks], "cpu") + value_parts(moved, "cpu")
    for one, other in zip(here, there, strict=True):
        rows = one.ndim and len(one) == 150
        assert worst_error(other, one[order] if rows else one) < 2e-6
    alone = hazard_value(tensors[0][:1], *tensors[1:3], tensors[3][:1], impl="cpu")
    assert torch.equal(alone, here[6][:1])


def test_masked_rows_count_for_nothing():
    tensors, (lag, event, weight) = model(40, 20, 8), labels(40, 20)
    kept = weight > 0
    whole = nll_parts(tensors, (lag, event, weight), "cpu")
    part = nll_parts(
        [tensors[0][kept], *tensors[1:3], tensors[3][kept]], (lag[kept], event[kept], weight[kept]), "cpu"
    )
    assert not kept.all() and whole[2][~kept].count_nonzero() == 0 and whole[5][~kept].count_nonzero() == 0
    for one, other in zip((whole[0], whole[2][kept], whole[3], whole[4]), (part[0], *part[2:5]), strict=True):
        assert worst_error(one, other) < 1e-6
    for impl in ("cpu", "reference"):
        none = nll_parts(tensors, (lag, event, torch.zeros(40)), impl)
        assert none[0] == 0 and all(t.count_nonzero() == 0 for t in none[2:])


def test_a_value_lies_between_never_and_at_once():
    features, basis, bias, l0 = model(50, 200, 8)
    never = hazard_value(features, basis * 0, bias * 0 - 50, l0 * 0 - 50, gamma=0.99, impl="cpu")
    torch.testing.assert_close(never, torch.full((50,), -(1 - 0.99**200) / 0.01))
    at_once = hazard_value(features, basis, bias, l0 * 0 + 50, impl="cpu")
    assert (at_once <= 0).all() and (at_once > -1e-20).all()


# --- The ops as PyTorch sees them ---


def test_each_gradient_alone():
    tensors, marks = model(40, 30, 20), labels(40, 30)
    lag, event, weight = marks
    every = nll_parts(tensors, marks, "cpu")[2:], value_parts(tensors, "cpu")[1:]
    for i in range(4):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        loss, nll = hazard_nll(*leaves, lag, event, weight=weight, impl="cpu")
        assert not nll.requires_grad
        (alone,) = torch.autograd.grad(3 * loss, leaves[i])
        assert torch.equal(alone, 3 * every[0][i])
        (alone,) = torch.autograd.grad(hazard_value(*leaves, impl="cpu").sum(), leaves[i])
        assert torch.equal(alone, every[1][i])
    with torch.no_grad():
        assert not hazard_value(*leaves, impl="cpu").requires_grad


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_what_is_certain_counts_as_such(impl):
    assert_certainties_count(impl)


def test_strided_inputs_and_compile():
    tensors, (lag, event, weight) = model(30, 20, 12), labels(30, 20)
    strided = [t.T.contiguous().T for t in tensors[:2]]
    assert torch.equal(hazard_value(*strided, *tensors[2:], impl="cpu"), hazard_value(*tensors, impl="cpu"))

    def loss(*leaves):
        nll, rows = hazard_nll(*leaves, lag, event, weight=weight, impl="cpu")
        return nll + rows.sum() + hazard_value(*leaves, impl="cpu").square().sum()

    leaves = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert all(map(torch.equal, torch.autograd.grad(compiled(*leaves), leaves), expected))


def test_registration():
    tensors, marks = model(6, 9, 5), labels(6, 9)
    leaves = [t.requires_grad_() for t in tensors]
    for needs in ([False] * 4, [True, False, False, True], [True] * 4):
        leaves = [t.detach().requires_grad_(n) for t, n in zip(leaves, needs, strict=True)]
        torch.library.opcheck(torch.ops.deepres.hazard_nll_forward.default, (*leaves, *marks, "cpu", needs))
        torch.library.opcheck(torch.ops.deepres.hazard_value_forward.default, (*leaves, 0.9, "cpu", needs))
    for value in (hazard_value(*leaves, impl="cpu").sum(), hazard_nll(*leaves, *marks[:2], impl="cpu")[0]):
        (d,) = torch.autograd.grad(value, leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            d.sum().backward()


def test_choice_of_backend():
    tensors = model(4, 4, 4)
    assert deepres.backends()["hazard"]["cpu"] == "available"
    assert torch.equal(deepres.hazard_value(*tensors), hazard_value(*tensors, impl="cpu"))
    hazard_value(*(t.double() for t in tensors))  # "auto" falls back on the reference
    with pytest.raises(RuntimeError, match=r"impl='cpu'.* float32, got torch.float64"):
        hazard_value(*(t.double() for t in tensors), impl="cpu")


BAD_CALLS = [
    ({"features": torch.zeros(4)}, ValueError, r"\[B, d\] and \[K, d\], got \[4\]"),
    ({"features": torch.zeros(4, 2)}, ValueError, r"got \[4, 2\] and \[5, 3\]"),
    ({"features": torch.zeros(0, 3)}, ValueError, r"at least one row"),
    ({"features": torch.zeros(4, 3).long()}, TypeError, r"float32 .* got torch.int64; call features.float"),
    (
        {"features": np.zeros((4, 3))},
        TypeError,
        r"features must be .* got numpy.ndarray; pass torch.from_numpy",
    ),
    ({"event": [True] * 4}, TypeError, r"event must be .* got list; pass torch.as_tensor\(event\)"),
    ({"basis": torch.zeros(5, 3).double()}, TypeError, r"basis must have features' dtype"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[K\] = \[5\], got \[4\]"),
    ({"bias": torch.zeros(5, device="meta")}, ValueError, r"on features' device cpu, got meta"),
    ({"l0": torch.zeros(4, 1)}, ValueError, r"l0 must have shape \[B\] = \[4\], got \[4, 1\]"),
    ({"lag": torch.zeros(4)}, TypeError, r"lag must be torch.int64, got torch.float32"),
    ({"event": torch.zeros(4)}, TypeError, r"event must be torch.bool, got torch.float32"),
    ({"weight": torch.zeros(3)}, ValueError, r"weight must have shape \[B\] = \[4\], got \[3\]"),
    ({"impl": "gpu"}, ValueError, r"one of auto, .* got 'gpu'"),
]


@pytest.mark.parametrize(("bad", "error", "sentence"), BAD_CALLS)
def test_bad_calls_say_what_was_wanted(bad, error, sentence):
    whole = {
        "features": torch.zeros(4, 3), "basis": torch.zeros(5, 3), "bias": torch.zeros(5), "l0": torch.zeros(4),
        "lag": torch.zeros(4, dtype=torch.int64), "event": torch.zeros(4, dtype=torch.bool),
    }  # fmt: skip
    with pytest.raises(error, match=sentence):
        hazard_nll(**{**whole, **bad})


@pytest.mark.parametrize(
    ("gamma", "error", "sentence"),
    [
        (1.5, ValueError, r"gamma must be a number in \(0, 1\], got 1.5"),
        (0, ValueError, r"gamma must be a number in \(0, 1\], got 0"),
        ("0.9", TypeError, "gamma must be a number, got '0.9'"),
        (True, TypeError, "gamma must be a number, got True"),
    ],
)
def test_a_discount_lies_in_its_range(gamma, error, sentence):
    with pytest.raises(error, match=sentence):
        hazard_value(*model(4, 4, 4), gamma=gamma)
