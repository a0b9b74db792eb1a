"""InfoNCE in Triton on a GPU: one launch with a barrier of the whole grid, which no interpreter runs, and two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres.kernels.info_nce import reference, triton
from deepres.kernels.info_nce.op import info_nce
from deepres.kernels.info_nce.options import FORMS
from deepres.testing import assert_no_worse
from helpers.info_nce_calls import assert_all_no_worse, call_of
from helpers.info_nce_calls import everything as all_of

pytestmark = pytest.mark.gpu

DEVICE = "cpu" if triton.interpreted() else "cuda"
PARTS = ("loss", "lse", "dphi", "dpsi")
ENERGIES = ("norm", "l2", "dot", "cosine")  # that the first kernel serves
SHAPES = ((512, 512, 64), (37, 70, 20), (1, 1, 3))


def features(batch: int, goals: int, width: int) -> tuple[Tensor, Tensor]:
    """phi [batch, width] and psi [goals, width], logits up to about 10; some of psi's rows near one of phi's, and one
    the same."""
    random = torch.Generator().manual_seed(0)
    phi, psi = (torch.randn(n, width, generator=random) * 2 * width**-0.5 for n in (batch, goals))
    if goals > 4:
        psi[1], psi[2:4] = phi[0], phi[2:4] + 1e-4
    return phi.to(DEVICE), psi.to(DEVICE)


def everything(phi: Tensor, psi: Tensor, **options: object) -> list[Tensor]:
    """[loss, lse, dphi, dpsi]."""
    phi, psi = phi.clone().requires_grad_(), psi.clone().requires_grad_()
    loss, metrics = info_nce(phi, psi, return_metrics=True, **options)
    return [loss.detach(), metrics.lse, *torch.autograd.grad(loss, (phi, psi))]


@pytest.mark.parametrize("launches", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_no_worse_than_plain_and_the_same_bits_twice(energy, form, launches, monkeypatch) -> None:
    if launches == 2:
        monkeypatch.setattr(triton, "_multiprocessors", lambda _: 0)
    for batch, goals, width in SHAPES:
        phi, psi = features(batch, goals, width)
        options = {"energy": energy, "form": form, "positive_offset": goals - batch}
        fused = everything(phi, psi, impl="triton", **options)
        again = everything(phi, psi, impl="triton", **options)
        assert all(torch.equal(a, b) for a, b in zip(fused, again, strict=True))
        plain = everything(phi, psi, impl="reference", **options)
        truth = everything(phi.double(), psi.double(), impl="reference", **options)
        largest = reference.energy_logits(phi.double(), psi.double(), energy).abs().max().item()
        hair = 2e-7 + largest * 2**-20  # what triton.py promises of a logit whose product is in 3xTF32
        for name, *results in zip(PARTS, fused, plain, truth, strict=True):
            assert_no_worse(f"{name} [{batch}, {goals}, {width}]", *results, hair=hair)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", [*ENERGIES, "mrn"])
def test_further_options(energy, form) -> None:
    who = "targets" if form in ("forward", "binary") else "labels"
    for batch, goals, width in ((200, 300, 64), (5, 9, 4)):
        call = call_of(batch, goals, width, {"row_weight", "scale", "self", who})
        call = {name: t.to(DEVICE) if torch.is_tensor(t) else t for name, t in call.items()}
        largest = (
            reference.energy_logits(call["phi"].double(), call["psi"].double(), energy).abs().max().item()
        )
        assert_all_no_worse(call, "triton", hair=3e-7 + 2 * largest * 2**-20, energy=energy, form=form)
        first, again = (all_of(call, "triton", energy=energy, form=form, reduction="none") for _ in range(2))
        assert all(torch.equal(first[part], again[part]) for part in first)


def test_a_graph_replays_the_same_bits() -> None:
    """The barrier counts from zero at each replay, too."""
    phi, psi = features(512, 512, 64)
    first = everything(phi, psi, impl="triton")
    phi.requires_grad_(), psi.requires_grad_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, metrics = info_nce(phi, psi, return_metrics=True, impl="triton")
        captured = [loss, metrics.lse, *torch.autograd.grad(loss, (phi, psi))]
    for _ in range(3):
        for tensor in captured:
            tensor.detach().fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))
