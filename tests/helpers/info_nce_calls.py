"""Calls of info_nce with its further options, and what a fused backend gives for them beside float64."""

from __future__ import annotations

import torch

from deepres.kernels.info_nce.op import info_nce
from deepres.testing import assert_no_worse

LEAVES = ("phi", "psi", "scale", "bias")


def numbers(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call_of(batch: int, goals: int, width: int, options: set[str], spread: float = 1.0) -> dict:
    """Arguments of info_nce: features, and a tensor for each of `options`."""
    call = {"phi": numbers(batch, width, spread=spread), "psi": numbers(goals, width, seed=1, spread=spread)}
    if "labels" in options:
        place = torch.randint(goals, (batch,), generator=torch.Generator().manual_seed(2))
        # self_offset 0 leaves goal i out for row i
        call["labels"] = torch.where(place == torch.arange(batch), (place + 1) % goals, place)
    if "targets" in options:
        call["targets"] = 1.5 * numbers(batch, goals, seed=3).softmax(1)
    if "row_weight" in options:
        call["row_weight"] = numbers(batch, seed=4).relu()
        call["row_weight"][0] = 1.0
    if "scale" in options:
        call["scale"], call["bias"] = torch.tensor(1.7), torch.tensor(-0.6)
    if "self" in options:
        call["self_offset"] = 0
    return call


def everything(call: dict, impl: str, dtype=torch.float32, **options) -> dict[str, torch.Tensor]:
    """Loss, statistics and every gradient; those of reduction="none" for weights that are no constant."""
    call = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.items()}
    leaves = {name: call[name].clone().requires_grad_() for name in LEAVES if torch.is_tensor(call.get(name))}
    loss, metrics = info_nce(**{**call, **leaves}, return_metrics=True, impl=impl, **options)
    weights = numbers(loss.numel(), seed=5).to(loss).reshape(loss.shape)
    gradients = torch.autograd.grad((weights * loss).sum(), leaves.values())
    out = {"loss": loss.detach(), "lse": metrics.lse, "metrics": torch.stack(metrics[1:])}
    return out | dict(zip([f"d{name}" for name in leaves], gradients, strict=True))


def assert_all_no_worse(call: dict, impl: str = "cpu", hair: float = 3e-7, **options) -> None:
    fused, plain = everything(call, impl, **options), everything(call, "reference", **options)
    truth = everything(call, "reference", torch.float64, **options)
    for part in truth:
        if part in ("dscale", "dbias"):  # sums of terms that cancel: judged by the size of those
            size = max(truth["dscale"].abs().item(), truth["lse"].abs().max().item(), 1.0)
            ours, theirs = ((t[part].double() - truth[part]).abs().item() for t in (fused, plain))
            assert ours <= 2 * theirs + hair * size, (part, ours, theirs, options)
        elif part == "metrics":
            torch.testing.assert_close(
                fused[part].double(), truth[part], rtol=1e-5, atol=1e-5, equal_nan=True
            )
        else:
            assert_no_worse(
                f"{part} {sorted(call)} {options}", fused[part], plain[part], truth[part], hair=hair
            )
