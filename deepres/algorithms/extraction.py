"""What a policy takes from a critic where nothing new is tried (offline): three ways, none of which seeks far from what
was done (compared in arXiv 2406.09329, section 4; weights and bounds as OGBench has them, arXiv 2410.20092).

With mu(s, g) the policy's mean, bc = log N(a; mu, 1) of the action a that was done, and q what a critic says

    ddpg_bc    -mean q(s, clip(mu, -1, 1), g) / (mean |q| + 1e-6) - alpha mean bc,   the divisor held constant
    awr        -mean(min(exp(alpha A), 100) bc),   A = q(s, a, g) - v(s, g) held constant
    best_of_n  -mean log pi(a | s, g), cloning; where it acts it takes of N of its own actions the one of the largest q

Of chunks of actions the means that have bc in them are over rows whose chunk is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from deepres.acting import ActorPolicy
from deepres.algorithms.parts import awr_weights, pair_energy


def ddpg_bc(q: Tensor, cloned: Tensor, alpha: float, valid: Tensor | None = None) -> Tensor:
    """The loss [] of q and bc [B]. valid: [B] float32, 1 where bc counts; by default everywhere."""
    return -q.mean() / (q.detach().abs().mean() + 1e-6) - alpha * mean_of(cloned, valid)


def awr(advantage: Tensor, cloned: Tensor, alpha: float, valid: Tensor | None = None) -> Tensor:
    """The loss [] of A and bc [B]."""
    return -mean_of(awr_weights(advantage, alpha) * cloned, valid)


def mean_of(x: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of x [B], over the rows that `valid` ([B] float32, or None for all) marks; 0 if it marks none."""
    return x.mean() if valid is None else (valid * x).sum() / valid.sum().clamp_min(1)


@lru_cache
def _tries(count: int, size: int) -> Tensor:
    """[count, size] standard normal numbers, the first row 0; the same in every process."""
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    drawn[0] = 0
    return drawn


class Judge(nn.Module):
    """An actor and the critic that judges its actions: obs = concat(state, goal) [B, S + G] -> actions [B, H * A].

        tries = tanh(mean + std * n_k),  n_0 = 0, n_1 .. n_(N-1) standard normal, the same for every row and call
        action = tries[argmax_k f(phi(s, tries_k), psi(g))]

    state: S. count: N. energy: of pair_energy.
    """

    def __init__(
        self, actor: nn.Module, phi: nn.Module, psi: nn.Module, *, state: int, count: int, energy: str
    ):
        super().__init__()
        self.actor, self.phi, self.psi = actor, phi, psi
        self.state, self.count, self.energy = state, count, energy

    def forward(self, obs: Tensor) -> Tensor:
        mean, log_std = self.actor(obs)
        noise = _tries(self.count, mean.shape[1]).to(mean)
        tries = torch.tanh(mean[:, None] + log_std.exp()[:, None] * noise)  # [B, N, H * A]
        state = obs[:, None, : self.state].expand(-1, self.count, -1)
        phi = self.phi(torch.cat([state, tries], dim=2).flatten(0, 1))
        psi = self.psi(obs[:, self.state :]).repeat_interleave(self.count, dim=0)
        best = pair_energy(phi, psi, self.energy).view(-1, self.count).argmax(dim=1)
        return tries[torch.arange(len(obs), device=obs.device), best]


@dataclass(frozen=True)
class BestOfPolicy(ActorPolicy):
    """The best of N actions of a cloned policy, as `actor`, a Judge, has it; with noise one action of that policy."""

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None:
            return self.actor(obs)
        assert isinstance(self.actor, Judge)
        mean, log_std = self.actor.actor(obs)
        return torch.tanh(mean + log_std.exp() * noise)
