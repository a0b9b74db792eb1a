"""A group of E stacks side by side, as backends that serve it in one launch lay it out: E is every tensor's first
dimension, one stack's is 1, and the pieces of a member that a launch takes (some layers, some rows) are slices.
"""

from __future__ import annotations

from torch import Tensor


def as_group(members: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of E stacks (`members` is (E,)) as they are, one stack's (it is ()) as those of a group of one.

    A placeholder, of shape [0], is every member's.
    """
    return tensors if members else tuple(t if t.shape == (0,) else t[None] for t in tensors)


def of_layers(tensor: Tensor, layers: slice) -> Tensor:
    """The layers of a tensor [E, D, ...]; a placeholder, of gamma, beta or rstd without norm, as it is."""
    return tensor if tensor.numel() == 0 else tensor[:, layers]


def held(tensor: Tensor | None, elements: int) -> int:
    """How many pieces of `elements` lie from one member's part of a tensor to the next's; 0 where there is none."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.stride(0) // elements
