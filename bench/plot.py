"""Fused against unfused over depth, as a picture: `python bench/plot.py bench/results/FILE.json ...`.

Writes FILE.png and FILE.pdf beside each FILE.json, or into another folder (--out).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import plot
from bench.harness.table import load


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON files written by bench/throughput.py")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: beside each file")
    arguments = parser.parse_args(argv)
    for path in arguments.files:
        picture = (arguments.out or path.parent) / path.with_suffix(".png").name
        try:
            drawn = plot.draw(load(path), picture)
        except ValueError as error:
            print(f"plot.py: {error}", file=sys.stderr)
            return 2
        print(f"wrote {picture}" if drawn else f"{path}: nothing was measured, no plot")
    return 0


if __name__ == "__main__":
    sys.exit(main())
