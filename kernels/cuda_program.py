"""CUDA sources to running kernels: compiled by NVRTC for any target, kept on disk, launched through CuPy.

Compiling asks for no GPU, driver or toolkit (`cuda-core` and NVIDIA's NVRTC wheel do it), so every target can
be checked anywhere. What is compiled is kept under `$XDG_CACHE_HOME/deepres` (default ~/.cache/deepres), one
file for each (sources, macros, target, compiler).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

SOURCES = Path(__file__).parent / "cuda"  # in the repository a link to csrc/cuda, installed its files


def missing() -> str | None:
    """Why CUDA kernels cannot run on this machine (a clause and a remedy), or None."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device; it takes an NVIDIA GPU, its driver and a CUDA build of PyTorch"
    absent = [name for name in ("cupy", "cuda.core", "cuda.bindings") if not _installed(name)]
    if absent:
        return f"{' and '.join(absent)} cannot be imported; pip install 'deepres[cuda]'"
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False


def target(capability: tuple[int, int]) -> str:
    """The compiler's name of a device of this compute capability: (9, 0) -> "sm_90a"."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def compile_program(source: str, macros: dict[str, int], arch: str) -> tuple[bytes, str]:
    """`SOURCES/source` as machine code for `arch`, and what the assembler says of its kernels.

    Raises: ModuleNotFoundError without the compiler; RuntimeError with the compiler's messages.
    """
    try:
        from cuda import core
    except ImportError as error:
        raise ModuleNotFoundError(
            "compiling CUDA kernels takes cuda-core, cuda-bindings and nvidia-cuda-nvrtc; "
            f"pip install 'deepres[cuda]' ({error})"
        ) from error
    options = core.ProgramOptions(
        name=source,
        arch=arch,
        std="c++17",
        include_path=[str(SOURCES)],
        define_macro=[(name, str(value)) for name, value in macros.items()],
        ptxas_options=["-v"],
    )
    log = io.StringIO()
    try:
        code = core.Program((SOURCES / source).read_text(), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        message = f"NVRTC could not compile {source} for {arch}: {error}\n{log.getvalue()}"
        raise RuntimeError(message) from error
    return bytes(code), log.getvalue()


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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepres" / "cuda"


def _key(source: str, macros: dict[str, int], arch: str) -> str:
    from cuda.bindings import nvrtc

    digest = hashlib.sha256(repr((source, sorted(macros.items()), arch, nvrtc.nvrtcVersion()[1:])).encode())
    for file in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")]):
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
    """What to compile: a file of `SOURCES`, macros as (name, value), and the kernels that are launched."""

    source: str
    macros: tuple[tuple[str, int], ...]
    kernels: tuple[str, ...]


class DeviceProgram:
    """The kernels of one program on one device."""

    def __init__(self, program: Program, device: torch.device):
        import cupy
        from cupy.cuda import driver

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{program.source} must be loaded before a CUDA graph is captured; run the call once before"
            )
        facts = device_facts(device)
        code = cached_program(program.source, dict(program.macros), target(facts.capability))
        self.device = device
        self._module = cupy.cuda.function.Module()
        with cupy.cuda.Device(device.index):
            self._module.load(code)
            self._functions = {name: self._module.get_function(name) for name in program.kernels}
            for function in self._functions.values():
                limit = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(function.ptr, limit, facts.shared_limit)

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
