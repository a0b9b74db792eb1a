"""A power of two on gradients that fp16 would lose: it keeps nothing below 6e-8, and little of what is below 6e-5.

A contrastive loss hands back some 1e-5 an element at batch 512. The backward pass is linear in dy, so a factor on dy
comes out of every gradient again, exactly if it is a power of two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 4  # exponent of what dy's largest element is brought below: 2^4, where fp16 ends at 2^16

Grads = tuple[Tensor | None, ...]


def scaled_in_fp16(backward: Callable[..., Grads]) -> Callable[..., Grads]:
    """A backend's backward (see op.py) that takes dy as it is, for one whose products lose small numbers in fp16."""

    @functools.wraps(backward)
    def with_factor(dy: Tensor, *arguments) -> Grads:
        *tensors, options, needs = arguments
        if options.precision != "fp16" or dy.numel() == 0:
            return backward(dy, *tensors, options, needs)
        dy, factor = scaled(dy)
        grads = backward(dy, *tensors, options, needs)
        unscale([g for g in grads if g is not None], factor)
        return grads

    return with_factor


def scaled(dy: Tensor) -> tuple[Tensor, Tensor]:
    """(dy * 2^k, 2^-k), k such that 8 <= max |dy| * 2^k < 16; k = 0 where dy is 0 or not finite.

    dy: [B, W] float32, and 2^-k is []; of E members [E, B, W], each with a k of its own, and [E]. Nothing here waits
    for the device.
    """
    largest = dy.abs().amax((-2, -1))
    exponent = (torch.frexp(largest).exponent - LARGEST).clamp(-100, 100)
    exponent = torch.where(largest.isfinite() & (largest > 0), exponent, 0).int()
    return dy * _power(-exponent)[..., None, None], _power(exponent)


def unscale(grads: list[Tensor], factor: Tensor) -> None:
    """Each of `grads` times the factor that `scaled` gave, in place; of a group's, each member's part times its own."""
    if factor.ndim == 0:
        torch._foreach_mul_(grads, factor)
    else:
        torch._foreach_mul_(grads, [factor.view(-1, *[1] * (g.ndim - 1)) for g in grads])


def _power(exponent: Tensor) -> Tensor:
    """2^exponent in float32, exactly: int32, -126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)
