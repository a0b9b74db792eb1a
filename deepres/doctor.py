"""What this machine has, and what a run would take: devices, backends, versions, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from deepres import memory
from deepres._version import __version__
from deepres.config import Config
from deepres.device import pick_device
from deepres.distributed import is_first
from deepres.kernels import backends
from deepres.memory import size

if TYPE_CHECKING:
    from rich.console import Group

_PACKAGES = (
    "torch", "triton", "cupy-cuda13x", "cuda-core", "jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy",
    "safetensors", "tensorboard", "tyro", "rich", "matplotlib", "imageio",
)  # fmt: skip


def print_report(config: Config, memory_gb: float | None = None) -> None:
    """Print what this machine has, which backends run here, and the memory that a run of `config` takes.

    memory_gb: plan for a GPU with so many GB (of 10^9 bytes), or with device="cpu" for a machine, instead of this one.
    """
    from rich.console import Console

    console = Console()
    console.print(table(f"deepres {__version__}", ("what", "here"), _machine()))
    statuses = [(op, impl, status) for op, rows in backends().items() for impl, status in rows.items()]
    console.print(table("backends", ("op", "backend", "here"), statuses))
    try:
        sizes = memory.task_sizes(config.env)
    except ImportError as error:
        console.print(f"no memory plan: {error}")
        return
    if memory_gb is None:
        device, limit = pick_device(config.device).type, memory.room(config)
    else:
        device, limit = "cpu" if config.device == "cpu" else "cuda", int(memory_gb * 1e9)
    made = memory.plan(config, sizes, device=device, free=limit)
    console.print(plan_table(config, made, limit))
    rows = [("as it is", size(made.peak), _verdict(made.peak, limit))]
    for change in memory.choices(config, device):
        peak = memory.plan(replace(config, **dict([change])), sizes, device=device, free=limit).peak
        rows.append((memory.typed(change), size(peak), _verdict(peak, limit)))
    console.print(table("what each choice costs", ("option", "peak", f"of {size(limit)}"), rows))
    changes = memory.remedy(config, sizes, limit, device=device)
    if changes is None:
        console.print(f"nothing of this makes it fit: {memory.LESS}")
    else:
        console.print(f"to make it fit: {memory.typed(*changes)}" if changes else "it fits")


def plan_table(config: Config, plan: memory.Plan, limit: int) -> Group:
    """The parts of a plan, its peak, and how much there is."""
    place = "GPU" if plan.device == "cuda" else "memory"
    rows = [(part, place, size(bytes)) for part, bytes in plan.parts.items() if bytes]
    rows.append(("peak, not all of it at once", place, f"{size(plan.peak)} of {size(limit)}"))
    rows += [(part, "memory", size(bytes)) for part, bytes in plan.host.items() if bytes]
    title = (
        f"memory of {config.env}: critic depth {config.critic_depth}, actor depth {config.actor_depth}, "
        f"width {config.width}, batch {config.batch_size}, {config.precision}"
    )
    return table(title, ("part", "where", "size"), rows)


def _verdict(peak: int, limit: int) -> str:
    return f"{peak / limit:.0%}" if peak <= limit else f"{peak / limit:.0%}: does not fit"


def print_plan(config: Config) -> None:
    """Print the memory plan of a run of `config` here. Raises MemoryError, with a remedy, if it does not fit.

    Under torchrun it is one process's share of the run, and of the machine where that has no GPU.
    """
    from rich.console import Console

    size = int(os.environ.get("WORLD_SIZE", "1"))
    share = replace(
        config, num_envs=max(1, config.num_envs // size), batch_size=max(2, config.batch_size // size)
    )
    limit = memory.room(share)
    plan = memory.require(share, memory.task_sizes(share.env), limit)
    if is_first():
        Console().print(plan_table(share, plan, limit))


def print_envs() -> None:
    """Print the registered tasks: sizes, thresholds, time limit."""
    from rich.console import Console

    from deepres.envs.listing import COLUMNS, rows

    Console().print(table("tasks", COLUMNS, [row.cells() for row in rows()]))


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Group:
    """A titled table for rich's console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        widest = max((len(row[i]) for row in rows), default=0)
        drawn.add_column(column, min_width=widest if i == 0 or widest < 12 else None)  # only sentences wrap
    for row in rows:
        drawn.add_row(*row)
    return Group(f"\n[bold]{title}[/]", drawn)


def _machine() -> list[tuple[str, str]]:
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("cpu", f"{_cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        rows.append((f"cuda:{i}", f"{gpu.name}, {size(gpu.total_memory)}, {capability}"))
    if not torch.cuda.device_count():
        rows.append(("gpu", "none that PyTorch sees"))
    return rows + [(package, _installed(package)) for package in _PACKAGES]


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
