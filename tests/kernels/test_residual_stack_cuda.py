"""The CUDA residual stack. Its very sources run on the CPU (csrc/cuda/host); with a GPU, the real thing."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepres
from deepres.kernels import cuda_program
from deepres.kernels.residual_stack import cuda, cuda_geometry
from deepres.kernels.residual_stack.cuda_geometry import Tuning, tuned
from deepres.kernels.residual_stack.options import StackOptions
from deepres.testing import assert_no_worse
from helpers import cuda_on_host

NAMES = ("x", "weight", "bias", "gamma", "beta")


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch):
    """impl="cuda" over CPU tensors; what it allocates starts as NaN, shared memory too (host/fibers.h)."""
    with cuda_on_host.served(monkeypatch):
        yield monkeypatch


def arguments(batch: int, width: int, depth: int, device: str = "cpu") -> list[torch.Tensor]:
    """x and parameters of a stack whose layers keep the scale of their input, in float64."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device)

    weight = normal(depth, width, width) / width**0.5
    gamma = 1 + 0.1 * normal(depth, width)
    return [normal(batch, width), weight, 0.1 * normal(depth, width), gamma, 0.1 * normal(depth, width)]


def outputs(impl: str, dtype: torch.dtype, args: list[torch.Tensor], **options) -> list[torch.Tensor]:
    """[y, dx, dweight, dbias, dgamma, dbeta] for a fixed dy."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in args]
    y = deepres.residual_stack(*leaves, impl=impl, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    grads = torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)
    return [y.detach(), *grads]


def assert_matches(args: list[torch.Tensor], **options) -> None:
    """Errors against float64 without any rounding of operands, beside plain PyTorch in the same precision."""
    exact = {name: value for name, value in options.items() if name != "precision"}
    truth = outputs("reference", torch.float64, args, **exact)
    plain = outputs("reference", torch.float32, args, **options)
    fused = outputs("cuda", torch.float32, args, **options)
    for name, f, p, t in zip(("y", *(f"d{n}" for n in NAMES)), fused, plain, truth, strict=True):
        assert_no_worse(name, f, p, t)


CASES = [
    # width, depth, batch, options; each width and precision is a build of its own
    (64, 16, 100, {"precision": "bf16"}),
    (64, 8, 1, {"precision": "bf16", "recompute": 1}),
    (64, 12, 33, {"precision": "bf16", "recompute": 2}),
    (64, 16, 7, {"precision": "fp16"}),
    (64, 8, 20, {"precision": "tf32"}),
    (64, 16, 100, {}),
    (64, 12, 7, {"recompute": 1}),
    (64, 6, 17, {"skip_every": 0}),
    (64, 5, 17, {"skip_every": 1, "eps": 0.1}),
    (64, 8, 16, {"norm": False, "activation": "relu"}),
    (64, 8, 33, {"norm": False, "activation": "relu", "recompute": 1}),
    (128, 8, 100, {"precision": "bf16"}),
    (256, 4, 7, {"precision": "fp32"}),
    (512, 4, 7, {"precision": "bf16"}),
    (512, 4, 7, {"precision": "fp32"}),
]


@pytest.mark.parametrize(("width", "depth", "batch", "options"), CASES, ids=str)
def test_error_is_no_worse_than_plain_pytorch(width, depth, batch, options, on_host) -> None:
    assert_matches(arguments(batch, width, depth), **options)


@pytest.mark.parametrize(
    ("width", "depth", "batch", "options", "swapped_rows"),
    [
        (128, 8, 20, {"precision": "bf16"}, 0),  # 2 blocks share 16 rows
        (128, 8, 7, {"precision": "bf16", "recompute": 1}, 0),
        (256, 4, 20, {}, 0),  # 4 blocks
        (256, 4, 7, {"norm": False, "precision": "bf16"}, 0),
        (1024, 2, 7, {"precision": "bf16", "skip_every": 2}, 0),  # which clusters alone serve
        (128, 8, 20, {"precision": "bf16"}, 16),
        (64, 8, 33, {"precision": "fp16", "recompute": 1}, 32),
    ],
    ids=str,
)
def test_clusters_are_no_worse_either(width, depth, batch, options, swapped_rows, on_host) -> None:
    on_host.setattr(cuda_program, "device_facts", lambda _: cuda_on_host.LARGE)
    with tuned(Tuning(swapped_rows)):
        assert_matches(arguments(batch, width, depth), **options)


@pytest.mark.parametrize(
    ("width", "precision", "facts", "swapped_rows"),
    [
        (64, "bf16", cuda_on_host.SMALL, 0),
        (64, "fp32", cuda_on_host.SMALL, 0),
        (128, "bf16", cuda_on_host.LARGE, 0),
        (128, "bf16", cuda_on_host.LARGE, 16),
    ],
    ids=["one block", "one block, fp32", "cluster", "swapped"],
)
def test_same_bits_whatever_runs_first(width: int, precision: str, facts, swapped_rows, on_host) -> None:
    """Threads in order or shuffled, copies as early or as late as can be: a missing barrier or fence would show."""
    on_host.setattr(cuda_program, "device_facts", lambda _: facts)
    args = arguments(20, width, 8)
    with tuned(Tuning(swapped_rows)):
        first = outputs("cuda", torch.float32, args, precision=precision)
        for schedule in (0, 1, 2, 3):
            on_host.setattr(cuda_on_host.HostProgram, "schedule", schedule)
            again = outputs("cuda", torch.float32, args, precision=precision)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"schedule {schedule}"


@pytest.mark.parametrize("recompute", ["none", 1])
def test_stretches_change_nothing(recompute, on_host) -> None:
    args = arguments(20, 64, 12)
    whole = outputs("cuda", torch.float32, args, precision="bf16", recompute=recompute)
    on_host.setattr(cuda, "SCRATCH_BYTES", 1)
    cut = outputs("cuda", torch.float32, args, precision="bf16", recompute=recompute)
    assert torch.equal(whole[0], cut[0])
    if recompute == "none":  # under recomputation the residual stream is found from other points
        assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    else:
        assert_matches(args, precision="bf16", recompute=recompute)


def test_small_gradients_are_as_good_in_fp16(on_host) -> None:
    """The backward pass is linear in dy: a power of two on it is one on every gradient, to the bit."""
    tensors = [t.float().requires_grad_() for t in arguments(7, 64, 8)]
    y = deepres.residual_stack(*tensors, impl="cuda", precision="fp16")
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(y, tensors, dy, retain_graph=True)
    for power in (2.0**-17, 2.0**9):  # InfoNCE at batch 512 hands back some 1e-5
        scaled = torch.autograd.grad(y, tensors, power * dy, retain_graph=True)
        assert all(torch.equal(power * g, s) for g, s in zip(grads, scaled, strict=True))
    nothing = torch.autograd.grad(y, tensors, 0 * dy, retain_graph=True)
    assert all(g.count_nonzero() == 0 for g in nothing)
    assert torch.autograd.grad(y, tensors, torch.inf * dy)[1].isnan().any()


@pytest.mark.parametrize("wanted", range(5), ids=NAMES)
def test_each_gradient_alone(wanted: int, on_host) -> None:
    args = arguments(17, 64, 8)
    full = outputs("cuda", torch.float32, args, precision="bf16")
    leaves = [t.float().requires_grad_(i == wanted) for i, t in enumerate(args)]
    y = deepres.residual_stack(*leaves, impl="cuda", precision="bf16")
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float())
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) if i != wanted else torch.equal(leaf.grad, full[1 + i])


def test_inference_saves_nothing_and_agrees(on_host) -> None:
    args = [t.float() for t in arguments(17, 64, 8)]
    options = StackOptions(precision="bf16")
    y, activations, statistics = cuda.forward(*args, options, False)
    assert activations.numel() == statistics.numel() == 0
    assert torch.equal(y, outputs("cuda", torch.float32, args, precision="bf16")[0])


def test_empty_batch(on_host) -> None:
    y, dx, *grads = outputs("cuda", torch.float32, arguments(0, 64, 8), precision="bf16")
    assert y.shape == dx.shape == (0, 64)
    assert all(g.count_nonzero() == 0 for g in grads)


@pytest.mark.parametrize("large", [torch.nan, 1e20])
@pytest.mark.parametrize(
    ("width", "facts", "swapped_rows"), [(64, cuda_on_host.SMALL, 0), (128, cuda_on_host.LARGE, 16)]
)
def test_nan_stays_in_its_row(width, facts, swapped_rows, large, on_host) -> None:
    """What overflows inside LayerNorm is NaN too: 1 / sqrt(inf) would make finite numbers of it."""
    on_host.setattr(cuda_program, "device_facts", lambda _: facts)
    args = arguments(20, width, 4)
    args[0][3, 5] = large
    with tuned(Tuning(swapped_rows)):
        y, dx, dweight, *_ = outputs("cuda", torch.float32, args, precision="bf16")
    rows = torch.arange(20) != 3
    assert y[3].isnan().all() and dx[3].isnan().all() and dweight.isnan().any()
    assert y[rows].isfinite().all() and dx[rows].isfinite().all()


def test_views_that_begin_anywhere(on_host) -> None:
    args = [t.float() for t in arguments(7, 64, 4)]
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in args]
    assert shifted[0].data_ptr() % 16 != 0
    both = [outputs("cuda", torch.float32, a, precision="bf16") for a in (args, shifted)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_every_access_to_memory_is_in_bounds() -> None:
    """Tests above again, in a process whose kernels carry the address and undefined-behaviour checks."""
    # libstdc++ too: the checks look for its exceptions as they start, before Python has loaded it.
    find = ["g++", "-print-file-name=libasan.so", "-print-file-name=libstdc++.so.6"]
    runtimes = [subprocess.check_output([find[0], flag], text=True).strip() for flag in find[1:]]
    plain, clusters = "test_error_is_no_worse_than_plain_pytorch", "test_clusters_are_no_worse_either"
    chosen = (
        f"{__file__}::{plain}[64-12-33-{{'precision': 'bf16', 'recompute': 2}}]",
        f"{__file__}::{clusters}[128-8-20-{{'precision': 'bf16'}}-0]",
        f"{__file__}::{clusters}[128-8-20-{{'precision': 'bf16'}}-16]",
        f"{Path(__file__).with_name('test_residual_stack_groups.py')}::test_cuda_group_to_the_bit[recompute-stretches]",
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-qs",
            "-p",
            "no:cacheprovider",
            *chosen,
        ],
        env=os.environ
        | {"DEEPRES_SANITIZE": "1", "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]


# --- Compiling for GPUs, with none ---


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_100a", "sm_120a"])
def test_compiles_for_every_target_without_spills(target: str) -> None:
    from bench import compile_cuda

    rows = compile_cuda.report([512], ["fp32"], [target])  # the one with the fewest registers to spare
    if target == "sm_90a":
        rows = compile_cuda.report([256], ["bf16"], [target]) + rows
    hot = [row for row in rows if row["kernel"] in ("forward", "dgrad", "wgrad")]
    swapped = [row for row in hot if row["swapped_rows"]]
    assert len(swapped) == (6 if target == "sm_90a" else 0)
    hot = [row for row in hot if row not in swapped]
    clusters = [1] if target == "sm_80" else [1, 2, 4]
    of_512 = [2, 4] if target == "sm_120a" else clusters
    of_256 = clusters if target == "sm_90a" else []
    assert [row["cluster"] for row in hot] == [c for c in (*of_256, *of_512) for _ in range(3)]
    for row in hot + swapped:
        assert row["stack"] == row["spill_stores"] == row["spill_loads"] == 0, row
        assert row["shared"] <= row["shared_limit"], row


def test_shared_memory_fits_every_target() -> None:
    for precision, width, cluster in itertools.product(("bf16", "fp32"), cuda.WIDTHS, (1, 2, 4)):
        if width // cluster >= 64:
            geometry = cuda.Geometry(width, StackOptions(precision=precision), cluster)
            assert geometry.stages(99 * 1024) >= 2, geometry
            assert geometry.wgrad_bytes <= 99 * 1024


def test_clusters_where_they_pay() -> None:
    choose = cuda.choose_cluster
    assert choose(256, 32, (8, 0), 108) == 1  # no clusters before sm_90
    assert choose(256, 32, (9, 0), 132) == 4
    assert choose(128, 32, (9, 0), 132) == 2  # 64 columns a block at least
    assert choose(256, 64, (9, 0), 132) == 2  # an SM for each block
    assert choose(256, 100, (9, 0), 132) == 1
    assert choose(1024, 100, (9, 0), 132) == 4  # registers for no fewer
    assert choose(512, 1000, (12, 0), 188) == 2 and choose(512, 1000, (10, 0), 148) == 1


def test_width_1024_takes_clusters_and_their_memory(monkeypatch) -> None:
    monkeypatch.setattr(cuda, "beside_gpu", lambda _: None)
    x = torch.zeros(2, 1024)
    small_memory = cuda_on_host.LARGE._replace(shared_limit=99 * 1024)
    for facts, served in ((cuda_on_host.LARGE, True), (cuda_on_host.SMALL, False), (small_memory, False)):
        monkeypatch.setattr(cuda_program, "device_facts", lambda _, facts=facts: facts)
        for precision in ("bf16", "fp32"):
            said = cuda.unsupported(x, 4, StackOptions(precision=precision))
            assert said is None if served else "clusters of blocks" in said


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_width_1024_compiles_without_spills(precision: str) -> None:
    geometry = cuda.Geometry(1024, StackOptions(precision=precision), 4)
    _, log = cuda_program.compile_program("residual_stack.cu", geometry.macros, "sm_90a")
    clean = re.findall(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", log)
    assert len(clean) == log.count("bytes stack frame") == len(cuda_geometry.KERNELS)


# --- What a user reads ---


def test_says_what_it_does_not_serve() -> None:
    options = StackOptions()
    for x, said in (
        (torch.zeros(2, 96), "widths 64, 128, 256, 512, 1024, got 96"),
        (torch.zeros(2, 64, dtype=torch.float64), "float32"),
        (torch.zeros(2, 64), r"CUDA device, got cpu"),
    ):
        assert said in cuda.unsupported(x, 4, options)
    said = "at most 21,845 layers at a time, got 30,000"
    assert said in cuda.unsupported(torch.zeros(2, 64), 30_000, StackOptions(skip_every=0))
    assert said not in cuda.unsupported(torch.zeros(2, 64), 30_000, options)


# --- On a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("width", cuda.WIDTHS)
@pytest.mark.parametrize("batch", [1, 7, 100, 513])
def test_gpu_error_is_no_worse(precision: str, width: int, batch: int) -> None:
    assert_matches(arguments(batch, width, 16, "cuda"), precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_error_at_width_1024(precision: str) -> None:
    """Which takes an H100's clusters and shared memory; another GPU's user is told so."""
    args = arguments(100, 1024, 8, "cuda")
    reason = cuda.unsupported(args[0].float(), 8, StackOptions(precision=precision))
    if cuda_program.device_facts(args[0].device).capability == (9, 0):
        assert reason is None
        assert_matches(args, precision=precision)
    else:
        assert reason is None or "width 1024 takes" in reason


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{"recompute": 1}, {"recompute": 4}, {"norm": False}, {"activation": "relu"}, {"skip_every": 0}],
    ids=str,
)
def test_gpu_options(options: dict) -> None:
    assert_matches(arguments(100, 128, 64, "cuda"), precision="bf16", **options)


@pytest.mark.gpu
def test_gpu_graph_replays_the_same_bits() -> None:
    args = [t.float() for t in arguments(512, 256, 64, "cuda")]
    first = outputs("cuda", torch.float32, args, precision="bf16")
    leaves = [t.requires_grad_() for t in args]
    dy = torch.randn(512, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float().cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = deepres.residual_stack(*leaves, impl="cuda", precision="bf16")
        grads = torch.autograd.grad(y, leaves, dy)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(first, [y, *grads], strict=True))
