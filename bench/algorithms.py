"""What a gradient step of every algorithm costs, beside CRL's and beside the same step by plain PyTorch.

    python bench/algorithms.py                                    # all, depths 16 and 64, width 256, batch 256
    python bench/algorithms.py --algorithms crl srl --depths 16
    python bench/algorithms.py --threads 1 --keep

An algorithm's step with this library's kernels, its step with impl="reference" (plain PyTorch throughout), and CRL's
with the kernels take turns in one process; ratios are round by round. Batches are the algorithm's own, drawn by its
sampler from a ring of random walks with an ant's sizes; drawing is timed apart, a share of the step. Both forms must
measure the same in their first step, or the algorithm is refused and not timed.

Algorithms come with their default options, each network `--depth` layers deep (layers: those that a step goes through
one after another, of the longest of its losses). The JSON is complete after every algorithm, under bench/results/new/
or bench/results/ (--keep).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import environment, turns
from bench.harness import results as files
from bench.harness.progress import Progress, draw_table
from bench.harness.results import Row

DEPTHS, WIDTH, BATCH = (16, 64), 256, 256
WITHOUT = {"distill": "it learns from a trained policy"}  # algorithms that random walks do not feed
STATE, ACTION, GOAL = 29, 8, 2  # the ant's
WALKERS, STEPS, EPISODE = 64, 400, 100
BATCHES = 8  # drawn at once; steps go through them in turn
TOLERANCE = 1e-3  # of a first step's metrics, relative to the larger of the two and 1
BASE = "crl"


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 if an algorithm was refused, 2 for an unknown one, 130 when interrupted."""
    arguments = parse(argv)
    from bench.harness.workers import use_threads

    use_threads(arguments.threads)
    results = files.begin("algorithms", arguments, environment.describe("cpu"))
    path = files.path(arguments, files.file_name("algorithms", results))
    cases = [(depth, name) for depth in arguments.depths for name in arguments.algorithms]
    bases: dict[int, Contestant] = {}
    try:
        with Progress(len(cases)) as progress:
            for depth, name in cases:
                progress.say(f"{name}, depth {depth}")
                if depth not in bases:
                    bases = {depth: Contestant(BASE, depth, arguments)}
                results["rows"].append(measure(name, depth, arguments, bases[depth]))
                files.save(results, path)
                progress.advance()
        results["complete"] = True
    except KeyboardInterrupt:
        print("interrupted: what was measured until then stays", file=sys.stderr)
    files.save(results, path)
    show(results["rows"])
    print(f"wrote {path}")
    if not results["complete"]:
        return 130
    return int(any(row["status"] == "refused" for row in results["rows"]))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    from deepres import algorithms

    known = [name for name in algorithms.names() if name not in WITHOUT]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--algorithms", nargs="+", choices=known, default=known, metavar="NAME", help=f"of {', '.join(known)}"
    )
    add("--depths", nargs="+", type=int, default=list(DEPTHS), metavar="D", help="default: %(default)s")
    add("--width", type=int, default=WIDTH, metavar="W", help="default: %(default)s")
    add("--batch", type=int, default=BATCH, metavar="B", help="rows, default: %(default)s")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the kernels; plain PyTorch is fp32")
    add("--rounds", type=int, default=5, metavar="N", help="turns of each, default: %(default)s")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's own choice)")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be a number >= 1, got {arguments.rounds}")
    return arguments


class Contestant:
    """An algorithm's learner and batches of its own. impl: "auto", this library's kernels, or "reference"."""

    def __init__(self, name: str, depth: int, arguments: argparse.Namespace, impl: str = "auto"):
        import torch

        from deepres.config import Config
        from deepres.data.batch import Sizes
        from deepres.training.learner import Learner

        options = {
            "depth": depth,
            "actor_depth": depth,
            "width": arguments.width,
            "batch_size": arguments.batch,
        }
        precision = arguments.precision if impl == "auto" else "fp32"
        config = Config(name, **options, impl=impl, precision=precision)
        self.learner = Learner(config, Sizes(STATE, ACTION, GOAL), generator=torch.Generator().manual_seed(0))
        self.ring = walks(self.learner.algorithm.sampler.columns)
        self.random = torch.Generator().manual_seed(1)
        self.batches = list(self.draw())
        self.noises = [self.learner.noise(batch, self.random) for batch in self.batches]
        self.taken = 0
        self.first = {name: float(value) for name, value in self.step().items()}
        self.call_s = turns.clocked(self.step)

    def draw(self) -> Any:
        """BATCHES batches, as a round of training has them."""
        algorithm = self.learner.algorithm
        window = EPISODE if algorithm.on_policy else STEPS
        return algorithm.sampler.batches(
            self.ring, BATCHES, self.learner.config.schedule.batch_size, window=window, generator=self.random
        )

    def step(self) -> dict[str, Any]:
        at, self.taken = self.taken % BATCHES, self.taken + 1
        return self.learner.update(self.batches[at], self.noises[at])

    def turn(self) -> list[float]:
        return turns.turn(self.step, lambda: None, self.call_s)


def walks(columns: tuple[str, ...]) -> Any:
    """A ring of random walks, EPISODE steps each, with the columns that are asked for."""
    import torch

    from deepres.data.batch import COLUMNS, Sizes, Unroll
    from deepres.data.replay import ReplayBuffer

    random, sizes, shape = torch.Generator().manual_seed(2), Sizes(STATE, ACTION, GOAL), (STEPS, WALKERS)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*shape, *size, generator=random)

    states = 0.1 * normal(STATE).cumsum(0)
    ids = (torch.arange(STEPS) // EPISODE).int()[:, None].expand(shape)
    last = (torch.arange(STEPS) % EPISODE == EPISODE - 1)[:, None].expand(shape)
    made = {
        "next_states": states.roll(-1, 0), "goals": normal(GOAL), "rewards": normal(),
        "successes": normal() > 1, "terminals": torch.zeros(shape, dtype=torch.bool), "truncations": last,
    }  # fmt: skip
    assert made.keys() == COLUMNS.keys()

    def reached(states: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        return (states[:, :GOAL] - goals).norm(dim=1) < 0.5

    ring = ReplayBuffer(WALKERS, STEPS, sizes, slice(0, GOAL), columns, reached=reached, threshold=0.5)
    ring.insert(Unroll(states, torch.tanh(normal(ACTION)), ids, {name: made[name] for name in columns}, 0.0))
    return ring


def measure(name: str, depth: int, arguments: argparse.Namespace, base: Contestant) -> Row:
    """An algorithm's row."""
    ours, plain = (Contestant(name, depth, arguments, impl) for impl in ("auto", "reference"))
    row: Row = {
        "algorithm": name, "depth": depth, "width": arguments.width, "batch": arguments.batch,
        "precision": arguments.precision, "parameters": sum(p.numel() for p in ours.learner.parameters().values()),
        "layers": type(ours.learner.algorithm).about.layers,
    }  # fmt: skip
    apart = {
        key: abs(ours.first[key] - value) / max(abs(ours.first[key]), abs(value), 1.0)
        for key, value in plain.first.items()
    }
    worst = max(apart, key=lambda key: apart[key])
    row["apart"] = apart[worst]
    if arguments.precision == "fp32" and not apart[worst] <= TOLERANCE:
        return row | {"status": "refused", "reason": f"{worst} of the first step is {apart[worst]:.1e} apart"}
    drawing = statistics.median(turns.clocked(lambda: list(ours.draw())) / BATCHES for _ in range(3))
    seconds: dict[str, list[list[float]]] = {"crl": [], "ours": [], "plain": []}
    askers: dict[str, Callable[[], list[float]]] = {
        "crl": base.turn, "ours": ours.turn, "plain": plain.turn
    }  # fmt: skip
    for who, _, turn in turns.interleave(askers, arguments.rounds):
        seconds[who].append(turn)
    return row | {
        "status": "measured",
        **{f"{who}_s": turns.spread([s for each in own for s in each]) for who, own in seconds.items()},
        "of_crl": turns.ratio(seconds["ours"], seconds["crl"]),
        "plain_over_ours": turns.ratio(seconds["plain"], seconds["ours"]),
        "draw_s": drawing,
    }


HEADINGS = (
    "depth", "algorithm", "layers", "steps/s", "of CRL's time", "plain PyTorch, steps/s", "plain / ours (p10-p90)",
    "drawing a batch, of a step", "",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A line of the table."""
    own = [str(row["depth"]), row["algorithm"], row["layers"]]
    if row["status"] != "measured":
        return [*own, *[""] * 5, f"{row['status']}: {row['reason']}"]
    gain, step = row["plain_over_ours"], row["ours_s"]["median"]
    return [
        *own,
        f"{1 / step:.2f}",
        f"{row['of_crl']['median']:.2f}",
        f"{1 / row['plain_s']['median']:.2f}",
        f"{gain['median']:.2f} ({gain['p10']:.2f}-{gain['p90']:.2f})",
        f"{row['draw_s'] / step:.1%}",
        "",
    ]


def show(rows: list[Row]) -> None:
    """The table."""
    ends = {i for i, row in enumerate(rows[:-1]) if row["depth"] != rows[i + 1]["depth"]}
    draw_table(HEADINGS, [cells(row) for row in rows], left={1, 2, 8}, ends=ends)


if __name__ == "__main__":
    sys.exit(main())
