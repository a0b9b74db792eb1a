"""Distillation: a student learns the actions of a trained policy, its teacher (arXiv 1511.06295, 1902.02186).

With Gaussians N_S = N(m_S, s_S) and N_T = N(m_T, s_T) before the tanh, of a state and a goal, and sums over an action's
numbers

    actor   mean_i sum (huber(tanh m_S - tanh m_T) + kl * KL(N_T || N_S)),   huber(x) = x^2 / 2 up to |x| = 1
    KL      log(s_S / s_T) + (s_T^2 + (m_T - m_S)^2) / (2 s_S^2) - 1/2,   s_S taken as at least e^-3

The KL is the same before and after the tanh. With energy_share > 0 the last steps also take away mean energy(phi(s,
tanh m_S), psi(g)) of a teacher of CRL, held constant: the student may pass its teacher. The student collects; its ring
starts with what the teacher did, so the states are the teacher's and then more and more its own (arXiv 1011.0686).
Goals: those commanded, and for the other rows what was reached later. The step size falls along half a cosine. The
teacher's networks are part of the algorithm, are never stepped, and go into checkpoints: a run needs nothing but its
own folder. `deepres.compress.distill` begins one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.acting import GaussianPolicy
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.crl import CRLOptions
from deepres.algorithms.parts import pair_energy
from deepres.data.batch import Batch
from deepres.data.relabel import FutureGoals
from deepres.networks import Networks
from deepres.options import check, option

LEAST_LOG_STD = -3.0
"""Below it the student's spread counts as this, or the KL of two nearly sure policies would outweigh all else."""


@dataclass(frozen=True)
class DistillOptions:
    """Learning what a trained policy does, in a network of another size."""

    teacher: str | None = option(None)
    """Where the teacher was read from; its weights are in the run's checkpoints."""
    teacher_depth: int = option(64, least=1)
    """Dense layers in the blocks of the teacher's network."""
    teacher_width: int = option(256, least=1)
    """Features of its hidden layers."""
    horizon: int = option(1, least=1)
    """Actions that it plans at once, and the student too."""
    kl: float = option(0.1, least=0)
    """Weight of the divergence of the policies' Gaussians, beside the error of their actions."""
    commanded: float = option(0.5, least=0, below=1, share=True)
    """Share of the rows that keep the goal that was commanded."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount of the law by which the other rows' goals are reached later."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size, at first."""
    last_lr_share: float = option(0.1, least=0, most=1, share=True, resume=True)
    """Share of it that is left after `decay_steps`."""
    decay_steps: int = option(20_000, least=0, resume=True)
    """Gradient steps over which it falls; 0 keeps it."""
    energy_share: float = option(0.0, least=0, most=1, share=True)
    """Share of `decay_steps`, the last of them, in which the student also seeks the energy of the teacher's critic."""
    energy_depth: int = option(64, least=1)
    """Dense layers in the blocks of each of that critic's networks."""
    feature_dim: int = option(64, least=1)
    """Features that it compares."""
    energy: Literal["norm", "l2", "dot", "cosine", "mrn"] = option("norm")
    """How it compares them."""

    def __post_init__(self) -> None:
        check(self)


def energy_options(teacher: object, depth: int) -> dict[str, Any]:
    """The options that tell the critic of a teacher with the options `teacher` and networks of `depth` layers.

    Raises ValueError in one sentence where a teacher has none that gives an energy.
    """
    if not isinstance(teacher, CRLOptions):
        raise ValueError(
            f"energy_share needs a teacher that crl trained, got one with {type(teacher).__name__}; leave it at 0"
        )
    return {"energy_depth": depth, "feature_dim": teacher.feature_dim, "energy": teacher.energy}


class Distill(Algorithm):
    """Distillation of a trained policy: do as the teacher does."""

    Options = DistillOptions
    options: DistillOptions
    headline = ("actor_loss", "action_error")
    passes: tuple[Pass, ...] = (Pass("teacher", backward=False), Pass("actor"))
    about = About(
        source="arXiv 1511.06295, 1902.02186",
        losses="actor: Huber of its actions and the teacher's + KL",
        layers="2 D",
    )
    begun_by = "deepres distill RUN --depth D"

    def build(self, networks: Networks) -> dict[str, Group]:
        options, seen = self.options, self.sizes.state + self.sizes.goal
        action = options.horizon * self.sizes.action
        self.actor = networks.actor(seen, action)
        shape = replace(
            networks.options, depth=options.teacher_depth, actor_depth=None, width=options.teacher_width
        )
        other = replace(networks, options=shape)
        self.teacher = other.actor(seen, action).requires_grad_(False)
        if options.energy_share:
            judge = replace(networks, options=replace(shape, depth=options.energy_depth))
            self.phi = judge.encoder(self.sizes.state + action, options.feature_dim).requires_grad_(False)
            self.psi = judge.encoder(self.sizes.goal, options.feature_dim).requires_grad_(False)
            # Gradient steps so far; saved as parameters are.
            self.taken = nn.Parameter(torch.zeros(()), requires_grad=False)
            self.passes = (*self.passes, Pass("psi", backward=False), Pass("phi", weights=False))
        return {
            "actor": Group(
                list(self.actor.parameters()),
                options.actor_lr,
                decay_steps=options.decay_steps,
                last_share=options.last_lr_share,
            )
        }

    @property
    def copied(self) -> dict[str, str]:
        """What a student starts with: the networks here, and what they are called in the teacher's run."""
        return {"teacher": "actor"} | ({"phi": "phi", "psi": "psi"} if self.options.energy_share else {})

    @property
    def horizon(self) -> int:
        return self.options.horizon

    @property
    def sampler(self) -> FutureGoals:
        return FutureGoals(self.options.gamma, self.options.commanded, horizon=self.options.horizon)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        obs = torch.cat([batch.state, batch.goal], dim=1)
        with torch.no_grad():
            wanted, wanted_log_std = self.teacher(obs)
        mean, log_std = self.actor(obs)
        action, wanted_action = torch.tanh(mean), torch.tanh(wanted)
        huber = F.huber_loss(action, wanted_action, reduction="none").sum(dim=1).mean()
        kl = divergence(wanted, wanted_log_std, mean, log_std.clamp_min(LEAST_LOG_STD)).mean()
        loss = huber + self.options.kl * kl
        metrics = {
            "actor_loss": loss,
            "huber": huber,
            "kl": kl,
            "action_error": (action - wanted_action).square().mean(),
            "log_std": log_std.mean(),
        }
        if self.options.energy_share:
            energy = self._energy(batch, action).mean()
            late = self.taken >= (1 - self.options.energy_share) * self.options.decay_steps
            loss = loss - torch.where(late, energy, 0.0)
            metrics |= {"actor_loss": loss, "energy": energy}
        yield {"actor": loss}, metrics

    def _energy(self, batch: Batch, action: Tensor) -> Tensor:
        """[B] what the teacher's critic says of the actions; both computed where the steps are early too, for nothing
        here waits for the device."""
        with torch.no_grad():
            psi = self.psi(batch.goal)
        return pair_energy(self.phi(torch.cat([batch.state, action], dim=1)), psi, self.options.energy)

    def after_step(self, skip: Tensor) -> None:
        if self.options.energy_share:
            self.taken.add_(1 - skip)

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor, self.options.horizon)


def divergence(mean: Tensor, log_std: Tensor, other: Tensor, other_log_std: Tensor) -> Tensor:
    """[B] nats: KL(N(mean, std) || N(other, other_std)) of independent normal numbers, each argument [B, A].

    sum_k(log(other_std / std) + (std^2 + (mean - other)^2) / (2 other_std^2) - 1/2)
    """
    apart = ((2 * log_std).exp() + (mean - other).square()) * (-2 * other_log_std).exp()
    return (other_log_std - log_std + 0.5 * apart - 0.5).sum(dim=1)
