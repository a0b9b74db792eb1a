"""The residual stack: the C++ kernels against the reference, and the reference against calculus."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import deepres
from deepres import _C
from deepres.kernels import dispatch
from deepres.kernels.residual_stack.memory import fitting_recompute, kept_bytes, saved_bytes
from deepres.kernels.residual_stack.options import StackOptions
from deepres.testing import assert_no_worse

NAMES = ("x", "weight", "bias", "gamma", "beta")


def arguments(batch: int, width: int, depth: int, seed: int = 0) -> list[torch.Tensor]:
    """x and parameters of a stack whose layers keep the scale of their input, in float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return [
        normal(batch, width),
        normal(depth, width, width) / width**0.5,
        0.1 * normal(depth, width),
        1 + 0.1 * normal(depth, width),
        0.1 * normal(depth, width),
    ]


def outputs(impl: str, dtype: torch.dtype, args: list[torch.Tensor], **options) -> list[torch.Tensor]:
    """[y, dx, dweight, dbias, dgamma, dbeta] for a fixed dy."""
    leaves = [t.to(dtype).requires_grad_() for t in args]
    y = deepres.residual_stack(*leaves, impl=impl, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)
    return [y.detach(), *grads]


def assert_matches(args: list[torch.Tensor], **options) -> None:
    """The C++ kernels beside the reference in the same precision, both against exact products in float64."""
    exact = {k: v for k, v in options.items() if k != "precision"}
    truth = outputs("reference", torch.float64, args, **exact)
    plain = outputs("reference", torch.float32, args, **options)
    fused = outputs("cpu", torch.float32, args, **options)
    for name, f, p, t in zip(("y", *(f"d{n}" for n in NAMES)), fused, plain, truth, strict=True):
        assert_no_worse(name, f, p, t)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("batch", "width", "depth"),
    [
        (513, 32, 4), (7, 33, 16), (1, 100, 64), (64, 256, 64), (513, 100, 16), (40, 512, 16), (32, 64, 256),
        (512, 256, 16), (100, 128, 32), (7, 24, 1024),
    ],
)  # fmt: skip
def test_error_is_no_worse_than_plain_pytorch(batch: int, width: int, depth: int, precision: str) -> None:
    assert_matches(arguments(batch, width, depth), precision=precision)


OPTIONS = [
    {"norm": False},
    {"activation": "relu"},
    {"activation": "relu", "norm": False},
    {"skip_every": 0},
    {"skip_every": 1},
    {"skip_every": 24},
    {"eps": 0.1},
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options: dict, precision: str) -> None:
    assert_matches(arguments(37, 48, 24), precision=precision, **options)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("recompute", [1, 3, 4, 100, "auto"])
def test_recomputing_gives_the_same(recompute: int | str) -> None:
    args = arguments(37, 40, 72)
    kept = outputs("cpu", torch.float32, args)
    again = outputs("cpu", torch.float32, args, recompute=recompute)
    assert all(map(torch.equal, kept, again))
    assert_matches(args, recompute=recompute, precision="bf16")


@pytest.mark.parametrize("options", [{}, {"recompute": 2}, *OPTIONS], ids=str)
def test_reference_passes_gradcheck(options: dict) -> None:
    depth = 24 if options.get("skip_every") == 24 else 8
    leaves = [t.requires_grad_() for t in arguments(3, 4, depth)]

    def stack(*tensors):
        return deepres.residual_stack(*tensors, impl="reference", **options)

    assert torch.autograd.gradcheck(stack, leaves, fast_mode=True)


def test_empty_batch() -> None:
    y, dx, *grads = outputs("cpu", torch.float32, arguments(0, 33, 8))
    assert y.shape == dx.shape == (0, 33)
    assert all(g.count_nonzero() == 0 for g in grads)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("wanted", range(5), ids=NAMES)
def test_each_gradient_alone(wanted: int) -> None:
    args = arguments(33, 40, 36)
    full = outputs("cpu", torch.float32, args)
    leaves = [t.float().requires_grad_(i == wanted) for i, t in enumerate(args)]
    y = deepres.residual_stack(*leaves, impl="cpu")
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    y.backward(dy)
    assert torch.equal(y, full[0])
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) if i != wanted else torch.equal(leaf.grad, full[1 + i])


def test_same_input_same_bits_whatever_the_threads() -> None:
    args = arguments(200, 64, 32)
    threads = torch.get_num_threads()
    first = outputs("cpu", torch.float32, args)
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            again = outputs("cpu", torch.float32, args)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"{count} threads"
    finally:
        torch.set_num_threads(threads)


def test_nan_stays_in_its_row() -> None:
    args = arguments(9, 33, 8)
    clean = outputs("cpu", torch.float32, args)
    args[0][4, 5] = torch.nan
    y, dx, dweight, *_ = outputs("cpu", torch.float32, args)
    others = torch.arange(9) != 4
    assert y[4].isnan().all() and dx[4].isnan().all() and dweight.isnan().any()
    assert torch.equal(y[others], clean[0][others]) and torch.equal(dx[others], clean[1][others])


def test_strided_inputs_and_no_grad() -> None:
    args = [t.float() for t in arguments(6, 32, 8)]
    strided = [t.mT.contiguous().mT if t.ndim == 3 else t.T.contiguous().T for t in args]
    assert not strided[1].is_contiguous()
    with torch.no_grad():
        y = deepres.residual_stack(*strided, impl="cpu")
    assert not y.requires_grad
    assert torch.equal(y, deepres.residual_stack(*args, impl="cpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", ["amx", "amx_plain", "avx512_bf16", "avx512", "avx2", "base"])
def test_every_instruction_set_of_this_processor(isa: str, precision: str) -> None:
    """One binary holds the kernels of all: those that this processor can run agree with the truth."""
    fastest = _C.isa()
    try:
        _C.use_isa(isa)
    except ValueError as error:
        assert f"got '{isa}'" in str(error) and "base" in str(error)
        return
    try:
        assert_matches(arguments(70, 100, 8), precision=precision)
        assert_matches(arguments(5, 16, 8), activation="relu", skip_every=2, precision=precision)
        if precision == "fp32":
            assert_infinities_stay()
    finally:
        _C.use_isa(fastest)


def assert_infinities_stay() -> None:
    """An output that is infinite or overflows in plain fp32 does so here, and no other becomes NaN."""
    args = arguments(6, 40, 1)
    args[0][0, 0], args[0][1, 0], args[0][2, 5], args[0][3, 20] = torch.inf, 3e38, 3e38, -torch.inf
    args[1][0, 0, :3] = torch.tensor([2.0, -2.0, 4.0])
    options = {"activation": "relu", "norm": False, "skip_every": 1}
    (plain, plain_dx, *_), (fused, fused_dx, *_) = (
        outputs(impl, torch.float32, args, **options) for impl in ("reference", "cpu")
    )
    assert all(row.isinf().any() for row in plain[[0, 1, 3]]) and plain_dx.isfinite().all()
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(fused_dx, plain_dx, rtol=1e-4, atol=1e-4)


def test_instruction_set_can_be_named_from_outside() -> None:
    program = "from deepres import _C\ntry: print(_C.isa())\nexcept ValueError as error: print(error)"
    assert run_python(program, DEEPRES_CPU_ISA="base").stdout.strip() == "base"
    assert run_python(program, DEEPRES_CPU_ISA="").stdout.strip() == _C.isa()
    refused = run_python(program, DEEPRES_CPU_ISA="mmx").stdout
    assert refused.startswith("DEEPRES_CPU_ISA must be one of") and "got 'mmx'" in refused


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_the_extension_the_reference_runs_and_says_so_once(tmp_path) -> None:
    program = (
        "import sys, warnings; sys.modules['deepres._C'] = None\n"
        "import torch, deepres\n"
        "x, w, v = torch.randn(2, 8), torch.randn(4, 8, 8), torch.randn(4, 8)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    y = [deepres.residual_stack(x, w, v, v, v) for _ in range(2)]\n"
        "assert torch.equal(y[0], deepres.residual_stack(x, w, v, v, v, impl='reference'))\n"
        "[warning] = caught; print(warning.message)\n"
        "print(deepres.backends()['residual_stack']['cpu'])\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "from deepres.kernels.extension import why_missing; print(why_missing())\n"
    )
    (tmp_path / "deepres").mkdir()
    (tmp_path / "deepres" / "_C.so").touch()
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("deepres._C is not built; install a C++17 compiler") == 2
    assert f"hide the deepres that is installed in {tmp_path / 'deepres'}; leave that folder" in done.stdout


def test_opcheck_and_compile() -> None:
    leaves = [t.float().requires_grad_() for t in arguments(5, 33, 8)]
    torch.library.opcheck(
        torch.ops.deepres.residual_stack_forward.default,
        (*leaves, 4, "swish", True, 1e-6, "fp32", 0, "cpu", True),
    )

    def loss(*tensors):
        return deepres.residual_stack(*tensors, impl="cpu").square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, expected, torch.autograd.grad(compiled(*leaves), leaves)))


def test_autocast_and_meta_tensors_pass() -> None:
    args = [t.float() for t in arguments(6, 16, 8)]
    for impl in ("cpu", "reference"):
        expected = deepres.residual_stack(args[0].bfloat16().float(), *args[1:], impl=impl)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(deepres.residual_stack(args[0].bfloat16(), *args[1:], impl=impl), expected)
    assert deepres.residual_stack(*(t.to("meta") for t in args)).shape == (6, 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_recompute_fits_the_free_memory(precision: str) -> None:
    options = StackOptions(precision=precision)
    cpu = dispatch.load("residual_stack", "cpu")
    whole, again = saved_bytes(512, 256, 1024, options, impl="cpu")
    assert again == 0
    assert whole <= (0.3e9 if precision == "bf16" else 0.6e9)
    for free in (2 * whole, 2 * whole - 1, whole // 2, whole // 5):
        picked = fitting_recompute(cpu, 512, 256, 1024, options, free // 2)
        assert (picked == 0) == (free >= 2 * whole)
        assert sum(kept_bytes(cpu, 512, 256, 1024, options._replace(recompute=picked))) <= free / 2
    least = fitting_recompute(cpu, 512, 256, 1024, options, 0)
    assert 4 <= least <= 64


def test_auto_recompute_says_once_what_it_picked(caplog: pytest.LogCaptureFixture) -> None:
    args = [t.float() for t in arguments(3, 20, 12)]
    with caplog.at_level("INFO", logger="deepres"):
        first, second = (deepres.residual_stack(*args, recompute="auto", impl="cpu") for _ in range(2))
    assert torch.equal(first, second)
    [record] = [r for r in caplog.records if "12 layers, width 20" in r.message]
    assert "recompute='auto' picks none" in record.message


def test_the_old_keyword_is_taken_with_a_warning() -> None:
    args = [t.float() for t in arguments(3, 16, 8)]
    for recompute in (2, "auto", "none"):
        with pytest.warns(FutureWarning, match="^checkpoint= is called recompute= now$") as caught:
            y = deepres.residual_stack(*args, checkpoint=recompute)
        assert [w.filename for w in caught] == [__file__]
        assert torch.equal(y, deepres.residual_stack(*args, recompute=recompute))
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=r"recompute must be 'none', .* got 0"):
        deepres.residual_stack(*args, checkpoint=0)
    for recompute in (2, "none"):
        with pytest.raises(ValueError, match="old name of recompute=; pass recompute= alone"):
            deepres.residual_stack(*args, recompute=recompute, checkpoint=2)
    compiled = torch.compile(deepres.residual_stack, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args, checkpoint=2), deepres.residual_stack(*args))


def bad(**changes) -> dict:
    x, weight, bias, gamma, beta = (t.float() for t in arguments(2, 8, 8))
    return {"x": x, "weight": weight, "bias": bias, "gamma": gamma, "beta": beta} | changes


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"x": torch.ones(2, 3, 8)}, ValueError, "x must have shape [B, W], got [2, 3, 8]"),
        ({"x": torch.ones(2, 9)}, ValueError, "weight must have shape [D, 9, 9]"),
        ({"weight": torch.ones(0, 8, 8)}, ValueError, "at least one layer"),
        ({"bias": torch.ones(8)}, ValueError, "bias must have shape [8, 8], got [8]"),
        ({"gamma": None}, ValueError, "gamma and beta must be tensors of shape [D, W] when norm=True"),
        ({"x": torch.ones(2, 8, dtype=torch.float16)}, TypeError, "call x.float()"),
        ({"beta": torch.ones(8, 8).double()}, TypeError, "beta must have x's dtype torch.float32"),
        ({"gamma": torch.ones(8, 8, device="meta")}, ValueError, "gamma must be on x's device cpu, got meta"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number > 0, got nan"),
        ({"eps": -1.0}, ValueError, "eps must be a finite number > 0, got -1.0"),
        ({"skip_every": 3}, ValueError, "multiple of skip_every=3, got 8 layers; use 6 or 9"),
        ({"skip_every": -1}, ValueError, "0 for no skips, got -1"),
        (
            {"impl": "fast"},
            ValueError,
            "impl must be one of auto, cuda, triton, cpu, reference for residual_stack, got 'fast'",
        ),
        ({"activation": "gelu"}, ValueError, "activation must be one of swish, relu, got 'gelu'"),
        ({"precision": "fp8"}, ValueError, "precision must be one of fp32, tf32, bf16, fp16, got 'fp8'"),
        (
            {"recompute": 0},
            ValueError,
            "recompute must be 'none', 'auto' or a number of blocks >= 1, got 0",
        ),
        (
            {"recompute": 2, "skip_every": 0},
            ValueError,
            "recompute counts blocks, and skip_every=0 has none",
        ),
        ({"precision": "tf32", "impl": "cpu"}, RuntimeError, "impl='cpu' cannot serve this residual_stack"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_gives_one_sentence(changes: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        deepres.residual_stack(**bad(**changes))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
