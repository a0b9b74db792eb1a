"""GCBC, goal-conditioned behaviour cloning by self-imitation (arXiv 1906.05838, 2011.08909; the baseline of arXiv
2503.14858, figure 12).

    loss = -mean log pi(a | s, g),   g a state that the trajectory of (s, a) reached later

No critic and no entropy term: it explores by its own standard deviation. GCSL (gcsl.py) is this with goals drawn
uniformly and with `horizon_input`: the actor is pi(a | s, g, log(1 + h)), h the steps until g is reached and, where it
acts, the steps left of the episode. Stored actions at the bounds are taken a hair inside them, for atanh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepres.acting import ClockedGaussianPolicy, GaussianPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.parts import log_density, squashed_gaussian
from deepres.data.batch import Batch
from deepres.data.relabel import FutureGoals
from deepres.networks import Networks
from deepres.options import check, option


@dataclass(frozen=True)
class GCBCOptions:
    """Goal-conditioned behaviour cloning of its own past."""

    goals: Literal["geometric", "uniform"] = option("geometric")
    """Law of the later step that is the goal: P(d) proportional to gamma^d, or every one alike."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount of the geometric law."""
    commanded: float = option(0.0, least=0, below=1, share=True)
    """Share of the rows that keep the goal that the policy was given."""
    horizon_input: bool = option(False)
    """Let the actor see how many steps are left: to the row's goal, and of the episode where it acts."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size."""

    def __post_init__(self) -> None:
        check(self)


class GCBC(Algorithm):
    """Goal-conditioned behaviour cloning: do again what led there."""

    Options = GCBCOptions
    options: GCBCOptions
    headline = ("actor_loss", "entropy")
    passes = (Pass("actor"),)
    about = About(source="arXiv 1906.05838, 2011.08909", losses="actor: -log pi(a | s, g)", layers="2 D")

    def build(self, networks: Networks) -> dict[str, Group]:
        seen = self.sizes.state + self.sizes.goal + self.options.horizon_input
        self.actor = networks.actor(seen, self.sizes.action)
        return {"actor": Group(list(self.actor.parameters()), self.options.actor_lr)}

    @property
    def sampler(self) -> FutureGoals:
        options = self.options
        gamma = options.gamma if options.goals == "geometric" else None
        return FutureGoals(gamma, options.commanded, lags=options.horizon_input)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        seen = [batch.state, batch.goal]
        if self.options.horizon_input:
            seen.append(batch.extra["ahead"].to(batch.state.dtype).log1p()[:, None])
        mean, log_std = self.actor(torch.cat(seen, dim=1))
        loss = -log_density(mean, log_std, batch.action).mean()
        with torch.no_grad():
            error = (torch.tanh(mean) - batch.action).square().mean()
            _, own = squashed_gaussian(mean, log_std, noise)
        metrics = {
            "actor_loss": loss,
            "entropy": -own.mean(),
            "action_error": error,
            "log_std": log_std.mean(),
        }
        yield {"actor": loss}, metrics

    def policy(self) -> GaussianPolicy:
        return (ClockedGaussianPolicy if self.options.horizon_input else GaussianPolicy)(self.actor)
