"""What the tests share: a limit on what XLA holds, poisoned memory, a disk that fills, no GPU tests without a GPU."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from deepres.envs import xla

with suppress(ImportError):  # before any test computes with JAX
    xla.prepare()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are left out where there is no CUDA device, those marked `checkout` in an sdist, unless they
    are only counted."""
    git = (config.rootpath / ".git").exists()
    lacking = {mark for mark, there in (("gpu", torch.cuda.is_available()), ("checkout", git)) if not there}
    if not config.option.collectonly:
        items[:] = [item for item in items if lacking.isdisjoint(item.keywords)]


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What is registered from here on is unknown again after the test, and whenever what this gives is called. Examples
    are then imported anew, for they register as they are imported."""
    from deepres import algorithms
    from deepres.envs import registry

    known = [(registry, "_ENTRIES"), (algorithms, "_ALGORITHMS")]
    plain = [dict(getattr(module, name)) for module, name in known]

    def forget() -> None:
        for (module, name), entries in zip(known, plain, strict=True):
            monkeypatch.setattr(module, name, dict(entries))
        for name in [name for name in sys.modules if name.startswith("examples.")]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


_LARGE = 1_000 << 20  # bytes; two processes of tests run side by side
_MORE = 100 << 20  # bytes that it grows by until it is looked at again
_MANY = 40  # of XLA's programs, 2 to 15 MB each: with fewer there is little to give back
_looked_at = 0


@pytest.fixture(autouse=True)
def small_process() -> Iterator[None]:
    """A process that has grown large gives back what earlier tests left: gigabytes of XLA's programs, over every task,
    and memory that was freed."""
    global _looked_at
    yield
    if _resident() < max(_LARGE, _looked_at + _MORE):
        return
    if "jax" in sys.modules and _programs() > _MANY:
        sys.modules["jax"].clear_caches()
    gc.collect()
    with suppress(AttributeError):  # glibc's: else what was freed stays with the process
        ctypes.CDLL(None).malloc_trim(0)
    _looked_at = _resident()


def _programs() -> int:
    """Programs that XLA holds."""
    return len(sys.modules["jax"].local_devices()[0].client.live_executables())


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where Linux does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors and scratch buffers without contents start as NaN, so an element left unwritten shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoning(torch.Tensor.new_empty))
    extension = sys.modules.get("deepres._C")
    if extension is not None:
        extension.poison_memory(True)
    yield
    if extension is not None:
        extension.poison_memory(False)


def _poisoning(allocate):
    def poison(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return poison


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose file system refuses what passes 4 MB: a mounted tmpfs, or a limit on file size without root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        yield disk
        subprocess.run(["umount", str(disk)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    yield disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def sealed(small_disk: Path) -> Iterator[Callable[[], None]]:
    """Called, nobody can write to small_disk: it is mounted for reading, or without the right to."""
    every: list[Path] = []

    def seal() -> None:
        if os.path.ismount(small_disk):
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
            return
        every.extend([small_disk, *small_disk.rglob("*")])
        for path in every:
            path.chmod(0o555 if path.is_dir() else 0o444)

    yield seal
    for path in every:
        path.chmod(0o755)
