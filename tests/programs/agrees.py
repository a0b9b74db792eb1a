"""Ranks train together for some rounds and compare everything that they share: CONFIG.json"""

import sys
from pathlib import Path

import torch

from deepres.config import Config
from deepres.ranks import join
from deepres.training.run import Run

config = Config.from_file(Path(sys.argv[1]))
with join(config) as ranks:
    run = Run(config, ranks=ranks)
    begun = {name: tensor.clone() for name, tensor in run.learner.state_tensors().items()}
    for _ in range(3):
        assert run.round()["skipped_steps"] == 0
    shared = run.learner.state_tensors()
    for other in ranks.gather(shared):
        assert all(torch.equal(other[name], tensor) for name, tensor in shared.items())
    moved = [
        name
        for name in begun
        if name.startswith("parameters/") and not torch.equal(begun[name], shared[name])
    ]
    states = ranks.gather(run.buffer.rings["states"])
    assert not torch.equal(states[0], states[1])  # each has environments of its own
    if ranks.rank == 0:
        print("all equal", ranks.size, *moved)
