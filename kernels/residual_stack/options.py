"""What a call of `residual_stack` may ask for."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = -1  # StackOptions.recompute for "auto", until the backend is chosen
ACTIVATIONS = ("swish", "relu")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class StackOptions:
    """What a call of `residual_stack` asks for, checked; `recompute` counts blocks, 0 keeps every layer."""

    skip_every: int = 4
    activation: str = "swish"
    norm: bool = True
    eps: float = 1e-6
    precision: str = "fp32"
    recompute: int = 0
