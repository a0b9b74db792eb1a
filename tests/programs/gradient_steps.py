"""Two gradient steps of each CONFIG.json, each in its own process: prints, a line for each, the bytes that were planned
and those that were taken.

The sizes are the humanoid's, the batches those of the algorithm's own sampler. What the process held before
(interpreter, PyTorch) counts on both sides. Each process is a fork of this one, which has imported and not computed.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from deepres import Batch, Config, Learner, Sizes
from deepres.data.batch import COLUMNS, Unroll
from deepres.data.replay import ReplayBuffer
from deepres.training.learner import build_algorithm
from deepres.training.memory_plan import StepMemory

SIZES = Sizes(state=268, action=17, goal=3)
STEPS, ENVS = 100, 8


def status(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def drawn(learner: Learner, generator: torch.Generator) -> Iterator[Batch]:
    """Two batches from a small ring of random numbers, where nothing was reached and no episode ended."""
    sampler = learner.algorithm.sampler
    ring = ReplayBuffer(
        ENVS, STEPS, SIZES, slice(0, SIZES.goal), sampler.columns,
        reached=lambda states, goals: torch.zeros(len(states), dtype=torch.bool), threshold=1.0,
    )  # fmt: skip

    def column(name: str) -> torch.Tensor:
        size = COLUMNS[name].size(SIZES)
        shape = (STEPS, ENVS, size) if size else (STEPS, ENVS)
        return torch.zeros(shape, dtype=COLUMNS[name].dtype or torch.float32)

    states, actions = (torch.randn(STEPS, ENVS, n, generator=generator) for n in (SIZES.state, SIZES.action))
    ids = torch.zeros(STEPS, ENVS, dtype=torch.int32)
    columns = {name: column(name) for name in sampler.columns}
    ring.insert(Unroll(states, torch.tanh(actions), ids, columns, 0.0))
    rows = learner.config.schedule.batch_size
    return sampler.batches(ring, 2, rows, window=STEPS, generator=generator)


def two_steps(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    learner = Learner(config, SIZES, generator=generator)
    for batch in drawn(learner, generator):
        learner.update(batch, learner.noise(batch, generator))


def measure(config: Config) -> dict[str, int]:
    small = {"depth": 4, "actor_depth": 4, "batch_size": 8, "width": 64}
    two_steps(config.replace(**small))  # what PyTorch loads at a first step
    before = status("VmRSS")
    with torch.device("meta"):
        algorithm = build_algorithm(config, SIZES)
    planned = before + StepMemory(config, algorithm, "cpu").peak
    two_steps(config)
    return {"before": before, "planned": planned, "peak": status("VmHWM")}


for name in sys.argv[1:]:
    process = os.fork()
    if not process:
        print(json.dumps(measure(Config.from_file(Path(name)))), flush=True)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        sys.exit(f"{name} failed")
