"""The parts of the loss of a policy with entropy (arXiv 1812.05905): an action and its density, the energy of pairs,
the losses of policy and temperature.

    squashed_gaussian   x = mean + exp(log_std) noise, action = tanh(x), log_prob of it
    pair_energy         info_nce's logits of pairs alone
    policy_losses       mean(alpha log_prob - value), and the temperature's

Gradients are closed forms. With slope = 1 - action^2, kept = slope / (slope + 1e-6) or, if exact, 1, and g the gradient
of x, for gradients daction [B, A] and dlog_prob [B],

    g        = daction slope + dlog_prob 2 action kept
    dmean    = g
    dlog_std = g exp(log_std) noise - dlog_prob, of a bounded one times (high - low) / 2 (1 - tanh(raw)^2)

The backend module (triton.py; see dispatch.py) serves each op with its forward and its backward, one launch each, on
float32 tensors of one device. Elsewhere the reference does, called at once: plain PyTorch is what a CPU runs, and an
op of PyTorch's around it would cost more than it saves. All widen 16 bits to float32, and compute so under
torch.autocast, too: what they are made of has no operation that it would round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepres.kernels import dispatch
from deepres.kernels.autocast import widened
from deepres.kernels.fused_op import FusedOp, composite
from deepres.kernels.policy import reference


class PolicyLosses(NamedTuple):
    """[] each."""

    actor: Tensor
    """mean(alpha log_prob - value), alpha held constant."""
    temperature: Tensor
    """alpha mean(-log_prob - target_entropy), log_prob held constant: raises alpha while entropy is below target."""
    alpha: Tensor
    """exp(log_alpha), without gradient."""
    entropy: Tensor
    """-mean(log_prob), without gradient."""


def squashed_gaussian(
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor,
    *,
    bounds: tuple[float, float] | None = None,
    exact: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A sampled action and its log-density under the tanh-squashed Gaussian policy.

        x = mean + exp(log_std) * noise; action = tanh(x)
        log_prob = sum_k(log N(x_k; mean_k, std_k) - log(1 - action_k**2 + 1e-6))

    mean, log_std, noise [B, A], noise standard normal, held constant -> action [B, A] in (-1, 1), log_prob [B] in nats.
    bounds: (low, high); log_std is then given as the raw number r of low + (high - low) / 2 * (tanh(r) + 1). exact:
    without the 1e-6, so that the entropy's gradient does not vanish where an action is at its bounds;
    log(1 - tanh(x)^2) is then 2 (log 2 - x - softplus(-2 x)). impl: "auto", "reference" or "triton".
    """
    mean, log_std, noise = widened(mean), widened(log_std), widened(noise)
    if _plain(impl, mean):
        return reference.squashed_gaussian(mean, log_std, noise.detach(), bounds, exact)
    return _squashed_gaussian(mean, log_std, noise, list(bounds or ()), exact, impl)


def pair_energy(phi: Tensor, psi: Tensor, energy: str, *, impl: str = "auto") -> Tensor:
    """The energy of each pair (phi_i, psi_i), [B, d] and [B, d] -> [B]: the diagonal of info_nce's logits.

    energy: "norm", "l2", "dot", "cosine" or "mrn", of which "triton" serves the first three. impl: as above.
    """
    phi, psi = widened(phi), widened(psi)
    if _plain(impl, phi):
        return reference.pair_energy(phi, psi, energy)
    return _pair_energy(phi, psi, energy, impl)


def policy_losses(
    log_prob: Tensor, value: Tensor, log_alpha: Tensor, target_entropy: float, *, impl: str = "auto"
) -> PolicyLosses:
    """The losses of a policy and of its temperature.

        alpha = exp(log_alpha)
        actor = mean(alpha.detach() * log_prob - value)
        temperature = alpha * mean(-log_prob.detach() - target_entropy)

    log_prob [B] of its actions; value [B], what it seeks: pair_energy(phi(s, a), psi(g)), or a value; log_alpha [].
    target_entropy: nats. impl: as above.
    """
    log_prob, value, log_alpha = widened(log_prob), widened(value), widened(log_alpha)
    if _plain(impl, log_prob):
        return PolicyLosses(*reference.policy_losses(log_prob, value, log_alpha, target_entropy))
    return PolicyLosses(*_policy_losses(log_prob, value, log_alpha, float(target_entropy), impl))


def _plain(impl: str, x: Tensor) -> bool:
    """Whether plain PyTorch is all that there is to choose from."""
    return impl == "reference" or (impl == "auto" and not x.is_cuda)


# --- The ops as PyTorch sees them: the choice of a backend, its pass for results, its pass for gradients. ---

GAUSSIAN = "Tensor mean, Tensor log_std, Tensor noise, float[] bounds, bool exact, str impl"
PAIR = "Tensor phi, Tensor psi, str energy, str impl"
LOSSES = "Tensor log_prob, Tensor value, Tensor log_alpha, float target_entropy, str impl"
_TAG = torch.Tag.pt2_compliant_tag

for _name, _schema in (
    ("squashed_gaussian", f"({GAUSSIAN}) -> (Tensor, Tensor)"),
    ("pair_energy", f"({PAIR}) -> Tensor"),
    ("policy_losses", f"({LOSSES}) -> (Tensor, Tensor, Tensor, Tensor)"),
):
    torch.library.define(f"deepres::{_name}", _schema)
    torch.library.define(f"deepres::{_name}_forward", _schema, tags=_TAG)
for _name, _schema in (
    ("squashed_gaussian", f"(Tensor daction, Tensor dlog_prob, {GAUSSIAN}) -> (Tensor, Tensor)"),
    ("pair_energy", f"(Tensor denergy, {PAIR}, bool[] needs) -> (Tensor, Tensor)"),
    (
        "policy_losses",
        "(Tensor dactor, Tensor dtemperature, Tensor log_prob, Tensor alpha, Tensor temperature, str impl) "
        "-> (Tensor, Tensor, Tensor)",
    ),
):
    torch.library.define(f"deepres::{_name}_backward", _schema, tags=_TAG)


@composite("squashed_gaussian")
def _squashed_gaussian(mean, log_std, noise, bounds, exact: bool, impl: str):
    noise = noise.detach()
    chosen = dispatch.choose(
        "policy", impl, lambda backend: backend.unsupported_rows(2, mean, log_std, noise)
    )
    if chosen == "reference":
        return reference.squashed_gaussian(mean, log_std, noise, tuple(bounds) or None, exact)
    rows = (t.contiguous() for t in (mean, log_std, noise))
    return _fused_gaussian(*rows, bounds, exact, chosen)


def _gaussian_forward(mean, log_std, noise, bounds, exact: bool, impl: str):
    return dispatch.load("policy", impl).squashed_gaussian(mean, log_std, noise, bounds, exact)


@torch.library.register_fake("deepres::squashed_gaussian_forward")
def _gaussian_fake(mean, log_std, noise, bounds, exact, impl):
    return torch.empty_like(mean), mean.new_empty(mean.shape[0])


def _gaussian_backward(daction, dlog_prob, mean, log_std, noise, bounds, exact: bool, impl: str):
    backend = dispatch.load("policy", impl)
    return backend.squashed_gaussian_backward(daction, dlog_prob, mean, log_std, noise, bounds, exact)


@torch.library.register_fake("deepres::squashed_gaussian_backward")
def _gaussian_backward_fake(daction, dlog_prob, mean, log_std, noise, bounds, exact, impl):
    return torch.empty_like(mean), torch.empty_like(mean)


def _gaussian_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _gaussian_autograd(ctx, daction, dlog_prob):
    found = _fused_gaussian_backward(daction, dlog_prob, *ctx.saved_tensors, *ctx.rest)
    return *found, None, None, None, None


@composite("pair_energy")
def _pair_energy(phi, psi, energy: str, impl: str):
    chosen = dispatch.choose(
        "policy",
        impl,
        lambda backend: backend.unsupported_rows(2, phi, psi) or backend.unsupported_energy(energy),
    )
    if chosen == "reference":
        return reference.pair_energy(phi, psi, energy)
    return _fused_pair(phi.contiguous(), psi.contiguous(), energy, chosen)


def _pair_forward(phi, psi, energy: str, impl: str):
    return dispatch.load("policy", impl).pair_energy(phi, psi, energy)


@torch.library.register_fake("deepres::pair_energy_forward")
def _pair_fake(phi, psi, energy, impl):
    return phi.new_empty(phi.shape[0])


def _pair_backward(denergy, phi, psi, energy: str, impl: str, needs: list[bool]):
    found = dispatch.load("policy", impl).pair_energy_backward(denergy, phi, psi, energy, needs)
    return tuple(phi.new_empty(0) if g is None else g for g in found)


@torch.library.register_fake("deepres::pair_energy_backward")
def _pair_backward_fake(denergy, phi, psi, energy, impl, needs):
    return tuple(t.new_empty(t.shape if need else 0) for t, need in zip((phi, psi), needs, strict=True))


def _pair_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]


def _pair_autograd(ctx, denergy):
    needs = list(ctx.needs_input_grad[:2])
    found = _fused_pair_backward(denergy, *ctx.saved_tensors, *ctx.rest, needs)
    return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None


@composite("policy_losses")
def _policy_losses(log_prob, value, log_alpha, target_entropy: float, impl: str):
    chosen = dispatch.choose(
        "policy",
        impl,
        lambda backend: (
            backend.unsupported_rows(1, log_prob, value) or backend.unsupported_rows(0, log_alpha)
        ),
    )
    if chosen == "reference":
        return reference.policy_losses(log_prob, value, log_alpha, target_entropy)
    rows = log_prob.contiguous(), value.contiguous()
    return _fused_losses(*rows, log_alpha, target_entropy, chosen)


def _losses_forward(log_prob, value, log_alpha, target_entropy: float, impl: str):
    return dispatch.load("policy", impl).policy_losses(log_prob, value, log_alpha, target_entropy)


@torch.library.register_fake("deepres::policy_losses_forward")
def _losses_fake(log_prob, value, log_alpha, target_entropy, impl):
    return tuple(log_prob.new_empty(()) for _ in range(4))


def _losses_backward(dactor, dtemperature, log_prob, alpha, temperature, impl: str):
    return dispatch.load("policy", impl).policy_losses_backward(
        dactor, dtemperature, log_prob, alpha, temperature
    )


@torch.library.register_fake("deepres::policy_losses_backward")
def _losses_backward_fake(dactor, dtemperature, log_prob, alpha, temperature, impl):
    return torch.empty_like(log_prob), torch.empty_like(log_prob), torch.empty_like(alpha)


def _losses_context(ctx, inputs, output):
    _, temperature, alpha, entropy = output
    ctx.mark_non_differentiable(alpha, entropy)
    ctx.set_materialize_grads(False)  # of the two without gradient, that is
    ctx.save_for_backward(inputs[0], alpha, temperature)
    ctx.impl = inputs[4]


def _losses_autograd(ctx, dactor, dtemperature, *_):
    log_prob, alpha, temperature = ctx.saved_tensors
    dactor, dtemperature = (torch.zeros_like(alpha) if d is None else d for d in (dactor, dtemperature))
    found = _fused_losses_backward(dactor, dtemperature, log_prob, alpha, temperature, ctx.impl)
    return *found, None, None


_fused_gaussian = FusedOp(
    "squashed_gaussian_forward", _gaussian_forward, _gaussian_autograd, _gaussian_context
)
_fused_pair = FusedOp("pair_energy_forward", _pair_forward, _pair_autograd, _pair_context)
_fused_losses = FusedOp("policy_losses_forward", _losses_forward, _losses_autograd, _losses_context)
_fused_gaussian_backward, _fused_pair_backward, _fused_losses_backward = (
    FusedOp(f"{name}_backward", kernel, dispatch.without_derivative(f"the fused {name}"))
    for name, kernel in (
        ("squashed_gaussian", _gaussian_backward),
        ("pair_energy", _pair_backward),
        ("policy_losses", _losses_backward),
    )
)
