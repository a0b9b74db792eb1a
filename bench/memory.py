"""The memory plan beside the truth: peak resident memory of a gradient step in a fresh process.

    python bench/memory.py                        # critic 1024, actor 512, batch 512: about a minute, 6 GB
    python bench/memory.py --depth 64 --actor-depth 64 --precision bf16

writes memory_<depth>_<actor depth>_<precision>.json under bench/results/new/, or bench/results/ (--keep); another
width or batch than 256 and 512 are in its name too. The sizes are the humanoid's. A process builds the learner and
takes two gradient steps; its own resident set before (interpreter, PyTorch) counts on both sides.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import environment, memory
from bench.harness import results as files
from bench.harness.workers import Crew, Failed

FIGURES = ("predicted_bytes", "first_step_peak_bytes", "peak_bytes")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=1024, help="layers of the critic (default: 1024)")
    parser.add_argument("--actor-depth", type=int, default=512, help="layers of the actor (default: 512)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--recompute", default="none", help="as deepres train's (default: none)")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    results = files.begin("memory", arguments, environment.describe("cpu"))
    try:
        with Crew(None, "bench.memory:Desk") as crew:
            row = crew.get("deepres").ask("measure", results["arguments"])
    except Failed as failure:
        print(f"memory.py: {failure.reason}", file=sys.stderr)
        return 2
    results |= {"rows": [row], "complete": True}
    name = "memory_{depth}_{actor_depth}_{precision}".format(**results["arguments"])
    if (arguments.width, arguments.batch) != (256, 512):
        name += f"_{arguments.width}_{arguments.batch}"
    name += ".json"
    path = files.path(arguments, name)
    files.save(results, path)
    for name in FIGURES:
        print(f"{name.removesuffix('_bytes').replace('_', ' '):16} {row[name] / 1e9:8.3f} GB")
    print(f"predicted / peak {row['predicted_over_peak']:8.3f}\nwrote {path}")
    return 0


class Desk:
    """What the fresh process is asked."""

    def __init__(self, threads: int | None):
        pass

    def measure(self, options: dict[str, Any]) -> dict[str, Any]:
        """The figures of one configuration, in bytes."""
        import torch

        from bench.ops.gradient_step import HUMANOID
        from deepres.config import Config
        from deepres.training.learner import Learner, build_algorithm
        from deepres.training.memory_plan import StepMemory

        config = Config(
            "crl",
            depth=options["depth"],
            actor_depth=options["actor_depth"],
            batch_size=options["batch"],
            width=options["width"],
            precision=options["precision"],
            recompute=options["recompute"],
            device="cpu",
        )
        tiny = config.replace(depth=4, actor_depth=4, batch_size=8, width=64)
        _two_steps(Learner(tiny, HUMANOID), 8)  # what PyTorch loads at a first step is there before
        before = memory.process_bytes("VmRSS")
        with torch.device("meta"):
            algorithm = build_algorithm(config, HUMANOID)
        step = StepMemory(config, algorithm, "cpu")
        predicted = before + step.peak
        began = time.perf_counter()
        learner = Learner(config, HUMANOID, generator=torch.Generator().manual_seed(0))
        peaks = _two_steps(learner, options["batch"])
        return {
            "parts": step.parts,
            "before_bytes": before,
            "predicted_bytes": predicted,
            "first_step_peak_bytes": peaks[0],
            "peak_bytes": peaks[-1],
            "predicted_over_peak": predicted / peaks[-1],
            "seconds": time.perf_counter() - began,
        }


def _two_steps(learner: Any, rows: int) -> list[int]:
    """The most that the process held until the end of each."""
    import torch

    from bench.ops.gradient_step import HUMANOID
    from deepres.data.batch import Batch

    peaks = []
    for _ in range(2):
        state, goal = torch.randn(rows, HUMANOID.state), torch.randn(rows, HUMANOID.goal)
        batch = Batch(state, torch.rand(rows, HUMANOID.action), goal)
        learner.update(batch, torch.randn(rows, HUMANOID.action))
        peaks.append(memory.process_bytes("VmHWM"))
    return peaks


if __name__ == "__main__":
    sys.exit(main())
