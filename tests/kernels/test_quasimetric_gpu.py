"""Lengths of unions of intervals on a GPU. No extension is built there, so nothing here imports it."""

from __future__ import annotations

import pytest
import torch

from helpers.union_calls import SHAPES, assert_all_no_worse, found, pair


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu(shape):
    """Also the same bits twice."""
    for scale in (1.0, 1e-30, 1e30):
        assert_all_no_worse(*shape, "triton", scale=scale, device="cuda")
    runs = [found(*pair(*shape), impl, torch.float32, device="cuda") for impl in ("auto", "triton")]
    assert all(map(torch.equal, *runs))
