"""InfoNCE: the contrastive critic loss over a batch of pairs.

With logits[i, j] = energy(phi_i, psi_j), lse[i] = logsumexp_j logits[i, j] (paper section 2, equation 1) and
row i's own goal at column o(i) = positive_offset + i,

    forward    mean_i (lse[i] - logits[i, o(i)])                       softmax over goals
    backward   mean_i (logsumexp_k logits[k, o(i)] - logits[i, o(i)])  softmax over state-actions
    symmetric  forward + backward
    binary     mean_ij softplus(-logits[i, j] if j == o(i) else logits[i, j])

plus logsumexp_penalty * mean_i (lse[i] + 1e-6)^2 in every form. Gradient, with c the penalty's coefficient,
p the softmax over goals and q the one over state-actions,

    G[i, j] = dL/dlogits[i, j] = (p[i, j] - [j = o(i)]) / B                    forward
                                 (q[i, j] - [j = o(i)]) / B                    backward, j an own goal
                                 (sigmoid(logits[i, j]) - [j = o(i)]) / (B M)  binary
              + 2 c (lse[i] + 1e-6) p[i, j] / B                                from the penalty
    dphi[i] = sum_j G[i, j] dlogits[i, j]/dphi,   for "norm" (psi_j - phi_i) / |phi_i - psi_j|

A backend module (cpu.py, triton.py; see dispatch.py) serves the op with

    unsupported(phi, psi, options) -> str | None
    forward(phi, psi, options, needs) -> (loss [], lse [B], metrics [3], dphi [B, d], dpsi [M, d])

on contiguous tensors of one device: metrics are the accuracy, the mean positive and the mean negative logit;
gradients are those of the loss itself (dloss = 1), None where `needs` (phi, psi) is False. Loss and gradients
come from one pass, so backward only scales. "cosine" reaches a backend as "dot" of normalised features.
"""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.info_nce import reference
from deepres.kernels.info_nce.options import ENERGIES, FORMS, InfoNCEOptions


class InfoNCEMetrics(NamedTuple):
    """What a training log wants of the logits; no gradient flows from it."""

    lse: Tensor
    """[B], logsumexp over the goals, per row."""
    accuracy: Tensor
    """Share of rows whose own goal scores at least as high as every other."""
    mean_positive: Tensor
    """Mean logit of the pairs."""
    mean_negative: Tensor
    """Mean logit of everything else; NaN where there is nothing else (B = M = 1)."""


@overload
def info_nce(
    phi: Tensor, psi: Tensor, *, logsumexp_penalty: float = 0.1, energy: str = "norm", form: str = "forward",
    positive_offset: int = 0, return_metrics: Literal[False] = False, impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def info_nce(
    phi: Tensor, psi: Tensor, *, logsumexp_penalty: float = 0.1, energy: str = "norm", form: str = "forward",
    positive_offset: int = 0, return_metrics: Literal[True], impl: str = "auto",
) -> tuple[Tensor, InfoNCEMetrics]: ...  # fmt: skip
def info_nce(
    phi: Tensor,
    psi: Tensor,
    *,
    logsumexp_penalty: float = 0.1,
    energy: str = "norm",
    form: str = "forward",
    positive_offset: int = 0,
    return_metrics: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | InfoNCEMetrics]:
    """The contrastive loss between state-actions and goals, where row i of phi belongs to row i of psi.

        logits = -torch.cdist(phi, psi); lse = logits.logsumexp(1)            # energy="norm", form="forward"
        loss = (lse - logits.diagonal()).mean() + logsumexp_penalty * (lse + 1e-6).square().mean()

    Args:
        phi: [B, d] float32 (float64 with impl="reference"), the state-action features; B >= 1.
        psi: [M, d], the goal features, M >= B; the rows that are nobody's own are further negatives. phi's
            dtype and device.
        logsumexp_penalty: coefficient of the penalty, >= 0 (paper: 0.1).
        energy: "norm" -|phi - psi|, "l2" -|phi - psi|^2, "dot" phi . psi, or "cosine". The slope of "norm" at
            phi = psi is taken as 0, so a state-action that meets its own goal gives finite gradients.
        form: "forward", "backward", "symmetric" (their sum) or "binary" (see the module's head).
        positive_offset: row i's own goal is psi[positive_offset + i]. With goals gathered from several
            processes, rank * B.
        return_metrics: give an `InfoNCEMetrics` in place of lse; the same pass yields it.
        impl: "auto", "reference" or a fused backend (`deepres.backends()` lists them). The fused ones never
            store the logits, and yield no second derivatives.

    Returns: (loss, lse): the scalar loss, differentiable in phi and psi, and lse [B], for logs, without
        gradient; or (loss, InfoNCEMetrics).
    Raises: TypeError or ValueError in one sentence for what does not fit; RuntimeError if `impl` cannot.
    Source: arXiv 2503.14858, section 2.
    """
    options = InfoNCEOptions(logsumexp_penalty, energy, form, positive_offset)
    _check(phi, psi, options)
    loss, lse, metrics = torch.ops.deepres.info_nce(phi, psi, *astuple(options), return_metrics, impl)
    return (loss, InfoNCEMetrics(lse, *metrics.unbind())) if return_metrics else (loss, lse)


def _check(phi: Tensor, psi: Tensor, options: InfoNCEOptions) -> None:
    if phi.ndim != 2 or psi.ndim != 2 or phi.shape[1] != psi.shape[1]:
        raise ValueError(
            f"phi and psi must have shapes [B, d] and [M, d], got {list(phi.shape)} and {list(psi.shape)}"
        )
    if phi.shape[0] == 0 or phi.shape[1] == 0:
        raise ValueError(f"phi must hold at least one row and one feature, got {list(phi.shape)}")
    if isinstance(options.positive_offset, bool) or not isinstance(options.positive_offset, int):
        raise TypeError(f"positive_offset must be an int, got {options.positive_offset!r}")
    if options.positive_offset < 0:
        raise ValueError(f"positive_offset must be a row of psi, >= 0, got {options.positive_offset}")
    if psi.shape[0] < options.positive_offset + phi.shape[0]:
        raise ValueError(
            f"psi must hold a goal for every row of phi ({phi.shape[0]}, from positive_offset="
            f"{options.positive_offset} on), got {psi.shape[0]}; pass at least one goal for each row"
        )
    if phi.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"phi must be float32 (or float64 for the reference), got {phi.dtype}; call phi.float()"
        )
    if psi.dtype != phi.dtype:
        raise TypeError(f"psi must have phi's dtype {phi.dtype}, got {psi.dtype}; cast one of them")
    if psi.device != phi.device:
        raise ValueError(f"psi must be on phi's device {phi.device}, got {psi.device}; move one of them")
    penalty = options.logsumexp_penalty
    if not 0 <= penalty < math.inf:
        raise ValueError(f"logsumexp_penalty must be a finite number >= 0, got {penalty!r}")
    if options.energy not in ENERGIES:
        raise ValueError(f"energy must be one of {', '.join(ENERGIES)}, got {options.energy!r}")
    if options.form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {options.form!r}")


# --- The op as PyTorch sees it: the choice of a backend, its pass for loss and gradients, their scaling by dloss. ---

OPTIONS = "float logsumexp_penalty, str energy, str form, SymInt positive_offset"
torch.library.define(
    "deepres::info_nce",
    f"(Tensor phi, Tensor psi, {OPTIONS}, bool return_metrics, str impl) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "deepres::info_nce_forward",
    f"(Tensor phi, Tensor psi, {OPTIONS}, str impl, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "deepres::info_nce_backward",
    "(Tensor dloss, Tensor dphi, Tensor dpsi, Tensor phi, Tensor psi) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("deepres::info_nce", "CompositeImplicitAutograd")
def _composite(
    phi: Tensor, psi: Tensor, logsumexp_penalty: float, energy: str, form: str, positive_offset: int,
    return_metrics: bool, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    options = InfoNCEOptions(logsumexp_penalty, energy, form, positive_offset)
    chosen = dispatch.choose("info_nce", impl, lambda backend: backend.unsupported(phi, psi, options))
    if chosen == "reference":
        return reference.info_nce(phi, psi, options, metrics=return_metrics)
    if energy == "cosine":
        phi, psi = F.normalize(phi, dim=1, eps=1e-12), F.normalize(psi, dim=1, eps=1e-12)
        options = replace(options, energy="dot")
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (phi, psi)]
    return torch.ops.deepres.info_nce_forward(
        phi.contiguous(), psi.contiguous(), *astuple(options), chosen, needs
    )[:3]


@torch.library.impl("deepres::info_nce_forward", "CompositeExplicitAutograd")
def _forward(
    phi: Tensor, psi: Tensor, logsumexp_penalty: float, energy: str, form: str, positive_offset: int,
    impl: str, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = InfoNCEOptions(logsumexp_penalty, energy, form, positive_offset)
    loss, lse, metrics, dphi, dpsi = dispatch.load("info_nce", impl).forward(
        phi, psi, options, (needs[0], needs[1])
    )
    return loss, lse, metrics, *(phi.new_empty(0) if g is None else g for g in (dphi, dpsi))


@torch.library.register_fake("deepres::info_nce_forward")
def _forward_fake(phi, psi, logsumexp_penalty, energy, form, positive_offset, impl, needs):
    return (
        phi.new_empty(()),
        phi.new_empty(phi.shape[0]),
        phi.new_empty(3),
        *(t.new_empty(t.shape if need else 0) for t, need in zip((phi, psi), needs, strict=True)),
    )


@torch.library.impl("deepres::info_nce_backward", "CompositeExplicitAutograd")
def _backward(dloss: Tensor, dphi: Tensor, dpsi: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    # phi and psi are there so that a second derivative raises: dphi and dpsi alone would pass for constants.
    return dloss * dphi, dloss * dpsi


@torch.library.register_fake("deepres::info_nce_backward")
def _backward_fake(dloss, dphi, dpsi, phi, psi):
    return torch.empty_like(dphi), torch.empty_like(dpsi)


def _setup_context(ctx, inputs, output):
    _, *statistics_and_gradients = output
    ctx.mark_non_differentiable(*statistics_and_gradients)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as what was saved
    ctx.save_for_backward(*statistics_and_gradients[2:], *inputs[:2])


def _autograd(ctx, dloss, *_):
    grads = torch.ops.deepres.info_nce_backward(dloss, *ctx.saved_tensors)
    needs = ctx.needs_input_grad[:2]
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 6)


torch.library.register_autograd("deepres::info_nce_forward", _autograd, setup_context=_setup_context)
torch.library.register_autograd(
    "deepres::info_nce_backward", dispatch.without_derivative("the fused info_nce")
)
