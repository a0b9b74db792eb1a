"""Which backend serves a call, in which precision products run, and when a device is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

import deepres
from bench.harness.contestants import Case
from bench.harness.workers import Unavailable
from deepres.kernels import dispatch


def served_by(op: str, impl: str, unsupported: Callable[[Any], str | None]) -> str:
    """The backend that will serve; Unavailable when only the reference would and it was not asked for.

    unsupported: asks one backend module about this very call.
    """
    reasons: list[str] = []

    def asked(backend: Any) -> str | None:
        reason = unsupported(backend)
        reasons.extend([reason] if reason else [])
        return reason

    if impl not in ("auto", *dispatch.BACKENDS[op]):
        raise Unavailable(f"this deepres has no backend {impl!r}")
    try:
        with warnings.catch_warnings():  # the reason is reported, and reported once
            warnings.simplefilter("ignore")
            chosen = dispatch.choose(op, impl, asked)
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    if chosen == "reference" and impl != "reference":
        states = deepres.backends()[op]
        reasons += [f"{name}: {state}" for name, state in states.items() if state != "available"]
        raise Unavailable("no fused backend serves it here: " + "; ".join(reasons or ["none exists"]))
    return chosen


def settle_precision(case: Case) -> None:
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")


def waiter(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None
