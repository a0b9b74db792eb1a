"""What the compilers make of every GPU kernel, with no GPU: registers, spills and shared memory for each target.

    python bench/compile_report.py [--backend triton] [--target 90] [--kernel forward]

writes bench/results/compile_<backend>.json, one row to a kernel, configuration and target. A backend is one
function in BACKENDS that yields its entries; an entry compiles itself for a target and reports.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

TARGETS = (80, 90, 100, 120)
# The shared memory that one block may use (CUDA C++ programming guide, technical specifications), in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
RESULTS = Path(__file__).parent / "results"


class Usage(NamedTuple):
    """What one compiled kernel asks of the machine; bytes, except registers (of a thread)."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    threads: int


class Entry(NamedTuple):
    op: str
    kernel: str
    configuration: dict[str, object]
    compile: Callable[[int], Usage]  # for a target of TARGETS


def ptxas_usage(log: str, shared: int, threads: int) -> Usage:
    """The figures in the log of `ptxas -v` of one kernel; shared: its dynamic shared memory."""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if frame is None or registers is None:
        raise RuntimeError(f"ptxas reported no registers and spills; its log is\n{log}")
    stack, stores, loads = map(int, frame.groups())
    static = re.search(r"(\d+) bytes smem", log)
    return Usage(int(registers[1]), stack, stores, loads, shared + (int(static[1]) if static else 0), threads)


def compile_triton(
    kernel, types: dict[str, str], constants: dict[str, object], tiles, target: int
) -> Usage:
    """Compile a Triton kernel as its launcher would: pointers aligned to 16 bytes, scalars not specialised.

    types: argument -> Triton type ("*fp32", "i32"), constants left out. tiles: num_warps and num_stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") and name != "rstd"
    }
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(
        ASTSource(kernel, signature, {**constants, **tiles.blocks}, aligned),
        target=GPUTarget("cuda", target, 32),
        options=options,
    )
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        architecture = re.search(r"\.target (\w+)", compiled.asm["ptx"])
        assert architecture is not None
        command = [get_ptxas(target).path, "-v", f"--gpu-name={architecture[1]}", ptx, "-o", f"{ptx}.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return ptxas_usage(log, compiled.metadata.shared, 32 * tiles.num_warps)


def triton_residual_stack() -> Iterator[Entry]:
    """Every kernel of the Triton residual stack, as `deepres.residual_stack` launches it in training."""
    from deepres.kernels import residual_stack_triton as launcher
    from deepres.kernels import residual_stack_triton_kernels as kernels
    from deepres.kernels.residual_stack import StackOptions

    element = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    counts = dict.fromkeys(("batch", "layers", "every", "checkpoints"), "i32")

    def compiler(kernel, pointers: dict[str, str], constants: dict[str, object], tiles):
        types = {name: "*" + dtype for name, dtype in pointers.items()} | counts | {"eps": "fp32"}
        types = {name: types[name] for name in kernel.arg_names if name in types}
        return lambda target: compile_triton(kernel, types, constants, tiles(target), target)

    for width in launcher.WIDTHS:
        for precision in ("bf16", "fp16", "tf32", "fp32"):
            options = StackOptions(precision=precision)
            operand = element[launcher.operand_format(options)]
            n = element[launcher.stored_format(options)]
            constants = launcher.chain_constants(width, options)
            names = ("x", "dy", "bias", "gamma", "beta", "y", "rstd", "dx", "stream", "sums", "dweight")
            pointers = {
                **dict.fromkeys(names, "fp32"),
                **dict.fromkeys(("weight", "a", "du"), operand),
                "saved": n,
            }
            def chain(target: int):
                return launcher.chain_tiles(width, precision, divmod(target, 10))
            def grouped(target: int):
                return launcher.wgrad_tiles(width, precision)
            shape = {"width": width, "precision": precision}
            forward = {**constants, "STORED": launcher.stored_format(options), "SAVE": "layers"}
            dgrad = {**constants, "FIRST": False, "NEED_INPUT": True, "NEED_WEIGHT": True, "NEED_VECTORS": True}
            wgrad = {"W": width, "DOT": constants["DOT"]}
            yield Entry("residual_stack", "forward", shape, compiler(kernels.forward_kernel, pointers, forward, chain))
            yield Entry("residual_stack", "dgrad", shape, compiler(kernels.dgrad_kernel, pointers, dgrad, chain))
            yield Entry("residual_stack", "wgrad", shape, compiler(kernels.wgrad_kernel, pointers, wgrad, grouped))


BACKENDS: dict[str, list[Callable[[], Iterator[Entry]]]] = {"triton": [triton_residual_stack]}


def report(backend: str, targets: tuple[int, ...], kernel: str) -> list[dict[str, object]]:
    rows = []
    for entries in BACKENDS[backend]:
        for entry in entries():
            if kernel not in entry.kernel: continue
            for target in targets:
                usage = entry.compile(target)
                rows.append({"op": entry.op, "kernel": entry.kernel, **entry.configuration, "target": target, **usage._asdict()})
                print(rows[-1], flush=True)
    return rows

if __name__ == "__main__":
    import sys
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=int, nargs="*", default=TARGETS)
    parser.add_argument("--kernel", default="")
    a = parser.parse_args()
    report("triton", tuple(a.target), a.kernel)
