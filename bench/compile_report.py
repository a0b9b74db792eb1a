"""What the compilers make of the GPU kernels, with no GPU: registers, spills and shared memory by target.

    python bench/compile_report.py [--backend triton] [--only target=90 width=256 kernel=dgrad]

writes bench/results/compile_<backend>.json, one row to a kernel, configuration and target, and exits with 1 if
one spills among its products or does not fit. An item of
BACKENDS holds a function for each of its ops; it yields entries, and an entry compiles itself for a target.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (80, 90, 100, 120)
# The shared memory that one block may use, in bytes (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Usage(NamedTuple):
    """What one compiled kernel asks of the machine."""

    threads: int  # of a block
    registers: int  # of a thread
    spill_stores: int  # bytes of a thread, anywhere in the kernel
    spill_loads: int
    loop_spills: int  # spill instructions in the stretches of code that multiply matrices
    shared: int  # bytes of a block


class Entry(NamedTuple):
    """One kernel in one configuration; `compile` takes a target of TARGETS."""

    op: str
    kernel: str
    configuration: dict[str, object]
    compile: Callable[[int], Usage]


def read_usage(log: str, assembly: str, *, shared: int, threads: int) -> Usage:
    """From the log of `ptxas -v` and the listing of `nvdisasm` for one kernel; shared: its dynamic part."""
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if spills is None or registers is None:
        raise RuntimeError(f"ptxas must report registers and spills (-v), got\n{log}")
    static = re.search(r"(\d+) bytes smem", log)
    return Usage(
        threads,
        int(registers[1]),
        int(spills[1]),
        int(spills[2]),
        loop_spills(assembly),
        shared + (int(static[1]) if static else 0),
    )


def loop_spills(assembly: str) -> int:
    """Loads and stores of local memory in the stretches of code, from jump to jump, with matrix products."""
    stretches = re.split(r"^\s*\.L_x_\d+:|\bBRA\b", assembly, flags=re.MULTILINE)
    products = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")
    return sum(len(re.findall(r"\b(?:LDL|STL)\b", code)) for code in stretches if products.search(code))


def compile_triton(kernel, types: dict[str, str], constants: dict[str, object], tiles, target: int) -> Usage:
    """Compile a Triton kernel as its launcher does: pointers aligned to 16 bytes, integers not specialised.

    types: argument -> Triton type ("*fp32", "i32"); every other argument is in `constants` or in the tiles.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    loose = kernel.do_not_specialize_on_alignment or ()
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") and name not in loose
    }
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, signature, {**constants, **tiles.blocks}, aligned),
        target=GPUTarget("cuda", target, 32),
        options={name: value for name, value in tiles.arguments().items() if name not in tiles.blocks},
    )
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        architecture = re.findall(r"^\.target (\w+)", compiled.asm["ptx"], flags=re.MULTILINE)[0]
        ptxas = Path(get_ptxas(target).path)
        log = _run(ptxas, "-v", f"--gpu-name={architecture}", ptx, "-o", cubin).stderr
        assembly = _run(ptxas.parent / "nvdisasm", cubin).stdout
    return read_usage(log, assembly, shared=compiled.metadata.shared, threads=32 * tiles.num_warps)


def _run(*command) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True)


def triton_residual_stack() -> Iterator[Entry]:
    """The Triton residual stack as training launches it, at every width and precision."""
    from deepres.kernels.residual_stack import triton as launcher
    from deepres.kernels.residual_stack import triton_kernels as kernels
    from deepres.kernels.residual_stack.options import PRECISIONS, StackOptions

    short = {"torch.float32": "*fp32", "torch.bfloat16": "*bf16", "torch.float16": "*fp16"}
    scalars = {**dict.fromkeys(("batch", "layers", "every", "kept"), "i32"), "eps": "fp32"}
    vectors = ("x", "dy", "bias", "gamma", "beta", "y", "rstd", "dx", "stream", "sums", "dweight")
    for width in launcher.WIDTHS:
        for precision in PRECISIONS:
            options = StackOptions(precision=precision)
            operand = short[str(launcher.FORMATS[launcher.operand_format(options)])]
            stored = launcher.stored_format(options)
            types = {
                **scalars,
                **dict.fromkeys(vectors, "*fp32"),
                **dict.fromkeys(("weight", "a", "du"), operand),
                "saved": short[str(launcher.FORMATS[stored])],
            }
            chain = launcher.chain_constants(width, options)
            needs = {"FIRST": False, "NEED_INPUT": True, "NEED_WEIGHT": True, "NEED_VECTORS": True}
            for kernel, constants in (
                (kernels.forward_kernel, {**chain, "STORED": stored, "SAVE": "layers"}),
                (kernels.dgrad_kernel, {**chain, **needs}),
                (kernels.wgrad_kernel, {"W": width, "DOT": chain["DOT"]}),
            ):
                yield _triton_entry(
                    "residual_stack", launcher.tiles, kernel, types, constants, width, precision
                )


def triton_info_nce() -> Iterator[Entry]:
    """The Triton InfoNCE with both gradients, in one launch and in two: every width that tiles differ for, and at
    64 and the largest every energy and every form.
    """
    from deepres.kernels.info_nce import triton as launcher
    from deepres.kernels.info_nce.options import ENERGIES, FORMS, InfoNCEOptions
    from deepres.kernels.info_nce.triton_kernels import info_nce_kernel

    types = {
        **dict.fromkeys(("phi", "psi", "rows", "cols", "summary", "dphi", "dpsi"), "*fp32"),
        **dict.fromkeys(("B", "M", "D", "offset"), "i32"),
        "counter": "*i32",
        "penalty": "fp32",
    }
    cases = [(width, "norm", "forward") for width in (16, 32, 128, 256)]
    for width in (64, launcher.LARGEST_WIDTH):
        cases += [(width, energy, "forward") for energy in ENERGIES]
        cases += [(width, "norm", form) for form in FORMS if form != "forward"]
    for width, energy, form in cases:
        for phase in ("both", "statistics", "gradients"):
            options = InfoNCEOptions(energy=energy, form=form)
            constants = {**launcher.constants(options, (True, True)), "PHASE": phase}
            tiles = launcher.tiles(width, phase == "both", phase)
            configuration = {"width": width, "energy": energy, "form": form, "phase": phase}

            def compile_for(target: int, constants=constants, tiles=tiles) -> Usage:
                return compile_triton(info_nce_kernel, types, constants, tiles, target)

            yield Entry("info_nce", "info_nce", configuration, compile_for)


def _triton_entry(op: str, tiles, kernel, types, constants, width: int, precision: str) -> Entry:
    """tiles: the launcher's function of (kernel, width, precision, compute capability)."""
    name = kernel.__name__.removesuffix("_kernel")

    def compile_for(target: int) -> Usage:
        chosen = tiles(name, width, precision, divmod(target, 10))
        return compile_triton(kernel, types, constants, chosen, target)

    return Entry(op, name, {"width": width, "precision": precision}, compile_for)


def versions_triton() -> dict[str, str]:
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    return {"triton": triton.__version__} | {f"ptxas sm_{t}": get_ptxas(t).version for t in TARGETS}


class Backend(NamedTuple):
    entries: list[Callable[[], Iterator[Entry]]]  # one to an op
    versions: Callable[[], dict[str, str]]


BACKENDS = {"triton": Backend([triton_residual_stack, triton_info_nce], versions_triton)}


def report(backend: str, only: dict[str, str]) -> list[dict[str, object]]:
    """The rows of a backend whose fields have the values in `only` (as text)."""
    rows: list[dict[str, object]] = []
    for entries in BACKENDS[backend].entries:
        for entry in entries():
            for target in TARGETS:
                row = {"op": entry.op, "kernel": entry.kernel, **entry.configuration, "target": target}
                if all(str(row.get(field)) == value for field, value in only.items()):
                    rows.append(
                        {**row, **entry.compile(target)._asdict(), "shared_limit": SHARED_LIMIT[target]}
                    )
                    print(" ".join(f"{field}={value}" for field, value in rows[-1].items()), flush=True)
    return rows


def complaints(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each row whose kernel asks for more than its target has, or spills among the products.

    A row that does not tell where its spills are must have none at all.
    """
    lines = []
    for row in rows:
        wrong = []
        if row.get("loop_spills", row["spill_stores"]):
            wrong.append(f"spills {row['spill_stores']} bytes")
        if row["shared"] > row["shared_limit"]:
            wrong.append(f"takes {row['shared']} bytes of shared memory, {row['shared_limit']} are there")
        if row["registers"] * row.get("threads", 0) > 65536:
            wrong.append(f"takes {row['registers']} registers for each of {row['threads']} threads")
        if wrong:
            usage = {*Usage._fields, "shared_limit", "stack", "stages"}
            name = " ".join(f"{field}={value}" for field, value in row.items() if field not in usage)
            lines.append(f"{name}: {'; '.join(wrong)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=list(BACKENDS), default="triton")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="FIELD=VALUE", help="only rows with these values"
    )
    parser.add_argument(
        "--out", type=Path, help="the JSON file (default: bench/results/compile_BACKEND.json)"
    )
    arguments = parser.parse_args()
    rows = report(arguments.backend, dict(pair.split("=", 1) for pair in arguments.only))
    out = arguments.out or ROOT / "bench" / "results" / f"compile_{arguments.backend}.json"
    head = {
        "command": " ".join(["python", "bench/compile_report.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": _run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").stdout.strip(),
        "versions": BACKENDS[arguments.backend].versions(),
    }
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    out.write_text(json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{lines}\n  ]\n}}\n')
    wrong = complaints(rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
