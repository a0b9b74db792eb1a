"""How much memory can still be had: of a device, of the machine, of the control groups that this process is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`: of the machine or the container, whichever is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [size for size in (_available(), *(left for _, left in _groups())) if size is not None]
    return max(0, min(known)) if known else 1 << 62


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def limit_bytes() -> int:
    """Bytes that this process may hold in all: the machine's memory, or a control group's limit where that is less."""
    known = [most for most, _ in _groups()]
    with suppress(ValueError, OSError, AttributeError):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known) if known else 1 << 62


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of each control group with a limit: this process's own and those around it, up to the
    root; of version 2 (one tree) and of version 1 (memory has a tree of its own)."""
    own = _memberships()
    trees = (
        (GROUPS, own.get("", "/"), "memory.max", "memory.current", "inactive_file"),
        (GROUPS / "unified", own.get("", "/"), "memory.max", "memory.current", "inactive_file"),
        (
            GROUPS / "memory",
            own.get("memory", "/"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    for root, path, limit, used, cache in trees:
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                known = _limit(folder, limit, used, cache)
                if known is not None:
                    yield known


def _memberships() -> dict[str, str]:
    """Controller -> path of this process's group in its tree; "" is version 2's."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return {name: path for _, names, path in parts for name in names.split(",")}


def _limit(folder: Path, limit: str, used: str, cache: str) -> tuple[int, int] | None:
    """Of one group the limit and the bytes below it; files that it only keeps to read again do not count as used."""
    try:
        most, now = (int((folder / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None
    try:
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        now -= int(told.get(cache, 0))
    except (OSError, ValueError):
        pass
    return most, most - now
