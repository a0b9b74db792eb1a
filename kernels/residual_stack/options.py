"""What a call of `residual_stack` may ask for."""

from __future__ import annotations

from typing import Any, NamedTuple

from deepres.kernels.arguments import ABOVE_ZERO, check_flag, check_number, whole_number

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
    skip_every = whole_number("skip_every", skip_every, "a number of layers >= 1, or 0 for no skips", least=0)
    if skip_every and depth % skip_every:
        raise ValueError(
            f"the depth must be a multiple of skip_every={skip_every}, got {depth} layers; "
            f"use {f'{less} or ' if (less := depth - depth % skip_every) else ''}{less + skip_every}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    check_flag("norm", norm)
    if precision not in PRECISIONS:
        meant = _OTHER_NAMES.get(str(precision).removeprefix("torch."))
        hint = f"; pass {meant!r}" if meant else ""
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}{hint}")
    check_number("eps", eps, "a finite number > 0", least=ABOVE_ZERO)
    return StackOptions(
        skip_every, activation, norm, float(eps), precision, _recompute_blocks(recompute, skip_every)
    )


def _recompute_blocks(recompute: Any, skip_every: int) -> int:
    if recompute == "none":
        return 0
    if recompute == "auto":
        return AUTO if skip_every else 0
    blocks = whole_number("recompute", recompute, "'none', 'auto' or a number of blocks >= 1")
    if not skip_every:
        raise ValueError("recompute counts blocks, and skip_every=0 has none; pass recompute='none'")
    return blocks
