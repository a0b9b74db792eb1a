"""The Triton InfoNCE through Triton's interpreter, which wants its switch set before Triton is imported."""

import pytest

from helpers.interpreter import interpret

pytest.importorskip("triton", reason="Triton is Linux only")

INSIDE = """
import torch
import test_info_nce as shared
from deepres.kernels import info_nce
from deepres.kernels.info_nce import triton
from deepres.kernels.info_nce.options import ENERGIES, FORMS

torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
assert triton.unavailable() is None

# More than one tile of rows and of columns, ragged, with near pairs and a pair that meets.
for energy in ("norm", "l2", "dot", "cosine"):
    for form in FORMS:
        phi, psi = shared.features(5, 9, 3)
        shared.assert_all_no_worse(phi, psi, impl="triton", energy=energy, form=form, positive_offset=2)
phi, psi = shared.features(37, 70, 20)
psi[30] = phi[27]
psi[31:34] = phi[28:31] + 1e-4
for form in FORMS:
    shared.assert_all_no_worse(phi, psi, impl="triton", form=form, positive_offset=3)
shared.assert_all_no_worse(*shared.features(1, 1, 3), impl="triton")
shared.assert_all_no_worse(*shared.features(17, 17, 300), impl="triton", logsumexp_penalty=0.0)
for energy in ("norm", "l2", "dot"):  # far pairs come from products, within 2^-20 of a logit of 1e4
    phi, psi = shared.scaled(*shared.features(20, 20, 16), energy, 1e4)
    options = {"energy": energy, "logsumexp_penalty": 1e-3, "hair": 1e4 * 2**-20}
    shared.assert_all_no_worse(phi, psi, impl="triton", **options)

# Near pairs: each row of the gradient against its own size.
phi, noise = shared.features(33, 33, 16, scale=10.0)
psi = phi + 1e-6 * noise
exact = (phi.double() - psi.double()).norm(dim=1)
loss, metrics = info_nce(phi, psi, impl="triton", return_metrics=True)
assert abs(metrics.mean_positive.item() / -exact.mean().item() - 1) < 12 * 2**-24
fused, plain = (shared.everything(phi, psi, impl=impl) for impl in ("triton", "reference"))
truth = shared.everything(phi.double(), psi.double(), impl="reference")
for part in (3, 4):
    ours, theirs = (
        ((t[part].double() - truth[part]).norm(dim=1) / truth[part].norm(dim=1)).max() for t in (fused, plain)
    )
    assert ours <= 2 * theirs + 1e-6, (ours, theirs)

# Same bits twice; each gradient alone.
again = shared.everything(phi, psi, impl="triton")
assert all(torch.equal(a, b) for a, b in zip(fused, again))
alone = psi.clone().requires_grad_()
info_nce(phi, alone, impl="triton")[0].backward()
assert torch.equal(alone.grad, fused[4])

# The GPU's own test, which nobody sees run, on what the interpreter takes.
import pytest
import test_info_nce_gpu as on_a_gpu
on_a_gpu.SHAPES = ((5, 9, 3),)
with pytest.MonkeyPatch.context() as patch:
    on_a_gpu.test_no_worse_than_plain_and_the_same_bits_twice("norm", "forward", 2, patch)
print("passed")
"""


OPTIONS = """
import torch
from helpers import info_nce_calls as shared
from deepres.kernels import info_nce
from deepres.kernels.info_nce.options import ENERGIES, FORMS

torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
for place, energy in enumerate(ENERGIES):
    for form in FORMS if energy in ("norm", "mrn") else FORMS[place % 4 : place % 4 + 1]:
        who = "targets" if form in ("forward", "binary") else "labels"
        call = shared.call_of(5, 9, 4, {"row_weight", "scale", "self", who})
        shared.assert_all_no_worse(call, "triton", energy=energy, form=form)
# More than one tile of rows and of goals, fewer goals than rows, gradients of rows, a divisor
for form, energy, options in (("symmetric", "norm", {"labels"}), ("forward", "mrn", {"targets"})):
    shared.assert_all_no_worse(
        shared.call_of(34, 18, 4, options), "triton", energy=energy, form=form, reduction="none"
    )
call = shared.call_of(5, 9, 4, {"row_weight"})
shared.assert_all_no_worse(call, "triton", row_divisor="sum")
call = shared.call_of(10, 14, 4, {"scale", "labels"}, spread=60.0)
for energy in ("norm", "mrn"):  # far pairs come from products, within 2^-20 of the largest logit
    shared.assert_all_no_worse(call, "triton", hair=1e-3, energy=energy, logsumexp_penalty=1e-3)

# Same bits twice; each gradient alone.
call = shared.call_of(6, 8, 4, {"scale", "labels", "row_weight", "self"})
first, again = (shared.everything(call, "triton", energy="mrn", form="symmetric") for _ in range(2))
assert all(torch.equal(first[part], again[part]) for part in first)
for name in shared.LEAVES:
    alone = call[name].clone().requires_grad_()
    loss, _ = info_nce(**{**call, name: alone}, energy="mrn", form="symmetric", impl="triton")
    loss.backward()
    weight = shared.numbers(1, seed=5)[0]
    torch.testing.assert_close(weight * alone.grad, first["d" + name])
print("passed")
"""


@pytest.mark.parametrize("program", [INSIDE, OPTIONS], ids=["first options", "further options"])
def test_through_the_interpreter(program):
    interpret(program)
