"""The further options of info_nce: the reference against plain PyTorch and against other papers' losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from deepres import info_nce
from deepres.algorithms.parts import pair_energy
from deepres.kernels.info_nce.options import ENERGIES, FORMS

NONE = {"logsumexp_penalty": 0.0, "impl": "reference"}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def agree(ours, plain, *leaves):
    """Both values, and the gradients of both in each leaf."""
    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad(plain.sum(), leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), leaves, retain_graph=True), wanted)


# --- Losses of other papers, written as they are usually written ---


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_clip(impl):
    phi, psi = (numbers(9, 6, seed=s).float().requires_grad_() for s in (0, 1))
    log_scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    logits = log_scale.exp() * F.normalize(phi) @ F.normalize(psi).T
    own = torch.arange(9)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    options = {"energy": "cosine", "form": "symmetric", "logsumexp_penalty": 0.0, "impl": impl}
    agree(info_nce(phi, psi, scale=log_scale.exp(), **options)[0] / 2, clip, phi, psi, log_scale)
    agree(info_nce(phi, psi, temperature=0.07, **options)[0] / 2, clip, phi, psi)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_nt_xent(impl):
    views = numbers(2, 7, 5).float().requires_grad_()
    z = views.flatten(0, 1)
    similarity = (F.normalize(z) @ F.normalize(z).T / 0.5).masked_fill(
        torch.eye(14, dtype=torch.bool), -math.inf
    )
    partner = torch.arange(14).roll(7)
    plain = F.cross_entropy(similarity, partner)
    ours, _ = info_nce(
        z,
        z,
        energy="cosine",
        temperature=0.5,
        labels=partner,
        self_offset=0,
        logsumexp_penalty=0.0,
        impl=impl,
    )
    agree(ours, plain, views)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_siglip(impl):
    phi, psi = (numbers(9, 6, seed=s).float().requires_grad_() for s in (0, 1))
    log_scale, bias = torch.tensor([2.3], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    logits = log_scale.exp() * F.normalize(phi) @ F.normalize(psi).T + bias
    signs = 2 * torch.eye(9) - 1
    siglip = -F.logsigmoid(signs * logits).sum() / 9  # a sum over goals, where "binary" has a mean
    ours, _ = info_nce(
        phi,
        psi,
        energy="cosine",
        form="binary",
        scale=log_scale.exp(),
        bias=bias,
        logsumexp_penalty=0.0,
        impl=impl,
    )
    agree(9 * ours, siglip, phi, psi, log_scale, bias)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_supervised_contrast(impl):
    """Several positives to a row and its own copy left out: SupCon, arXiv 2004.11362, equation 2."""
    z = numbers(8, 5).float().requires_grad_()
    kind = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    same = (kind == kind.unsqueeze(1)) & ~torch.eye(8, dtype=torch.bool)
    logits = (z @ z.T).masked_fill(torch.eye(8, dtype=torch.bool), -math.inf)
    log_p = logits.log_softmax(1).masked_fill(~same, 0.0)
    targets = same / same.sum(1, keepdim=True)
    options = {"energy": "dot", "targets": targets, "self_offset": 0, "logsumexp_penalty": 0.0}
    agree(info_nce(z, z, impl=impl, **options)[0], -(log_p.sum(1) / same.sum(1)).mean(), z)


# --- Each option, as its line of the docstring says ---


def test_mrn():
    x, y = (numbers(n, 6, seed=n).requires_grad_() for n in (5, 7))
    difference = x.unsqueeze(1) - y
    plain = -(difference[..., :3].relu().amax(-1) + (difference[..., 3:].square().sum(-1) + 1e-6).sqrt())
    lse = plain.logsumexp(1)
    agree(info_nce(x, y, energy="mrn", **NONE)[0], (lse - plain.diagonal()).mean(), x, y)
    with torch.no_grad():
        torch.testing.assert_close(pair_energy(x, y[:5], "mrn"), plain.diagonal())
    alike = x.detach().clone().requires_grad_()
    loss, _ = info_nce(alike, alike, energy="mrn", **NONE)  # pairs that meet
    loss.backward()
    assert loss.isfinite() and alike.grad.isfinite().all()


@pytest.mark.parametrize("energy", ENERGIES)
def test_pair_energy_is_the_diagonal(energy):
    phi, psi = (numbers(4, 6, seed=s).requires_grad_() for s in (0, 1))
    ours = torch.stack(
        [info_nce(a[None], b[None], energy=energy, **NONE)[1][0] for a, b in zip(phi, psi, strict=True)]
    )
    torch.testing.assert_close(pair_energy(phi, psi, energy), ours)


def per_row(logits, form):
    lse, own = logits.logsumexp(1), logits.diagonal()
    backward = logits[:, : len(logits)].logsumexp(0) - own
    binary = F.binary_cross_entropy_with_logits(
        logits, torch.eye(*logits.shape).double(), reduction="none"
    ).mean(1)
    return {
        "forward": lse - own, "backward": backward, "symmetric": lse - own + backward, "binary": binary,
    }[form], (lse + 1e-6).square()  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_and_rows(form):
    phi, psi = numbers(6, 4).requires_grad_(), numbers(8, 4, seed=1).requires_grad_()
    weight = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 1.0])
    rows, penalty = per_row(-torch.cdist(phi, psi), form)
    options = {"form": form, "logsumexp_penalty": 0.3, "row_weight": weight, "impl": "reference"}
    agree(info_nce(phi, psi, **options)[0], (weight * rows).mean() + 0.3 * penalty.mean(), phi, psi)
    summed = (weight * rows).sum() / weight.sum() + 0.3 * penalty.mean()
    agree(info_nce(phi, psi, row_divisor="sum", **options)[0], summed, phi, psi)
    agree(info_nce(phi, psi, reduction="none", **options)[0], weight * rows + 0.3 * penalty, phi, psi)
    by_mask = {**options, "row_weight": weight > 0, "row_divisor": "sum"}
    torch.testing.assert_close(
        info_nce(phi, psi, **by_mask)[0], rows[weight > 0].mean() + 0.3 * penalty.mean()
    )
    nothing = {**options, "row_weight": torch.zeros(6), "row_divisor": "sum"}
    torch.testing.assert_close(info_nce(phi, psi, **nothing)[0], 0.3 * penalty.mean())


@pytest.mark.parametrize("form", FORMS)
def test_labels(form):
    phi, psi = numbers(6, 4).requires_grad_(), numbers(3, 4, seed=1).requires_grad_()
    labels = torch.tensor([2, 0, 2, 2, 1, 0])
    logits = phi @ psi.T
    backward = (logits.logsumexp(0)[labels] - logits.gather(1, labels[:, None])[:, 0]).mean()
    plain = {
        "forward": F.cross_entropy(logits, labels), "backward": backward,
        "symmetric": F.cross_entropy(logits, labels) + backward,
        "binary": F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).double()),
    }[form]  # fmt: skip
    loss, metrics = info_nce(
        phi, psi, energy="dot", form=form, labels=labels.int(), return_metrics=True, **NONE
    )
    agree(loss, plain, phi, psi)
    assert metrics.accuracy == (logits.argmax(1) == labels).double().mean()
    own = logits.gather(1, labels[:, None])
    torch.testing.assert_close(metrics.mean_positive, own.mean().detach())
    torch.testing.assert_close(metrics.mean_negative, ((logits.sum() - own.sum()) / 12).detach())


def test_labels_where_values_cannot_be_looked_at_and_of_few_bits():
    phi, psi, labels = numbers(5, 4).float(), numbers(8, 4, seed=1).float(), torch.tensor([3, 4, 0, 7, 3])
    both = torch.stack([labels, labels.flip(0)])
    mapped = torch.vmap(lambda rows: info_nce(phi, psi, labels=rows)[0])(both)
    torch.testing.assert_close(mapped, torch.stack([info_nce(phi, psi, labels=rows)[0] for rows in both]))
    recorded = make_fx(lambda phi, rows: info_nce(phi, psi, labels=rows)[0])(phi, labels)
    torch.testing.assert_close(recorded(phi, both[1]), mapped[1])
    many = numbers(400, 4, seed=2).float()
    for dtype in (torch.uint8, torch.int64):  # 44 - 300 is 0 in 8 bits
        loss, _ = info_nce(phi, many, labels=torch.tensor([44, 1, 2, 3, 5], dtype=dtype), self_offset=300)
        assert loss.isfinite()


@pytest.mark.parametrize("form", ["forward", "binary"])
def test_targets(form):
    phi, psi = numbers(6, 4).requires_grad_(), numbers(9, 4, seed=1).requires_grad_()
    targets = numbers(6, 9, seed=2).softmax(1) * torch.rand(6, 1).double()
    logits = phi @ psi.T
    loss_of = F.cross_entropy if form == "forward" else F.binary_cross_entropy_with_logits
    agree(
        info_nce(phi, psi, energy="dot", form=form, targets=targets, **NONE)[0],
        loss_of(logits, targets),
        phi,
        psi,
    )
    one_hot = torch.eye(6, 9)
    ours, theirs = (
        info_nce(phi, psi, form=form, return_metrics=True, **NONE, **o) for o in ({"targets": one_hot}, {})
    )
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(tuple(ours[1]), tuple(theirs[1]))


@pytest.mark.parametrize("form", FORMS)
def test_reference_gradients_of_all_options_at_once(form):
    phi, psi = numbers(5, 4).requires_grad_(), numbers(8, 4, seed=1).requires_grad_()
    scale, bias = torch.tensor(1.3).double().requires_grad_(), torch.tensor(-0.4).double().requires_grad_()
    who = {"targets": numbers(5, 8, seed=3).softmax(1)} if form in ("forward", "binary") else {
        "labels": torch.tensor([3, 4, 0, 7, 3])}  # fmt: skip

    def loss(phi, psi, scale, bias):
        return info_nce(
            phi, psi, form=form, scale=scale, bias=bias, row_weight=torch.arange(5.0), row_divisor="sum",
            self_offset=2, reduction="none", impl="reference", **who,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, (phi, psi, scale, bias))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_settings_of_the_process_change_nothing(impl):
    """Default dtype and device, inference mode, deterministic algorithms."""
    phi, psi = numbers(6, 4).float().requires_grad_(), numbers(6, 4, seed=1).float()
    labels = torch.arange(6).roll(1)

    def results():
        loss, lse = info_nce(
            phi, psi, energy="mrn", labels=labels, self_offset=0, scale=2.0, row_weight=labels > 0,
            row_divisor="sum", impl=impl,
        )  # fmt: skip
        return loss, lse

    loss, lse = results()
    (dphi,) = torch.autograd.grad(loss, phi)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.device("meta"):
            again = results()
            assert torch.equal(torch.autograd.grad(again[0], phi)[0], dphi)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        inside = results()
    for other in (again, inside):
        assert torch.equal(other[0], loss) and torch.equal(other[1], lse) and other[0].dtype == torch.float32


FEATURES = torch.zeros(4, 3)
BAD = [
    ({"weight": FEATURES[:, 0]}, TypeError, r"no option 'weight'; row_weight=\[B\] weighs the rows"),
    ({"temprature": 1.0}, TypeError, r"did you mean 'temperature'\?"),
    (
        {"logsumexp_penalty": torch.tensor(0.1)},
        TypeError,
        r"a number, got a tensor, which would get no gradient",
    ),
    ({"energy": "mrn"}, ValueError, r"two halves, got an odd number, 3"),
    ({"row_divisor": "sum"}, ValueError, r"sum of row_weight, got none"),
    ({"row_weight": torch.ones(3)}, ValueError, r"row_weight must have shape \[4\], got \[3\]"),
    ({"row_weight": torch.ones(4, requires_grad=True)}, ValueError, r"row_weight is a constant .*detach\(\)"),
    ({"targets": torch.ones(4, 3)}, ValueError, r"targets must have shape \[4, 4\].*got \[4, 3\]"),
    ({"targets": torch.ones(4, 4), "form": "backward"}, ValueError, r"targets serve .* got 'backward'"),
    ({"targets": torch.ones(4, 4), "labels": torch.arange(4)}, ValueError, r"labels and targets both"),
    ({"labels": torch.ones(4)}, TypeError, r"labels must be 4 integers, .* got torch.float32 \[4\]"),
    ({"labels": torch.tensor([0, 1, 2, 4])}, ValueError, r"labels must be rows of psi, 0 to 3, got 4"),
    ({"labels": torch.arange(4), "positive_offset": 1}, ValueError, r"so do labels and targets; pass one"),
    ({"self_offset": 0}, ValueError, r"self_offset=0 leaves out the rows' own goals"),
    ({"self_offset": 0, "labels": torch.tensor([1, 2, 3, 3])}, ValueError, r"other goals than those"),
    ({"labels": torch.ones(4).cfloat()}, TypeError, r"labels must be 4 integers, .* got torch.complex64"),
    ({"labels": torch.arange(4), "positive_offset": 0.0}, ValueError, r"so do labels and targets; pass one"),
    ({"scale": -1.0}, ValueError, r"scale must be a finite number > 0, got -1.0"),
    ({"temperature": 1e-320}, ValueError, r"its inverse to be a finite torch.float32, got 1e-320"),
    ({"self_offset": 1}, ValueError, r"from self_offset=1 on\), got 4"),
    ({"temperature": 0.0}, ValueError, r"temperature must be a finite number > 0, got 0.0"),
    ({"temperature": 1.0, "scale": 1.0}, ValueError, r"each other's inverse"),
    ({"temperature": torch.tensor(1.0)}, TypeError, r"pass scale=1 / temperature"),
    ({"scale": math.inf}, ValueError, r"scale must be a finite number > 0, got inf"),
    ({"bias": torch.ones(2)}, ValueError, r"bias must be one number, .* got torch.float32 \[2\]"),
    ({"reduction": "sum"}, ValueError, r"reduction must be one of mean, none, got 'sum'"),
    ({"scale": 10**400}, ValueError, r"scale must be a finite number > 0, got 1000"),
    ({"temperature": 10**400}, ValueError, r"temperature must be a finite number > 0, got 1000"),
    ({"logsumexp_penalty": 10**400}, ValueError, r"logsumexp_penalty must be a finite number >= 0, got 1000"),
    ({"logsumexp_penalty": "0.1"}, TypeError, r"logsumexp_penalty must be a number, got '0.1'"),
    ({"bias": True}, TypeError, r"bias must be a number, got True"),
    ({"labels": [0, 1, 2, 3]}, TypeError, r"labels must be a torch.Tensor, got list; pass torch.as_tensor"),
    ({"return_metrics": "False"}, TypeError, r"return_metrics must be True or False, got 'False'"),
    ({"positive_offset": 2**70}, ValueError, r"a goal for every row of phi"),
]


@pytest.mark.parametrize(("bad", "error", "sentence"), BAD)
def test_bad_options_say_what_was_wanted(bad, error, sentence):
    with pytest.raises(error, match=sentence):
        info_nce(FEATURES, FEATURES, **bad)
