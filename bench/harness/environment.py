"""Where a figure was measured: device, processor flags, versions, commit, load."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.harness import memory

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
PACKAGES = ("torch", "jax", "jaxlib", "triton", "cupy-cuda13x", "numpy")


def describe(device: str) -> dict[str, Any]:
    """All that a reader needs to judge the figures; no host names and no paths."""
    import torch

    import deepres

    commit, dirty = git_state()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "uncommitted_changes": dirty,
        "deepres": {
            "version": deepres.__version__,
            "from": "this checkout"
            if ROOT in Path(deepres.__file__).resolve().parents
            else "an installation",
            "backends": deepres.backends(),
        },
        "device": gpu() if device == "cuda" else {"kind": "cpu", "name": cpu_name()},
        "cpu": {
            "name": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "flags": cpu_flags(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": memory.machine_bytes("MemTotal"),
        },
        "threads": torch.get_num_threads(),
        "load_average_at_start": load_average(),
        "cores_busy_at_start": cores_busy(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions()},
    }


def compiler() -> dict[str, Any]:
    """What matters to code that is compiled and not run."""
    commit, dirty = git_state()
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"date": date, "commit": commit, "uncommitted_changes": dirty, "versions": versions()}


def gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str, bool]:
    """(commit, uncommitted changes?); ("unknown", False) outside a git checkout."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Which of the instruction sets that matter here the processor names."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            return [flag for flag in FLAGS if flag in present]
    return []


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def load_average() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def cores_busy(seconds: float = 2.0) -> float | None:
    """Cores that other programs keep busy now, while this one sleeps; None where the system does not say.

    A load average remembers minutes, so it calls a machine busy that has just finished something.
    """
    try:
        before = _idle_seconds()
        time.sleep(seconds)
        return round(max(0.0, (os.cpu_count() or 1) - (_idle_seconds() - before) / seconds), 2)
    except (OSError, IndexError, ValueError):
        return None


def _idle_seconds() -> float:
    idle, waiting = Path("/proc/stat").read_text().split("\n", 1)[0].split()[4:6]
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")
