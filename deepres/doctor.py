"""What this machine has, and what a run would take: devices, backends, versions, memory."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from deepres._version import __version__
from deepres.config import Config
from deepres.kernels import backends
from deepres.kernels.residual_stack import saved_bytes

_PACKAGES = (
    "torch triton cupy-cuda13x cuda-core jax jaxlib mujoco mujoco-mjx numpy safetensors tensorboard tyro rich "
    "matplotlib imageio"
).split()


def memory_plan(config: Config, *, state_dim: int, action_dim: int, goal_dim: int) -> dict[str, int]:
    """Bytes that a run holds on its device at the peak of a gradient step, part by part.

    Counts what grows with depth, width, batch and buffer; a framework's own fixed share comes on top.
    """
    critic_inputs = (state_dim + action_dim, goal_dim)
    critic = sum(_encoder_numbers(config, n, config.feature_dim, config.critic_depth) for n in critic_inputs)
    actor = _encoder_numbers(config, state_dim + goal_dim, 2 * action_dim, config.actor_depth)
    parameters = 4 * (critic + actor)
    # alive at once: phi and psi for the critic's loss, the actor, and phi again under the actor's action
    stacks = [config.critic_depth] * 3 + [config.actor_depth]
    activations = sum(
        saved_bytes(
            config.batch_size,
            config.width,
            depth,
            skip_every=config.skip_every,
            norm=config.norm,
            precision=config.precision,
            checkpoint=config.checkpoint_blocks,
            impl=config.impl,
        )
        for depth in stacks
    )
    row = 4 * (state_dim + action_dim + 1)
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimiser (Adam, two moments)": 2 * parameters,
        "activations kept for backward": activations,
        "replay buffer": config.num_envs * config.buffer_steps * row,
    }


def _encoder_numbers(config: Config, in_dim: int, out_dim: int, depth: int) -> int:
    width, per_layer = config.width, 3 if config.norm else 1
    stem = in_dim * width + per_layer * width
    return stem + depth * (width * width + per_layer * width) + (width + 1) * out_dim


def print_report(config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    machine = Table("deepres", __version__, show_edge=False, title="machine", title_justify="left")
    machine.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    machine.add_row("cpu", f"{_cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}")
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        machine.add_row(
            f"cuda:{i}", f"{p.name}, {_size(p.total_memory)}, compute capability {p.major}.{p.minor}"
        )
    if not torch.cuda.device_count():
        machine.add_row("gpu", "none that PyTorch sees")
    for package in _PACKAGES:
        machine.add_row(package, _installed(package))
    console.print(machine)

    table = Table("op", "backend", "here", show_edge=False, title="\nbackends", title_justify="left")
    for op, rows in backends().items():
        for impl, status in rows.items():
            table.add_row(op, impl, status)
    console.print(table)

    try:
        from deepres.envs import make

        env = make(config.env, num_envs=1)
    except ImportError as error:
        console.print(f"\nno memory plan: {error}")
        return
    plan = memory_plan(
        config, state_dim=env.state_dim, action_dim=env.action_dim, goal_dim=env.goal_dim
    )
    title = (
        f"\nmemory of {config.env}, critic depth {config.critic_depth}, actor depth {config.actor_depth}, "
        f"width {config.width}, batch {config.batch_size}, {config.precision}"
    )
    memory = Table("part", "size", show_edge=False, title=title, title_justify="left")
    for part, size in plan.items():
        memory.add_row(part, _size(size))
    memory.add_row("[bold]together", f"[bold]{_size(sum(plan.values()))}")
    console.print(memory)


def print_envs() -> None:
    from rich.console import Console
    from rich.table import Table

    from deepres.envs import make, names

    columns = ("task", "state", "goal", "action", "success within (m)", "control period (s)")
    table = Table(*columns, show_edge=False)
    for name in names():
        env = make(name, num_envs=1)
        sizes = (env.state_dim, env.goal_dim, env.action_dim, env.threshold, round(env.dt, 4))
        table.add_row(name, *(str(n) for n in sizes))
    Console().print(table)


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
