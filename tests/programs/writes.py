"""Writes checkpoints of 8 MB into FOLDER, one after another, and says which it has written."""

import sys
from pathlib import Path

import torch

from deepres.runs import checkpoint as checkpoints

for n in range(1, 10_000):
    tensors = {f"t{i}": torch.full((250_000,), float(n)) for i in range(8)}
    halves = {k: v for k, v in tensors.items() if k < "t4"}, {k: v for k, v in tensors.items() if k >= "t4"}
    state = checkpoints.Checkpoint(halves[0], {"env_steps": n}, {}, {0: halves[1]})
    checkpoints.save(Path(sys.argv[1]), state, keep=2)
    print(n, flush=True)
