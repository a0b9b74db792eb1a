"""CUDA sources to running kernels: compiled for any target, kept on disk, launched through CuPy.

Compiling asks for no GPU, driver or toolkit (see cuda_compiler.py), so every target can be checked anywhere. What is
compiled is kept under `$XDG_CACHE_HOME/deepres` (default ~/.cache/deepres), one file for each (sources, macros,
target, compiler).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deepres.kernels import cuda_compiler

SOURCES = Path(__file__).parent / "cuda"  # in the repository a link to csrc/cuda, installed its files


def missing() -> str | None:
    """Why CUDA kernels cannot run on this machine (a clause and a remedy), or None.

    A kernel that does nothing is compiled for the current device and loaded, by the very calls that load the others.
    """
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device; it takes an NVIDIA GPU, its driver and a CUDA build of PyTorch"
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        arch = target(device_facts(device).capability)
        probe = cuda_compiler.Source(cuda_compiler.PROBE, "probe.cu", SOURCES, {})
        code, _ = cuda_compiler.compiler(arch).compile(probe, arch)
    except Exception as error:  # of whatever kind: auto then goes on to the next backend
        return f"{error}"
    if torch.cuda.is_current_stream_capturing():
        return None  # nothing can be loaded now; DeviceProgram says so
    try:
        _load(code, ("probe",), device)
    except Exception as error:
        return f"CuPy cannot load CUDA kernels ({type(error).__name__}: {error}); pip install 'deepres[cuda]'"
    return None


def target(capability: tuple[int, int]) -> str:
    """The compiler's name of a device of this compute capability: (9, 0) -> "sm_90a"."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def compile_program(source: str, macros: dict[str, int], arch: str) -> tuple[bytes, str]:
    """`source` as machine code for `arch`, and what the assembler says of its kernels.

    source: a file of SOURCES, or the path of another, which may include those.
    Raises: ModuleNotFoundError without a compiler; RuntimeError with the compiler's messages.
    """
    compiler = cuda_compiler.compiler(arch)
    text = (SOURCES / source).read_text()
    try:
        return compiler.compile(cuda_compiler.Source(text, source, SOURCES, macros), arch)
    except Exception as error:
        raise RuntimeError(f"{compiler.name} could not compile {source} for {arch}: {error}") from error


def cached_program(source: str, macros: dict[str, int], arch: str) -> bytes:
    """`compile_program`, or what it gave before. Processes may ask at once; a damaged file is made again."""
    path = _cache_folder() / f"{_key(source, macros, arch)}.cubin"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    code = stored[32:]
    if code and hashlib.sha256(code).digest() == stored[:32]:
        return code
    code, _ = compile_program(source, macros, arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)  # whole or not at all, whoever else is writing
    except OSError:
        pass  # a folder that cannot be written costs a compilation in the next process, nothing else
    return code


def _cache_folder() -> Path:
    """Where programs are kept; of a user without a home, nowhere."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepres" / "cuda"
    except RuntimeError:
        return Path(os.devnull) / "deepres"


def _key(source: str, macros: dict[str, int], arch: str) -> str:
    facts = (source, sorted(macros.items()), arch, cuda_compiler.compiler(arch).name)
    digest = hashlib.sha256(repr(facts).encode())
    for file in sorted({SOURCES / source, *SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")}):
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()


Argument = torch.Tensor | float | None


class _Stream(NamedTuple):
    ptr: int  # all that CuPy asks of a stream


class DeviceFacts(NamedTuple):
    """capability: (9, 0) for sm_90. processors: streaming multiprocessors. shared_limit: bytes of a block."""

    capability: tuple[int, int]
    processors: int
    shared_limit: int


@cache
def device_facts(device: torch.device) -> DeviceFacts:
    properties: Any = torch.cuda.get_device_properties(device)
    return DeviceFacts(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )


class Program(NamedTuple):
    """What to compile: a file (see compile_program), macros as (name, value), and the kernels that are launched."""

    source: str
    macros: tuple[tuple[str, int], ...]
    kernels: tuple[str, ...]


def _load(code: bytes, kernels: tuple[str, ...], device: torch.device) -> tuple[Any, dict[str, Any]]:
    """(module, its kernels by name), ready for launches with all the shared memory that the device has beside what a
    kernel declares itself."""
    import cupy
    from cupy.cuda import driver

    module, functions = cupy.cuda.function.Module(), {}
    with cupy.cuda.Device(device.index):
        module.load(code)
        for name in kernels:
            functions[name] = function = module.get_function(name)
            own = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.ptr)
            limit = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, limit, device_facts(device).shared_limit - own)
    return module, functions


class DeviceProgram:
    """The kernels of one program on one device."""

    def __init__(self, program: Program, device: torch.device):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{program.source} must be loaded before a CUDA graph is captured; run the call once before"
            )
        arch = target(device_facts(device).capability)
        code = cached_program(program.source, dict(program.macros), arch)
        self.device = device
        self._module, self._functions = _load(code, program.kernels, device)

    def address(self, kernel: str) -> int:
        """The driver's handle of a kernel, a CUfunction."""
        return self._functions[kernel].ptr

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, shared: int, *arguments: Argument
    ) -> None:
        """Starts a kernel on PyTorch's current stream, with `shared` bytes of dynamic shared memory.

        Every parameter of a kernel is 8 bytes: an address (a tensor, None for null), an int64 or a double.
        Nothing here allocates or waits, so a launch can be captured in a CUDA graph.
        """
        import cupy

        words = [a.data_ptr() if isinstance(a, torch.Tensor) else 0 if a is None else a for a in arguments]
        with cupy.cuda.Device(self.device.index):
            stream = _Stream(torch.cuda.current_stream(self.device).cuda_stream)
            self._functions[kernel](grid, (threads,), tuple(words), shared_mem=shared, stream=stream)


@cache
def load_program(program: Program, device: torch.device) -> DeviceProgram:
    """The program on a device, compiled where it was not before; one in a process."""
    return DeviceProgram(program, device)
