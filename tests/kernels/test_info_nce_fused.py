"""The further options of info_nce in C++, against float64."""

from __future__ import annotations

import pytest
import torch

from deepres import _C, info_nce
from deepres.kernels.info_nce.options import ENERGIES, FORMS
from helpers.info_nce_calls import LEAVES, assert_all_no_worse, call_of, everything, numbers

OPTIONS = [
    {"row_weight"}, {"labels"}, {"scale"}, {"targets"}, {"self", "labels"}, {"row_weight", "scale", "labels", "self"},
    {"row_weight", "scale", "targets", "self"}, set(),
]  # fmt: skip
# One tile, less than a vector; ragged; more than a tile of rows, of columns; rectangular both ways
SHAPES = [(1, 2, 8), (7, 9, 6), (37, 150, 20), (130, 40, 66)]


def fits(options: set[str], form: str, batch: int, goals: int) -> bool:
    return not ("targets" in options and form in ("backward", "symmetric")) and (
        batch <= goals or ("self" not in options and bool({"labels", "targets"} & options))
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_options_no_worse_than_plain(energy: str, form: str) -> None:
    for options in OPTIONS:
        for shape in SHAPES:
            if fits(options, form, *shape[:2]):
                assert_all_no_worse(call_of(*shape, options), energy=energy, form=form)
    call = call_of(37, 150, 20, {"row_weight", "scale", "labels"})
    assert_all_no_worse(call, energy=energy, form=form, row_divisor="sum")
    assert_all_no_worse(call, energy=energy, form=form, reduction="none")


@pytest.fixture(params=_C.isas())
def isa(request):
    chosen = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(chosen)


def test_options_on_every_instruction_set(isa: str) -> None:
    for energy in ("norm", "l2", "dot", "mrn"):
        for form in FORMS:
            who = "targets" if form in ("forward", "binary") else "labels"
            assert_all_no_worse(call_of(70, 200, 48, {"row_weight", "scale", who}), energy=energy, form=form)


def test_same_bits_whatever_the_threads() -> None:
    call = call_of(300, 400, 24, {"row_weight", "scale", "labels", "self"})
    threads = torch.get_num_threads()
    for energy in ("norm", "mrn"):
        runs = []
        for n in (threads, threads, 3):
            torch.set_num_threads(n)
            runs.append(everything(call, "cpu", energy=energy, form="symmetric"))
        torch.set_num_threads(threads)
        assert all(torch.equal(run[part], runs[0][part]) for run in runs[1:] for part in run)


def test_several_strips_and_extreme_logits() -> None:
    for options in ({"scale", "row_weight", "labels"}, {"scale", "targets"}):
        form = "symmetric" if "labels" in options else "forward"
        assert_all_no_worse(call_of(200, 12000, 4, options), energy="mrn", form=form)
    for energy in ("norm", "dot", "mrn"):
        for form in FORMS:
            call = call_of(70, 90, 8, {"scale", "labels", "row_weight"}, spread=60.0)
            assert_all_no_worse(call, energy=energy, form=form, logsumexp_penalty=1e-3)


def test_a_large_batch() -> None:
    for options, more in (
        ({"row_weight", "labels"}, {"row_divisor": "sum"}),
        ({"targets"}, {"energy": "dot"}),
        ({"labels"}, {"energy": "mrn"}),
        ({"labels", "scale"}, {"energy": "dot", "form": "binary"}),
    ):
        assert_all_no_worse(call_of(8192, 9, 4, options), **more)


def test_nothing_but_defaults_gives_the_same_bits() -> None:
    """An option that says what holds anyway changes nothing beyond a rounding; without options nothing at all."""
    phi, psi = numbers(50, 12), numbers(50, 12, seed=1)
    for form in FORMS:
        plain = everything({"phi": phi, "psi": psi}, "cpu", form=form)
        for more in (
            {"labels": torch.arange(50)},
            {"row_weight": torch.ones(50)},
            {"scale": 1.0, "bias": 0.0},
        ):
            same = everything({"phi": phi, "psi": psi, **more}, "cpu", form=form)
            assert all(torch.equal(same[part], plain[part]) for part in plain), (form, more)


def test_nan_and_infinity_pass_through_as_through_the_reference() -> None:
    for energy in ENERGIES:
        for value in (float("nan"), float("inf")):
            for form in FORMS:
                call = call_of(5, 9, 6, {"labels"})
                call["phi"][2, 1] = value
                ours, theirs = (
                    everything(call, impl, energy=energy, form=form) for impl in ("cpu", "reference")
                )
                for part in ("loss", "lse"):
                    assert torch.equal(ours[part].isfinite(), theirs[part].isfinite()), (
                        part,
                        energy,
                        value,
                        form,
                    )
                if value != value:
                    assert torch.equal(ours["lse"].isnan(), theirs["lse"].isnan()), (energy, form)


def test_rows_have_no_second_derivative_and_say_so() -> None:
    phi = numbers(4, 6).requires_grad_()
    loss, _ = info_nce(phi, numbers(4, 6, seed=1), reduction="none", impl="cpu")
    (dphi,) = torch.autograd.grad(loss.sum(), phi, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula .* info_nce; pass impl='reference'"):
        dphi.sum().backward()


def test_registration_of_every_operand() -> None:
    call = call_of(6, 9, 4, {"labels", "row_weight", "scale"})
    tensors = {name: call[name].requires_grad_(name in LEAVES) for name in call}
    operands = [tensors.get(name) for name in ("labels", "targets", "row_weight", "scale", "bias")]
    for reduction in ("mean", "none"):
        arguments = (tensors["phi"], tensors["psi"], *operands, None, 0.1, "mrn", "symmetric", 0, -1, "batch",
                     reduction, "cpu", [True, True, True])  # fmt: skip
        torch.library.opcheck(torch.ops.deepres.info_nce_forward.default, arguments)


def test_a_graph_with_every_option() -> None:
    call = call_of(6, 9, 4, {"labels", "row_weight", "scale", "self"})

    def loss(phi, psi, scale):
        return info_nce(**{**call, "phi": phi, "psi": psi, "scale": scale}, reduction="none", impl="cpu")[
            0
        ].sum()

    leaves = [call[name].requires_grad_() for name in ("phi", "psi", "scale")]
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for t, plain in zip(
        torch.autograd.grad(compiled(*leaves), leaves),
        torch.autograd.grad(loss(*leaves), leaves),
        strict=True,
    ):
        assert torch.equal(t, plain)
