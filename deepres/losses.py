"""The losses of contrastive RL, in the paper's letters (arXiv 2503.14858, section 2).

The critic's is `deepres.info_nce`; here stand the actor's, the temperature's, and the policy's density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ACTION_EPS = 1e-6  # inside the logarithm of the tanh correction, as published


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sampled action and its log-density under the tanh-squashed Gaussian policy.

        x = mean + exp(log_std) * noise; action = tanh(x)
        log_prob = sum_k(log N(x_k; mean_k, std_k) - log(1 - action_k**2 + 1e-6))

    mean, log_std, noise [B, A], noise standard normal -> action [B, A] in (-1, 1), log_prob [B] in nats.
    """
    x = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # 1 - tanh(x)**2 without its cancellation, which costs fp32 half its digits from |x| = 4 on
    slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)
    return torch.tanh(x), (log_normal - torch.log(slope + _ACTION_EPS)).sum(dim=1)


def pair_energy(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """The energy of each pair (phi_i, psi_i), [B, d] and [B, d] -> [B]: the diagonal of info_nce's logits."""
    if energy == "dot":
        return (phi * psi).sum(dim=1)
    if energy == "cosine":
        return torch.nn.functional.cosine_similarity(phi, psi, dim=1, eps=1e-12)
    squared = (phi - psi).square().sum(dim=1)
    if energy == "l2":
        return -squared
    apart = squared > 0  # the slope of a distance at 0 is infinite; take 0 there
    return -torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def actor_loss(alpha: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
    """mean(alpha * log_prob - energy), energy = pair_energy(phi(s, a), psi(g)): the actor seeks goals it can reach."""
    return (alpha * log_prob - energy).mean()


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """exp(log_alpha) * mean(stop_grad(-log_prob - target_entropy)): raises alpha while entropy is below target."""
    return log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()
