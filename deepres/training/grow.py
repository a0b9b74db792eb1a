"""Growing a trained run: blocks are appended that start as the identity, and training goes on deeper.

A new block's last LayerNorm has scale 0, so it adds Swish(0) = 0 to the stream: every network computes what it did, to
the bit, and learns from there. Moments of what was there are kept, those of what is new are 0. Environments, ring and
counters are the run's own.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.algorithms.base import Algorithm
from deepres.config import Config
from deepres.data.batch import Sizes
from deepres.initialisation import start_blocks_
from deepres.machine import plain_torch, seeded
from deepres.networks import ResidualStack
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint
from deepres.runs.folder import RunFolder, require_same, write_whole
from deepres.training.environments import task_sizes
from deepres.training.learner import build_algorithm, kept_tensors

_PARAMETERS, _OPTIMIZERS = "parameters/", "optimizers/"


@plain_torch()
def grow(
    run_dir: str | Path, depth: int, out: str | Path, *, actor_depth: int | None = None, seed: int = 0
) -> Path:
    """Write the run at run_dir, at its newest checkpoint, into the new folder `out` with deeper networks.

        grow("runs/d64", 256, "runs/d256");  train(Config..., "runs/d256", resume=True)

    depth, actor_depth: as in `Config`; None keeps the actor at its depth where it had one of its own, else it grows
    too. seed: draws the new blocks' weights. Nothing in run_dir changes. Raises ValueError in one sentence for a
    network that cannot grow so, FileExistsError if something is in `out`, CheckpointError if there is no checkpoint.
    """
    source, target = RunFolder(Path(run_dir)), RunFolder(Path(out))
    config = source.read_config()
    grown = config.replace(depth=depth, **({} if actor_depth is None else {"actor_depth": actor_depth}))
    _check(config, grown)
    _, old = checkpoints.find(source.checkpoints)
    if old.counters.get("policy_alone"):
        raise ValueError(
            f"{run_dir} holds a policy alone and does not learn; grow the run that it was pruned from"
        )
    require_same(Config.from_dict(old.config, str(source.checkpoints)), config)
    sizes = Sizes(**old.sizes) if old.sizes else task_sizes(config.env)
    tensors = grow_tensors(old.tensors, config, grown, sizes, seed)
    lock = target.take(resume=False)
    try:
        made = Checkpoint(tensors, old.counters, grown.to_dict(), old.shards, asdict(sizes), old.size)
        checkpoints.save(target.checkpoints, made, keep=1)
        write_whole(target.config, grown.to_json())  # makes it a run, and comes last
    except BaseException:
        shutil.rmtree(target.checkpoints, ignore_errors=True)
        raise
    finally:
        lock.give_back()
    return target.path


def _check(config: Config, grown: Config) -> None:
    network = config.network
    if not (network.norm and network.skip_every and network.trunk == "residual"):
        raise ValueError(
            "a network grows by residual blocks that end in LayerNorm; this run has "
            f"norm={network.norm}, skip_every={network.skip_every}, trunk={network.trunk}"
        )
    before = (network.depth, network.actor_depth or network.depth)
    after = (grown.network.depth, grown.network.actor_depth or grown.network.depth)
    if before == after or any(a < b for a, b in zip(after, before, strict=True)):
        raise ValueError(
            f"depth and actor_depth must grow from {before[0]} and {before[1]}, got {after[0]} and {after[1]}"
        )


def _check_stacks(small: Algorithm, large: Algorithm) -> None:
    """Raise ValueError where a network that is to grow has plain layers, which no residual block begins with."""
    stacks = [
        {name: m for name, m in one.named_modules() if isinstance(m, ResidualStack)} for one in (small, large)
    ]
    for name in stacks[0] | stacks[1]:
        before, after = (each.get(name) for each in stacks)
        if before is None or after is None or (before.depth != after.depth and not before.skip_every):
            raise ValueError(
                f"{name.split('.')[0]} has fewer layers than a residual block and cannot grow to one; train the deeper "
                "network from its start"
            )


def grow_tensors(
    tensors: dict[str, Tensor], config: Config, grown: Config, sizes: Sizes, seed: int
) -> dict[str, Tensor]:
    """The state tensors of a learner of `config`, as one of the deeper `grown` takes them."""
    with torch.device("meta"):
        small = build_algorithm(config, sizes)
    large = build_algorithm(grown, sizes, seeded(seed))
    _check_stacks(small, large)
    for module in large.modules():
        if isinstance(module, ResidualStack) and module.gamma is not None:
            start_blocks_(module.gamma, grown.network.skip_every, "zero")
    fresh = {name: p.detach() for name, p in kept_tensors(large).items()}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.startswith(_PARAMETERS):
            found[key] = _extended(tensor, fresh[key.removeprefix(_PARAMETERS)])
        elif key.startswith(_OPTIMIZERS):
            group, index, _ = key.removeprefix(_OPTIMIZERS).split("/")
            shape = _group(large, group)[int(index)].shape
            was = _group(small, group)[int(index)].shape
            found[key] = tensor if tensor.shape != was else _extended(tensor, torch.zeros(shape))
        else:
            found[key] = tensor
    return found


def _group(algorithm: Algorithm, name: str) -> list[Any]:
    return algorithm.groups[name].parameters


def _extended(old: Tensor, fresh: Tensor) -> Tensor:
    """`fresh` with `old` in its place at the beginning of the axis, the layers', in which it is longer."""
    if old.shape == fresh.shape:
        return old
    made = fresh.clone()
    made[tuple(slice(0, n) for n in old.shape)] = old
    return made
