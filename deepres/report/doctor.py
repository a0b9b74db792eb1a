"""What this machine has, and what a run would take: devices, backends, versions, memory."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from deepres._version import __version__
from deepres.config import Config
from deepres.kernels import backends
from deepres.machine import cpu_name, pick_device
from deepres.ranks import is_first
from deepres.report.tables import console, table
from deepres.training import memory_plan as memory
from deepres.training.environments import task_sizes
from deepres.training.memory_plan import size

_PACKAGES = (
    "torch", "triton", "cupy-cuda13x", "cuda-core", "jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy",
    "safetensors", "tensorboard", "tyro", "rich", "matplotlib", "imageio",
)  # fmt: skip


def print_report(config: Config, memory_gb: float | None = None) -> None:
    """Print what this machine has, which backends run here, and the memory that a run of `config` takes.

    memory_gb: plan for a GPU with so many GB (of 10^9 bytes), or with device="cpu" for a machine, instead of this one.
    """
    out = console()
    out.print(table(f"deepres {__version__}", ("what", "here"), _machine()))
    statuses = [(op, impl, status) for op, rows in backends().items() for impl, status in rows.items()]
    out.print(table("backends", ("op", "backend", "here"), statuses))
    try:
        sizes = task_sizes(config.env)
    except ImportError as error:
        remedy = "" if "pip install" in str(error) else "; pip install 'deepres[envs]'"
        out.print(f"no memory plan without environments: {error}{remedy}")
        return
    if memory_gb is None:
        device, limit = pick_device(config.system.device).type, memory.room(config)
    else:
        device, limit = "cpu" if config.system.device == "cpu" else "cuda", int(memory_gb * 1e9)
    same: dict[str, Any] = {"device": device, "free": limit, "process": memory.own_bytes()}
    made = memory.plan(config, sizes, **same)
    out.print(plan_table(config, made, limit))
    rows = [("as it is", size(made.peak), _verdict(made.peak, limit))]
    for change in memory.choices(config, device):
        peak = memory.plan(config.replace(**dict([change])), sizes, **same).peak
        rows.append((memory.typed(change), size(peak), _verdict(peak, limit)))
    out.print(table("what each choice costs", ("option", "peak", f"of {size(limit)}"), rows))
    changes = memory.remedy(config, sizes, limit, device=device)
    if changes is None:
        out.print(f"nothing of this makes it fit: {memory.LESS}")
    else:
        out.print(f"to make it fit: {memory.typed(*changes)}" if changes else "it fits")


def plan_table(config: Config, plan: memory.Plan, limit: int) -> Any:
    """The parts of a plan, its peak, and how much there is."""
    place = "GPU" if plan.device == "cuda" else "memory"
    rows = [(part, place, size(bytes)) for part, bytes in plan.parts.items() if bytes]
    rows.append(("peak, not all of it at once", place, f"{size(plan.peak)} of {size(limit)}"))
    rows += [(part, "memory", size(bytes)) for part, bytes in plan.host.items() if bytes]
    network = config.network
    depths = f"depth {network.depth}"
    if network.actor_depth not in (None, network.depth):
        depths += f", actor {network.actor_depth}"
    title = (
        f"memory of {config.env.name}, {config.algorithm_name}: {depths}, width {network.width}, "
        f"batch {config.schedule.batch_size}, {config.system.precision}"
    )
    return table(title, ("part", "where", "size"), rows)


def _verdict(peak: int, limit: int) -> str:
    return f"{peak / limit:.0%}" if peak <= limit else f"{peak / limit:.0%}: does not fit"


def print_plan(config: Config) -> None:
    """Print the memory plan of a run of `config` here. Raises MemoryError, with a remedy, if it does not fit.

    Under torchrun it is one process's share of the run, and of the machine where that has no GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    share = config.replace(
        num_envs=max(1, config.env.num_envs // size), batch_size=max(2, config.schedule.batch_size // size)
    )
    limit = memory.room(share)
    plan = memory.require(share, task_sizes(share.env), limit)
    if is_first():
        console().print(plan_table(share, plan, limit))


def _machine() -> list[tuple[str, str]]:
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("cpu", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
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
