"""InfoNCE: the reference against its definition, the CPU kernels against float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import deepres
from deepres import _C
from deepres.kernels.info_nce import cpu, reference
from deepres.kernels.info_nce.op import InfoNCEMetrics, info_nce
from deepres.kernels.info_nce.options import ENERGIES, FORMS, InfoNCEOperands, InfoNCEOptions
from deepres.testing import assert_no_worse, worst_error

PARTS = ("loss", "lse", "metrics", "dphi", "dpsi")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def features(batch, goals, d, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, d, generator=generator) for n in (batch, goals)]


def everything(phi, psi, **options):
    """(loss, lse, metrics, dphi, dpsi) through the public function."""
    phi, psi = phi.clone().requires_grad_(), psi.clone().requires_grad_()
    loss, metrics = info_nce(phi, psi, return_metrics=True, **options)
    dphi, dpsi = torch.autograd.grad(loss, (phi, psi))
    return loss.detach(), metrics.lse, torch.stack(metrics[1:]), dphi, dpsi


def assert_all_no_worse(phi, psi, impl="cpu", hair=2e-7, **options):
    fused = everything(phi, psi, impl=impl, **options)
    plain = everything(phi, psi, impl="reference", **options)
    truth = everything(phi.double(), psi.double(), impl="reference", **options)
    compare(f"{list(phi.shape)} x {len(psi)} {options}", fused, plain, truth, hair)
    logits = reference.energy_logits(phi.double(), psi.double(), options.get("energy", "norm"))
    rounding = 1e-6 * logits.abs().max().item()  # of a mean of logits of both signs
    torch.testing.assert_close(fused[2].double(), truth[2], rtol=0, atol=rounding, equal_nan=True)


def compare(name, fused, plain, truth, hair=2e-7):
    for part, *values in zip(PARTS, fused, plain, truth, strict=True):
        if part != "metrics":
            assert_no_worse(f"{part} {name}", *values, hair=hair)


def scaled(phi, psi, energy, largest):
    """phi, psi scaled until the largest logit is `largest` in size."""
    size = reference.energy_logits(phi.double(), psi.double(), energy).abs().max().item()
    factor = largest / size
    return (phi * factor, psi * factor) if energy == "norm" else (phi * factor**0.5, psi * factor**0.5)


# --- The reference ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_reference_gradients(energy, form):
    phi, psi = (t.double().requires_grad_() for t in features(4, 7, 4))
    for penalty, offset in ((0.0, 0), (0.1, 3)):

        def loss(phi, psi, penalty=penalty, offset=offset):
            return info_nce(
                phi, psi, logsumexp_penalty=penalty, energy=energy, form=form, positive_offset=offset,
                impl="reference",
            )[0]  # fmt: skip

        assert torch.autograd.gradcheck(loss, (phi, psi))


def test_reference_is_the_definition():
    phi, psi = (t.double() for t in features(5, 5, 3))
    logits = torch.tensor([[-math.dist(a, b) for b in psi.tolist()] for a in phi.tolist()]).double()
    rows, columns, own = logits.softmax(1).diagonal(), logits.softmax(0).diagonal(), logits.diagonal()
    lse = logits.exp().sum(1).log()
    binary = F.binary_cross_entropy_with_logits(logits, torch.eye(5).double())
    wanted = {"forward": -rows.log().mean(), "backward": -columns.log().mean(), "binary": binary}
    wanted["symmetric"] = wanted["forward"] + wanted["backward"]
    for form, value in wanted.items():
        loss, metrics = info_nce(
            phi, psi, form=form, logsumexp_penalty=0.5, return_metrics=True, impl="reference"
        )
        torch.testing.assert_close(loss, value + 0.5 * (lse + 1e-6).square().mean(), rtol=1e-6, atol=0)
        torch.testing.assert_close(metrics.lse, lse, rtol=1e-6, atol=0)
        assert metrics.accuracy == (logits.argmax(1) == torch.arange(5)).double().mean()
        assert metrics.mean_positive.item() == pytest.approx(own.mean().item())
        assert metrics.mean_negative.item() == pytest.approx((logits.sum() - own.sum()).item() / 20)


# --- The CPU kernels against float64 ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", ["norm", "l2", "dot", "cosine"])
def test_no_worse_than_plain(energy, form):
    shapes = (
        (1, 1, 3, 0),
        (1, 9, 3, 4),
        (7, 7, 5, 0),
        (130, 130, 64, 0),
        (65, 300, 100, 129),
        (33, 40, 512, 0),
    )
    for batch, goals, d, offset in shapes:
        phi, psi = features(batch, goals, d)
        if (
            phi.numel() < 16
        ):  # of one draw of so few numbers plain PyTorch's error is luck: many are judged together
            assert_draws_no_worse(batch, goals, d, energy=energy, form=form, positive_offset=offset)
        else:
            assert_all_no_worse(phi, psi, energy=energy, form=form, positive_offset=offset)


def assert_draws_no_worse(batch, goals, d, draws=64, **options):
    def pooled(dtype, impl):
        each = [
            everything(*(x.to(dtype) for x in features(batch, goals, d, seed=seed)), impl=impl, **options)
            for seed in range(draws)
        ]
        return [torch.cat([part.flatten() for part in parts]) for parts in zip(*each, strict=True)]

    fused, plain = pooled(torch.float32, "cpu"), pooled(torch.float32, "reference")
    truth = pooled(torch.float64, "reference")
    compare(f"{draws} draws of [{batch}, {d}] x {goals} {options}", fused, plain, truth)
    drawn = [[x.double() for x in features(batch, goals, d, seed=seed)] for seed in range(draws)]
    largest = max(reference.energy_logits(*pair, options["energy"]).abs().max().item() for pair in drawn)
    torch.testing.assert_close(fused[2].double(), truth[2], rtol=0, atol=1e-6 * largest, equal_nan=True)


@pytest.fixture(params=_C.isas())
def isa(request):
    """Every instruction set of this processor serves in turn."""
    chosen = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(chosen)


def test_every_instruction_set(isa):
    phi, psi = features(70, 200, 48)
    for energy, form in itertools.product(cpu.ENERGY_CODES, FORMS):
        options = InfoNCEOptions(0.1, energy, form, 7)
        out = cpu.forward(phi, psi, InfoNCEOperands(), options, (True, True, False))
        fused = (out.loss, out.lse, out.metrics, out.dphi, out.dpsi)
        kwargs = {"energy": energy, "form": form, "positive_offset": 7, "impl": "reference"}
        plain, truth = everything(phi, psi, **kwargs), everything(phi.double(), psi.double(), **kwargs)
        compare(f"{isa} {energy} {form}", fused, plain, truth)


@pytest.mark.parametrize("energy", ["norm", "l2", "dot"])
def test_logits_of_ten_thousand(energy):
    phi, psi = scaled(*features(70, 70, 16), energy, 1e4)
    for form in FORMS:
        assert_all_no_worse(phi, psi, energy=energy, form=form, logsumexp_penalty=1e-3)


def test_several_strips():
    """More rows than a strip holds: the columns' sums and dpsi go on from one strip to the next."""
    phi, psi = features(600, 4500, 8)
    for form in ("forward", "symmetric"):
        assert_all_no_worse(phi, psi, form=form, positive_offset=1000)


def test_near_pairs_lose_no_digits():
    """Pairs 1e-6 of their length apart: distances keep the bound that info_nce/cpu.py states."""
    d = 64
    phi, noise = features(200, 200, d, scale=10.0)
    psi = phi + 1e-6 * noise
    exact = (phi.double() - psi.double()).norm(dim=1)
    ours = torch.cat([-info_nce(a[None], b[None], impl="cpu")[1] for a, b in zip(phi, psi, strict=True)])
    bound = (d / 2 + d / 128 + 3) * 2**-24
    assert ((ours.double() - exact).abs() / exact).max() <= bound
    by_products = torch.cdist(phi, psi, compute_mode="use_mm_for_euclid_dist").diagonal()
    assert (
        (by_products.double() - exact).abs() / exact
    ).max() > 1000 * bound  # what the bound guards against

    def rows_error(got, truth):
        return ((got.double() - truth).norm(dim=1) / truth.norm(dim=1)).max().item()

    for (
        form
    ) in FORMS:  # every pair's own term is a unit vector: its error must not grow as the pair closes in
        fused = everything(phi, psi, form=form, impl="cpu")
        truth = everything(phi.double(), psi.double(), form=form, impl="reference")
        assert max(map(rows_error, fused[3:], truth[3:])) < 2e-6


@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
def test_far_and_near_blocks(shift):
    """Features away from the origin are near each other: gradients then sum differences, not products."""
    phi, psi = features(200, 200, 64)
    phi, psi = phi + shift, psi + shift
    psi[::7] = phi[::7] + 1e-3 * psi[::7]
    for energy in ("norm", "l2"):
        assert_all_no_worse(phi, psi, energy=energy)


def test_a_row_that_meets_its_goal():
    phi, psi = features(40, 40, 16)
    psi[3] = phi[3]
    psi[5] = psi[4] = phi[4]
    for form in FORMS:
        assert_all_no_worse(phi, psi, form=form)
        assert_all_no_worse(phi, phi, form=form)
    assert everything(phi[:1], phi[:1], impl="cpu")[3].count_nonzero() == 0


def test_nan_passes_through():
    phi, psi = features(20, 200, 16)
    psi[150, 3] = math.nan
    loss, lse, _, dphi, _ = everything(phi, psi, impl="cpu")
    assert loss.isnan() and lse.isnan().all() and dphi[:, 3].isnan().all()


# --- Properties ---


@pytest.mark.parametrize("form", FORMS)
def test_permuted_batch_permutes_gradients(form):
    phi, psi = features(150, 150, 24)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    loss, lse, _, dphi, dpsi = everything(phi, psi, form=form, impl="cpu")
    there = everything(phi[order], psi[order], form=form, impl="cpu")
    assert worst_error(there[0], loss) < 1e-6 and worst_error(there[1], lse[order]) < 1e-6
    assert worst_error(there[3], dphi[order]) < 2e-6 and worst_error(there[4], dpsi[order]) < 2e-6


@pytest.mark.parametrize("form", ["forward", "backward", "symmetric"])
def test_dot_ignores_a_shift_of_all_logits(form):
    phi, psi = features(100, 100, 15)
    one, shift = torch.ones(100, 1), torch.full((100, 1), 8.0)
    options = {"energy": "dot", "form": form, "logsumexp_penalty": 0.0, "impl": "cpu"}
    _, _, _, dphi, dpsi = everything(phi, psi, **options)
    _, _, _, dphi2, dpsi2 = everything(torch.cat([phi, one], 1), torch.cat([psi, shift], 1), **options)
    assert worst_error(dphi2[:, :15], dphi) < 1e-5 and worst_error(dpsi2[:, :15], dpsi) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_whatever_the_threads(form):
    phi, psi = features(500, 700, 40)
    threads = torch.get_num_threads()
    runs = []
    for n in (threads, threads, 1, 3):
        torch.set_num_threads(n)
        runs.append(everything(phi, psi, form=form, impl="cpu"))
    torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_goals_gathered_from_ranks():
    """The mean over ranks, each with its own rows and everybody's goals, is the loss of the whole batch."""
    phi, psi = features(120, 120, 20)
    loss, lse, metrics, dphi, dpsi = everything(phi, psi, impl="cpu")
    ranks = [everything(phi[r : r + 40], psi, positive_offset=r, impl="cpu") for r in (0, 40, 80)]
    assert worst_error(sum(r[0] for r in ranks) / 3, loss) < 1e-6
    assert worst_error(torch.cat([r[1] for r in ranks]), lse) < 1e-6
    assert worst_error(sum(r[2] for r in ranks) / 3, metrics) < 1e-6
    assert worst_error(torch.cat([r[3] for r in ranks]) / 3, dphi) < 2e-6
    assert worst_error(sum(r[4] for r in ranks) / 3, dpsi) < 2e-6


# --- The op as PyTorch sees it ---


def test_each_gradient_alone():
    phi, psi = features(100, 140, 20)
    _, _, _, dphi, dpsi = everything(phi, psi, form="symmetric", impl="cpu")
    for t, other, alone in ((phi, psi, dphi), (psi, phi, dpsi)):
        t = t.clone().requires_grad_()
        pair = (t, other) if t.shape[0] == 100 else (other, t)
        loss, _ = info_nce(*pair, form="symmetric", impl="cpu")
        (3 * loss).backward()
        assert torch.equal(t.grad, 3 * alone)
    with torch.no_grad():
        loss, metrics = info_nce(phi, psi, return_metrics=True, impl="cpu")
    assert not loss.requires_grad and isinstance(metrics, InfoNCEMetrics)


def test_strided_inputs_and_compile():
    phi, psi = features(60, 60, 24)
    loss, _ = info_nce(phi, psi, impl="cpu")
    assert torch.equal(info_nce(phi.T.contiguous().T, psi[:, :], impl="cpu")[0], loss)

    def doubled(phi, psi):
        loss, lse = info_nce(2 * phi, 2 * psi, impl="cpu")
        return loss + lse.sum()

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    eager_in, compiled_in = phi.clone().requires_grad_(), phi.clone().requires_grad_()
    doubled(eager_in, psi).backward()
    compiled(compiled_in, psi).backward()
    assert torch.equal(eager_in.grad, compiled_in.grad)


def test_registration():
    phi, psi = features(6, 9, 5)
    options = InfoNCEOptions(positive_offset=2)
    for needs in ([False, False, False], [True, False, False], [True, True, False]):
        phi.requires_grad_(needs[0])
        psi.requires_grad_(needs[1])
        arguments = (phi, psi, *InfoNCEOperands(), *options, "cpu", needs)
        torch.library.opcheck(torch.ops.deepres.info_nce_forward.default, arguments)
    loss, _ = info_nce(phi, psi, impl="cpu")
    (dphi,) = torch.autograd.grad(loss, phi, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        dphi.sum().backward()


def test_choice_of_backend():
    phi, psi = features(4, 4, 4)
    assert deepres.backends()["info_nce"]["cpu"] == "available"
    assert torch.equal(info_nce(phi, psi)[0], info_nce(phi, psi, impl="cpu")[0])
    info_nce(phi.double(), psi.double())  # "auto" falls back on the reference
    with pytest.raises(RuntimeError, match=r"impl='cpu'.* float32, got torch.float64"):
        info_nce(phi.double(), psi.double(), impl="cpu")


BAD_CALLS = [
    ({"phi": torch.zeros(4)}, ValueError, r"\[B, d\] and \[M, d\], got \[4\]"),
    ({"phi": torch.zeros(4, 2)}, ValueError, r"got \[4, 2\] and \[4, 3\]"),
    ({"phi": torch.zeros(0, 3)}, ValueError, r"at least one row"),
    ({"psi": torch.zeros(3, 3)}, ValueError, r"a goal for every row of phi \(4.*got 3"),
    ({"positive_offset": 1}, ValueError, r"positive_offset=1 on\), got 4"),
    ({"positive_offset": -1}, ValueError, r"positive_offset must be .* >= 0, got -1"),
    ({"positive_offset": 0.5}, TypeError, r"positive_offset must be an int, got 0.5"),
    ({"phi": torch.zeros(4, 3, dtype=torch.int32)}, TypeError, r"float32 .* got torch.int32"),
    ({"psi": torch.zeros(4, 3).double()}, TypeError, r"phi's dtype torch.float32, got torch.float64"),
    ({"psi": torch.zeros(4, 3, device="meta")}, ValueError, r"on phi's device cpu, got meta"),
    ({"logsumexp_penalty": -0.1}, ValueError, r">= 0, got -0.1"),
    ({"logsumexp_penalty": math.nan}, ValueError, r">= 0, got nan"),
    ({"energy": "euclid"}, ValueError, r"one of norm, l2, dot, cosine, mrn, got 'euclid'"),
    ({"form": "both"}, ValueError, r"one of forward, backward, symmetric, binary, got 'both'"),
    ({"impl": "gpu"}, ValueError, r"one of auto, .* got 'gpu'"),
]


@pytest.mark.parametrize(("bad", "error", "sentence"), BAD_CALLS)
def test_bad_calls_say_what_was_wanted(bad, error, sentence):
    call = {"phi": torch.zeros(4, 3), "psi": torch.zeros(4, 3), **bad}
    with pytest.raises(error, match=sentence):
        info_nce(call.pop("phi"), call.pop("psi"), **call)
