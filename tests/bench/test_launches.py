"""What a gradient step launches on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is Linux only")

from bench.gpu import launches
from deepres.algorithms import parts
from deepres.data.batch import Sizes
from helpers import learners


def test_launches_are_those_of_who_asked_for_them() -> None:
    """Views launch nothing; what autograd launches belongs to the line that made it."""
    x, layer = torch.ones(3, 4, requires_grad=True), torch.nn.LayerNorm(4)

    def step() -> None:
        assert x.is_cuda
        cloned = parts.unit_log_density(layer(x.view(2, 6)[:, 2:]), x[1:].detach())
        cloned.sum().backward()

    counted = launches.count(step)
    density, elsewhere = launches.PLACES["algorithms/parts.py"], "else"
    of = {(launch.place, launch.way, launch.kernel): number for launch, number in counted.items()}
    assert not x.is_cuda
    assert of[elsewhere, "forward", "native_layer_norm"] == 1
    assert of[elsewhere, "backward", "native_layer_norm_backward"] == 2  # the input's, the parameters'
    assert of[density, "forward", "sum"] == 1 and of[density, "backward", "pow"] == 1
    assert (density, "forward", "view") not in of and launches.outside(counted) == counted.total()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_step_of_crl_launches_few_kernels(precision) -> None:
    config = learners.small("crl", depth=4, width=64, batch_size=8, precision=precision)
    counted = launches.of_step(config, Sizes(5, 2, 3))
    kernels = {launch.kernel for launch in counted}
    assert {"residual_stack_forward", "residual_stack_dgrad", "info_nce_kernel", "_fused_adam_"} <= kernels
    for name in ("gaussian", "pair", "losses"):
        assert {f"{name}_kernel", f"{name}_backward_kernel"} <= kernels
    assert launches.outside(counted) <= 70
