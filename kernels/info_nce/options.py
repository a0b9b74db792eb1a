"""What a call of `info_nce` may ask for."""

from __future__ import annotations

from dataclasses import dataclass

ENERGIES = ("norm", "l2", "dot", "cosine")
FORMS = ("forward", "backward", "symmetric", "binary")


@dataclass(frozen=True)
class InfoNCEOptions:
    """What a call of `info_nce` asks for, checked."""

    logsumexp_penalty: float = 0.1
    energy: str = "norm"
    form: str = "forward"
    positive_offset: int = 0
