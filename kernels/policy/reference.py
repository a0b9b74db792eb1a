"""The parts of a policy's loss in plain PyTorch: what all backends mean, the oracle of the tests, the CPU's backend."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ACTION_EPS = 1e-6  # inside the logarithm of the tanh correction, as published


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [low, high]: low + (high - low) / 2 * (tanh(raw) + 1)."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def squashed_gaussian(
    mean: Tensor, log_std: Tensor, noise: Tensor, bounds: tuple[float, float] | None, exact: bool
) -> tuple[Tensor, Tensor]:
    """See op.squashed_gaussian."""
    if bounds is not None:
        log_std = bounded(log_std, *bounds)
    x = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    if exact:
        log_slope = 2 * (math.log(2) - x + F.logsigmoid(2 * x))
        return torch.tanh(x), (log_normal - log_slope).sum(dim=1)
    # 1 - tanh(x)**2 without its cancellation, which costs fp32 half its digits from |x| = 4 on
    slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)
    return torch.tanh(x), (log_normal - torch.log(slope + ACTION_EPS)).sum(dim=1)


def pair_energy(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """See op.pair_energy."""
    if energy == "dot":
        return (phi * psi).sum(dim=1)
    if energy == "cosine":
        return F.cosine_similarity(phi, psi, dim=1, eps=1e-12)
    if energy == "mrn":
        ahead, apart = (phi - psi).tensor_split(2, dim=1)
        return -(ahead.relu().max(dim=1).values + (apart.square().sum(dim=1) + 1e-6).sqrt())
    squared = (phi - psi).square().sum(dim=1)
    if energy == "l2":
        return -squared
    apart = squared > 0  # the slope of a distance at 0 is infinite; take 0 there
    return -torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def policy_losses(
    log_prob: Tensor, value: Tensor, log_alpha: Tensor, target_entropy: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See op.policy_losses."""
    alpha = log_alpha.exp()
    actor = (alpha.detach() * log_prob - value).mean()
    temperature = alpha * (-log_prob.detach() - target_entropy).mean()
    return actor, temperature, alpha.detach(), -log_prob.detach().mean()
