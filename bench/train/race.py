"""What the contestants of bench/train.py do side by side, the same for all."""

from __future__ import annotations

from dataclasses import dataclass

LABELS = {
    "eager": "eager PyTorch, fp32",
    "jax": "JAX jit, fp32",
    "deepres": "deepres, fp32",
    "deepres-bf16": "deepres, bf16",
}


@dataclass(frozen=True)
class Race:
    """A task and the sizes. data: the file of recorded batches and noise."""

    env: str
    depth: int
    batch: int
    width: int
    num_envs: int
    eval_envs: int
    seed: int
    data: str
