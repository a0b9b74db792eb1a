"""Saves 256 MB into FOLDER and loads them: MB that saving and then loading took at the most, and a sum as a check."""

import sys
from pathlib import Path

import torch

from deepres.runs import checkpoint as checkpoints


def peak() -> float:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


tensors = {str(i): torch.ones(8 << 20) for i in range(8)}
warm = checkpoints.Checkpoint({"a": torch.ones(3)}, {"env_steps": 1}, {}, {0: {"b": torch.ones(3)}})
checkpoints.load(checkpoints.save(Path(sys.argv[1]), warm, keep=1))
before = peak()
state = checkpoints.Checkpoint(tensors, {"env_steps": 2}, {}, {0: {"b": torch.ones(3)}})
path = checkpoints.save(Path(sys.argv[1]), state, keep=1)
saved = peak()
total = sum(tensor.sum().item() for tensor in checkpoints.load(path).tensors.values())
print(saved - before, peak() - saved, total)
