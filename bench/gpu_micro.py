"""What bench/gpu/model.py assumes of a GPU, measured: rates of copies, exchanges and barriers of clusters, products.

    python bench/gpu_micro.py [--only copies exchanges] [--out DIR]

Each group in a process of its own; gpu_micro.json has a row for each figure: cycles, microseconds or GB/s.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.gpu import children
from bench.harness import environment
from bench.harness import results as files

GROUPS = ("copies", "products", "barriers", "exchanges", "clusters")
LIMIT_S = 30.0  # of one group


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=GROUPS)
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    if reason := children.without_gpu("bench/gpu_micro.py"):
        print(reason)
        return 2
    path = files.path(arguments, "gpu_micro.json")
    results = files.begin("gpu_micro", arguments, environment.compiler())
    tasks = [(name,) for name in arguments.only]
    for (name,), outcome in children.each("bench.gpu.micro:Desk", "measure", tasks, limit_s=LIMIT_S):
        results["checks"].append({"group": name, "status": outcome.status, "reason": outcome.reason})
        results["rows"] += outcome.answer or []
        files.save(results, path)
        for row in outcome.answer or [{"what": name, "failed": outcome.reason}]:
            print(_words(row), flush=True)
    results["complete"] = True
    files.save(results, path)
    return 0 if all(check["status"] == "measured" for check in results["checks"]) else 1


def _words(row: files.Row) -> str:
    given = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    return ", ".join(given).removeprefix("what ")


if __name__ == "__main__":
    sys.exit(main())
