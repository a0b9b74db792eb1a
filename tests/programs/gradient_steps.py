"""Two gradient steps in a fresh process: CONFIG.json; prints the bytes that were planned and those that were taken.

The sizes are the humanoid's. What the process held before (interpreter, PyTorch) counts on both sides.
"""

import json
import sys
from pathlib import Path

import torch

from deepres import Batch, Config, Learner, Sizes
from deepres.training.learner import build_algorithm
from deepres.training.memory_plan import StepMemory

SIZES = Sizes(state=268, action=17, goal=3)


def status(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def two_steps(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    learner = Learner(config, SIZES, generator=generator)
    rows = config.schedule.batch_size
    for _ in range(2):
        state, there = torch.randn(rows, SIZES.state), torch.randn(rows, SIZES.state)
        action, goal = (
            torch.rand(rows, learner.algorithm.horizon * SIZES.action),
            torch.randn(rows, SIZES.goal),
        )
        whole = Batch(state, action, goal, there, torch.rand(rows), torch.zeros(rows))
        kept = learner.algorithm.sampler.columns
        left = torch.arange(rows)
        extra = {"valid": torch.ones(rows), "left": left, "falls": left % 2 == 0, "lag": left + 1}
        batch = whole if "next_states" in kept else Batch(state, action, goal, extra=extra)
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
