"""Peak memory: of one warm call, and of a process."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# glibc's allocator raises these two by itself as a process ages; every contestant starts where that ends.
MMAP_THRESHOLD, TRIM_THRESHOLD = 32 * 2**20, 64 * 2**20
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD),
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of <malloc.h>


def peak_bytes(run: Callable[[], Any], device: str) -> int | None:
    """The most memory one warm call holds above what stood before it (parameters and inputs), or None.

    On a GPU PyTorch's allocator tells. On Linux it is the rise of the process's resident set, its high-water
    mark set back first; elsewhere the mark cannot be set back, and nothing is reported.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        libc = ctypes.CDLL(None)
        # freed blocks go back to the system, here and in `run`'s threads, so that their next use is seen
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**16)
        run()
        extension = sys.modules.get("deepres._C")
        if extension is not None:  # the buffers that the CPU kernels keep from call to call count too
            extension.release_memory()
        libc.malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = process_bytes("VmRSS")
        result = run()
        peak = process_bytes("VmHWM")
        del result
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    except (OSError, AttributeError):
        return None
    return max(0, peak - before)


def process_bytes(field: str) -> int:
    """ "VmRSS" or "VmHWM" of this process: its resident set now, and the most it was."""
    return _bytes("/proc/self/status", field)


def machine_bytes(field: str) -> int | None:
    """ "MemTotal" or "MemAvailable" of the machine; None where the system does not say."""
    try:
        return _bytes("/proc/meminfo", field)
    except OSError:
        return None


def _bytes(file: str, field: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} has no {field}")
