"""Two gradient steps in a fresh process: CONFIG.json; prints the bytes that were planned and those that were taken.

The sizes are the humanoid's. What the process held before (interpreter, PyTorch) counts on both sides.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from deepres import Batch, Config, Learner, Sizes
from deepres.data.batch import Unroll
from deepres.data.replay import ReplayBuffer
from deepres.training.learner import build_algorithm
from deepres.training.memory_plan import StepMemory

SIZES = Sizes(state=268, action=17, goal=3)


def status(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def drawn(learner: Learner, generator: torch.Generator) -> Iterator[Batch]:
    """Two batches as the algorithm's sampler draws them from a small ring of random numbers."""
    sampler, shape = learner.algorithm.sampler, (100, 8)
    ring = ReplayBuffer(8, 100, SIZES, slice(0, SIZES.goal), sampler.columns, threshold=1.0)
    states, actions = (torch.randn(*shape, n, generator=generator) for n in (SIZES.state, SIZES.action))
    columns = {name: torch.zeros(shape) for name in sampler.columns}
    ring.insert(Unroll(states, torch.tanh(actions), torch.zeros(shape).int(), columns, 0.0))
    return sampler.batches(ring, 2, learner.config.schedule.batch_size, window=100, generator=generator)


def two_steps(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    learner = Learner(config, SIZES, generator=generator)
    rows = config.schedule.batch_size
    if config.algorithm_name in ("srl", "chrono"):
        for batch in drawn(learner, generator):
            learner.update(batch, learner.noise(batch, generator))
        return
    for _ in range(2):
        state, there = torch.randn(rows, SIZES.state), torch.randn(rows, SIZES.state)
        action, goal = (
            torch.rand(rows, learner.algorithm.horizon * SIZES.action),
            torch.randn(rows, SIZES.goal),
        )
        kept = learner.algorithm.sampler.columns
        left = torch.arange(rows)
        extra = {"valid": torch.ones(rows), "left": left, "falls": left % 2 == 0, "lag": left + 1}
        extra |= {name: torch.randn(rows, SIZES.goal) for name in ("achieved", "next_achieved")}
        batch = Batch(state, action, goal, extra=extra)
        if "next_states" in kept:
            batch = replace(batch, next_state=there, reward=torch.rand(rows), terminal=torch.zeros(rows))
        learner.update(batch, learner.noise(batch, generator))


config = Config.from_file(Path(sys.argv[1]))
two_steps(
    config.replace(depth=4, actor_depth=4, batch_size=8, width=64)
)  # what PyTorch loads at a first step
before = status("VmRSS")
with torch.device("meta"):
    algorithm = build_algorithm(config, SIZES)
planned = before + StepMemory(config, algorithm, "cpu").peak
two_steps(config)
print(json.dumps({"before": before, "planned": planned, "peak": status("VmHWM")}))
