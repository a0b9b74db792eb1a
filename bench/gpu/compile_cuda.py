"""What NVRTC makes of every CUDA C++ kernel, with no GPU: registers, spills, shared memory by target."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from bench.harness.results import Row
from deepres.kernels import cuda_program
from deepres.kernels.residual_stack import cuda_geometry
from deepres.kernels.residual_stack.cuda_geometry import Geometry, Tuning, fewest_blocks
from deepres.kernels.residual_stack.options import PRECISIONS, StackOptions

# Shared memory that one block may ask for (CUDA C++ programming guide, technical specifications), in bytes.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024, "sm_120a": 99 * 1024}
WIDTHS = (*cuda_geometry.WIDTHS, *cuda_geometry.CLUSTERED)
CLUSTERS = (1, 2, 4)  # blocks that share 16 rows; which of them serves depends on width and batch


def report(
    widths: Iterable[int] = WIDTHS,
    precisions: Iterable[str] = PRECISIONS,
    targets: Iterable[str] = tuple(SHARED_LIMIT),
) -> list[Row]:
    """Compiles each configuration for each target; bytes, except `registers` (of a thread) and `stages`."""
    rows: list[Row] = []
    for width, precision, target in itertools.product(widths, precisions, targets):
        for geometry in geometries(width, StackOptions(precision=precision), target):
            _, log = cuda_program.compile_program("residual_stack.cu", geometry.macros, target)
            stages = geometry.stages(SHARED_LIMIT[target])
            chain = geometry.fixed_bytes + stages * geometry.stage_bytes
            for kernel, usage in _usage(log):
                short = kernel.removeprefix("residual_stack_")
                shared = {"forward": chain, "dgrad": chain, "wgrad": geometry.wgrad_bytes}.get(short, 0)
                rows.append(
                    {"op": "residual_stack", "kernel": short, "width": width, "precision": precision}
                    | {"target": target, "cluster": geometry.cluster, "swapped_rows": geometry.swapped_rows}
                    | {**usage, "shared": shared, "shared_limit": SHARED_LIMIT[target]}
                    | ({"stages": stages} if short in ("forward", "dgrad") else {})
                )
    return rows


def geometries(width: int, options: StackOptions, target: str) -> Iterable[Geometry]:
    """What is built of a width and precision for a target."""
    for cluster in CLUSTERS:
        geometry = Geometry(width, options, cluster)
        if cluster > 1 and (target == "sm_80" or width // cluster < 64):
            continue
        if cluster < fewest_blocks(width, _capability(target)):
            continue
        if geometry.stages(SHARED_LIMIT[target]) >= 2:  # others are not served there
            yield geometry
    for rows in (16, 32):
        if Tuning(rows).refused(width, options, _capability(target)) is None:
            yield Geometry(width, options, width // 64, rows)


def _capability(target: str) -> tuple[int, int]:
    number = int(re.sub(r"\D", "", target))
    return number // 10, number % 10


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
