"""How this project judges a fused kernel: by its error against float64, beside plain PyTorch's own error."""

from __future__ import annotations

from torch import Tensor


def worst_error(got: Tensor, truth: Tensor) -> float:
    """The largest |got - truth|, as a share of the largest |truth| (float64); 0 for empty tensors."""
    if truth.numel() == 0:
        return 0.0
    difference = (got.detach().double() - truth.detach().double()).abs().max().item()
    return difference / max(truth.detach().abs().max().item(), 1e-300)


def assert_no_worse(name: str, fused: Tensor, plain: Tensor, truth: Tensor, *, hair: float = 2e-7) -> None:
    """Assert |fused - truth| <= 2 |plain - truth| + hair, worst element of each, relative to the largest truth.

    fused: the backend's result. plain: the reference's in the same precision. truth: the reference's in float64.
    The factor of two allows another order of summation, never a lower precision.
    """
    assert fused.shape == truth.shape, f"{name}: shape {list(fused.shape)}, wanted {list(truth.shape)}"
    ours, theirs = worst_error(fused, truth), worst_error(plain, truth)
    assert ours <= 2 * theirs + hair, f"{name}: worst error {ours:.3g}, plain PyTorch's is {theirs:.3g}"
