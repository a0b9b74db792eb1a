"""How many kernels a gradient step launches on a GPU, and what for: counted, with no GPU (gpu/launches.py).

    python bench/launches.py                      # CRL as published at depth 64, fp32 and bf16: seconds
    python bench/launches.py --algorithm sac --precision bf16 --ops

prints a table for each precision, and writes launches_<algorithm>_<depth>.json under bench/results/new/, or
bench/results/ (--keep): a row for each part of the step, forward and backward, with its kernels by name. The sizes are
the humanoid's. It wants Triton: `pip install 'deepres[cuda]'`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu import launches
from bench.harness import environment
from bench.harness import results as files
from bench.harness.results import Row
from bench.ops.gradient_step import HUMANOID
from deepres.config import Config


def rows(counted: Counter[launches.Launch], precision: str) -> list[Row]:
    """A row for each place and way, those with the most launches first."""
    parts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for launch, number in counted.most_common():
        parts[launch.place, launch.way][launch.kernel] = number
    made = [
        {
            "precision": precision,
            "place": place,
            "way": way,
            "launches": sum(kernels.values()),
            "kernels": kernels,
        }
        for (place, way), kernels in parts.items()
    ]
    return sorted(made, key=lambda row: -row["launches"])


def table(counted: Counter[launches.Launch]) -> list[str]:
    """Markdown: launches by place, forward and backward."""
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for launch, number in counted.items():
        places[launch.place][launch.way] += number
    lines = ["| launches | forward | backward | sum |", "|---|---|---|---|"]
    for place, ways in sorted(places.items(), key=lambda item: -item[1].total()):
        lines.append(f"| {place} | {ways['forward']} | {ways['backward']} | {ways.total()} |")
    outside = launches.outside(counted)
    return [
        *lines,
        f"| **all** | | | **{counted.total()}** |",
        f"| but for stacks and InfoNCE | | | **{outside}** |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithm", default="crl")
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--precision", nargs="*", choices=("fp32", "tf32", "bf16", "fp16"), default=("fp32", "bf16")
    )
    parser.add_argument("--ops", action="store_true", help="print every kernel by name, too")
    files.add_options(parser)
    arguments = parser.parse_args()
    results = files.begin("launches", arguments, environment.compiler())
    for precision in arguments.precision:
        config = Config(
            arguments.algorithm, depth=arguments.depth, width=arguments.width, batch_size=arguments.batch,
            precision=precision, device="cpu",
        )  # fmt: skip
        counted = launches.of_step(config, HUMANOID)
        results["rows"] += rows(counted, precision)
        print(f"\n{arguments.algorithm}, depth {arguments.depth}, {precision}: launches of a gradient step\n")
        print("\n".join(table(counted)), flush=True)
        if arguments.ops:
            for launch, number in sorted(counted.items()):
                print(f"{number:4} {launch.place}, {launch.way}: {launch.kernel}")
    results["complete"] = True
    path = files.path(arguments, f"launches_{arguments.algorithm}_{arguments.depth}.json")
    files.save(results, path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
