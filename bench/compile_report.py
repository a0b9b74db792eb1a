"""What the compilers make of the GPU kernels, with no GPU: registers, spills and shared memory by target.

    python bench/compile_report.py [--backend triton] [--only target=90 width=256 kernel=dgrad]

writes compile_<backend>.json under bench/results/new/, or bench/results/ (--keep), one row to a kernel, configuration
and target, and exits with 1 if one spills among its products or does not fit, with 2 where --only leaves no row. An
item of BACKENDS holds a function for each of its ops; it yields entries, and an entry compiles itself for a target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu import compile_triton
from bench.gpu.usage import SHARED_LIMIT, TARGETS, complaints
from bench.harness import environment
from bench.harness import results as files
from bench.harness.results import Row


class Backend(NamedTuple):
    entries: list[Callable[[], Iterator[compile_triton.Entry]]]  # one to an op
    versions: Callable[[], dict[str, str]]


BACKENDS = {
    "triton": Backend(
        [
            compile_triton.residual_stack,
            compile_triton.info_nce,
            compile_triton.info_nce_general,
            compile_triton.hazard,
            compile_triton.policy,
            compile_triton.stem,
            compile_triton.quasimetric,
        ],
        compile_triton.versions,
    )
}


def report(backend: str, only: dict[str, str]) -> list[Row]:
    """The rows of a backend whose fields have the values in `only` (as text)."""
    rows: list[Row] = []
    for entries in BACKENDS[backend].entries:
        for entry in entries():
            for target in TARGETS:
                row = {"op": entry.op, "kernel": entry.kernel, **entry.configuration, "target": target}
                if all(str(row.get(field)) == value for field, value in only.items()):
                    usage = entry.compile(target)._asdict()
                    rows.append({**row, **usage, "shared_limit": SHARED_LIMIT[target]})
                    print(" ".join(f"{field}={value}" for field, value in rows[-1].items()), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backend", choices=list(BACKENDS), default="triton")
    add("--only", nargs="*", default=[], metavar="FIELD=VALUE", help="only rows with these values")
    files.add_options(parser)
    arguments = parser.parse_args()
    results = files.begin("compile_report", arguments, environment.compiler())
    results["command"] = " ".join(["python bench/compile_report.py", *sys.argv[1:]])
    results["environment"]["versions"] |= BACKENDS[arguments.backend].versions()
    results["rows"] = report(arguments.backend, dict(pair.split("=", 1) for pair in arguments.only))
    if not results["rows"]:
        asked = " ".join(arguments.only)
        print(f"no row has {asked}; leave --only out to see their fields", file=sys.stderr)
        return 2
    results["complete"] = True
    files.save(results, files.path(arguments, f"compile_{arguments.backend}.json"))
    wrong = complaints(results["rows"])
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
