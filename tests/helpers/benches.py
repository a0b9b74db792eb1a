"""Runs a bench as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def bench(script: str, *arguments: Any, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python bench/SCRIPT ARGUMENTS` from `folder`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"MPLCONFIGDIR": str(ROOT / "build" / "matplotlib")},
        capture_output=True,
        text=True,
        timeout=250,
    )
