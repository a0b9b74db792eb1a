"""What algorithms are put together from: the policy's density, losses that several share, targets, a second stream."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from deepres.kernels.streams import SecondStream as SecondStream

ACTION_BOUND = (
    1 - 2**-20
)  # stored actions are held within it before atanh; a number of every precision down to fp32
_ACTION_EPS = 1e-6  # inside the logarithm of the tanh correction, as published


def squashed_gaussian(
    mean: Tensor, log_std: Tensor, noise: Tensor, *, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """A sampled action and its log-density under the tanh-squashed Gaussian policy.

        x = mean + exp(log_std) * noise; action = tanh(x)
        log_prob = sum_k(log N(x_k; mean_k, std_k) - log(1 - action_k**2 + 1e-6))

    mean, log_std, noise [B, A], noise standard normal -> action [B, A] in (-1, 1), log_prob [B] in nats. exact: without
    the 1e-6, so that the entropy's gradient does not vanish where an action is at its bounds; log(1 - tanh(x)^2) is
    then 2 (log 2 - x - softplus(-2 x)).
    """
    x = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    if exact:
        log_slope = 2 * (math.log(2) - x + torch.nn.functional.logsigmoid(2 * x))
        return torch.tanh(x), (log_normal - log_slope).sum(dim=1)
    # 1 - tanh(x)**2 without its cancellation, which costs fp32 half its digits from |x| = 4 on
    slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)
    return torch.tanh(x), (log_normal - torch.log(slope + _ACTION_EPS)).sum(dim=1)


def pair_energy(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """The energy of each pair (phi_i, psi_i), [B, d] and [B, d] -> [B]: the diagonal of info_nce's logits."""
    if energy == "dot":
        return (phi * psi).sum(dim=1)
    if energy == "cosine":
        return torch.nn.functional.cosine_similarity(phi, psi, dim=1, eps=1e-12)
    if energy == "mrn":
        ahead, apart = (phi - psi).tensor_split(2, dim=1)
        return -(ahead.relu().max(dim=1).values + (apart.square().sum(dim=1) + 1e-6).sqrt())
    squared = (phi - psi).square().sum(dim=1)
    if energy == "l2":
        return -squared
    apart = squared > 0  # the slope of a distance at 0 is infinite; take 0 there
    return -torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def log_density(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """[B] nats: the log-density of `action` [B, A] under the tanh-squashed Gaussian policy, actions at the bounds
    taken a hair inside (|a| <= 1 - 2^-20).

        x = atanh(action)
        sum_k(log N(x_k; mean_k, std_k) - log(1 - action_k**2))
    """
    bounded = action.clamp(-ACTION_BOUND, ACTION_BOUND)
    standard = (torch.atanh(bounded) - mean) * (-log_std).exp()
    log_normal = -0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)
    # (1 - a)(1 + a): the rounding of a^2 would cost fp32 all but two digits at the bounds
    return (log_normal - torch.log1p(-bounded) - torch.log1p(bounded)).sum(dim=1)


def unit_log_density(mean: Tensor, action: Tensor) -> Tensor:
    """[B] nats: sum_k log N(action_k; mean_k, 1), both [B, A], without a tanh."""
    return -0.5 * ((action - mean).square() + math.log(2 * math.pi)).sum(dim=1)


def awr_weights(advantage: Tensor, alpha: float) -> Tensor:
    """min(exp(alpha * advantage), 100), held constant, as advantage-weighted regression has it (arXiv 1910.00177)."""
    return (alpha * advantage.detach()).exp().clamp(max=100.0)


def actor_loss(alpha: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
    """mean(alpha * log_prob - energy), energy what it seeks: pair_energy(phi(s, a), psi(g)), or a value."""
    return (alpha * log_prob - energy).mean()


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """exp(log_alpha) * mean(stop_grad(-log_prob - target_entropy)): raises alpha while entropy is below target."""
    return log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()


def mixed_goals(goal: Tensor, random: float) -> Tensor:
    """`goal` [B, G], with those of other rows in the first `random` * B rows; rows come in random order."""
    first = torch.arange(len(goal), device=goal.device) < random * len(goal)
    return torch.where(first[:, None], goal.roll(1, dims=0), goal)


@torch.no_grad()
def average_into(targets: Iterable[Tensor], sources: Iterable[Tensor], tau: float, skip: Tensor) -> None:
    """target += tau * (source - target), parameter by parameter; nothing where skip ([] float32) is 1."""
    for slow, fast in zip(targets, sources, strict=True):
        slow.lerp_(
            fast, (tau * (1 - skip)).to(slow.dtype)
        )  # in place: a copy of the networks would be a step's peak
