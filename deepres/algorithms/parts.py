"""What algorithms are put together from: the policy's density, losses that several share, targets, a second stream."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from deepres.kernels.policy.op import PolicyLosses as PolicyLosses
from deepres.kernels.policy.op import pair_energy as pair_energy
from deepres.kernels.policy.op import policy_losses as policy_losses
from deepres.kernels.policy.op import squashed_gaussian as squashed_gaussian
from deepres.kernels.streams import SecondStream as SecondStream

ACTION_BOUND = (
    1 - 2**-20
)  # stored actions are held within it before atanh; a number of every precision down to fp32


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


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """The temperature's loss alone, [] (see policy_losses)."""
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
