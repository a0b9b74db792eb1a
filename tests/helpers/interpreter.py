"""Programs that run Triton's kernels through its interpreter, whose switch must be set before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def interpret(program: str) -> None:
    """Run `program` in a process of its own, with the tests of kernels on its path; it must print "passed" last."""
    path = os.pathsep.join([str(TESTS / "kernels"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 0 and run.stdout.endswith("passed\n"), run.stdout + run.stderr
