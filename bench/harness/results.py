"""The one form of a result file, and the folder that it goes to.

kind          "deepres throughput", ...: which bench made it
complete      False while it runs, and where it was stopped
command       what to type
environment   see environment.describe
arguments     what was asked for
checks        worst error of each contestant that had something to get wrong
rows          the figures, a line of the file each
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEPT = Path(__file__).resolve().parents[1] / "results"  # what a document quotes
NEW = KEPT / "new"  # git ignores it


def add_options(parser: argparse.ArgumentParser) -> None:
    """--keep and --out."""
    parser.add_argument("--keep", action="store_true", help="write to bench/results/, not to its folder new/")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="write to another folder, or to a file X.json"
    )


def path(arguments: argparse.Namespace, name: str) -> Path:
    """Where the result called `name` goes: an ignored folder, unless another place is asked for."""
    if arguments.out and arguments.out.suffix == ".json":
        return arguments.out
    return (arguments.out or (KEPT if arguments.keep else NEW)) / name


def begin(kind: str, arguments: argparse.Namespace | Row, environment: Row, **more: Any) -> Row:
    """A result without rows. more: fields of its own, before the rows."""
    asked = arguments if isinstance(arguments, dict) else vars(arguments)
    return {
        "kind": f"deepres {kind}",
        "schema": 1,
        "complete": False,
        "command": f"python bench/{kind}.py",
        "environment": environment,
        "arguments": {k: v for k, v in asked.items() if k not in ("out", "keep", "help")},
        **more,
        "checks": [],
        "rows": [],
    }


def file_name(kind: str, results: Row) -> str:
    """Kind, device and time."""
    device = re.sub(r"[^a-z0-9]+", "-", results["environment"]["device"]["name"].lower()).strip("-")
    return f"{kind}_{device}_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"


def text(results: Row) -> str:
    """JSON, with each row on a line of its own."""
    head = {name: value for name, value in results.items() if name != "rows"}
    rows = ",\n".join("  " + json.dumps(row) for row in results["rows"])
    return json.dumps(head, indent=1)[:-2] + (
        f',\n "rows": [\n{rows}\n ]\n}}\n' if rows else ',\n "rows": []\n}\n'
    )


def save(results: Row, to: Path) -> None:
    """Whole or not at all: an interrupt leaves the last good file."""
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_suffix(".json.part")
    temporary.write_text(text(results))
    os.replace(temporary, to)


def load(file: str | Path, kind: str) -> Row:
    """A result file's contents; ValueError in one sentence when it is none of this kind."""
    try:
        results = json.loads(Path(file).read_text())
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}); give a file from bench/results/"
        ) from None
    except json.JSONDecodeError:
        results = None
    if not isinstance(results, dict) or results.get("kind") != f"deepres {kind}":
        raise ValueError(f"{file} is no result of bench/{kind}.py; give a file from bench/results/")
    return results
