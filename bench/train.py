"""Whole training runs beside the published algorithm: `python bench/train.py`; the parts are in bench/train/."""

import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.train.command import main

if __name__ == "__main__":
    sys.exit(main())
