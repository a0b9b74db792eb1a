"""Calls of `union_lengths` that every backend's tests make, and what must hold of them; the extension is not needed."""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.kernels.quasimetric.op import PART, union_lengths
from deepres.testing import assert_no_worse

SHAPES = ((1, 1), (2, 3), (7, 5), (33, 7), (256, 64), (8192, 2))


def pair(rows: int, parts: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Some intervals apart, some within each other, about half of them empty."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, parts * PART, generator=g)
    return scale * x, scale * (x + 0.5 * torch.randn(x.shape, generator=g))


def found(x: Tensor, y: Tensor, impl: str, dtype: torch.dtype, *, device: str = "cpu") -> list[Tensor]:
    """Lengths, and the gradients of a weighted sum of them, on the CPU."""
    leaves = [t.to(device, dtype, copy=True).requires_grad_() for t in (x, y)]
    lengths = union_lengths(*leaves, impl=impl)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(lengths.shape, generator=g).to(device, dtype)
    return [t.cpu() for t in (lengths.detach(), *torch.autograd.grad((weight * lengths).sum(), leaves))]


def assert_all_no_worse(
    rows: int, parts: int, impl: str, *, scale: float = 1.0, name: str = "", device: str = "cpu"
) -> None:
    x, y = pair(rows, parts, scale=scale)
    fused, plain = (found(x, y, one, torch.float32, device=device) for one in (impl, "reference"))
    truth = found(x, y, "reference", torch.float64)
    for part, *values in zip(("lengths", "dx", "dy"), fused, plain, truth, strict=True):
        assert_no_worse(f"{name} {part} {rows} x {parts}", *values)


def assert_near_ends_lose_no_digits(impl: str) -> None:
    """Lengths of 1e-4 between numbers of 1e3: exact differences of what float32 holds."""
    x, _ = pair(40, 4, scale=1e3)
    y = x + 1e-4 * torch.arange(8).repeat(40, 4)
    wanted = union_lengths(x.double(), y.double())
    torch.testing.assert_close(union_lengths(x, y, impl=impl).double(), wanted, rtol=1e-6, atol=0)


def assert_slopes_where_ends_meet(impl: str) -> None:
    """Of equal ends the first has the slope, of touching intervals the outer ends, of empty ones none."""
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0, 5.0, 5.0, 7.0, -1.0]]).requires_grad_()
    y = torch.tensor([[1.0, 1.0, 0.5, 2.0, 6.0, 6.0, 7.0, -2.0]]).requires_grad_()
    length = union_lengths(x, y, impl=impl)
    assert length.item() == 3  # from 0 to 2 and from 5 to 6
    dx, dy = torch.autograd.grad(length, (x, y))
    assert dx.tolist() == [[-1, 0, 0, 0, -1, 0, 0, 0]] and dy.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    empty = union_lengths(x, x, impl=impl)
    assert empty.item() == 0 and not torch.autograd.grad(empty, x)[0].any()


def assert_nan_and_infinity_pass(impl: str) -> None:
    x, y = pair(3, 4)
    x[0, 3], y[1, 9], y[2, 16], x[2, 25], y[2, 25] = torch.nan, torch.nan, torch.inf, torch.inf, torch.inf
    lengths, dx, dy = found(x, y, impl, torch.float32)
    plain = found(x, y, "reference", torch.float32)[0]
    torch.testing.assert_close(lengths, plain, equal_nan=True)
    assert lengths[2, 2] == torch.inf and lengths.isnan().nonzero().tolist() == [[0, 0], [1, 1], [2, 3]]
    assert dx.isnan().any() and torch.equal(dx.isnan(), dy.isnan())


EDGES = (assert_near_ends_lose_no_digits, assert_slopes_where_ends_meet, assert_nan_and_infinity_pass)
