"""What an online run collected as a data set of episodes: its ring, cut into pieces of one length."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from deepres.data import datasets
from deepres.data.datasets import Dataset
from deepres.experiments.make_data import VALIDATION, require_new, validation_of
from deepres.runs.folder import RunFolder
from deepres.training.environments import open_for, sizes_of
from deepres.training.recorded import ring_of


def replay_data(run: Path, path: Path, length: int | None = None, seed: int = 0) -> list[Path]:
    """Write what the ring of the run at `run` holds to `path`, and a tenth of it, drawn with `seed`, to NAME-val.npz.

    length: transitions of an episode; by default those of most trajectories in the ring. A trajectory gives as many
    whole episodes as fit, from its first step held; what is left of it is dropped. The last state of an episode is the
    one that its last action led to. Raises FileExistsError, FileNotFoundError, CheckpointError or ValueError in one
    sentence, among others for a run that was not trained with record=all.
    """
    require_new(path)
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1 transition, got {length}")
    folder = RunFolder(run)
    env = open_for(folder.read_config().env, 1, seed=0, device=torch.device("cpu"))
    rings = ring_of(folder, env, sizes_of(env), ("next_states",)).rings
    states, actions, after = (rings[name].numpy() for name in ("states", "actions", "next_states"))
    envs, first, length = _pieces(run, rings["traj_ids"].numpy(), length)
    steps = first[:, None] + np.arange(length)  # [E, L]
    observations = np.concatenate([states[steps, envs[:, None]], after[steps[:, -1:], envs[:, None]]], axis=1)
    acted = actions[steps, envs[:, None]]
    acted = np.concatenate([acted, np.zeros_like(acted[:, :1])], axis=1)
    order = np.random.default_rng(seed).permutation(len(envs))
    held_out = max(1, round(VALIDATION * len(envs)))
    print(f"{len(envs) * length:,} of {rings['traj_ids'].numel():,} transitions, {length} to an episode")
    return [
        datasets.write(target, Dataset(_rows(observations[part]), _rows(acted[part]), length + 1))
        for target, part in (
            (path, np.sort(order[held_out:])),
            (validation_of(path), np.sort(order[:held_out])),
        )
    ]


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _pieces(run: Path, ids: np.ndarray, length: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Of the episodes [E] the environment and the first step, and their length. ids: trajectories [T, N]."""
    found: list[tuple[int, int, int]] = []  # environment, first step, steps
    for env, column in enumerate(ids.T):
        bounds = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
        found += [(env, a, b - a) for a, b in pairwise(bounds)]
    lengths = np.array([steps for _, _, steps in found])
    if length is None:
        counts = np.bincount(lengths)
        length = int(np.flatnonzero(counts == counts.max())[-1])
    pieces = [(env, a + k) for env, a, steps in found for k in range(0, steps - length + 1, length)]
    if len(pieces) < 2:
        raise ValueError(
            f"{run} has {len(pieces)} episodes of {length} steps, two are needed; its longest trajectory has "
            f"{lengths.max()}, pass a shorter --length"
        )
    envs, first = np.array(pieces).T
    return envs, first, length
