"""Learning from what was recorded: rounds of gradient steps without acting, between evaluations in the environments."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from deepres.config import Config
from deepres.data import datasets
from deepres.data.batch import Sizes
from deepres.data.environments import Environments
from deepres.data.episodes import Episodes
from deepres.data.replay import DTYPES, ReplayBuffer
from deepres.env_options import EnvOptions
from deepres.machine import plain_torch
from deepres.ranks import ALONE, Ranks
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint
from deepres.runs.folder import RunFolder
from deepres.training.environments import open_for
from deepres.training.run import Run, settled

_BUFFER = "buffer/"


class RecordedRun(Run):
    """A run of `Config(..., data=...)`. Its clock, `env_steps`, counts gradient steps; its checkpoints hold no data."""

    def _open_env(self) -> Environments:
        """For the sizes and the task's verdict on goals; nothing acts in it."""
        return open_for(self.config.env, 1, seed=self.config.schedule.seed, device=self.device)

    def _open_buffer(self) -> Any:
        assert self.config.schedule.data is not None
        path, columns, device = Path(self.config.schedule.data), self.sampler.columns, self._buffer_device()
        if path.suffix != ".npz":
            folder = RunFolder(path)
            require_task(folder, folder.read_config().env, self.config.env)
            dtype = DTYPES[self.config.system.buffer_dtype]
            return ring_of(folder, self.env, self.sizes, columns, device=device, dtype=dtype)
        return Episodes(
            datasets.read(path, self.sizes.state, self.sizes.action),
            self.env.goal_slice,
            columns,
            reached=self.env.reached,
            threshold=self.env.threshold,
            device=device,
        )

    @property
    def _window(self) -> int:
        return int(self.buffer.size) if isinstance(self.buffer, Episodes) else super()._window

    @settled
    def round(self) -> dict[str, float]:
        """A round of gradient steps; returns its figures."""
        began = time.perf_counter()
        metrics = self.ranks.mean(self._learn())
        spent = time.perf_counter() - began
        self.env_steps = self.gradient_steps
        self.rounds += 1
        self.seconds += spent
        self._check(metrics)
        return {
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            **metrics,
            "seconds": self.seconds,
            "env_steps_per_second": 0.0,
            "gradient_steps_per_second": self.config.schedule.gradient_steps / spent,
        }

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def _load_own_tensors(self, own: dict[str, torch.Tensor], inserted: int) -> None:
        """The data are read anew, not restored."""


def ring_of(
    folder: RunFolder,
    env: Environments,
    sizes: Sizes,
    columns: tuple[str, ...],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ReplayBuffer:
    """The replay ring of the run at `folder`, at its newest checkpoint that reads, of all its processes.

    columns: what must be there beside states, actions and trajectories. Raises CheckpointError or
    ValueError in one sentence if there is no such ring, or if it does not fit the task of `env`.
    """
    _, found = checkpoints.find(folder.checkpoints)
    shards = [found.shards[i] for i in sorted(found.shards)]
    names = ("states", "actions", "traj_ids", *columns)
    lacks = [name for name in names if any(_BUFFER + name not in shard for shard in shards)]
    if lacks:
        remedy = "train it with save_buffer" if "states" in lacks else "train it with record=all"
        raise ValueError(f"{folder.path} has no ring with {', '.join(lacks)}; {remedy}")
    held = {name: torch.cat([shard[_BUFFER + name] for shard in shards], dim=1) for name in names}
    steps, num_envs = held["traj_ids"].shape
    ring = ReplayBuffer(
        num_envs,
        steps,
        sizes,
        env.goal_slice,
        columns,
        reached=env.reached,
        threshold=env.threshold,
        device=device,
        dtype=dtype,
    )
    for name, size in (("states", sizes.state), ("actions", sizes.action)):
        if held[name].shape[2:] != (size,):
            raise ValueError(
                f"{folder.path} holds {name} of {held[name].shape[-1]} numbers, {env.name} has {size}; pass a run of it"
            )
    ring.load_state_tensors(_unrolled(held, found.counters["buffer_inserted"]), steps)
    return ring


def require_task(folder: RunFolder, theirs: EnvOptions, ours: EnvOptions) -> None:
    """Raise ValueError if the run at `folder`, of the options `theirs`, is of another task than that of `ours`."""
    told = [" with ".join([one.name, *one.options]) for one in (theirs, ours)]
    if told[0] != told[1]:
        raise ValueError(f"{folder.path} is a run of {told[0]}, env is {told[1]}; pass a run of that task")


def _unrolled(held: dict[str, torch.Tensor], inserted: int) -> dict[str, torch.Tensor]:
    """The ring's columns from its oldest step to its newest."""
    first = inserted % len(held["traj_ids"])
    return {name: column.roll(-first, dims=0) for name, column in held.items()}


def open_run(config: Config, *, ranks: Ranks = ALONE, restored: Checkpoint | None = None) -> Run:
    """The run of `config`: one that acts and learns, or one that learns from what its `data` recorded."""
    kind = RecordedRun if config.schedule.data is not None else Run
    with plain_torch():
        return kind(config, ranks=ranks, restored=restored)
