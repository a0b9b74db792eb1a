"""Timing that can be believed: warm, interleaved, with spread; and peak memory.

Contestants take turns, a turn being one stretch of calls of one of them, warmed up by itself before the clock
starts, so that caches, clock rate and threads are its own. Rounds of turns follow each other with the order
rotated: what disturbs the machine for a while disturbs everybody.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# glibc's allocator raises these two by itself as a process ages; every contestant starts where that ends.
MMAP_THRESHOLD, TRIM_THRESHOLD = 32 * 2**20, 64 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of <malloc.h>

WARM_S = 0.02
TIMED_S = 0.06
SLOW_CALL_S = 0.5  # beyond this a call outlives whatever a warm-up would have warmed
QUIET_S = 0.01  # between turns: the last one's threads stop spinning


def turn(run: Callable[[], Any], wait: Callable[[], None], call_s: float) -> list[float]:
    """Seconds of each call of `run` in one turn. wait: returns when the device is done; call_s: a guess."""
    deadline = time.perf_counter() + WARM_S
    while call_s < SLOW_CALL_S:
        run()
        wait()
        if time.perf_counter() >= deadline:
            break
    seconds: list[float] = []
    while not seconds or sum(seconds) + seconds[-1] < TIMED_S:
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def rounds_for(call_s: Sequence[float], budget_s: float) -> int:
    """How many rounds fit the budget, given one call's cost for each contestant: at least 3, at most 25."""
    cost = sum(c if c >= SLOW_CALL_S else max(2 * c, WARM_S + TIMED_S) for c in call_s)
    return max(3, min(25, round(budget_s / max(cost, 1e-9))))


def interleave(
    turns: dict[str, Callable[[], list[float]]], rounds: int, budget_s: float
) -> Iterator[tuple[str, int, list[float]]]:
    """Yields (contestant, round, seconds of its calls) until every one has had `rounds` turns.

    A machine that has become slow meanwhile gets fewer: three, once thrice the budget is spent.
    """
    names = list(turns)
    start = time.perf_counter()
    for r in range(rounds):
        if r >= 3 and time.perf_counter() - start > 3 * budget_s:
            return
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            time.sleep(QUIET_S)
            yield name, r, turns[name]()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile (linear between neighbours), least, and how many."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    return {
        "median": statistics.median(ordered),
        "p10": quantile(0.1),
        "p90": quantile(0.9),
        "min": ordered[0],
        "runs": len(ordered),
    }


def ratio(baseline: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times faster than the baseline, round by round: both had the same neighbours then."""
    return spread([statistics.median(b) / statistics.median(o) for b, o in zip(baseline, own, strict=True)])


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
        before = _status_bytes("VmRSS")
        result = run()
        peak = _status_bytes("VmHWM")
        del result
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    except (OSError, AttributeError):
        return None
    return max(0, peak - before)


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
