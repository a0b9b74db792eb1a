"""How long a dependent layer should take on a GPU, by the model in bench/gpu/model.py: predictions, not measurements.

python bench/model.py [--gpu h100] [--width 256] [--batch 512] [--depth 64] [--precision bf16]
python bench/model.py --all bench/results/model.json       # every GPU and size of the docs, as a file
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu.model import MACHINES, PRECISIONS, Size, words, write


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted microseconds of the residual stack on a GPU.")
    parser.add_argument("--gpu", choices=tuple(MACHINES), default="h100")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--depth", type=int, nargs="*", default=[64, 1024])
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16")
    parser.add_argument("--all", type=Path, metavar="FILE", help="write every GPU and size there instead")
    chosen = parser.parse_args()
    if chosen.all:
        write(chosen.all)
        return print(f"wrote {chosen.all}", file=sys.stderr)
    machine = MACHINES[chosen.gpu]
    print(
        f"{machine.name}, width {chosen.width}, batch {chosen.batch}, {chosen.precision}: predictions, "
        "not measurements"
    )
    for depth in chosen.depth:
        print("\n".join(words(machine, Size(depth, chosen.batch, chosen.width, chosen.precision))))


if __name__ == "__main__":
    main()
