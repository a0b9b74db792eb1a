"""The Triton residual stack: judged against float64 in Triton's interpreter, and on a GPU if there is one;
compiled for an H100 without one.

Triton reads TRITON_INTERPRET once in a process. So the `check_` functions are collected by a pytest of their own, with
TRITON_INTERPRET=1; on a GPU they are tests like the others, `test_gpu_...`, so that processes can share them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import deepres
from deepres.kernels import residual_stack
from deepres.kernels.residual_stack import triton
from deepres.kernels.residual_stack.options import StackOptions
from deepres.testing import assert_no_worse

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cpu" if triton.interpreted() else "cuda"
NAMES = ("y", "dx", "dweight", "dbias", "dgamma", "dbeta")


def test_in_the_interpreter() -> None:
    # One thread: the interpreter's products are tiny, and threads that wait for the next only take the cores.
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **one, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=check_*", __file__]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_compiles_for_an_h100_without_spills(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    only = ["target=90", "width=256", "precision=bf16"]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "bench/compile_report.py", "--out", str(out), "--only", *only]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {"forward", "dgrad", "wgrad"}
    for row in rows:
        assert row["spill_stores"] == row["spill_loads"] == row["loop_spills"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
        assert row["registers"] * row["threads"] <= 65536, row


def test_says_why_it_cannot_serve() -> None:
    if not torch.cuda.is_available():
        assert "NVIDIA GPU" in deepres.kernels.backends()["residual_stack"]["triton"]
    reason = triton.unsupported(torch.zeros(2, 96), 4, StackOptions())
    assert reason == "it is built for widths 64, 128, 256, 512, got 96"
    reason = triton.unsupported(torch.zeros(2, 64, dtype=torch.float64), 4, StackOptions())
    assert reason is not None and "float64" in reason


# --- In the interpreter, or on a GPU. ---


@pytest.fixture(autouse=True)
def poisoned_and_cut_short(request, monkeypatch):
    """New memory holds NaN, and stretches are short: 8 layers in backward, 12 in forward."""
    if not request.function.__name__.startswith("check_"):
        yield
        return
    monkeypatch.setattr(triton, "STRETCH", 8)
    monkeypatch.setattr(triton, "ROUNDED_AHEAD", 12)
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def network(batch: int, width: int, depth: int, seed: int = 0) -> list[torch.Tensor]:
    """x, weight, bias, gamma, beta and dy."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, width), (depth, width, width), *[(depth, width)] * 3, (batch, width)]
    x, weight, bias, gamma, beta, dy = (torch.randn(s, generator=generator) for s in shapes)
    tensors = (x, weight * width**-0.5, 0.1 * bias, 1 + 0.1 * gamma, 0.1 * beta, dy)
    return [t.to(DEVICE) for t in tensors]


def run(tensors: list[torch.Tensor], *, impl="triton", dtype=torch.float32, needs="xwbgs", **options):
    """y and the gradients that `needs` asks for, in the order of NAMES; None for the others."""
    *inputs, dy = (t.to(dtype) for t in tensors)
    for t, name in zip(inputs, "xwbgs", strict=True):
        t.requires_grad_(name in needs and (options.get("norm", True) or name in "xwb"))
    y = residual_stack(*inputs, impl=impl, **options)
    asked = [t for t in inputs if t.requires_grad]
    gradients = iter(torch.autograd.grad(y, asked, dy))
    return [y.detach()] + [next(gradients) if t.requires_grad else None for t in inputs]


CASES = [
    # precision, width, depth, batch, options
    ("fp32", 64, 16, 7, {}),
    ("fp32", 128, 4, 40, {}),
    ("fp32", 64, 6, 17, {"skip_every": 3, "activation": "relu", "recompute": 1}),
    ("tf32", 64, 8, 33, {"recompute": 1}),
    ("tf32", 128, 4, 1, {"norm": False}),
    ("fp16", 64, 12, 40, {}),
    ("fp16", 64, 10, 7, {"skip_every": 0}),
    ("fp16", 512, 4, 1, {"skip_every": 2, "recompute": 1}),
    ("bf16", 128, 16, 33, {}),
    ("bf16", 256, 4, 7, {"skip_every": 2, "activation": "relu"}),
    ("bf16", 64, 16, 40, {"recompute": 3}),
    ("bf16", 64, 9, 16, {"skip_every": 0, "norm": False}),
]


@pytest.mark.parametrize(("precision", "width", "depth", "batch", "options"), CASES)
def check_no_worse_than_plain(precision, width, depth, batch, options) -> None:
    tensors = network(batch, width, depth)
    fused = run(tensors, precision=precision, **options)
    plain = run(tensors, impl="reference", precision=precision, **options)
    truth = run(tensors, impl="reference", dtype=torch.float64, **options)
    for name, *results in zip(NAMES, fused, plain, truth, strict=True):
        if results[0] is not None:
            assert_no_worse(name, *results)


@pytest.mark.parametrize("recompute", ["none", 1])
def check_same_input_same_bits(recompute) -> None:
    tensors = network(33, 64, 8)
    once, again = (run(tensors, precision="fp16", recompute=recompute) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def check_inference_gives_the_bits_of_training() -> None:
    tensors = network(20, 64, 16)
    with torch.no_grad():
        y = residual_stack(*tensors[:5], precision="bf16", impl="triton")
    for recompute in ("none", 2):
        assert torch.equal(y, run(tensors, precision="bf16", recompute=recompute)[0])


@pytest.mark.parametrize("needs", ["x", "w", "s", "xg"])
def check_each_gradient_alone(needs) -> None:
    tensors = network(20, 64, 12)
    together, alone = run(tensors, precision="fp16"), run(tensors, precision="fp16", needs=needs)
    for name, a, b in zip("xwbgs", alone[1:], together[1:], strict=True):
        assert a is None if name not in needs else torch.equal(a, b)


def check_small_gradients_are_as_good_in_fp16() -> None:
    *inputs, dy = network(7, 64, 8)
    grads, small = (run([*inputs, power * dy], precision="fp16") for power in (1.0, 2.0**-17))
    assert all(torch.equal(2.0**-17 * g, s) for g, s in zip(grads[1:], small[1:], strict=True))


def check_frozen_weights_take_no_scratch() -> None:
    """Only the operand copy of a stretch's weights, and dx: nothing as large as the stretch's activations."""
    batch, width, depth = 40, 64, 8
    x, weight, *vectors, dy = network(batch, width, depth)
    options = StackOptions(precision="fp16")
    y, *saved = triton.forward(x, weight, *vectors, options, True)
    with Allocations() as allocations:
        triton.backward(dy, x, y, weight, *vectors, *saved, options, (True, False, False, False, False))
    assert allocations.total <= 2 * weight.numel() + 4 * x.numel()


class Allocations(TorchDispatchMode):
    """Bytes of all tensors that are made without contents."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "empty" in func.__name__:
            self.total += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize(("precision", "options"), [("fp16", {}), ("tf32", {"recompute": 1, "norm": False})])
def check_a_group_is_a_call_for_each_member_to_the_bit(precision, options, monkeypatch) -> None:
    """In one launch for all, its gradients of any size; in stretches half as long, for half the scratch each."""
    launched, forward = [], triton._Launches.forward
    monkeypatch.setattr(
        triton._Launches, "forward", lambda *given, **named: (launched.append(0), forward(*given, **named))[1]
    )
    monkeypatch.setattr(triton, "ROUNDED_AHEAD", 16)
    members = [network(17, 64, 8, seed) for seed in range(2)]
    members[1][-1] *= 2.0**-12
    group = run([torch.stack(each) for each in zip(*members, strict=True)], precision=precision, **options)
    of_group = len(launched)
    alone = [run(member, precision=precision, **options) for member in members]
    assert len(launched) == 3 * of_group
    for whole, *parts in zip(group, *alone, strict=True):
        assert whole is None if parts[0] is None else torch.equal(whole, torch.stack(parts))
    empty = run([torch.stack([t, t]) for t in network(0, 64, 4)], precision=precision, **options)
    assert empty[0].shape == (2, 0, 64) and not empty[2].any()


def check_a_row_whose_variance_overflows_is_not_finite() -> None:
    clean = network(20, 64, 4)
    large = [clean[0].clone(), *clean[1:]]
    large[0][3] *= 1e22
    y, dx, dweight, *_ = run(large)
    others = torch.arange(20) != 3
    assert y[3].isnan().all() and dx[3].isnan().all() and dweight.isnan().any()
    assert torch.equal(y[others], run(clean)[0][others]) and dx[others].isfinite().all()


def check_the_output_may_be_changed_in_place() -> None:
    leaves = [t.requires_grad_() for t in network(20, 64, 4)[:5]]
    y = residual_stack(*leaves, impl="triton")
    expected = torch.autograd.grad((y + 1).square().sum(), leaves, retain_graph=True)
    found = torch.autograd.grad(y.add_(1).square().sum(), leaves)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("recompute", ["none", 1])
def check_an_empty_batch(recompute) -> None:
    y, dx, *gradients = run(network(0, 64, 8), precision="bf16", recompute=recompute)
    assert y.shape == dx.shape == (0, 64)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def check_a_nan_stays_in_its_row(precision) -> None:
    clean = network(20, 64, 4)
    dirty = [clean[0].clone(), *clean[1:]]
    dirty[0][3, 5] = torch.nan
    for ours, theirs in zip(
        run(dirty, precision=precision)[:2], run(clean, precision=precision)[:2], strict=True
    ):
        assert ours[3].isnan().all()
        others = torch.arange(20) != 3
        assert torch.equal(ours[others], theirs[others])


if not triton.interpreted():
    for _name in [name for name in globals() if name.startswith("check_")]:
        globals()[f"test_gpu_{_name.removeprefix('check_')}"] = pytest.mark.gpu(globals()[_name])
