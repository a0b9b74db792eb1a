"""Fused against unfused, on this machine: `python bench/throughput.py`.

Every contestant is checked against float64 before it is timed, and one that is wrong is not timed at all.
Prints a table and leaves a JSON and a plot under bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a file: the folder above holds `bench`, and `deepres` where it is not installed
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import measure
from bench.progress import Progress, show
from bench.registry import BASELINE, CEILING, DEPTHS, OPS, PRECISIONS, SINGLE
from bench.worker import Crew, Failed

OP_CHOICES = (*(op for op in OPS if op != "matrix_product"), "info_nce")
RESULTS = Path(__file__).resolve().parent / "results"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"throughput.py: {message}; --help lists the options\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked; those of info_nce are left to its own bench."""
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="this text; after --op info_nce, that bench's own")
    add("--op", nargs="+", metavar="OP", help=f"{', '.join(OP_CHOICES)} (default: all but info_nce)")
    add(
        "--depth",
        nargs="+",
        type=int,
        default=list(DEPTHS),
        metavar="D",
        help="layers (default: %(default)s)",
    )
    add("--batch", type=int, default=512, help="rows (default: %(default)s)")
    add("--width", type=int, default=256, help="columns (default: %(default)s)")
    add(
        "--precision",
        nargs="+",
        default=["fp32"],
        metavar="P",
        help=f"{', '.join(PRECISIONS)} (default: fp32)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch sees a GPU")
    add("--threads", type=int, help="CPU threads of each contestant (default: PyTorch's own choice)")
    add("--compile", action="store_true", help="torch.compile as well; building it takes minutes at depth")
    add("--jax", action="store_true", help="the published network in JAX under jit as well")
    add(
        "--checkpoint", action="store_true", help="deepres keeping the input of every 4th block only, as well"
    )
    add("--reference", action="store_true", help="deepres's own plain reference as well")
    add("--seconds", type=float, default=5.0, help="timed seconds a case aims at (default: %(default)s)")
    add("--limit", type=float, default=240.0, help="longest wait for one answer, in s (default: %(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON and the plot go")
    add("--no-plot", action="store_true", help="leave the plot out")
    arguments, rest = parser.parse_known_args(argv)
    arguments.op = arguments.op or list(OPS)[1:]
    for op in arguments.op:
        if op not in OP_CHOICES:
            parser.error(f"--op must be of {', '.join(OP_CHOICES)}, got {op!r}")
    if "info_nce" in arguments.op:
        if len(arguments.op) > 1:
            parser.error(
                "--op info_nce runs alone, as it has options of its own; ask for the others separately"
            )
        return arguments
    if arguments.help:
        parser.print_help()
        parser.exit()
    if rest:
        parser.error(f"unknown option {rest[0]!r}")
    for depth in arguments.depth:
        if depth < 4 or depth % 4:
            parser.error(f"--depth must be multiples of 4 (four layers to a block), got {depth}")
    for precision in arguments.precision:
        if precision not in PRECISIONS:
            parser.error(f"--precision must be of {', '.join(PRECISIONS)}, got {precision!r}")
    for name in ("batch", "width", "threads", "seconds", "limit"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be greater than 0, got {value}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 when a contestant was wrong or nothing could be timed, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    if arguments.op == ["info_nce"]:
        from bench import info_nce

        return info_nce.main([a for a in argv if a not in ("--op", "info_nce")]) or 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what was measured stays
    results: dict[str, Any] = {}
    try:
        with Crew(arguments.threads) as crew:
            results = head(arguments, crew)
            path = arguments.out / file_name(results)
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
    save(results, path)
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
    return {
        "kind": "deepres throughput",
        "schema": 1,
        "complete": False,
        "environment": scout.ask("describe", arguments.device),
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("out", "help")},
        "modes": {op: OPS[op].modes for op in OPS},
        "checks": [],
        "rows": [],
    }


def file_name(results: dict[str, Any]) -> str:
    device = re.sub(r"[^a-z0-9]+", "-", results["environment"]["device"]["name"].lower()).strip("-")
    return f"throughput_{device}_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"


def plan(arguments: argparse.Namespace) -> list[tuple[str, str, int, str]]:
    """(op, precision, depth, mode) of every case, the machine's own rate first."""
    cases = [
        ("matrix_product", p, measure.RATE_DEPTH, m)
        for p in arguments.precision
        for m in OPS["matrix_product"].modes
    ]
    for op in arguments.op:
        for precision in arguments.precision:
            cases += [(op, precision, d, m) for d in sorted(set(arguments.depth)) for m in OPS[op].modes]
    return cases


def contestants(op: str, precision: str, arguments: argparse.Namespace) -> list[str]:
    """The baseline, also in fp32 where `precision` is another; the rivals asked for, deepres, and the ceiling."""
    wanted = {BASELINE, "deepres", CEILING} | ({SINGLE} if precision != "fp32" else set())
    wanted |= {name for name in ("compile", "jax", "reference") if getattr(arguments, name)}
    wanted |= {"deepres-checkpoint"} if arguments.checkpoint else set()
    return [name for name in OPS[op].implementations if name in wanted]


def run(
    arguments: argparse.Namespace, results: dict[str, Any], path: Path, crew: Crew, progress: Progress
) -> None:
    """Times every case of the plan, saving after each."""
    settings = measure.Settings(
        batch=arguments.batch,
        width=arguments.width,
        device=arguments.device,
        budget_s=arguments.seconds,
        limit_s=arguments.limit,
    )
    cases = plan(arguments)
    for op, precision in dict.fromkeys((op, precision) for op, precision, _, _ in cases):
        contest = measure.Contest(op, precision, settings, crew, progress.say)
        contest.enter(contestants(op, precision, arguments))
        contest.enter(other_backends(op, results, contest), asked_for=False)
        results["checks"] += contest.checks
        for _, _, depth, mode in (case for case in cases if case[:2] == (op, precision)):
            results["rows"] += contest.measure(contest.case(depth, mode))
            save(results, path)
            progress.advance()


def other_backends(op: str, results: dict[str, Any], contest: measure.Contest) -> list[str]:
    """Fused backends that this machine offers besides the one that impl="auto" took."""
    states = results["environment"]["deepres"]["backends"].get(op, {})
    taken = ("reference", contest.served_by("deepres"))
    names = [
        f"deepres-{name}" for name, state in states.items() if state == "available" and name not in taken
    ]
    return [name for name in names if name in OPS[op].implementations]


def save(results: dict[str, Any], path: Path) -> None:
    """Whole or not at all: an interrupt leaves the last good file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def draw(results: dict[str, Any], path: Path) -> None:
    try:
        from bench import plot
    except ImportError as error:
        print(f"no plot: {error}; pip install 'deepres[bench]'", file=sys.stderr)
        return
    if plot.draw(results, path):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
