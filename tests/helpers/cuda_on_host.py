"""The CUDA sources as a C++ library on the CPU: what stands in for a GPU in the tests.

csrc/cuda/host emulates the threads of a block; the Python side of the backend runs unchanged on CPU tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from deepres.kernels import cuda_program, dispatch
from deepres.kernels.residual_stack import cuda

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "cuda_on_host"
# DEEPRES_SANITIZE=1: every access to memory is checked (tests run themselves so, with the runtime preloaded).
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


class HostProgram:
    """What `cuda_program.DeviceProgram` is on a GPU. `schedule` orders threads and copies (host/fibers.h)."""

    schedule = 0

    def __init__(self, macros: dict[str, int]):
        self._library = ctypes.CDLL(str(build(macros)))

    def launch(self, kernel, grid, threads, shared, *arguments) -> None:
        words = b"".join(_word(a) for a in arguments)
        status = self._library.deepres_launch(
            kernel.encode(), *(ctypes.c_longlong(n) for n in (*grid, threads, shared, self.schedule)), words
        )
        assert status == 0, f"{kernel}: {['', 'no such kernel', 'its threads wait for each other'][status]}"


def _word(argument: torch.Tensor | float | None) -> bytes:
    if isinstance(argument, torch.Tensor):
        assert argument.numel() == 0 or argument[0].is_contiguous()  # of a group each member's part
        return struct.pack("q", argument.data_ptr())
    if isinstance(argument, float):
        return struct.pack("d", argument)
    return struct.pack("q", argument or 0)


def build(macros: dict[str, int]) -> Path:
    """The library for these macros, compiled unless it lies there for the very same sources and flags."""
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas", *(SANITIZE if os.environ.get("DEEPRES_SANITIZE") else [])]
    flags += ["-DDEEPRES_HOST", *(f"-D{name}={value}" for name, value in macros.items())]
    digest = hashlib.sha256(repr(flags).encode())
    for file in sorted(f for f in SOURCES.rglob("*") if f.is_file()):
        digest.update(file.read_bytes())
    library = BUILD / f"{digest.hexdigest()[:24]}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", *flags, str(SOURCES / "host" / "launch.cpp"), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        partial.rename(library)
    return library


# What `cuda_program.device_facts` says of the stand-in: one block to 16 rows, or clusters of them.
SMALL = cuda_program.DeviceFacts((8, 0), 108, 99 * 1024)
LARGE = cuda_program.DeviceFacts((9, 0), 132, 227 * 1024)


@cache
def load_program(program: cuda_program.Program, _device: torch.device) -> HostProgram:
    return HostProgram(dict(program.macros))


@contextmanager
def served(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """impl="cuda" over CPU tensors, on SMALL; what it allocates starts as NaN."""
    patch.setattr(cuda_program, "load_program", load_program)
    patch.setattr(cuda_program, "device_facts", lambda _: SMALL)
    patch.setattr(cuda, "unavailable", lambda: None)
    patch.setattr(cuda, "unsupported", lambda *_: None)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        patch.setattr(owner, name, _poisoning(getattr(owner, name)))
    dispatch._reason.cache_clear()
    yield
    dispatch._reason.cache_clear()


def _poisoning(allocate):
    def poison(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 0xFF)

    return poison
