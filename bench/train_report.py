"""What bench/train.py measured, as tables and a picture: `python bench/train_report.py bench/results/train_FILE.json`.

Writes FILE.png and FILE.pdf beside each FILE.json, or into another folder (--out).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.train.report import draw, load, show


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON files written by bench/train.py")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: beside each file")
    arguments = parser.parse_args(argv)
    try:
        for path in arguments.files:
            results = load(path)
            show(results)
            draw(results, (arguments.out or path.parent) / path.with_suffix(".png").name)
    except ValueError as error:
        print(f"train_report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
