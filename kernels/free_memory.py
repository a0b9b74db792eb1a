"""How much memory can still be had: of a device, of the machine, of the control groups that this process is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`: of the machine or the container, whichever is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [size for size in (_available(), *_left_in_groups()) if size is not None]
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


def _left_in_groups() -> Iterator[int]:
    """What the limit of each control group leaves: this process's own and those around it, up to the root; of version 2
    (one tree) and of version 1 (memory has a tree of its own)."""
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
                left = _left(folder, limit, used, cache)
                if left is not None:
                    yield left


def _memberships() -> dict[str, str]:
    """Controller -> path of this process's group in its tree; "" is version 2's."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return {name: path for _, names, path in parts for name in names.split(",")}


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Bytes below the limit of one group; files that it only keeps to read again do not count as used."""
    try:
        most, now = (int((folder / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None
    try:
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        now -= int(told.get(cache, 0))
    except (OSError, ValueError):
        pass
    return most - now
