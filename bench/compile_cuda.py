"""What the compiler makes of every CUDA C++ kernel, with no GPU: registers, spills, shared memory by target.

    python bench/compile_cuda.py [--width 256] [--precision bf16] [--target sm_90a]

writes compile_cuda.json under bench/results/new/, or bench/results/ (--keep), a row for each kernel of each
configuration and target, and exits with 1 if one spills or does not fit. It takes what
`pip install 'deepres[cuda]'` brings for compiling: cuda-core, cuda-bindings and nvidia-cuda-nvrtc.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu.compile_cuda import PRECISIONS, SHARED_LIMIT, WIDTHS, report
from bench.gpu.usage import complaints
from bench.harness import environment
from bench.harness import results as files
from deepres.kernels.cuda_compiler import compiler


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, nargs="*", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--target", nargs="*", choices=tuple(SHARED_LIMIT), default=tuple(SHARED_LIMIT))
    files.add_options(parser)
    arguments = parser.parse_args()
    results = files.begin("compile_cuda", arguments, environment.compiler())
    results["environment"]["versions"] |= {"cuda": compiler(arguments.target[0]).name}
    results["rows"] = rows = report(arguments.width, arguments.precision, arguments.target)
    results["complete"] = True
    for row in rows:
        if row["kernel"] in ("forward", "dgrad", "wgrad"):
            print(
                "{target:8} {width:4} {precision:5} cluster {cluster} swapped {swapped_rows:2} {kernel:8} "
                "{registers:4} registers "
                "{shared:7} B shared, {spill_stores} B spilled".format(**row)
            )
    files.save(results, files.path(arguments, "compile_cuda.json"))
    wrong = complaints(rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
