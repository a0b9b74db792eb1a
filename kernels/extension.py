"""deepres._C, the C++ of the CPU, or why it is not there."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from deepres.kernels.free_memory import limit_bytes


@cache
def extension() -> Any:
    """The module; what it keeps of freed memory is at most a quarter of what this process may hold. ImportError where
    it is not built."""
    module: Any = import_module("deepres._C")  # PyTorch is there: the two share their OpenMP threads
    module.limit_pool(limit_bytes() // 4)
    return module


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
