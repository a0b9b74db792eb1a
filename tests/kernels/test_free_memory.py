"""Memory limits as containers and batch systems set them."""

from __future__ import annotations

import pytest
import torch

from deepres.kernels import free_memory
from deepres.machine import free_bytes

LIMIT, USED = 3_000_000, 1_000_000
V2 = {"memory.max": LIMIT, "memory.current": USED}
V1 = {"memory.limit_in_bytes": LIMIT, "memory.usage_in_bytes": USED}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "MEMBERSHIP", tmp_path / "membership")

    def make(folder: str, files: dict[str, object], membership: str = "") -> None:
        place = tmp_path / "cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (place / name).write_text(f"{value}\n")
        (tmp_path / "membership").write_text(membership)

    return make


def free() -> int:
    return free_bytes(torch.device("cpu"))


@pytest.mark.parametrize(
    ("folder", "files", "membership"),
    [
        ("", V2, "0::/"),  # a container
        ("", V2, ""),
        ("memory", V1, ""),  # a container of version 1
        ("memory", V1, "4:cpu,cpuacct:/docker/7\n3:memory:/docker/7"),  # its own path, seen from the machine
        ("memory/slurm/uid_0/job_7", V1, "9:memory:/slurm/uid_0/job_7/step_0"),  # a limit above its own group
        ("system.slice/job_7", V2, "0::/system.slice/job_7/task: 1"),
        ("unified/user.slice", V2, "1:name=systemd:/\n0::/user.slice"),
    ],
)
def test_a_limit_is_seen_wherever_it_is_set(groups, folder, files, membership):
    groups(folder, files, membership)
    assert free() == LIMIT - USED


def test_what_the_process_may_hold_is_the_least_limit(groups):
    machine = free_memory.limit_bytes()
    assert machine >= free() > 0
    groups("a", {"memory.max": LIMIT, "memory.current": USED}, "0::/a/b")
    assert free_memory.limit_bytes() == LIMIT
    groups("a", {"memory.max": machine + 1, "memory.current": USED}, "0::/a/b")
    assert free_memory.limit_bytes() == machine


def test_the_least_of_nested_limits_counts(groups):
    groups("a", {"memory.max": LIMIT, "memory.current": USED}, "0::/a/b")
    groups("a/b", {"memory.max": "max", "memory.current": USED}, "0::/a/b")
    assert free() == LIMIT - USED
    groups("a/b", {"memory.max": LIMIT - 5, "memory.current": USED}, "0::/a/b")
    assert free() == LIMIT - USED - 5


def test_files_kept_to_be_read_again_are_free(groups):
    groups("", {**V2, "memory.stat": "anon 5\ninactive_file 400000"}, "0::/")
    assert free() == LIMIT - USED + 400_000


def test_another_groups_limit_and_none_at_all_leave_the_machines_memory(groups):
    groups("elsewhere", V2, "0::/here")
    assert free() > 10 * LIMIT
    groups("", {"memory.max": "max", "memory.current": USED}, "0::/")
    groups("memory", {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": USED}, "0::/")
    assert free() > 10 * LIMIT


def test_a_group_over_its_limit_has_nothing_left(groups):
    groups("", {"memory.max": LIMIT, "memory.current": LIMIT + 1}, "0::/")
    assert free() == 0
