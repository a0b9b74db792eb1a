"""The ops under torch.autocast: what surrounds a call changes nothing of it but 16-bit inputs, which are widened."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deepres.kernels import dispatch


def autocasts(t: Tensor) -> bool:
    """Whether PyTorch's own operations on t's device are rounded to 16 bits here."""
    return torch.amp.is_autocast_available(t.device.type) and torch.is_autocast_enabled(t.device.type)


def own_precision(t: Tensor) -> AbstractContextManager[None]:
    """Operations on t's device compute in the precision of what they are given."""
    return torch.autocast(t.device.type, enabled=False) if autocasts(t) else nullcontext()


def widened(t: Tensor) -> Tensor:
    """t, in float32 if it is of 16 bits."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        with own_precision(x):
            return x @ y.mT

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        of_x, of_y = ctx.needs_input_grad
        return product(g, y.mT) if of_x else None, product(x.mT, g.mT).mT if of_y else None


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T [B, M] of x [B, d] and y [M, d], in their own precision; backward, too, wherever that is called."""
    return _Product.apply(x, y) if dispatch.transformed() is None else x @ y.mT
