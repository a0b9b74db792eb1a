"""InfoNCE, loss and gradients, fused against plain PyTorch: `python bench/throughput.py --op info_nce`.

The "norm" energy in the "forward" form, penalty 0.1:

    deepres    deepres.info_nce
    cdist      torch.cdist as it comes (also under torch.compile)
    matmul     |x|^2 + |y|^2 - 2 x.y by one matrix product, clamped, square root (also under torch.compile)
    broadcast  (phi[:, None] - psi[None]).norm(dim=-1), as the published code writes it. Its [B, B, d] tensors
               soon exceed the memory; it then goes through as many rows at a time as fit in 4 GB, gradients
               added up: less work for the memory and the same arithmetic

A case's batch counts the pairs, its width the features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import deepres
from bench.harness.contestants import Case, Prepared
from bench.ops.registry import BROADCAST_BYTES
from bench.ops.serving import served_by, waiter
from deepres.kernels.info_nce.options import InfoNCEOperands, InfoNCEOptions

PENALTY = 0.1
RESULTS = ("loss", "dphi", "dpsi")

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def loss_of(logits: Tensor, first: int = 0) -> Tensor:
    """The loss of some rows' logits [R, B], summed; row r's own goal is first + r."""
    lse = logits.logsumexp(dim=1)
    return (lse - logits.diagonal(first)).sum() + PENALTY * (lse + 1e-6).square().sum()


def matmul(phi: Tensor, psi: Tensor) -> Tensor:
    square = phi.square().sum(1)[:, None] + psi.square().sum(1)[None] - 2 * phi @ psi.T
    return loss_of(-square.clamp_min(1e-12).sqrt()) / len(phi)


def cdist(phi: Tensor, psi: Tensor) -> Tensor:
    return loss_of(-torch.cdist(phi, psi)) / len(phi)


def differences(phi: Tensor, psi: Tensor) -> Tensor:
    return loss_of(-(phi[:, None] - psi[None]).norm(dim=-1)) / len(phi)


FORMS: dict[str, Loss] = {"matmul": matmul, "cdist": cdist}


def gradients(loss_function: Loss) -> Step:
    def step(phi: Tensor, psi: Tensor) -> tuple[Tensor, ...]:
        loss = loss_function(phi, psi)
        return loss.detach(), *torch.autograd.grad(loss, (phi, psi))

    return step


def in_parts(phi: Tensor, psi: Tensor) -> tuple[Tensor, ...]:
    """The broadcast form, as many rows at a time as fit."""
    rows = rows_at_a_time(*phi.shape)
    if rows >= len(phi):
        return gradients(differences)(phi, psi)
    loss, dpsi, dphi = torch.zeros((), device=phi.device), torch.zeros_like(psi), []
    for start in range(0, len(phi), rows):
        some = phi[start : start + rows].detach().requires_grad_()
        part = loss_of(-(some[:, None] - psi[None]).norm(dim=-1), start) / len(phi)
        dsome, more = torch.autograd.grad(part, (some, psi))
        loss = loss + part.detach()
        dphi.append(dsome)
        dpsi += more
    return loss, torch.cat(dphi), dpsi


def rows_at_a_time(batch: int, width: int) -> int:
    """Of the broadcast form, which holds the differences and two tensors of their size in backward."""
    return max(1, min(batch, BROADCAST_BYTES // (3 * 4 * batch * width)))


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """phi, psi [B, d]: as in training, a row's own goal is nearer than the others."""
    generator = torch.Generator().manual_seed(case.seed)
    phi, noise = (torch.randn(case.batch, case.width, generator=generator) for _ in range(2))
    psi = phi + 0.3 * noise
    return phi.to(case.device).requires_grad_(), psi.to(case.device).requires_grad_()


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64 results, plain PyTorch's in fp32), both from differences."""
    phi, psi = inputs(case)
    wide = [t.detach().double().requires_grad_() for t in (phi, psi)]
    exact, plain = gradients(differences)(*wide), gradients(differences)(phi, psi)
    return dict(zip(RESULTS, exact, strict=True)), dict(zip(RESULTS, plain, strict=True))


def eager(case: Case, variant: str) -> Prepared:
    return _prepared(case, gradients(FORMS[variant]))


def compiled(case: Case, variant: str) -> Prepared:
    return _prepared(case, gradients(torch.compile(FORMS[variant], dynamic=False)))


def broadcast(case: Case, variant: str) -> Prepared:
    rows = rows_at_a_time(case.batch, case.width)
    return _prepared(case, in_parts, "" if rows >= case.batch else f"{rows} rows at a time")


def fused(case: Case, impl: str) -> Prepared:
    phi, psi = inputs(case)
    options = InfoNCEOptions(logsumexp_penalty=PENALTY)
    server = served_by(
        "info_nce", impl, lambda backend: backend.unsupported(phi, psi, InfoNCEOperands(), options)
    )

    def loss(phi: Tensor, psi: Tensor) -> Tensor:
        return deepres.info_nce(phi, psi, logsumexp_penalty=PENALTY, impl=impl)[0]

    return _prepared(case, gradients(loss), server)


def _prepared(case: Case, step: Step, server: str = "") -> Prepared:
    phi, psi = inputs(case)

    def named(result: Any) -> dict[str, Tensor]:
        return dict(zip(RESULTS, result, strict=True))

    return Prepared(lambda: step(phi, psi), named, waiter(case.device), server)
