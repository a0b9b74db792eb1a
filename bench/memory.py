"""The memory plan beside the truth: peak resident memory of a gradient step in a fresh process.

    python bench/memory.py                        # critic 1024, actor 512, batch 512: about a minute, 6 GB
    python bench/memory.py --critic-depth 64 --actor-depth 64 --precision bf16

writes bench/results/memory_<critic>_<actor>_<precision>.json. The sizes are the humanoid's. A process builds the
learner and takes two gradient steps; its own resident set before (interpreter, PyTorch) counts on both sides.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import environment
from bench.timing import _status_bytes as status_bytes

STEPS = 2
RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--critic-depth", type=int, default=1024)
    parser.add_argument("--actor-depth", type=int, default=512)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpoint", default="none", help="as deepres train's (default: none)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name != "out"}
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        result = fresh.apply(measure, (options,))
    result["environment"] = environment.describe("cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "memory_{critic_depth}_{actor_depth}_{precision}.json".format(**options)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name in ("predicted_bytes", "first_step_peak_bytes", "peak_bytes"):
        print(f"{name.removesuffix('_bytes').replace('_', ' '):16} {result[name] / 1e9:8.3f} GB")
    print(f"predicted / peak {result['predicted_over_peak']:8.3f}\nwrote {path}")
    return 0


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """The figures of one configuration, in bytes; to be called in a process that has done nothing else."""
    import torch

    from bench.gradient_step import ACTION_DIM, GOAL_DIM, STATE_DIM
    from deepres.config import Config
    from deepres.learner import Batch, Learner
    from deepres.memory import Sizes, StepMemory

    config = Config(
        critic_depth=options["critic_depth"],
        actor_depth=options["actor_depth"],
        batch_size=options["batch"],
        width=options["width"],
        precision=options["precision"],
        checkpoint=options["checkpoint"],
        device="cpu",
    )
    sizes = Sizes(STATE_DIM, ACTION_DIM, GOAL_DIM)
    before = status_bytes("VmRSS")
    step = StepMemory(config, sizes, "cpu")
    predicted = before + step.peak
    began = time.perf_counter()
    learner = Learner(
        config,
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        goal_dim=GOAL_DIM,
        generator=torch.Generator().manual_seed(0),
    )
    rows, peaks = options["batch"], []
    for _ in range(STEPS):
        batch = Batch(torch.randn(rows, STATE_DIM), torch.rand(rows, ACTION_DIM), torch.randn(rows, GOAL_DIM))
        learner.update(batch, torch.randn(rows, ACTION_DIM))
        peaks.append(status_bytes("VmHWM"))
    return {
        "kind": "deepres memory",
        "command": "python bench/memory.py",
        "arguments": options,
        "parts": step.parts,
        "before_bytes": before,
        "predicted_bytes": predicted,
        "first_step_peak_bytes": peaks[0],
        "peak_bytes": peaks[-1],
        "predicted_over_peak": predicted / peaks[-1],
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    sys.exit(main())
