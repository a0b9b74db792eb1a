"""Which compiler serves, what stands in for it where it is not there, and what is said where none is."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import deepres
from deepres.kernels import cuda_compiler, cuda_program, dispatch
from deepres.kernels.residual_stack.cuda_geometry import Geometry
from deepres.kernels.residual_stack.options import StackOptions

ARCH = "sm_90a"
NVCC = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in --version) printf 'nvcc: NVIDIA (R)\\nBuild cuda_13.0.r13.0\\n'; exit 0;; esac
case "$*" in *BROKEN*) echo "probe.cu(1): error: no" >&2; exit 1;; esac
while [ "$1" != -o ]; do shift; done
printf machinecode > "$2"
echo "ptxas info : Used 8 registers"
"""


@pytest.fixture(autouse=True)
def asked_anew():
    cuda_compiler.compiler.cache_clear()
    dispatch._reason.cache_clear()
    yield
    cuda_compiler.compiler.cache_clear()
    dispatch._reason.cache_clear()


@pytest.fixture
def without_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No nvcc anywhere; what is put into the folder returned is on the PATH."""
    for name, value in (("PATH", f"{tmp_path}:/usr/bin:/bin"), ("CUDA_HOME", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cuda_compiler, "TOOLKIT", str(tmp_path / "nothing"))
    return tmp_path


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.core", "cuda.core.experimental"):
        monkeypatch.setitem(sys.modules, name, None)


def nvcc_in(folder: Path) -> Path:
    log = folder / "asked"
    command = folder / "nvcc"
    command.write_text(NVCC.format(log=log))
    command.chmod(0o755)
    return log


def test_nvrtc_comes_first_and_makes_machine_code() -> None:
    found = cuda_compiler.compiler(ARCH)
    code, log = found.compile(
        cuda_compiler.Source(cuda_compiler.PROBE, "probe.cu", cuda_program.SOURCES, {}), ARCH
    )
    assert found.name.startswith("NVRTC ") and code[:4] == b"\x7fELF" and "probe" in log


def test_an_older_cuda_core_serves_under_its_older_name(monkeypatch) -> None:
    from cuda import core

    monkeypatch.setitem(sys.modules, "cuda.core.experimental", core)
    monkeypatch.setitem(sys.modules, "cuda.core", types.ModuleType("cuda.core"))  # no ProgramOptions in it
    assert cuda_compiler.compiler(ARCH).name.startswith("NVRTC ")


def test_nvcc_serves_where_nvrtc_does_not(without_toolkit, without_nvrtc) -> None:
    log = nvcc_in(without_toolkit)
    found = cuda_compiler.compiler(ARCH)
    assert found.name == "Build cuda_13.0.r13.0"
    code, said = cuda_program.compile_program("residual_stack.cu", {"DEEPRES_WIDTH": 64}, ARCH)
    assert code == b"machinecode" and "8 registers" in said
    asked = log.read_text().splitlines()[-1]
    assert "-gencode=arch=compute_90a,code=sm_90a" in asked and "-DDEEPRES_WIDTH=64" in asked
    assert f"-I {cuda_program.SOURCES}" in asked
    with pytest.raises(
        RuntimeError, match=r"could not compile residual_stack\.cu for sm_90a: probe\.cu\(1\)"
    ):
        cuda_program.compile_program("residual_stack.cu", {"BROKEN": 1}, ARCH)


def test_without_a_compiler_each_reason_is_told(without_toolkit, without_nvrtc) -> None:
    with pytest.raises(ModuleNotFoundError) as told:
        cuda_compiler.compiler(ARCH)
    for part in ("no CUDA compiler works here for sm_90a", "cuda.core.experimental: ", "nvcc: it is not on"):
        assert part in str(told.value)
    assert str(told.value).count("\n") == 0 and "pip install 'deepres[cuda]'" in str(told.value)


# --- What a user reads, and what serves instead ---


@pytest.fixture
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    facts = cuda_program.DeviceFacts((9, 0), 132, 227 * 1024)
    monkeypatch.setattr(cuda_program, "device_facts", lambda _: facts)


def test_without_a_gpu_it_says_what_it_takes(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "NVIDIA GPU" in cuda_program.missing()


def test_auto_goes_on_where_nothing_compiles(with_a_gpu, without_toolkit, without_nvrtc) -> None:
    assert "no CUDA compiler works here" in deepres.backends()["residual_stack"]["cuda"]
    assert deepres.residual_stack(*_small()).shape == (2, 64)  # impl="auto"
    with pytest.raises(RuntimeError, match="impl='cuda' cannot serve this residual_stack: no CUDA compiler"):
        deepres.residual_stack(*_small(), impl="cuda")


def test_a_cupy_that_lacks_something_is_told(with_a_gpu, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert "CuPy cannot load CUDA kernels" in deepres.backends()["residual_stack"]["cuda"]
    assert deepres.residual_stack(*_small()).shape == (2, 64)


def test_a_triton_that_cannot_launch_is_told(with_a_gpu) -> None:
    """As it cannot here: there is no driver."""
    assert "Triton cannot launch kernels here" in deepres.backends()["info_nce"]["triton"]
    phi = torch.randn(3, 8)
    assert deepres.info_nce(phi, phi)[0].isfinite()


def test_a_probe_is_compiled_loaded_and_looked_up(with_a_gpu, monkeypatch) -> None:
    cupy = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    assert cuda_program.missing() is None
    assert cupy.did == ["load \x7fELF", "get probe", f"limit 8 {232448 - STATIC}"]


COMPILE = """
from deepres.kernels import cuda_program
from deepres.kernels.residual_stack.cuda import Geometry
from deepres.kernels.residual_stack.options import StackOptions
code = cuda_program.cached_program(
    "residual_stack.cu", Geometry(64, StackOptions(precision="bf16")).macros, "sm_90a")
assert code[:4] == b"\\x7fELF"
"""


def test_cache_serves_two_processes_and_survives_damage(tmp_path: Path, monkeypatch) -> None:
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", COMPILE], env=env) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    (entry,) = (tmp_path / "deepres" / "cuda").iterdir()  # one whole file, and no half-written one

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    macros = Geometry(64, StackOptions(precision="bf16")).macros
    written = entry.read_bytes()
    compiled = []

    def compile_program(*args):
        compiled.append(args)
        return original(*args)

    original = cuda_program.compile_program
    monkeypatch.setattr(cuda_program, "compile_program", compile_program)
    assert cuda_program.cached_program("residual_stack.cu", macros, "sm_90a") == written[32:]
    assert not compiled
    entry.write_bytes(written[: len(written) // 2])
    assert cuda_program.cached_program("residual_stack.cu", macros, "sm_90a")[:4] == b"\x7fELF"
    assert len(compiled) == 1 and len(entry.read_bytes()) == len(written)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "deepres").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_program, "compile_program", lambda *_: (b"code", ""))
    assert cuda_program.cached_program("residual_stack.cu", {}, "sm_80") == b"code"


def test_a_compile_error_says_where() -> None:
    with pytest.raises(RuntimeError, match=r"could not compile residual_stack\.cu for sm_90a"):
        cuda_program.compile_program(
            "residual_stack.cu", {"DEEPRES_PRECISION": 8, "DEEPRES_WIDTH": 64}, "sm_90a"
        )


def _small() -> list[torch.Tensor]:
    return [torch.randn(2, 64), torch.randn(4, 64, 64) / 8, *(torch.ones(4, 64) for _ in range(3))]


STATIC = 1_152  # bytes of shared memory that the kernel declares


class FakeCuPy(types.ModuleType):
    """What cuda_program asks of CuPy, and in which order it did."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.did: list[str] = []
        driver = types.SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES=1,
            funcGetAttribute=lambda which, ptr: {1: STATIC}[which],
            funcSetAttribute=self._set,
        )
        self.cuda = types.ModuleType("cupy.cuda")
        self.cuda.driver = driver
        self.cuda.Device = lambda index: _Nothing()
        self.cuda.function = types.SimpleNamespace(Module=lambda: self)

    def _set(self, ptr: int, which: int, value: int) -> None:
        if value + STATIC > 232448:  # as the driver does
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.did.append(f"limit {which} {value}")

    def load(self, code: bytes) -> None:
        self.did.append(f"load {code[:4].decode('latin1')}")

    def get_function(self, name: str) -> types.SimpleNamespace:
        self.did.append(f"get {name}")
        return types.SimpleNamespace(ptr=1)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
