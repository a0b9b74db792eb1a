"""CUDA C++ to machine code by the first compiler that works: NVRTC through cuda-core, of today or of old, or nvcc.

None of them asks for a GPU, a driver or, NVRTC, for a toolkit; so every target can be compiled for anywhere.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

PROBE = 'extern "C" __global__ void probe() {}\n'  # what a compiler must manage before it is believed
NVCC_SECONDS = 300.0  # the longest wait for one program
TOOLKIT = "/usr/local/cuda"  # where a toolkit is installed that nobody put on the PATH


class Source(NamedTuple):
    """text: of one file called `name`, which finds what it includes in `folder`; macros: defined before it."""

    text: str
    name: str
    folder: Path
    macros: dict[str, int]


class Compiler(NamedTuple):
    """name: with its version. compile(source, arch): machine code, and what the assembler says of its kernels.

    `compile` raises whatever the compiler raises, its messages within.
    """

    name: str
    compile: Callable[[Source, str], tuple[bytes, str]]


@cache
def compiler(arch: str) -> Compiler:
    """The first compiler that makes machine code for `arch` ("sm_90a") here.

    Raises: ModuleNotFoundError, with each one's reason, where none does.
    """
    reasons = []
    for name, find in FINDERS.items():
        try:
            found = find()
            found.compile(Source(PROBE, "probe.cu", Path(__file__).parent, {}), arch)
            return found
        except Exception as error:  # whatever is wrong with one leaves the next a chance
            reasons.append(f"{name}: {_one_line(error)}")
    raise ModuleNotFoundError(
        f"no CUDA compiler works here for {arch} ({'; '.join(reasons)}); pip install 'deepres[cuda]', which brings "
        "cuda-core, cuda-bindings and nvidia-cuda-nvrtc"
    )


def _nvrtc(module: str) -> Compiler:
    """NVRTC, as `module` offers it: "cuda.core", called "cuda.core.experimental" before its release 0.5."""
    core = importlib.import_module(module)
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    _, major, minor = nvrtc.nvrtcVersion()
    _ = core.Program, core.ProgramOptions  # an older release has them elsewhere
    return Compiler(f"NVRTC {major}.{minor}", partial(_nvrtc_compile, core))


def _nvrtc_compile(core: Any, source: Source, arch: str) -> tuple[bytes, str]:
    options = core.ProgramOptions(
        name=source.name,
        arch=arch,
        std="c++17",
        include_path=[str(source.folder)],
        define_macro=[(name, str(value)) for name, value in source.macros.items()] or None,
        ptxas_options=["-v"],
    )
    log = io.StringIO()
    try:
        code = core.Program(source.text, "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        raise RuntimeError(f"{error}\n{log.getvalue()}") from error
    return bytes(code), log.getvalue()


def _nvcc() -> Compiler:
    """The toolkit's compiler: on the PATH, or under $CUDA_HOME or TOOLKIT."""
    homes = [os.environ.get("CUDA_HOME", ""), TOOLKIT]
    places = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    command = shutil.which("nvcc", path=places)
    if command is None:
        raise FileNotFoundError("it is not on the PATH")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=NVCC_SECONDS)
    return Compiler(told.stdout.strip().rpartition("\n")[2] or command, partial(_nvcc_compile, command))


def _nvcc_compile(command: str, source: Source, arch: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / Path(source.name).name, Path(folder) / "out.cubin"
        file.write_text(source.text)
        virtual = arch.replace("sm_", "compute_")
        done = subprocess.run(
            [
                *(command, "-cubin", "-std=c++17", f"-gencode=arch={virtual},code={arch}", "-Xptxas", "-v"),
                *(f"-D{name}={value}" for name, value in source.macros.items()),
                *("-I", str(source.folder), "-o", str(out), str(file)),
            ],
            capture_output=True,
            text=True,
            timeout=NVCC_SECONDS,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr + done.stdout)
        return out.read_bytes(), done.stdout + done.stderr


def _one_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


FINDERS: dict[str, Callable[[], Compiler]] = {
    "cuda.core": partial(_nvrtc, "cuda.core"),
    "cuda.core.experimental": partial(_nvrtc, "cuda.core.experimental"),
    "nvcc": _nvcc,
}
