"""ChronoSRL (arXiv 2609.36238): survival RL with distances that are times, chunks of actions, and the share of time
that is spent inside a goal.

With SRL's critic (srl.py, hazards.py), d_ij = sqrt(|phi(s_i, a_i) - psi(g_j)|^2 + 1e-12), kappa = -log gamma, tau_i
the lag of row i's first hit, valid the rows whose chunk of actions lies in their trajectory and window,

    critic   likelihood   mean over valid rows of SRL's negative log-likelihood
           + time         mean of Huber(d_ii - kappa tau_i) over valid rows that reach their goal at a lag >= 1
           + separation   mean of relu(kappa K - d_ij) over the pairs i != j whose goals lie further apart than the
                          radius, and i = i of valid rows that do not reach theirs
           + occupancy    mean over observed bins of valid rows of BCE(sigmoid(o_k), share of bin k's lags inside the
           goal)
    actor    mean(alpha * log pi - V - beta sum_k sigmoid(o_k) D_k),  D_k = sum of gamma^lag over bin k, 0 for the
             first; beta the share of the valid rows whose trajectory later falls
    alpha    as SRL, with a target for each number of a chunk

phi, psi, head and actor all have the whole depth. The bins' edges are 0, K and K^(k/32), rounded, k = 0..32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.algorithms.base import About, Group
from deepres.algorithms.hazards import HazardHead, Outlook, Survival, SurvivalOptions, masked_mean
from deepres.data.batch import Batch
from deepres.data.first_hits import FirstHits
from deepres.networks import Networks
from deepres.options import option

EDGES = 32  # powers of K between 1 and K
_ROUND = 1e-12  # added to squared distances, as published


def bin_edges(bins: int) -> tuple[int, ...]:
    """The edges of the occupancy's bins: 30 of them for 1000 lags."""
    return tuple(sorted({0, bins, *(round(bins ** (k / EDGES)) for k in range(EDGES + 1))}))


@dataclass(frozen=True)
class ChronoOptions(SurvivalOptions):
    """ChronoSRL; the defaults are the published ones."""

    feature_dim: int = option(64, least=1)
    """Numbers that phi and psi end in."""
    goal_gamma: float = option(0.99, above=0, below=1)
    """A later goal lies d steps ahead with probability proportional to goal_gamma^d."""
    horizon: int = option(2, least=1)
    """Actions that the policy plans at once and does one after another."""
    time_weight: float = option(1.0, least=0)
    """Weight of the loss that makes distances times."""
    separation_weight: float = option(1.0, least=0)
    """Weight of the loss that keeps goals apart that are not reached."""
    occupancy_weight: float = option(1.0, least=0)
    """Weight of the loss of the time spent inside a goal."""


class Chrono(Survival):
    """ChronoSRL: survival RL whose embeddings lie as far apart as the way takes time."""

    Options = ChronoOptions
    options: ChronoOptions
    discounts: Tensor
    headline = ("critic_loss", "actor_loss", "value")
    about = About(
        source="arXiv 2609.36238",
        losses="critic: first hit + time + separation + occupancy; actor: alpha log pi - V - occupancy; alpha: entropy",
        actor_reads="updated",
        layers="10 D",
    )

    @property
    def horizon(self) -> int:
        return self.options.horizon

    def build(self, networks: Networks) -> dict[str, Group]:
        options, sizes = self.options, self.sizes
        self.edges = bin_edges(options.bins)
        self.phi = networks.encoder(sizes.state + self.horizon * sizes.action, options.feature_dim)
        self.psi = networks.encoder(options.goal_sequence * sizes.goal, options.feature_dim)
        self.head = HazardHead(networks, options.feature_dim, options.bins, more=len(self.edges) - 1)
        within = [
            (options.gamma**first - options.gamma**end) / (1 - options.gamma)
            for first, end in pairwise(self.edges)
        ]
        within[0] = 0.0
        self.register_buffer("discounts", torch.tensor(within, dtype=torch.float64), persistent=False)
        return self._groups(networks)

    @property
    def sampler(self) -> FirstHits:
        return self._sampler(self.edges)

    def _critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        options, valid = self.options, _valid(batch)
        z, z_goal = self._embedded(batch)
        outlook = self.head(z, z_goal)
        likelihood, metrics = self._nll(batch, outlook)
        time, separation = self._distances(batch, z, z_goal)
        share, observed = batch.extra["occupancy"], batch.extra["observed"]
        errors = F.binary_cross_entropy_with_logits(outlook.more, share.to(z.dtype), reduction="none")
        occupancy = masked_mean(errors, observed & (valid > 0)[:, None])
        loss = (
            likelihood
            + options.time_weight * time
            + options.separation_weight * separation
            + options.occupancy_weight * occupancy
        )
        return loss, {
            "critic_loss": loss,
            "likelihood_loss": likelihood,
            "time_loss": time,
            "separation_loss": separation,
            "occupancy_loss": occupancy,
            **metrics,
        }

    def _distances(self, batch: Batch, z: Tensor, z_goal: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of time and separation."""
        kappa, extra, valid = -math.log(self.options.gamma), batch.extra, _valid(batch) > 0
        lag, event = extra["lag"], extra["event"]
        square = torch.cdist(z, z_goal, compute_mode="donot_use_mm_for_euclid_dist").square()
        distance = (square + _ROUND).sqrt()
        own = distance.diagonal()
        due = kappa * lag.to(z.dtype)
        time = masked_mean(F.huber_loss(own, due, reduction="none"), event & valid & (lag >= 1))
        apart = extra["apart"].clone().fill_diagonal_(False) | torch.diag(~event & valid)
        return time, masked_mean(F.relu(kappa * self.options.bins - distance), apart)

    def _worth(self, batch: Batch, outlook: Outlook) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = super()._worth(batch, outlook)
        valid = _valid(batch)
        falling = torch.where(batch.extra["falls"], valid, 0.0).sum() / valid.sum().clamp_min(1)
        inside = torch.sigmoid(outlook.more) @ self.discounts.to(value.dtype)
        return value + falling * inside, {**metrics, "inside": inside.mean(), "falling": falling}


def _valid(batch: Batch) -> Tensor:
    """[B] 1 where the row's chunk lies in its trajectory and window; without chunks every row."""
    return batch.extra.get("valid", torch.ones_like(batch.state[:, 0]))
