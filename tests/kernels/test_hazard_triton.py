"""The Triton hazards through Triton's interpreter, which wants its switch set before Triton is imported."""

import pytest
import torch

from helpers import hazard_calls as shared
from helpers.interpreter import interpret

pytest.importorskip("triton", reason="Triton is Linux only")

INSIDE = """
import torch
from helpers import hazard_calls as shared
from deepres.kernels.hazard import triton

torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
assert triton.unavailable() is None

# More than one tile of rows and of bins, ragged; hazards from none to certain; extreme logits.
for shape in ((1, 1, 1), (18, 70, 20)):
    shared.assert_all_no_worse(shared.model(*shape), shared.labels(*shape[:2]), impl="triton")
for shift in (-7.0, 40.0):
    shared.assert_all_no_worse(shared.model(5, 130, 16, shift=shift), shared.labels(5, 130), impl="triton")
tensors, (lag, event, weight) = shared.model(10, 70, 16, scale=1e4), shared.labels(10, 70)
tensors[3] *= 1e4
lag[1:4], lag[4:6] = 2**40, -3
shared.assert_all_no_worse(tensors, (lag, event, weight), impl="triton")

shared.assert_certainties_count("triton")

# Same bits twice; each gradient alone.
tensors, marks = shared.model(10, 20, 8), shared.labels(10, 20)
one = shared.nll_parts(tensors, marks, "triton") + shared.value_parts(tensors, "triton")
two = shared.nll_parts(tensors, marks, "triton") + shared.value_parts(tensors, "triton")
assert all(map(torch.equal, one, two))
for i in (0, 1):
    leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
    loss, _ = shared.hazard_nll(*leaves, *marks[:2], weight=marks[2], impl="triton")
    assert torch.equal(torch.autograd.grad(loss, leaves[i])[0], one[2 + i])
    value = shared.hazard_value(*leaves, impl="triton")
    assert torch.equal(torch.autograd.grad(value.sum(), leaves[i])[0], one[7 + i])
none = shared.nll_parts(tensors, (*marks[:2], torch.zeros(10)), "triton")
assert none[0] == 0 and all(t.count_nonzero() == 0 for t in none[2:])
print("passed")
"""


def test_through_the_interpreter():
    interpret(INSIDE)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 49, 64), (512, 1000, 64)], ids=str)
def test_on_a_gpu(shape):
    tensors, marks = shared.model(*shape), shared.labels(*shape[:2])
    tensors, marks = [[t.cuda() for t in each] for each in (tensors, marks)]
    shared.assert_all_no_worse(tensors, marks, impl="triton")
    one, two = (shared.nll_parts(tensors, marks, "triton") for _ in range(2))
    assert all(map(torch.equal, one, two))
