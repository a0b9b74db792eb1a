"""What a call of `residual_stack` may ask for."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

AUTO = -1  # StackOptions.recompute for "auto", until the backend is chosen
ACTIVATIONS = ("swish", "relu")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_OTHER_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


class StackOptions(NamedTuple):
    """What a call of `residual_stack` asks for, checked; `recompute` counts blocks, 0 keeps every layer."""

    skip_every: int = 4
    activation: str = "swish"
    norm: bool = True
    eps: float = 1e-6
    precision: str = "fp32"
    recompute: int = 0


NAMES = (*StackOptions._fields, "impl")
"""What `residual_stack` takes beside its tensors."""


def checked_options(
    depth: int,
    *,
    skip_every: Any = 4,
    activation: Any = "swish",
    norm: Any = True,
    eps: Any = 1e-6,
    precision: Any = "fp32",
    recompute: Any = "none",
) -> StackOptions:
    """The options of a stack of `depth` layers once they fit; one sentence otherwise."""
    if not isinstance(skip_every, int) or skip_every < 0:
        raise ValueError(f"skip_every must be a number of layers >= 1, or 0 for no skips, got {skip_every!r}")
    if skip_every and depth % skip_every:
        raise ValueError(
            f"the depth must be a multiple of skip_every={skip_every}, got {depth} layers; "
            f"use {f'{less} or ' if (less := depth - depth % skip_every) else ''}{less + skip_every}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not isinstance(norm, bool):
        raise TypeError(f"norm must be True or False, got {norm!r}")
    if precision not in PRECISIONS:
        meant = _OTHER_NAMES.get(str(precision).removeprefix("torch."))
        hint = f"; pass {meant!r}" if meant else ""
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}{hint}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be a finite number > 0, got {eps!r}")
    return StackOptions(
        skip_every, activation, norm, float(eps), precision, _recompute_blocks(recompute, skip_every)
    )


def _recompute_blocks(recompute: Any, skip_every: int) -> int:
    if recompute == "none":
        return 0
    if recompute == "auto":
        return AUTO if skip_every else 0
    if isinstance(recompute, bool) or not isinstance(recompute, int) or recompute < 1:
        raise ValueError(f"recompute must be 'none', 'auto' or a number of blocks >= 1, got {recompute!r}")
    if not skip_every:
        raise ValueError("recompute counts blocks, and skip_every=0 has none; pass recompute='none'")
    return recompute
