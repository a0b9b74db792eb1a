"""SRL, survival reinforcement learning (arXiv 2605.31273): the critic is the law of the first time a goal is reached.

With T the first lag at which the row's trajectory comes within the radius of its goal g, hazards h_k = P(T = k | T >=
k) and survival S_k = P(T >= k), told by a head of the embeddings phi(s, a) and psi(g) (hazards.py),

    critic   mean(-log P(T = k)) of rows that reach their goal at lag k, -log S_K of the others
    value    V = -sum_k gamma^k S_k, minus the discounted time until the goal
    actor    mean(alpha * log pi(a'|s, g) - V(s, a', g)),  a' ~ pi(.|s, g)
    alpha    exp(log_alpha) * mean(stop_grad(-log pi - target_entropy))

phi and psi have half the depth and end in a LayerNorm; the head and the actor have all of it. The critic is stepped
first and the actor reads the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepres.algorithms.base import About, Group
from deepres.algorithms.hazards import Embedding, HazardHead, Survival, SurvivalOptions
from deepres.data.batch import Batch
from deepres.data.first_hits import FirstHits
from deepres.networks import Networks


@dataclass(frozen=True)
class SRLOptions(SurvivalOptions):
    """Survival RL; the defaults are the published ones."""


class SRL(Survival):
    """Survival RL: the sooner a goal is likely to be reached, the better."""

    Options = SRLOptions
    options: SRLOptions
    headline = ("critic_loss", "actor_loss", "value")
    about = About(
        source="arXiv 2605.31273",
        losses="critic: likelihood of the first hit; actor: alpha log pi - V; alpha: entropy",
        actor_reads="updated",
        layers="8 D",
    )

    def build(self, networks: Networks) -> dict[str, Group]:
        options, sizes = self.options, self.sizes
        width, half = options.feature_dim, networks.half_depth

        def embedding(in_dim: int) -> Embedding:
            return Embedding(networks.encoder(in_dim, width, half), width)

        self.phi = embedding(sizes.state + sizes.action)
        self.psi = embedding(options.goal_sequence * sizes.goal)
        self.head = HazardHead(networks, width, options.bins)
        return self._groups(networks)

    @property
    def sampler(self) -> FirstHits:
        return self._sampler()

    def _critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self._nll(batch, self.head(*self._embedded(batch)))
        return loss, {"critic_loss": loss, **metrics}
