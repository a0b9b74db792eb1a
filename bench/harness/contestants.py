"""What is timed, as data: an op, its contestants, and one case of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "tf32", "bf16")
BASELINE = "eager"  # every ratio is against this one
SINGLE = "eager-fp32"  # joins where the precision is another: what a user of plain fp32 would gain
SLOW_TO_BUILD = ("compile", "jax")  # options whose contestants take minutes to build
CEILING = "products"  # the matrix products of the same case alone, by PyTorch: what shares are a share of


@dataclass(frozen=True)
class Case:
    """One thing to time: an op in one mode at one size. depth counts layers, batch rows, width columns."""

    op: str
    mode: str
    depth: int
    batch: int
    width: int
    precision: str
    device: str
    seed: int = 0


@dataclass
class Prepared:
    """A contestant ready to run: `run()` computes once, `named(result)` gives its tensors by their names.

    On a GPU a CUDA graph of `run` is timed, or `timed` where there is one: a call that does the same, launched well
    already and not waited for, as XLA's and the learner's are.
    """

    run: Callable[[], Any]
    named: Callable[[Any], dict[str, Any]]
    wait: Callable[[], None]
    served_by: str = ""
    timed: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    build: "module:function", called in a process of its own as function(case, variant) -> Prepared.
    worse, hair: the error against float64 that it may have before it is refused is worse times plain PyTorch's plus
        hair (of float64's largest number): 2 allows another order of summation, 8 also bf16 between the products, as
        autocast keeps it.
    option: what must be asked for to bring it in, "" for nothing.
    memory: bytes it needs at its peak, where the op's own figure would be far off.
    """

    label: str
    build: str
    variant: str = ""
    worse: float = 2.0
    hair: float = 2e-7
    option: str = ""
    memory: Callable[[Case], int] | None = None


@dataclass(frozen=True)
class Op:
    """modes: what is timed, key and words. truth: "module:function" giving (float64 results, plain PyTorch's)
    for the check before the clock starts; "" where there is nothing to get wrong. memory: bytes the greediest
    contestant needs at its peak, roughly. resident: bytes every other one holds meanwhile. gradients: bytes of the
    gradients that a contestant hands over, which its peak holds too. axis: the size that is varied, "depth" or
    "batch"; sizes: its values by default.
    """

    name: str
    modes: dict[str, str]
    implementations: dict[str, Implementation]
    truth: str
    flops: Callable[[Case], int]
    bytes: Callable[[Case], int]
    memory: Callable[[Case], int]
    resident: Callable[[Case], int]
    gradients: Callable[[Case], int] = lambda case: 0
    axis: str = "depth"
    sizes: tuple[int, ...] = (4, 16, 64, 256, 1024)
    width: int = 256
    precisions: tuple[str, ...] = PRECISIONS
