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

Options change it so (`InfoNCEMore`): logits[i, j] = scale * energy + bias, whence dscale = sum_ij G[i, j] energy and
dbias = sum_ij G[i, j]; a pair left out has logit -inf; row_weight multiplies row i's part of each form's sum by w[i],
and of G by w[i] in the softmax over goals and in "binary", by the sum of the w of j's owners in the one over
state-actions; targets T take the place of [j = o(i)], and of p there is sum_j T[i, j] times as much.

A backend module (cpu.py, triton.py; see dispatch.py) serves the op with

    unsupported(phi, psi, operands, options) -> str | None
    forward(phi, psi, operands, options, needs) -> Results

on contiguous tensors of one device; `needs` says whether the gradients of phi, of psi and of scale or bias are asked
for. Loss and gradients come from one pass, so backward only scales them; the gradients of a vector of rows are asked
for when it is known what each is worth. "cosine" reaches a backend as "dot" of normalised features, and row_weight
as what multiplies a row of the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.arguments import check_flag, check_tensors
from deepres.kernels.autocast import widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.info_nce import reference
from deepres.kernels.info_nce.checks import check_features, checked
from deepres.kernels.info_nce.options import InfoNCEMore, InfoNCEOperands, InfoNCEOptions


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
    **more: Unpack[InfoNCEMore],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def info_nce(
    phi: Tensor, psi: Tensor, *, logsumexp_penalty: float = 0.1, energy: str = "norm", form: str = "forward",
    positive_offset: int = 0, return_metrics: Literal[True], impl: str = "auto", **more: Unpack[InfoNCEMore],
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
    **more: Unpack[InfoNCEMore],
) -> tuple[Tensor, Tensor | InfoNCEMetrics]:
    """The contrastive loss between state-actions and goals, where row i of phi belongs to row i of psi.

        logits = -torch.cdist(phi, psi); lse = logits.logsumexp(1)            # energy="norm", form="forward"
        loss = (lse - logits.diagonal()).mean() + logsumexp_penalty * (lse + 1e-6).square().mean()

    Args:
        phi: [B, d] float32 (float64 with impl="reference"), the state-action features; B >= 1. 16 bits are widened
            to float32, in which the op computes under torch.autocast, too.
        psi: [M, d], the goal features, M >= B; the rows that are nobody's own are further negatives. phi's
            dtype and device.
        logsumexp_penalty: coefficient of the penalty, >= 0 (paper: 0.1; 0 for the losses of other papers).
        energy: "norm" -|phi - psi|, "l2" -|phi - psi|^2, "dot" phi . psi, "cosine", or "mrn", a distance that is
            not symmetric (d even). The slope of "norm" at phi = psi is taken as 0, so a state-action that meets its
            own goal gives finite gradients.
        form: "forward", "backward", "symmetric" (their sum; CLIP's is half of it) or "binary".
        positive_offset: row i's own goal is psi[positive_offset + i]. With goals gathered from several
            processes, rank * B.
        return_metrics: give an `InfoNCEMetrics` in place of lse; the same pass yields it.
        impl: "auto", "reference" or a fused backend (`deepres.backends()` lists them). The fused ones never
            store the logits, and yield no second derivatives.

    The other keywords (`InfoNCEMore`), with s = logits and all else as above:

        scale=a, bias=b         s = a * energies + b; gradients flow to a and b if they are tensors []
        temperature=t           s = energies / t
        labels=l [B]            F.cross_entropy(s, l) in place of lse - s.diagonal(); M may be below B
        targets=T [B, M]        F.cross_entropy(s, T), rows of any mass; with "binary"
                                F.binary_cross_entropy_with_logits(s, T). T gets no gradient.
        self_offset=o           s = s.masked_fill(torch.ones_like(s, dtype=bool).triu(o).tril(o), -inf)
        row_weight=w [B]        (w * (lse - s.diagonal())).mean(); the penalty keeps 1. w gets no gradient.
        row_divisor="sum"       (w * (lse - s.diagonal())).sum() / w.sum()
        reduction="none"        [B]: w * (lse - s.diagonal()) + logsumexp_penalty * (lse + 1e-6).square()
        energy="mrn"            h = d // 2; s = -((x - y)[..., :h].relu().amax(-1)
                                                  + ((x - y)[..., h:].square().sum(-1) + 1e-6).sqrt())

    Returns: (loss, lse): the scalar loss, differentiable in phi and psi, and lse [B], for logs, without
        gradient; or (loss, InfoNCEMetrics).
    Raises: TypeError or ValueError in one sentence for what does not fit; RuntimeError if `impl` cannot.
    Source: arXiv 2503.14858, section 2; row_weight 2608.26571; mrn 2208.08133 by way of JaxGCRL; scale 2103.00020
        (CLIP); bias 2303.15343 (SigLIP); self_offset 2002.05709 (SimCLR's NT-Xent).
    """
    check_tensors(phi=phi, psi=psi)
    check_flag("return_metrics", return_metrics)
    phi, psi = widened(phi), widened(psi)
    check_features(phi, psi)
    operands, options = checked(phi, psi, logsumexp_penalty, energy, form, positive_offset, more)
    loss, lse, metrics = _composite(phi, psi, *operands[:5], *options, return_metrics, impl)
    return (loss, InfoNCEMetrics(lse, *metrics.unbind())) if return_metrics else (loss, lse)


# --- The op as PyTorch sees it: the choice of a backend, its pass for loss and gradients, their scaling by dloss. ---

OPTIONS = (
    "float logsumexp_penalty, str energy, str form, SymInt positive_offset, SymInt self_offset, str row_divisor, "
    "str reduction"
)
OPERANDS = "Tensor? labels, Tensor? targets, Tensor? row_weight, Tensor? scale, Tensor? bias"
TENSORS = 2 + len(InfoNCEOperands._fields)  # what the fused ops take first
PLACE_OF_SCALE = 2 + InfoNCEOperands._fields.index("scale")
PLACES = (0, 1, PLACE_OF_SCALE, PLACE_OF_SCALE + 1)  # of what has a gradient: phi, psi, scale, bias
torch.library.define(
    "deepres::info_nce",
    f"(Tensor phi, Tensor psi, {OPERANDS}, {OPTIONS}, bool return_metrics, str impl) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "deepres::info_nce_forward",
    f"(Tensor phi, Tensor psi, {OPERANDS}, Tensor? penalty_weight, {OPTIONS}, str impl, bool[] needs) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "deepres::info_nce_backward",
    "(Tensor dloss, Tensor dphi, Tensor dpsi, Tensor dscale, Tensor dbias, "
    "Tensor phi, Tensor psi, Tensor? scale, Tensor? bias) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "deepres::info_nce_rows_backward",
    f"(Tensor drows, Tensor phi, Tensor psi, {OPERANDS}, Tensor? penalty_weight, {OPTIONS}, str impl, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _split(fields: Sequence[Any]) -> tuple[InfoNCEOperands, InfoNCEOptions, Sequence[Any]]:
    """What the fused ops take after phi and psi: the operands, the options, the rest."""
    return InfoNCEOperands(*fields[:6]), InfoNCEOptions(*fields[6:13]), fields[13:]


@composite("info_nce")
def _composite(phi: Tensor, psi: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands, options = InfoNCEOperands(*rest[:5]), InfoNCEOptions(*rest[5:12])
    return_metrics, impl = rest[12:]
    chosen = dispatch.choose(
        "info_nce", impl, lambda backend: backend.unsupported(phi, psi, operands, options)
    )
    if chosen == "reference":
        return reference.info_nce(phi, psi, operands, options, metrics=return_metrics)
    if options.energy == "cosine":
        phi, psi = F.normalize(phi, dim=1, eps=1e-12), F.normalize(psi, dim=1, eps=1e-12)
        options = options._replace(energy="dot")
    if operands.targets is not None:  # the goal whose place among all is told as the accuracy
        operands = operands._replace(labels=reference.likeliest(operands.targets, options.self_offset))
    if operands.row_weight is not None:
        weight = reference.row_multipliers(operands.row_weight, options.row_divisor)
        operands = operands._replace(row_weight=weight)
    tensors = [None if t is None else t.contiguous() for t in (phi, psi, *operands)]
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]
    asked = [needs[0], needs[1], needs[PLACE_OF_SCALE] or needs[PLACE_OF_SCALE + 1]]
    return _fused(*tensors, *options, chosen, asked)[:3]


def _empty_where_none(results: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if t is None else t for t in results)


def _forward(phi: Tensor, psi: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    operands, options, (impl, needs) = _split(rest)
    rows = options.reduction == "none"  # their gradients wait for what backward brings
    asked = (False, False, False) if rows else tuple(needs)
    results = dispatch.load("info_nce", impl).forward(phi, psi, operands, options, asked)
    loss = results.rows if rows else results.loss
    return loss, results.lse, results.metrics, *_empty_where_none(results[4:], phi)


@torch.library.register_fake("deepres::info_nce_forward")
def _forward_fake(phi, psi, *rest):
    _, options, (_, needs) = _split(rest)
    rows = options.reduction == "none"
    return (
        phi.new_empty(phi.shape[0] if rows else ()),
        phi.new_empty(phi.shape[0]),
        phi.new_empty(3),
        *_gradients_fake(phi, psi, [need and not rows for need in needs]),
    )


def _gradients_fake(phi, psi, needs):
    dphi, dpsi = (t.new_empty(t.shape if need else 0) for t, need in zip((phi, psi), needs[:2], strict=True))
    return dphi, dpsi, *(phi.new_empty(() if needs[2] else 0) for _ in range(2))


def _backward(dloss: Tensor, *gradients_and_inputs: Any) -> tuple[Tensor, ...]:
    # The inputs are there so that a second derivative raises: the gradients alone would pass for constants.
    return tuple(dloss * gradient for gradient in gradients_and_inputs[:4])


@torch.library.register_fake("deepres::info_nce_backward")
def _backward_fake(dloss, *gradients_and_inputs):
    return tuple(map(torch.empty_like, gradients_and_inputs[:4]))


def _rows_backward(drows: Tensor, phi: Tensor, psi: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    operands, options, (impl, needs) = _split(rest)
    each = drows.contiguous() * phi.shape[0]  # the op's loss is a mean
    weight = each if operands.row_weight is None else each * operands.row_weight
    operands = operands._replace(row_weight=weight, penalty_weight=each)
    results = dispatch.load("info_nce", impl).forward(phi, psi, operands, options, tuple(needs))
    return _empty_where_none(results[4:], phi)


@torch.library.register_fake("deepres::info_nce_rows_backward")
def _rows_backward_fake(drows, phi, psi, *rest):
    return _gradients_fake(phi, psi, rest[-1])


def _setup_context(ctx, inputs, output):
    _, *statistics_and_gradients = output
    ctx.mark_non_differentiable(*statistics_and_gradients)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as what was saved
    ctx.rest = inputs[TENSORS:]
    ctx.save_for_backward(*inputs[:TENSORS], *statistics_and_gradients[2:])


def _autograd(ctx, dloss, *_):
    inputs, gradients = ctx.saved_tensors[:TENSORS], ctx.saved_tensors[TENSORS:]
    if InfoNCEOptions(*ctx.rest[:7]).reduction == "none":
        results = _fused_rows_backward(dloss, *inputs, *ctx.rest)
    else:
        results = _fused_backward(dloss, *gradients, *(inputs[place] for place in PLACES))
    out = [None] * (TENSORS + len(ctx.rest))
    for place, result in zip(PLACES, results, strict=True):
        out[place] = result if ctx.needs_input_grad[place] else None
    return tuple(out)


_second = dispatch.without_derivative("the fused info_nce")
_fused = FusedOp("info_nce_forward", _forward, _autograd, _setup_context)
_fused_backward = FusedOp("info_nce_backward", _backward, _second)
_fused_rows_backward = FusedOp("info_nce_rows_backward", _rows_backward, _second)
