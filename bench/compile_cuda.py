"""What the compiler makes of every CUDA C++ kernel, with no GPU: registers, spills, shared memory by target.

    python bench/compile_cuda.py [--width 256] [--precision bf16] [--target sm_90a]

writes bench/results/compile_cuda.json, a row for each kernel of each configuration and target, and exits with 1
if one spills or does not fit. It takes what
`pip install 'deepres[cuda]'` brings for compiling: cuda-core, cuda-bindings and nvidia-cuda-nvrtc.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are found in the folder above
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.compile_report import complaints
from deepres.kernels import cuda_program
from deepres.kernels.residual_stack.cuda import WIDTHS, Geometry
from deepres.kernels.residual_stack.options import PRECISIONS, StackOptions

# Shared memory that one block may ask for (CUDA C++ programming guide, technical specifications), in bytes.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024, "sm_120a": 99 * 1024}
RESULTS = Path(__file__).parent / "results" / "compile_cuda.json"


def report(
    widths: Iterable[int] = WIDTHS,
    precisions: Iterable[str] = PRECISIONS,
    targets: Iterable[str] = tuple(SHARED_LIMIT),
) -> list[dict[str, object]]:
    """Compiles each configuration for each target; bytes, except `registers` (of a thread) and `stages`."""
    rows: list[dict[str, object]] = []
    for width in widths:
        for precision in precisions:
            for target, cluster in itertools.product(targets, (1, 4)):
                if cluster > 1 and (target == "sm_80" or width // cluster < 64):
                    continue
                geometry = Geometry(width, StackOptions(precision=precision), cluster)
                _, log = cuda_program.compile_program("residual_stack.cu", geometry.macros, target)
                stages = geometry.stages(SHARED_LIMIT[target])
                chain = geometry.fixed_bytes + stages * geometry.stage_bytes
                for kernel, usage in _usage(log):
                    short = kernel.removeprefix("residual_stack_")
                    shared = {"forward": chain, "dgrad": chain, "wgrad": geometry.wgrad_bytes}.get(short, 0)
                    rows.append(
                        {"op": "residual_stack", "kernel": short, "width": width, "precision": precision}
                        | {
                            "target": target,
                            "cluster": cluster,
                            **usage,
                            "shared": shared,
                            "shared_limit": SHARED_LIMIT[target],
                        }
                        | ({"stages": stages} if short in ("forward", "dgrad") else {})
                    )
    return rows


def _usage(log: str) -> Iterable[tuple[str, dict[str, int]]]:
    """(kernel, its figures) for each kernel in the assembler's words."""
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = re.findall(pattern, log, re.DOTALL)
    if not found:
        raise RuntimeError(f"the assembler reported no kernels; its words are\n{log}")
    for kernel, stack, stores, loads, registers in found:
        figures = {"registers": registers, "stack": stack, "spill_stores": stores, "spill_loads": loads}
        yield kernel, {name: int(value) for name, value in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels and report what they take.")
    parser.add_argument("--width", type=int, nargs="*", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--target", nargs="*", choices=tuple(SHARED_LIMIT), default=tuple(SHARED_LIMIT))
    chosen = parser.parse_args()
    rows = report(chosen.width, chosen.precision, chosen.target)
    for row in rows:
        if row["kernel"] in ("forward", "dgrad", "wgrad"):
            print(
                "{target:8} {width:4} {precision:5} cluster {cluster} {kernel:8} {registers:4} registers "
                "{shared:7} B shared, {spill_stores} B spilled".format(**row)
            )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "date": datetime.date.today().isoformat(),
        "command": "python bench/compile_cuda.py",
        "compiler": "NVRTC " + ".".join(map(str, _nvrtc_version())),
    }
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    RESULTS.write_text(json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{lines}\n  ]\n}}\n')
    wrong = complaints(rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _nvrtc_version() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


if __name__ == "__main__":
    sys.exit(main())
