"""The CUDA residual stack with swapped operands: what it takes, and that one order of the weights serves both ways.

What it computes is tested beside the other form, in test_residual_stack_cuda.py.
"""

from __future__ import annotations

import pytest
import torch

import deepres
from deepres.kernels import cuda_program, packing
from deepres.kernels.residual_stack.cuda_geometry import Tuning, tuned
from helpers import cuda_on_host


def step(width: int, precision: str) -> None:
    """Forward and backward of a stack of 4 layers."""
    random = torch.Generator().manual_seed(0)
    shapes = ((7, width), (4, width, width), *((4, width),) * 3)
    tensors = [0.1 * torch.randn(shape, generator=random) for shape in shapes]
    weight = tensors[1].requires_grad_()
    deepres.residual_stack(*tensors, impl="cuda", precision=precision).sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_weights_are_packed_once_and_what_is_not_served_is_said(monkeypatch) -> None:
    launched, run = [], cuda_on_host.HostProgram.launch

    def launch(self, kernel, *rest):
        launched.append(kernel)
        run(self, kernel, *rest)

    with cuda_on_host.served(monkeypatch):
        monkeypatch.setattr(cuda_on_host.HostProgram, "launch", launch)
        monkeypatch.setattr(cuda_program, "device_facts", lambda _: cuda_on_host.LARGE)
        for tuning, packs in ((Tuning(), 2), (Tuning(16), 1)):
            launched.clear()
            with tuned(tuning), packing.packed_once():
                step(128, "bf16")
            assert launched.count("residual_stack_pack") == packs
        for width, precision, facts, said in (
            (128, "bf16", cuda_on_host.SMALL, "compute capability 9.0, this one has 8.0"),
            (128, "fp32", cuda_on_host.LARGE, "precision bf16 or fp16, got fp32"),
            (512, "bf16", cuda_on_host.LARGE, "widths 64, 128, 256, got 512"),
        ):
            monkeypatch.setattr(cuda_program, "device_facts", lambda _, facts=facts: facts)
            refused = pytest.raises(
                RuntimeError, match=rf"swapped_rows .*{said}; pass Tuning\(swapped_rows=0\)"
            )
            with tuned(Tuning(16)), refused:
                step(width, precision)
    with pytest.raises(ValueError, match="swapped_rows must be 0, 16 or 32, got 8"):
        Tuning(8)
