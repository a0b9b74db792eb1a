"""Why deepres._C, the C++ of the CPU, is not there."""

from __future__ import annotations

import sys
from pathlib import Path


def why_missing() -> str:
    """A clause and a remedy. A checkout that Python starts in hides an installed deepres, extension and all."""
    own = Path(sys.modules["deepres"].__file__ or "").resolve().parent
    for place in sys.path:
        for found in Path(place).glob("deepres/_C.*"):
            if found.resolve().parent != own:
                return (
                    f"deepres._C is not built in {own}, whose sources hide the deepres that is installed in "
                    f"{found.parent}; leave that folder, or `pip install -e .` there"
                )
    return (
        "the extension deepres._C is not built; install a C++17 compiler with OpenMP (g++ or clang) "
        "and install deepres again"
    )
