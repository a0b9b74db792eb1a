"""Markdown tables from result files: `python bench/table.py bench/results/FILE.json ...`.

The README's figures are what this prints, with the command that made them underneath.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness.table import load, markdown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="JSON files written by bench/throughput.py")
    parser.add_argument("--op", help="only this op's tables")
    parser.add_argument("--full", action="store_true", help="spread, GFLOP/s, share and memory as well")
    arguments = parser.parse_args(argv)
    try:
        for path in arguments.files:
            print(markdown(path, load(path), full=arguments.full, op=arguments.op))
    except ValueError as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
