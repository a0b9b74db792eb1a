"""Whether the CUDA kernels compute the right thing on this GPU at all, in a minute.

    python bench/gpu_smoke.py [--width 256] [--cluster 4] [--precision bf16] [--swapped-rows 0 16] [--out DIR]

Each width, cluster, precision and form of the products in a process of its own: batch 7, depth 8, results and every
gradient against float64, beside plain PyTorch's own error. gpu_smoke.json has a row for each; the exit status is 1 if
one is not right.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu import children
from bench.harness import environment
from bench.harness import results as files
from bench.harness.contestants import Case
from bench.ops.registry import RESIDUAL_STACK
from deepres.kernels.residual_stack import cuda as backend
from deepres.kernels.residual_stack.cuda_geometry import Tuning, tuned
from deepres.kernels.residual_stack.options import PRECISIONS, StackOptions

DESK = "bench.gpu_smoke:Desk"
DEVICE = "cuda"
CLUSTERS = (1, 2, 4)
BATCH, DEPTH = 7, 8
LIMIT_S = 40.0  # of one configuration
AT_ONCE = 12  # they are small, and most of their time is the compiler's


class Desk:
    """What a child can be asked."""

    def __init__(self, threads: int | None):
        pass

    def check(self, width: int, cluster: int, precision: str, swapped_rows: int) -> dict[str, Any]:
        """Worst error against float64; AssertionError if it is worse than twice plain PyTorch's."""
        from bench.harness.desk import Desk as Throughput

        case = Case(RESIDUAL_STACK.name, "forward_backward", DEPTH, BATCH, width, precision, DEVICE)
        entry = RESIDUAL_STACK.implementations["deepres-cuda"]
        chosen = mock.patch.object(backend, "choose_cluster", lambda *_: cluster)
        with chosen, tuned(Tuning(swapped_rows)):
            return Throughput(None).check(case, entry, RESIDUAL_STACK.truth)


def configurations(arguments: argparse.Namespace) -> list[tuple[int, int, str, int]]:
    """(width, cluster, precision, swapped_rows) of what the kernels are built for: at least 64 columns a block."""
    found = []
    for width, cluster, precision, swapped in itertools.product(
        arguments.width, arguments.cluster, arguments.precision, arguments.swapped_rows
    ):
        reason = Tuning(swapped).refused(width, StackOptions(precision=precision), (9, 0))
        if width // cluster >= 64 and (not swapped or (reason is None and cluster == width // 64)):
            found.append((width, cluster, precision, swapped))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, nargs="*", choices=backend.WIDTHS, default=backend.WIDTHS)
    parser.add_argument("--cluster", type=int, nargs="*", choices=CLUSTERS, default=CLUSTERS)
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument(
        "--swapped-rows", type=int, nargs="*", choices=(0, 16, 32), help="Tuning.swapped_rows; all there are"
    )
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    if reason := children.without_gpu("bench/gpu_smoke.py"):
        print(reason)
        return 2
    if arguments.swapped_rows is None:
        arguments.swapped_rows = [0, 16, 32] if torch.cuda.get_device_capability() == (9, 0) else [0]
    path = files.path(arguments, "gpu_smoke.json")
    results = files.begin("gpu_smoke", arguments, environment.compiler())
    tasks = configurations(arguments)
    for (width, cluster, precision, swapped), outcome in children.each(
        DESK, "check", tasks, limit_s=LIMIT_S, at_once=AT_ONCE
    ):
        row = {"width": width, "cluster": cluster, "precision": precision, "swapped_rows": swapped}
        row |= {"batch": BATCH, "depth": DEPTH}
        error = outcome.answer["worst_error"] if outcome.answer else None
        row |= {"status": outcome.status, "reason": outcome.reason, "worst_error": error}
        results["rows"].append(row)
        files.save(results, path)
        print(
            f"width {width} cluster {cluster} {precision} swapped {swapped}: {outcome.reason or f'right, {error:.1e}'}",
            flush=True,
        )
    results["complete"] = True
    files.save(results, path)
    wrong = [row for row in results["rows"] if row["status"] != "measured"]
    print(f"{len(results['rows']) - len(wrong)} of {len(results['rows'])} are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
