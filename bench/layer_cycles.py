"""What a layer of the chain kernels costs by their machine code, part by part: an estimate, with no GPU (gpu/sass.py).

    python bench/layer_cycles.py [--width 256] [--precision bf16] [--cluster 4] [--swapped-rows 16 32]

compiles the forward and the backward chain for sm_90a, prints a table for each configuration, and writes
layer_cycles.json under bench/results/new/, or bench/results/ (--keep), whose cycles model.py takes. It wants what
`pip install 'deepres[cuda]'` brings for compiling, and Triton's disassembler.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu import sass
from bench.gpu.compile_cuda import CLUSTERS, PRECISIONS, WIDTHS, geometries
from bench.harness import environment
from bench.harness import results as files
from bench.harness.results import Row
from deepres.kernels import cuda_program
from deepres.kernels.residual_stack.cuda_geometry import Geometry
from deepres.kernels.residual_stack.options import StackOptions

KERNELS = ("forward", "dgrad")


def rows(width: int, precision: str, cluster: int, swapped_rows: int = 0) -> list[Row]:
    """A row for each kernel: its parts, and its cycles at exchanges of 150 and 250 cycles."""
    geometry = Geometry(width, StackOptions(precision=precision), cluster, swapped_rows)
    code, _ = cuda_program.compile_program("residual_stack.cu", geometry.macros, "sm_90a")
    kernels = sass.disassemble(code)

    def layer(kernel: str, exchange: int) -> sass.Layer:
        own = kernels[f"residual_stack_{kernel}"]
        return sass.layer_cycles(own, geometry.warps, exchange=exchange, trips=geometry.stages_of_layer)

    made = []
    for kernel in KERNELS:
        found = layer(kernel, sass.EXCHANGE)
        made.append(
            {"kernel": kernel, "width": width, "precision": precision, "cluster": cluster}
            | ({"swapped_rows": swapped_rows} if swapped_rows else {})
            | {f"cycles_{exchange}": layer(kernel, exchange).cycles for exchange in sass.EXCHANGES}
            | {"instructions": found.issued, "stalls": found.issue, "parts": found.parts}
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, nargs="*", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--cluster", type=int, nargs="*", choices=CLUSTERS, default=CLUSTERS)
    parser.add_argument(
        "--swapped-rows", type=int, nargs="*", choices=(0, 16, 32), default=[0], help="Tuning.swapped_rows"
    )
    files.add_options(parser)
    arguments = parser.parse_args()
    results = files.begin("layer_cycles", arguments, environment.compiler())
    for width, precision in itertools.product(arguments.width, arguments.precision):
        for geometry in geometries(width, StackOptions(precision=precision), "sm_90a"):
            cluster, swapped = geometry.cluster, geometry.swapped_rows
            if cluster not in arguments.cluster or swapped not in arguments.swapped_rows:
                continue
            found = rows(width, precision, cluster, swapped)
            results["rows"] += found
            rows_of = f", operands swapped, {swapped} rows" if swapped else ""
            print(
                f"\nwidth {width}, {precision}, clusters of {cluster}{rows_of}: estimated cycles of a layer\n"
            )
            print("\n".join(sass.table(found)), flush=True)
    results["complete"] = True
    files.save(results, files.path(arguments, "layer_cycles.json"))


if __name__ == "__main__":
    main()
