"""The Triton kernels of a policy's loss, of the stem and of quasimetrics, through Triton's interpreter, whose switch
stands before its import."""

import pytest

from helpers.interpreter import interpret

pytest.importorskip("triton", reason="Triton is Linux only")

INSIDE = """
import pytest
import torch
import test_policy_ops as shared
from helpers import union_calls
import test_stem
from deepres.kernels.policy import op, triton

torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
assert triton.unavailable() is None

# One row and column; more than one tile, ragged; actions at their bounds; more rows than a program sums at once.
shared.assert_all_no_worse(1, 1, "triton")
shared.assert_all_no_worse(37, 17, "triton")
shared.assert_all_no_worse(9, 64, "triton", scale=8.0)
tensors = [shared.normal(1500, seed=s) for s in (0, 1)] + [torch.tensor(0.2)]
fused, plain = (shared.losses_parts(tensors, impl) for impl in ("triton", "reference"))
truth = shared.losses_parts(tensors, "reference", torch.float64)
for values in zip(fused, plain, truth, strict=True):
    shared.assert_no_worse("losses of 1500", *values)

# Same bits twice; gradients of what is asked for alone; no second derivative.
for name, parts in shared.cases(5, 3):
    assert all(map(torch.equal, parts("triton", torch.float32), parts("triton", torch.float32))), name
x, y = (shared.normal(4, 6, seed=s).requires_grad_() for s in (0, 1))
both = torch.autograd.grad(op.pair_energy(x, y, "norm", impl="triton").sum(), (x, y))
alone = torch.autograd.grad(op.pair_energy(x.detach(), y, "norm", impl="triton").sum(), y)
assert torch.equal(both[1], alone[0])
rows = shared.normal(4, seed=2).requires_grad_()
entropy = op.policy_losses(rows, x[:, 0], torch.tensor(0.0), -1.0, impl="triton")
assert torch.equal(torch.autograd.grad(entropy.actor, rows)[0], torch.full((4,), 0.25))
once = torch.autograd.grad(op.pair_energy(x, y, "l2", impl="triton").sum(), x, create_graph=True)[0]
with pytest.raises(RuntimeError, match="no autograd formula for a second derivative"):
    once.sum().backward()

# What is not finite stays so: a step must see it.
nan = torch.full((2, 3), torch.nan)
assert all(t.isnan().all() for t in op.squashed_gaussian(nan, nan, nan, bounds=(-5, 2), impl="triton"))
refusals = {"norm, l2, dot": (x, y, "mrn"), "one shape": (x, y[:2], "norm"), "takes float32": (x.double(), y, "dot")}
for why, refused in refusals.items():
    with pytest.raises(RuntimeError, match=why):
        op.pair_energy(*refused, impl="triton")

# The losses are of rows: what has more dimensions, or another temperature, is the reference's.
table, one = shared.normal(2, 6, seed=3), torch.tensor([0.3])
for refused in ((table, table, one[0]), (rows, rows, one), (rows, rows, one[0].double())):
    with pytest.raises(RuntimeError, match="takes at least one number in|takes float32"):
        op.policy_losses(*refused, -1.0, impl="triton")
with pytest.raises(RuntimeError, match="in 2 dimensions, got shape"):
    op.pair_energy(rows, rows, "dot", impl="triton")

# The stem: more rows than a program sums, ragged; one number, whose variance is 0.
for shape in ((37, 20), (1, 1)):
    test_stem.assert_all_no_worse(*shape, "triton")

# A row that overflows inside LayerNorm is NaN, and no other: 1 / sqrt(inf) would make finite numbers of it.
u, *vectors, da = test_stem.tensors(5, 20)
u[3] *= 1e22
for activation in ("swish", "relu"):
    a, du, *_ = test_stem.parts((u, *vectors, da), activation, "triton")
    others = torch.arange(5) != 3
    assert a[3].isnan().all() and du[3].isnan().all() and a[others].isfinite().all() and du[others].isfinite().all()

# Lengths of unions: one part; more than a program's, ragged; none.
for shape in ((1, 1), (7, 5), (33, 7)):
    for scale in (1.0, 1e-30, 1e30):
        union_calls.assert_all_no_worse(*shape, "triton", scale=scale)
for edge in union_calls.EDGES:
    edge("triton")
x, y = union_calls.pair(3, 2)
y.requires_grad_()
both = union_calls.found(x, y, "triton", torch.float32)
lengths = union_calls.union_lengths(x, y, impl="triton")
assert torch.equal(lengths, both[0]) and union_calls.union_lengths(x[:0], y[:0]).shape == (0, 2)
weight = torch.randn(lengths.shape, generator=torch.Generator().manual_seed(1))
assert torch.equal(torch.autograd.grad((weight * lengths).sum(), y)[0], both[2])
with pytest.raises(RuntimeError, match="takes at least one row"):
    union_calls.union_lengths(x[:0], y[:0], impl="triton")
print("passed")
"""


def test_through_the_interpreter() -> None:
    interpret(INSIDE)
