"""Fused against unfused, on this machine: `python bench/throughput.py`.

Every contestant is checked against float64 before it is timed, and one that is wrong is not timed at all.
Prints a table and leaves a JSON and a plot under bench/results/new/, or bench/results/ (--keep).
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import results as files
from bench.harness.contest import DESK, Contest, Settings
from bench.harness.contestants import BASELINE, CEILING, PRECISIONS
from bench.harness.progress import Progress, show
from bench.harness.workers import Crew, Failed
from bench.ops.registry import MATRIX_PRODUCT, OPS

OP_CHOICES = tuple(op for op in OPS if op != MATRIX_PRODUCT.name)
BY_DEFAULT = ("residual_stack", "gradient_step")
BATCH = 512  # rows, where the depth is what varies


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"throughput.py: {message}; --help lists the options\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked."""
    parser = _Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--op", nargs="+", metavar="OP", help=f"{', '.join(OP_CHOICES)} (default: those whose depth varies)")
    add("--depth", nargs="+", type=int, metavar="D", help="layers (default: 4 16 64 256 1024)")
    add("--batch", nargs="+", type=int, metavar="B", help="rows (512); several for info_nce, hazard")
    add("--width", type=int, help="columns (default: 256, and 64 features for info_nce, hazard)")
    add("--precision", nargs="+", default=["fp32"], metavar="P", help=f"{', '.join(PRECISIONS)} (fp32)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch sees a GPU")
    add("--threads", type=int, help="CPU threads of each contestant (default: PyTorch's own choice)")
    add("--compile", action="store_true", help="torch.compile as well; building it takes minutes at depth")
    add("--jax", action="store_true", help="the published network in JAX under jit as well")
    add("--recompute", action="store_true", help="deepres keeping the input of every 4th block, as well")
    add("--reference", action="store_true", help="deepres's own plain reference as well")
    add("--seconds", type=float, default=5.0, help="timed seconds a case aims at (default: %(default)s)")
    add("--limit", type=float, default=240.0, help="longest wait for one answer, in s (default: %(default)s)")
    add("--no-plot", action="store_true", help="leave the plot out")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    arguments.op = arguments.op or list(BY_DEFAULT)
    for op in arguments.op:
        if op not in OP_CHOICES:
            parser.error(f"--op must be of {', '.join(OP_CHOICES)}, got {op!r}")
    for depth in arguments.depth or ():
        if depth < 4 or depth % 4:
            parser.error(f"--depth must be multiples of 4 (four layers to a block), got {depth}")
    for precision in arguments.precision:
        if precision not in PRECISIONS:
            parser.error(f"--precision must be of {', '.join(PRECISIONS)}, got {precision!r}")
        for op in arguments.op:
            if precision not in OPS[op].precisions:
                parser.error(
                    f"--precision must be of {', '.join(OPS[op].precisions)} for {op}, got {precision!r}"
                )
    for name in ("width", "threads", "seconds", "limit"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be greater than 0, got {value}")
    if arguments.batch and min(arguments.batch) < 1:
        parser.error(f"--batch must be greater than 0, got {min(arguments.batch)}")
    if len(arguments.batch or ()) > 1 and any(OPS[op].axis == "depth" for op in arguments.op):
        parser.error("--batch takes one number where the depth varies; ask for --op info_nce or hazard")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 when a contestant was wrong or nothing could be timed, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what was measured stays
    results: dict[str, Any] = {}
    try:
        with Crew(arguments.threads, DESK) as crew:
            results = head(arguments, crew)
            results["command"] = " ".join(["python bench/throughput.py", *argv])
            path = files.path(arguments, files.file_name("throughput", results))
            with Progress(len(plan(arguments))) as progress:
                run(arguments, results, path, crew, progress)
        results["complete"] = True
    except Failed as failure:
        print(f"throughput.py: {failure.reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not results.get("rows"):
            print("interrupted before anything was measured", file=sys.stderr)
            return 130
    files.save(results, path)
    show(results)
    print(f"wrote {path}")
    if not arguments.no_plot:
        draw(results, path.with_suffix(".png"))
    if not results["complete"]:
        print("interrupted: the file holds what was measured until then", file=sys.stderr)
        return 130
    wrong = [row for row in results["rows"] if row["status"] == "refused"]
    return 1 if wrong or not any(row["ms"] for row in results["rows"]) else 0


def head(arguments: argparse.Namespace, crew: Crew) -> dict[str, Any]:
    """The result file before its first row: the machine, and the request; arguments.device filled in."""
    scout = crew.get(BASELINE)
    if arguments.device is None:
        arguments.device = scout.ask("best_device")
    if arguments.device == "cpu" and "tf32" in arguments.precision:
        raise Failed("failed", "--precision tf32 exists on GPUs only; use fp32 or bf16")
    return files.begin(
        "throughput",
        arguments,
        scout.ask("describe", arguments.device),
        modes={op: OPS[op].modes for op in OPS},
        axes={op: OPS[op].axis for op in OPS},
    )


def plan(arguments: argparse.Namespace) -> list[tuple[str, str, int, str]]:
    """(op, precision, size, mode) of every case, the machine's own rate first."""
    rated = any(CEILING in OPS[op].implementations for op in arguments.op)
    asked = {"depth": arguments.depth, "batch": arguments.batch}
    cases = []
    for op in ([MATRIX_PRODUCT.name] if rated else []) + arguments.op:
        own = OPS[op]
        sizes = own.sizes if op == MATRIX_PRODUCT.name else sorted(set(asked[own.axis] or own.sizes))
        cases += [(op, p, s, m) for p in arguments.precision for s in sizes for m in own.modes]
    return cases


def contestants(op: str, precision: str, arguments: argparse.Namespace) -> list[str]:
    """Those that need no asking, and those asked for; eager fp32 where `precision` is another."""
    asked = {name for name in ("compile", "jax", "recompute", "reference") if getattr(arguments, name)}
    asked |= {""} | ({"single"} if precision != "fp32" else set())
    return [name for name, one in OPS[op].implementations.items() if one.option in asked]


def run(
    arguments: argparse.Namespace, results: dict[str, Any], path: Path, crew: Crew, progress: Progress
) -> None:
    """Times every case of the plan, saving after each."""
    cases = plan(arguments)
    for op, precision in dict.fromkeys((op, precision) for op, precision, _, _ in cases):
        settings = Settings(
            batch=(arguments.batch or [BATCH])[0],
            width=arguments.width or OPS[op].width,
            device=arguments.device,
            budget_s=arguments.seconds,
            limit_s=arguments.limit,
        )
        contest = Contest(OPS[op], precision, settings, crew, progress.say)
        contest.enter(contestants(op, precision, arguments))
        contest.enter(other_backends(op, results, contest), asked_for=False)
        results["checks"] += contest.checks
        for _, _, size, mode in (case for case in cases if case[:2] == (op, precision)):
            done = len(results["rows"])
            for rows in contest.measure(contest.case(size, mode)):
                results["rows"][done:] = rows
                files.save(results, path)
            progress.advance()


def other_backends(op: str, results: dict[str, Any], contest: Contest) -> list[str]:
    """Fused backends that this machine offers besides the one that impl="auto" took."""
    states = results["environment"]["deepres"]["backends"].get(op, {})
    taken = ("reference", contest.served_by("deepres"))
    names = [
        f"deepres-{name}" for name, state in states.items() if state == "available" and name not in taken
    ]
    return [name for name in names if name in OPS[op].implementations]


def draw(results: dict[str, Any], path: Path) -> None:
    try:
        from bench.harness import plot
    except ImportError as error:
        print(f"no plot: {error}; pip install 'deepres[bench]'", file=sys.stderr)
        return
    if plot.draw(results, path):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
