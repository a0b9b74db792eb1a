"""What this machine has, and what a run would take: devices, backends, versions, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from deepres._version import __version__
from deepres.config import Config
from deepres.kernels import backends
from deepres.kernels.residual_stack import StackOptions
from deepres.kernels.stack_memory import AUTO, saved_bytes
from deepres.run import pick_device

if TYPE_CHECKING:
    from rich.console import Group

_PACKAGES = (
    "torch", "triton", "cupy-cuda13x", "cuda-core", "jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy",
    "safetensors", "tensorboard", "tyro", "rich", "matplotlib", "imageio",
)  # fmt: skip


def memory_plan(config: Config, *, state_dim: int, action_dim: int, goal_dim: int) -> dict[str, int]:
    """Bytes that a run holds on its device at the peak of a gradient step, part by part.

    Counts what grows with depth, width, batch and buffer; a framework's own fixed share comes on top.
    """
    critic_inputs = (state_dim + action_dim, goal_dim)
    critic = sum(_encoder_numbers(config, n, config.feature_dim, config.critic_depth) for n in critic_inputs)
    actor = _encoder_numbers(config, state_dim + goal_dim, 2 * action_dim, config.actor_depth)
    parameters = 4 * (critic + actor)
    row = 4 * (state_dim + action_dim + 1)
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimiser (Adam, two moments)": 2 * parameters,
        "activations kept for backward": _activation_bytes(config),
        "replay buffer": config.num_envs * config.buffer_steps * row,
    }


def _activation_bytes(config: Config) -> int:
    """What the stacks of a gradient step keep for backward, plus what one of them computes again at a time."""
    words = {"none": 0, "auto": AUTO}
    blocks = words[config.checkpoint] if config.checkpoint in words else int(config.checkpoint)
    options = StackOptions(
        config.skip_every, config.activation, config.norm, precision=config.precision, checkpoint=blocks
    )
    # alive at once: phi and psi for the critic's loss, phi again under the actor's action, and the actor
    depths = [config.critic_depth] * 3 + [config.actor_depth]
    device = pick_device(config.device).type
    sizes = [
        saved_bytes(config.batch_size, config.width, depth, options, impl=config.impl, device=device)
        for depth in depths
    ]
    return sum(kept for kept, _ in sizes) + max(again for _, again in sizes)


def _encoder_numbers(config: Config, in_dim: int, out_dim: int, depth: int) -> int:
    width, per_layer = config.width, 3 if config.norm else 1
    stem = in_dim * width + per_layer * width
    return stem + depth * (width * width + per_layer * width) + (width + 1) * out_dim


def print_report(config: Config) -> None:
    """Print what this machine has, which backends run here, and the memory that a run of `config` takes."""
    from rich.console import Console

    console = Console()
    console.print(_table(f"deepres {__version__}", ("what", "here"), _machine()))
    statuses = [(op, impl, status) for op, rows in backends().items() for impl, status in rows.items()]
    console.print(_table("backends", ("op", "backend", "here"), statuses))
    try:
        from deepres.envs import make

        env = make(config.env, num_envs=1)
    except ImportError as error:
        console.print(f"no memory plan: {error}")
        return
    plan = memory_plan(config, state_dim=env.state_dim, action_dim=env.action_dim, goal_dim=env.goal_dim)
    sizes = [(part, _size(size)) for part, size in plan.items()]
    title = (
        f"memory of {config.env}: critic depth {config.critic_depth}, actor depth {config.actor_depth}, "
        f"width {config.width}, batch {config.batch_size}, {config.precision}"
    )
    console.print(_table(title, ("part", "size"), [*sizes, ("together", _size(sum(plan.values())))]))


def print_envs() -> None:
    """Print the registered tasks and their sizes."""
    from rich.console import Console

    from deepres.envs import make, names

    columns = ("task", "state", "goal", "action", "success within (m)", "control period (s)")
    rows = []
    for name in names():
        env = make(name, num_envs=1)
        sizes = (env.state_dim, env.goal_dim, env.action_dim, env.threshold, round(env.dt, 4))
        rows.append((name, *map(str, sizes)))
    Console().print(_table("tasks", columns, rows))


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return Group(f"\n[bold]{title}[/]", table)


def _machine() -> list[tuple[str, str]]:
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("cpu", f"{_cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        rows.append((f"cuda:{i}", f"{gpu.name}, {_size(gpu.total_memory)}, {capability}"))
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


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"
