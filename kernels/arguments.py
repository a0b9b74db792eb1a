"""What all ops ask of their arguments; each error is one sentence."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import Any

from torch import Tensor

ABOVE_ZERO = math.ulp(0.0)  # the least number that a float holds above 0
LARGEST = sys.float_info.max
LARGEST_WHOLE = 2**31 - 1  # of a size, or of a number of layers


def check_tensors(**given: object) -> None:
    """TypeError unless each is a tensor."""
    for name, t in given.items():
        if not isinstance(t, Tensor):
            kind = f"{type(t).__module__}.{type(t).__name__}".removeprefix("builtins.")
            remedy = f"torch.from_numpy({name})" if kind.startswith("numpy.") else f"torch.as_tensor({name})"
            raise TypeError(f"{name} must be a torch.Tensor, got {kind}; pass {remedy}")


def check_number(
    name: str,
    value: Any,
    wanted: str = "a finite number",
    *,
    least: float = -LARGEST,
    most: float = LARGEST,
) -> None:
    """TypeError unless `value` is a number, ValueError unless it lies from `least` to `most`, in words `wanted`."""
    number = type(value) in (int, float) or (isinstance(value, Real) and not isinstance(value, bool))
    if not number:
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        within = least <= float(value) <= most  # NumPy's would round the bounds to its own type
    except OverflowError:
        within = False
    if not within:
        raise ValueError(f"{name} must be {wanted}, got {value!r:.40}")


def whole_number(name: str, value: Any, wanted: str = "a whole number >= 1", *, least: int = 1) -> int:
    """`value`, NumPy's too, as an int; ValueError unless it is whole, >= `least`, in words `wanted`, and no larger than
    any size can be."""
    whole = isinstance(value, int | Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    if value > LARGEST_WHOLE:
        raise ValueError(f"{name} must be {wanted}, and at most {LARGEST_WHOLE}, got {value!r:.40}")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
