"""The memory that a run takes, before anything is allocated: part by part, its peak, and what to change if too large.

    weights, gradients, two moments   4 numbers of fp32 a parameter that is learned, 1 of one that is not
    activations                       what each of a step's stacks keeps for its backward (residual_stack/memory.py)
    replay buffer                     num_envs x buffer_steps x the columns that the algorithm's sampler asks for

The algorithm says which networks a gradient step goes through, in which order (`Algorithm.passes`). Backward takes them
from the last to the first: each one's gradients come as its activations go.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from deepres.algorithms.base import Algorithm, Pass
from deepres.config import Config
from deepres.data.batch import COLUMNS, Sizes
from deepres.data.datasets import member_bytes
from deepres.data.replay import DTYPES, row_bytes
from deepres.kernels.residual_stack.cpu import pooled_bytes
from deepres.kernels.residual_stack.memory import AUTO, packed_bytes, saved_bytes
from deepres.kernels.residual_stack.options import StackOptions
from deepres.machine import free_bytes, pick_device, resident_bytes
from deepres.networks import PlainLayers, ResidualStack
from deepres.runs.folder import RunFolder
from deepres.training.learner import build_algorithm
from deepres.training.optimizer import Adam

Change = tuple[str, Any]  # an option's flat name and its new value

CONTEXT = 600_000_000  # of a GPU, CUDA's own share and the libraries' code: assumed, not yet measured
SAVING = "a checkpoint on its way from the GPU to the disk"
LESS = "take fewer layers, environments or buffer steps, a smaller batch or another machine"
ENV_WORKSPACE = 20  # XLA's memory for a step, in states of an environment (17 to 20 for ant and point_u_maze)


@dataclass(frozen=True)
class Plan:
    """parts: bytes on the device by name. host: bytes in the machine's own memory, beside a GPU. peak: the most that
    the parts take at once, less than their sum where one goes as another comes."""

    device: str
    parts: dict[str, int]
    host: dict[str, int]
    peak: int


def plan(
    config: Config,
    sizes: Sizes,
    *,
    device: str | None = None,
    free: int | None = None,
    process: int | None = None,
) -> Plan:
    """What a run of `config` will hold.

    device: "cpu" or "cuda", by default the config's. free: bytes to be had. process: bytes that this process holds
    before it, by default what it does now; plans that are compared take the same.
    """
    process = own_bytes() if process is None else process
    device = device or pick_device(config.system.device).type
    with torch.device("meta"):
        algorithm = build_algorithm(config, sizes)
    step = StepMemory(config, algorithm, device, free)
    columns = tuple(COLUMNS) if config.schedule.record == "all" else algorithm.sampler.columns
    buffer = _ring_bytes(config, sizes, columns)
    environments = ENV_WORKSPACE * sizes.env_bytes * (config.env.num_envs + config.schedule.eval_envs)
    if device == "cpu":
        parts = {
            **step.parts,
            "replay buffer": buffer,
            "environments": environments,
            "this process": process,
        }
        always = buffer + environments + parts["this process"]
        return Plan(device, parts, {}, always + step.peak)
    ring = {"replay buffer": buffer}
    on_host = config.system.buffer_device == "cpu"
    trained = step.parts["weights"] + step.parts["optimiser (Adam, two moments)"]
    parts = {**step.parts, **({} if on_host else ring), "CUDA context (assumed)": CONTEXT}
    host = {**(ring if on_host else {}), "environments": environments, "this process": process}
    ring_crosses = config.schedule.save_buffer and not on_host
    host[SAVING] = max(trained, buffer if ring_crosses else 0)  # one file after the other
    return Plan(device, parts, host, CONTEXT + step.peak + (0 if on_host else buffer))


def _ring_bytes(config: Config, sizes: Sizes, columns: tuple[str, ...]) -> int:
    """Of the ring: its own, or what `data` names, a run's ring or a file's rows."""
    data = config.schedule.data
    if data is not None and data.endswith(".npz"):
        return member_bytes(Path(data), ("observations", "actions"))
    of = config if data is None else RunFolder(Path(data)).read_config()
    row = row_bytes(sizes, columns, DTYPES[config.system.buffer_dtype])
    return of.env.num_envs * of.schedule.buffer_steps * row


class StepMemory:
    """One gradient step's `parts` (networks, optimiser, gradients, activations) and the `peak` that they take at once.

    algorithm: without memory of its own (on the device "meta"). device: "cpu" or "cuda". free: bytes to be had there,
    by default what is free (recompute="auto" asks).
    """

    def __init__(self, config: Config, algorithm: Algorithm, device: str, free: int | None = None):
        batch, width, system = config.schedule.batch_size, config.network.width, config.system
        blocks = {"none": 0, "auto": AUTO}.get(str(system.recompute))
        options = StackOptions(
            config.network.skip_every,
            config.network.activation,
            config.network.norm,
            precision=system.precision,
            recompute=int(system.recompute) if blocks is None else blocks,
        )

        def stacks_of(network: str) -> list[ResidualStack]:
            return [m for m in getattr(algorithm, network).modules() if isinstance(m, ResidualStack)]

        def saved(one: Pass) -> tuple[int, int]:
            each = [
                saved_bytes(
                    one.batches * batch,
                    width,
                    m.depth,
                    options._replace(skip_every=m.skip_every),
                    members=m.members or 1,
                    impl=system.impl,
                    device=device,
                    free=free,
                )
                for m in stacks_of(one.network)
            ]
            return sum(kept for kept, _ in each), max((again for _, again in each), default=0)

        rows = (
            4 * batch * width
        )  # a stem keeps three such, a stack's output is one; a plain layer keeps three

        def kept_by(one: Pass) -> tuple[int, int]:
            kept, again = saved(one)
            members = one.batches * sum(m.members or 1 for m in stacks_of(one.network))
            plain = [m for m in getattr(algorithm, one.network).modules() if isinstance(m, PlainLayers)]
            layers = one.batches * sum(m.members * m.depth for m in plain)
            return kept + (4 * members + 3 * layers) * rows, again

        backward = [one for one in reversed(algorithm.passes) if one.backward]
        # of each turn, in the order of its backward: (kept, computed again, gradients)
        turns = [
            [
                (*kept_by(one), 4 * _numbers(getattr(algorithm, one.network)) if one.weights else 0)
                for one in backward
                if one.turn == turn
            ]
            for turn in sorted({one.turn for one in backward})
        ]
        learned = 4 * sum(p.numel() for group in algorithm.groups.values() for p in group.parameters)
        fixed = 4 * _numbers(algorithm) - learned
        kept = max((sum(kept for kept, _, _ in turn) for turn in turns), default=0)
        again = max((again for turn in turns for _, again, _ in turn), default=0)
        copied = 4 * _numbers(algorithm.policy().actor) if system.overlap else 0
        rounded = 0  # operands in 16 bits: of one stack at a time
        if device == "cuda" and system.impl in ("auto", "cuda"):
            ways = {one.network: 1 for one in algorithm.passes} | {one.network: 2 for one in backward}
            stacks = [(m, orders) for name, orders in ways.items() for m in stacks_of(name)]
            rounded = sum(
                (m.members or 1) * packed_bytes(width, m.depth, options, orders) for m, orders in stacks
            )
        elif system.precision in ("bf16", "fp16"):
            layers = ((m.members or 1) * m.depth for one in algorithm.passes for m in stacks_of(one.network))
            rounded = 2 * max(layers, default=0) * width**2
        self.parts = {
            "weights": learned + fixed,
            "gradients": learned,
            "optimiser (Adam, two moments)": 2 * learned,
            "policy that collects ahead": copied,
            "operands of products, rounded or packed": rounded,
            "activations kept for backward": kept,
            "computed again in backward": again,
        }
        most = made = 0
        for turn in turns:
            alive = sum(held for held, _, _ in turn)
            for held, computed, gradients in turn:
                made += gradients
                most = max(most, alive + computed + made)
                alive -= held
        # what the CPU kernels free stays theirs, up to a limit; PyTorch's allocator on a GPU hands it on to the next
        self.pooled = 0 if device == "cuda" else min(pooled_bytes(), max(0, kept + again + learned - most))
        self.peak = 3 * learned + fixed + copied + rounded + most + self.pooled


def own_bytes() -> int:
    """Bytes that this process holds, with what PyTorch loads for a first optimiser (150 MB) there already."""
    Adam([torch.nn.Parameter(torch.zeros(()))], lr=0.0)
    return resident_bytes()


def _numbers(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def room(config: Config) -> int:
    """Bytes that a run may take in all: what is free on its device, and what this process holds already.

    Under torchrun, without a GPU, it is this process's share of them.
    """
    device = pick_device(config.system.device)
    if device.type == "cpu":
        return (free_bytes(device) + resident_bytes()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free_bytes(device) + CONTEXT


def choices(config: Config, device: str) -> list[Change]:
    """What can be changed to take less memory, as (field, value), the least harmful first."""
    wanted: list[Change] = [("buffer_device", "cpu")] if device == "cuda" else []
    if not (config.schedule.data or "").endswith(".npz"):
        wanted.append(("buffer_dtype", "bf16"))
    schedule, residual = config.schedule, config.network.trunk == "residual"
    if config.network.skip_every and residual:
        wanted += [("recompute", blocks) for blocks in ("1", "4", "16")]
    if residual:
        wanted.append(("precision", "bf16"))
    if schedule.data is None:
        fewer = max(schedule.buffer_steps // 4, schedule.min_buffer_steps, schedule.unroll_length)
        wanted.append(("buffer_steps", fewer))
    return [(name, value) for name, value in wanted if config.get(name) != value]


def remedy(config: Config, sizes: Sizes, limit: int, *, device: str) -> tuple[Change, ...] | None:
    """The fewest of `choices` that bring the peak below `limit` bytes; () if it is already, None if nothing does."""
    offered = choices(config, device)
    for count in range(len(offered) + 1):
        for chosen in combinations(offered, count):
            if len(dict(chosen)) == count:  # no field set twice
                changed = config.replace(**dict(chosen))
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
    device = device or pick_device(config.system.device).type
    limit = room(config) if limit is None else limit
    made = plan(config, sizes, device=device, free=limit)
    beside = sum(made.host.values()) - made.host.get("this process", 0)
    if device == "cuda" and torch.cuda.is_available() and beside > free_bytes(torch.device("cpu")):
        raise MemoryError(
            f"this run of {config.env.name} needs {size(beside)} of memory beside the GPU and "
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
        f"this run of {config.env.name} needs {size(made.peak)} and {size(limit)} are there; {advice} "
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
