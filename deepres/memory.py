"""The memory that a run takes, before anything is allocated: part by part, its peak, and what to change if too large.

    weights, gradients, two moments   4 numbers of fp32 a parameter
    activations                       what the four stacks keep for backward (kernels/residual_stack/memory.py)
    replay buffer                     num_envs x buffer_steps x (state, action, trajectory id)

The four stacks of a gradient step are phi and psi for the critic's loss, phi again under the actor's action, and the
actor. Backward takes them from the last to the first: each one's gradients come as its activations go.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from deepres.buffer import buffer_bytes
from deepres.config import Config
from deepres.device import pick_device
from deepres.kernels.residual_stack.memory import free_bytes, saved_bytes
from deepres.kernels.residual_stack.options import AUTO, StackOptions

Change = tuple[str, Any]  # a field of Config and its new value

CONTEXT = 600_000_000  # of a GPU, CUDA's own share and the libraries' code: assumed, not yet measured
SAVING = "a checkpoint on its way from the GPU to the disk"
LESS = "take fewer layers, environments or buffer steps, a smaller batch or another machine"
ENV_WORKSPACE = 20  # XLA's memory for a step, in states of an environment (17 to 20 for ant and point_u_maze)


@dataclass(frozen=True)
class Sizes:
    """A task's vectors, in numbers, and the bytes of one environment's state."""

    state: int
    action: int
    goal: int
    env_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """parts: bytes on the device by name. host: bytes in the machine's own memory, beside a GPU. peak: the most that
    the parts take at once, less than their sum where one goes as another comes."""

    device: str
    parts: dict[str, int]
    host: dict[str, int]
    peak: int


def task_sizes(name: str) -> Sizes:
    """Of the task called `name`. Raises ValueError for an unknown one, ImportError without JAX and MuJoCo."""
    from deepres.envs import make

    return env_sizes(make(name, num_envs=1))


def env_sizes(env: Any) -> Sizes:
    """Of the task that `env`, a VectorEnv, steps."""
    import jax

    shapes = jax.tree.leaves(jax.eval_shape(env.functional.reset, jax.random.PRNGKey(0)))
    env_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    return Sizes(env.state_dim, env.action_dim, env.goal_dim, env_bytes)


def plan(config: Config, sizes: Sizes, *, device: str | None = None, free: int | None = None) -> Plan:
    """What a run of `config` will hold. device: "cpu" or "cuda", by default the config's. free: bytes to be had."""
    device = device or pick_device(config.device).type
    step = StepMemory(config, sizes, device, free)
    buffer = buffer_bytes(config, state_dim=sizes.state, action_dim=sizes.action)
    environments = ENV_WORKSPACE * sizes.env_bytes * (config.num_envs + config.eval_envs)
    if device == "cpu":
        parts = {
            **step.parts,
            "replay buffer": buffer,
            "environments": environments,
            "this process": _resident(),
        }
        always = buffer + environments + parts["this process"]
        return Plan(device, parts, {}, always + step.peak)
    ring = {"replay buffer": buffer}
    on_host = config.buffer_device == "cpu"
    trained = step.parts["weights"] + step.parts["optimiser (Adam, two moments)"]
    parts = {**step.parts, **({} if on_host else ring), "CUDA context (assumed)": CONTEXT}
    host = {**(ring if on_host else {}), "environments": environments, "this process": _resident()}
    ring_crosses = config.save_buffer and not on_host
    host[SAVING] = max(trained, buffer if ring_crosses else 0)  # one file after the other
    return Plan(device, parts, host, CONTEXT + step.peak + (0 if on_host else buffer))


class StepMemory:
    """One gradient step's `parts` (networks, optimiser, gradients, activations) and the `peak` that they take at once.

    device: "cpu" or "cuda". free: bytes to be had there, by default what is free (checkpoint="auto" asks).
    """

    def __init__(self, config: Config, sizes: Sizes, device: str, free: int | None = None):
        phi = _encoder_numbers(config, sizes.state + sizes.action, config.feature_dim, config.critic_depth)
        psi = _encoder_numbers(config, sizes.goal, config.feature_dim, config.critic_depth)
        actor = _encoder_numbers(config, sizes.state + sizes.goal, 2 * sizes.action, config.actor_depth)
        blocks = {"none": 0, "auto": AUTO}.get(config.checkpoint)
        options = StackOptions(
            config.skip_every,
            config.activation,
            config.norm,
            precision=config.precision,
            recompute=int(config.checkpoint) if blocks is None else blocks,
        )

        def stack(depth: int) -> tuple[int, int]:
            return saved_bytes(
                config.batch_size, config.width, depth, options, impl=config.impl, device=device, free=free
            )

        critic_stack, actor_stack = stack(config.critic_depth), stack(config.actor_depth)
        rows = 4 * config.batch_size * config.width  # a stem keeps three such, and a stack's output is one
        # in the order of backward: (kept, computed again, gradients)
        stacks = [
            (*critic_stack, 4 * phi),
            (*critic_stack, 0),  # phi under the actor's action: no gradient for its weights
            (*actor_stack, 4 * actor),
            (*critic_stack, 4 * psi),
        ]
        weights = 4 * (phi + psi + actor)
        kept = sum(kept for kept, _, _ in stacks) + 4 * 4 * rows
        again = max(again for _, again, _ in stacks)
        copied = 4 * actor if config.overlap else 0
        rounded = 0  # operands in 16 bits: of one stack at a time
        if config.precision in ("bf16", "fp16"):
            rounded = 2 * max(config.critic_depth, config.actor_depth) * config.width**2
        self.parts = {
            "weights": weights,
            "gradients": weights,
            "optimiser (Adam, two moments)": 2 * weights,
            "policy that collects ahead": copied,
            "operands in 16 bits": rounded,
            "activations kept for backward": kept,
            "computed again in backward": again,
        }
        most, alive, made = 0, kept, 0
        for held, computed, gradients in stacks:
            made += gradients
            most = max(most, alive + computed + made)
            alive -= held
        # what the CPU kernels free stays theirs, up to a limit; PyTorch's allocator on a GPU hands it on to the next
        self.pooled = 0 if device == "cuda" else min(_pool(), max(0, kept + again + weights - most))
        self.peak = 3 * weights + copied + rounded + most + self.pooled


def _pool() -> int:
    """Bytes of freed memory that the CPU kernels keep for their next call, at most."""
    try:
        from deepres import _C  # type: ignore[attr-defined]
    except ImportError:
        return 0
    return _C.pooled_bytes()


def _encoder_numbers(config: Config, in_dim: int, out_dim: int, depth: int) -> int:
    width, per_layer = config.width, 3 if config.norm else 1
    stem = in_dim * width + per_layer * width
    return stem + depth * (width * width + per_layer * width) + (width + 1) * out_dim


def _resident() -> int:
    """Bytes that this process holds already: the interpreter and its libraries."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * 4096


def room(config: Config) -> int:
    """Bytes that a run may take in all: what is free on its device, and what this process holds already.

    Under torchrun, without a GPU, it is this process's share of them.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        return (free_bytes(device) + _resident()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free_bytes(device) + CONTEXT


def choices(config: Config, device: str) -> list[Change]:
    """What can be changed to take less memory, as (field, value), the least harmful first."""
    wanted: list[Change] = [("buffer_device", "cpu")] if device == "cuda" else []
    wanted.append(("buffer_dtype", "bf16"))
    if config.skip_every:
        wanted += [("checkpoint", blocks) for blocks in ("1", "4", "16")]
    fewer = max(config.buffer_steps // 4, config.min_buffer_steps)
    wanted += [("precision", "bf16"), ("buffer_steps", fewer)]
    return [(name, value) for name, value in wanted if getattr(config, name) != value]


def remedy(config: Config, sizes: Sizes, limit: int, *, device: str) -> tuple[Change, ...] | None:
    """The fewest of `choices` that bring the peak below `limit` bytes; () if it is already, None if nothing does."""
    offered = choices(config, device)
    for count in range(len(offered) + 1):
        for chosen in combinations(offered, count):
            if len(dict(chosen)) == count:  # no field set twice
                changed = replace(config, **dict(chosen))
                if plan(changed, sizes, device=device, free=limit).peak <= limit:
                    return chosen
    return None


def typed(*changes: Change) -> str:
    """As options of the command line."""
    words = [(name.replace("_", "-"), value) for name, value in changes]
    return " ".join(f"--no-{name}" if value is False else f"--{name} {value}" for name, value in words)


def require(config: Config, sizes: Sizes, limit: int | None = None, *, device: str | None = None) -> Plan:
    """The plan of a run that fits. Raises MemoryError, naming what to change, if its peak exceeds `limit` bytes.

    limit: by default what is free on the config's device. device: "cpu" or "cuda", by default the config's.
    """
    device = device or pick_device(config.device).type
    limit = room(config) if limit is None else limit
    made = plan(config, sizes, device=device, free=limit)
    beside = sum(made.host.values()) - made.host.get("this process", 0)
    if device == "cuda" and torch.cuda.is_available() and beside > free_bytes(torch.device("cpu")):
        raise MemoryError(
            f"this run of {config.env} needs {size(beside)} of memory beside the GPU and "
            f"{size(free_bytes(torch.device('cpu')))} are there; pass --no-save-buffer or --buffer-dtype bf16"
        )
    if made.peak <= limit:
        return made
    changes = remedy(config, sizes, limit, device=device)
    if changes:
        advice = f"pass {typed(*changes)}"
    else:
        part, most = max(made.parts.items(), key=lambda item: item[1])
        advice = f"the most of it is for {part}, {size(most)}: {LESS}"
    raise MemoryError(
        f"this run of {config.env} needs {size(made.peak)} and {size(limit)} are there; {advice} "
        "(`deepres doctor` with the same options shows what each choice costs)"
    )


def size(count: int) -> str:
    """`count` bytes for people, in powers of 1000: "5.9 GB"."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"
