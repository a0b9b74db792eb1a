"""What Triton's compiler makes of the GPU kernels, with no GPU: registers, spills and shared memory by target."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.gpu.usage import TARGETS, Usage, read_usage


class Entry(NamedTuple):
    """One kernel in one configuration; `compile` takes a target of TARGETS."""

    op: str
    kernel: str
    configuration: dict[str, object]
    compile: Callable[[int], Usage]


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


def residual_stack() -> Iterator[Entry]:
    """The Triton residual stack as training launches it, at every width and precision."""
    from deepres.kernels.residual_stack import triton as launcher
    from deepres.kernels.residual_stack import triton_kernels as kernels
    from deepres.kernels.residual_stack.options import PRECISIONS, StackOptions

    short = {"torch.float32": "*fp32", "torch.bfloat16": "*bf16", "torch.float16": "*fp16"}
    scalars = {**dict.fromkeys(kernels.COUNTS, "i32"), "eps": "fp32"}
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


def info_nce() -> Iterator[Entry]:
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


def info_nce_general() -> Iterator[Entry]:
    """The kernels of the further options, every gradient asked for: targets and a sigmoid, then labels and softmaxes
    over state-actions, with every energy at 64 and the largest width, with "norm" at the others.
    """
    from deepres.kernels.info_nce import triton as launcher
    from deepres.kernels.info_nce import triton_general_kernels as kernels
    from deepres.kernels.info_nce.options import ENERGIES, InfoNCEOptions
    from deepres.kernels.info_nce.triton_general import constants as constants_of

    floats = (
        "phi",
        "psi",
        "scale",
        "bias",
        "weight",
        "rows",
        "cols",
        "by_row",
        "by_goal",
        "sums",
        "dphi",
        "dpsi",
    )
    types = {
        **dict.fromkeys(floats, "*fp32"),
        **dict.fromkeys(("B", "M", "D", "left_out"), "i32"),
        "labels": "*i64",
    }
    energies = [energy for energy in ENERGIES if energy != "cosine"]
    cases = [(width, "norm") for width in (16, 32, 128, 256)]
    cases += [(width, energy) for width in (64, launcher.LARGEST_WIDTH) for energy in energies]
    for width, energy in cases:
        for form, who in (("binary", "targets"), ("symmetric", "labels")):
            constants = constants_of(InfoNCEOptions(energy=energy, form=form, self_offset=0))
            held = {"targets": "*fp32"} if who == "targets" else {}
            for phase in ("statistics", "gradients"):
                kernel = getattr(kernels, f"info_nce_{phase}_kernel")
                asked = {**types, **held}
                fixed = {**constants, **({} if held else {"targets": None})}
                yield Entry(
                    "info_nce", "info_nce_general",
                    {"width": width, "energy": energy, "form": form, "phase": phase},
                    _compiler(kernel, asked, fixed, launcher.tiles(width, True, "gradients")),
                )  # fmt: skip


def hazard() -> Iterator[Entry]:
    """The Triton hazards with every gradient, at the widths that their tiles differ for."""
    from deepres.kernels.hazard import triton as launcher
    from deepres.kernels.hazard import triton_kernels as kernels

    vectors = (
        "features", "basis", "bias", "l0", "scale", "discount", "weight", "carried", "nll", "value",
        "dfeatures", "dbasis", "dbias", "dl0",
    )  # fmt: skip
    types = {
        **dict.fromkeys(vectors, "*fp32"),
        **dict.fromkeys(("B", "K", "D"), "i32"),
        "lag": "*i64",
        "event": "*u8",
    }
    needs: dict[str, dict[str, object]] = {
        "nll": {"NEED_ROWS": True, "NEED_BINS": True},
        "value": {"NEED_TAILS": True, "NEED_ROWS": True},
        "bins": {},
    }
    for width in (16, 32, 64, launcher.LARGEST_WIDTH):
        for name, constants in needs.items():
            kernel, tiles = getattr(kernels, f"{name}_kernel"), launcher.tiles(width)
            compile_for = _compiler(kernel, types, constants, tiles)
            yield Entry("hazard", f"hazard_{name}", {"width": width}, compile_for)


def policy() -> Iterator[Entry]:
    """The Triton parts of a policy's loss as training asks for them, at widths of actions and of features."""
    from deepres.kernels.policy import triton as launcher
    from deepres.kernels.policy import triton_kernels as kernels

    matrices = (
        "mean",
        "log_std",
        "noise",
        "action",
        "daction",
        "dmean",
        "dlog_std",
        "phi",
        "psi",
        "dphi",
        "dpsi",
    )
    vectors = ("log_prob", "dlog_prob", "energy", "denergy", "value", "dvalue")
    numbers = (
        "log_alpha",
        "dlog_alpha",
        "alpha",
        "actor",
        "dactor",
        "temperature",
        "dtemperature",
        "entropy",
    )
    types = {
        **dict.fromkeys((*matrices, *vectors, *numbers), "*fp32"),
        **dict.fromkeys(("B", "A", "D", "stride"), "i32"),
        **dict.fromkeys(("low", "half", "target"), "fp32"),
    }
    density: dict[str, object] = {"BOUNDED": True, "EXACT": False}
    pair: dict[str, object] = {"ENERGY": "norm"}
    both = {**pair, "NEED_PHI": True, "NEED_PSI": True}
    over_rows = {"gaussian": density, "gaussian_backward": density, "pair": pair, "pair_backward": both}
    for width in (16, 64, launcher.LARGEST_WIDTH):
        for name, constants in over_rows.items():
            compile_for = _compiler(
                getattr(kernels, f"{name}_kernel"), types, constants, launcher.tiles(width)
            )
            yield Entry("policy", f"policy_{name}", {"width": width}, compile_for)
    for name in ("losses", "losses_backward"):
        compile_for = _compiler(getattr(kernels, f"{name}_kernel"), types, {}, launcher.BLOCK)
        yield Entry("policy", f"policy_{name}", {}, compile_for)


def stem() -> Iterator[Entry]:
    """The Triton end of a stem as training asks for it, at its narrow, usual and largest width."""
    from deepres.kernels.stem import triton as launcher
    from deepres.kernels.stem import triton_kernels as kernels

    pointers = ("u", "bias", "scale", "shift", "a", "da", "du", "partials", "dbias", "dscale", "dshift")
    types = {**dict.fromkeys(pointers, "*fp32"), **dict.fromkeys(("B", "W", "P"), "i32"), "eps": "fp32"}
    for width in (64, 256, launcher.LARGEST_WIDTH):
        tiles = launcher.tiles(width)
        back = {"SWISH": True, "SUMS": True, "ROWS": launcher.ROWS}
        for name, constants, chosen in (
            ("forward", {"SWISH": True}, tiles),
            ("backward", back, tiles),
            ("sums", {}, launcher.SUMS),
        ):
            compile_for = _compiler(getattr(kernels, f"{name}_kernel"), types, constants, chosen)
            yield Entry("stem", f"stem_{name}", {"width": width}, compile_for)


def quasimetric() -> Iterator[Entry]:
    """The Triton lengths of unions as QRL asks for them."""
    from deepres.kernels.quasimetric import triton as launcher
    from deepres.kernels.quasimetric import triton_kernels as kernels

    types = {**dict.fromkeys(("x", "y", "d", "lengths", "dx", "dy"), "*fp32"), "parts": "i32"}
    for name, constants in (("lengths", {}), ("gradients", {"NEED_X": True, "NEED_Y": True})):
        compile_for = _compiler(getattr(kernels, f"{name}_kernel"), types, constants, launcher.TILES)
        yield Entry("quasimetric", f"union_{name}", {}, compile_for)


def _compiler(kernel, types, constants, tiles) -> Callable[[int], Usage]:
    return lambda target: compile_triton(kernel, types, constants, tiles, target)


def _triton_entry(op: str, tiles, kernel, types, constants, width: int, precision: str) -> Entry:
    """tiles: the launcher's function of (kernel, width, precision, compute capability)."""
    name = kernel.__name__.removesuffix("_kernel")

    def compile_for(target: int) -> Usage:
        chosen = tiles(name, width, precision, divmod(target, 10))
        return compile_triton(kernel, types, constants, chosen, target)

    return Entry(op, name, {"width": width, "precision": precision}, compile_for)


def versions() -> dict[str, str]:
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    return {"triton": triton.__version__} | {f"ptxas sm_{t}": get_ptxas(t).version for t in TARGETS}
