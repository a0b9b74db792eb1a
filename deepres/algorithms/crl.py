"""CRL, contrastive reinforcement learning (arXiv 2206.07568; very deep: arXiv 2503.14858, section 2).

With phi = phi(s, a), psi = psi(g), g a state reached later with P(d) proportional to gamma^d, and f the energy

    critic   info_nce(phi, psi) = mean_i (lse_i - f(phi_i, psi_i)) + penalty * mean_i (lse_i + 1e-6)^2
    actor    mean(alpha * log pi(a'|s, g) - f(phi(s, a'), psi(g))),  a' ~ pi(.|s, g)
    alpha    exp(log_alpha) * mean(stop_grad(-log pi - target_entropy))

Both losses read the critic as it was before the step, so phi and psi serve them at once and psi(g) is computed once;
the actor's loss asks phi for its input gradient alone and psi for none. On a GPU phi, psi and the actor's branch run
on three streams, forward and backward; that branch waits for psi only where it compares. Methods that are CRL but for a
part are options of it:

    horizon=3                        AC-CRL (arXiv 2608.30640): a is the chunk a_t .. a_{t+H-1}; the loss is the mean
                                     over rows whose chunk is whole, the others' goals stay negatives, and the penalty
                                     is the mean over all rows
    survival_rows, survival_bonus=1  Safe-CRL (arXiv 2608.26571; see survival.py)
    energy="mrn", form="backward"    CMD-1 (arXiv 2406.17098)

From recorded data (`data`), where seeking what the critic likes leads to actions that nobody tried, `extraction` is
"ddpg_bc", "awr" or "best_of_n" (extraction.py, with q the energy); the temperature and its group are then not there.
For "awr", v(s, g) is the energy of a second critic without actions, learned by the same loss from the same pairs.
`random_actor_goals` draws goals for the policy apart from the critic's. `together` pairs of an episode in a batch make
goals of the same episode negatives, so that a critic cannot win by telling episodes apart (arXiv 2508.13113).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.acting import ActorPolicy, ClippedGaussianPolicy
from deepres.algorithms import survival
from deepres.algorithms.base import About, Algorithm, Group, Losses, Pass
from deepres.algorithms.extraction import BestOfPolicy, Judge, awr, ddpg_bc, mean_of
from deepres.algorithms.parts import (
    SecondStream,
    log_density,
    pair_energy,
    policy_losses,
    unit_log_density,
)
from deepres.algorithms.soft import TEMPERATURE
from deepres.data.batch import Batch
from deepres.data.goal_laws import FutureAndActorGoals, GoalLaw
from deepres.data.relabel import FutureGoals
from deepres.kernels import info_nce
from deepres.networks import GaussianPolicy, Networks, call_frozen
from deepres.options import check, option, refuse_unread

UNREAD = {
    "entropy": ("random_actor_goals", "bc_alpha", "candidates"),
    "ddpg_bc": (*TEMPERATURE, "exact_tanh", "survival_bonus", "candidates"),
    "awr": (*TEMPERATURE, "exact_tanh", "survival_bonus", "candidates"),
    "best_of_n": (*TEMPERATURE, "exact_tanh", "survival_bonus", "bc_alpha"),
}
"""Options that do not apply, by extraction."""


@dataclass(frozen=True)
class CRLOptions:
    """Contrastive RL; the defaults are the published ones (arXiv 2503.14858, its training script)."""

    feature_dim: int = option(64, least=1)
    """Numbers that phi and psi end in."""
    energy: Literal["norm", "l2", "dot", "cosine", "mrn"] = option("norm")
    """How phi and psi are compared: minus the Euclidean distance, its square, dot product, cosine, or minus MRN's
    quasimetric (for an even feature_dim)."""
    form: Literal["forward", "backward", "symmetric", "binary"] = option("forward")
    """Form of the contrastive loss."""
    logsumexp_penalty: float = option(0.1, least=0)
    """Coefficient of the log-sum-exp penalty."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount: a goal lies d steps ahead with probability proportional to gamma^d."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critic."""
    alpha_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the temperature."""
    log_alpha_bound: float | None = option(None, above=0, resume=True)
    """Holds the temperature's logarithm within plus and minus this (ours), lest it grow for ever; None does not."""
    target_entropy_per_action: float = option(-0.5)
    """Entropy that the temperature aims at, nats for each action dimension."""
    exact_tanh: bool = option(False)
    """The density of an action exactly, without the published 1e-6, which takes its gradient where tanh saturates."""
    horizon: int = option(1, least=1)
    """Actions planned at once and done open loop (AC-CRL: 3)."""
    survival_rows: bool = option(False)
    """Weigh a row of the critic's loss by the chance that its goal comes before a fall (Safe-CRL)."""
    survival_bonus: float = option(0.0, least=0)
    """Coefficient of log P(no fall | s, a) in the actor's loss (Safe-CRL: 1); 0 learns no such head."""
    extraction: Literal["entropy", "ddpg_bc", "awr", "best_of_n"] = option("entropy")
    """What the policy takes from the critic: what it likes, with entropy, as published online; from recorded data by
    its slope near what was done, what was done weighted by it, or the best of its own N actions."""
    bc_alpha: float = option(0.1, least=0)
    """Of ddpg_bc the weight of cloning (OGBench: 0.03 for points, 0.1 for ants, 3 for arms); of awr how sharply it
    prefers what the critic calls better."""
    candidates: int = option(16, least=1)
    """N, actions that the policy of best_of_n chooses from."""
    random_actor_goals: float | None = option(None, least=0, most=1, share=True)
    """Share of the policy's rows whose goal is any state, the others' is uniformly later (OGBench: 0; of short pieces
    0.5; of undirected motion 1); None takes the critic's goals. Not with entropy."""
    together: int = option(1, least=1)
    """Pairs of one episode (of a ring: one window) side by side in a batch, negatives of each other (ours: 4)."""
    gather_negatives: bool = option(False)
    """Under torchrun, compare with the goals of all processes (ours): the joint batch's loss; else each its share's."""

    def __post_init__(self) -> None:
        check(self)
        if self.energy == "mrn" and self.feature_dim % 2:
            raise ValueError(f"feature_dim must be even with energy=mrn, got {self.feature_dim}")
        refuse_unread(self, UNREAD[self.extraction], f"extraction={self.extraction}")


class CRL(Algorithm):
    """Contrastive RL: what is near in phi and psi is soon reached."""

    Options = CRLOptions
    options: CRLOptions
    headline = ("critic_loss", "actor_loss")
    about = About(
        source="arXiv 2206.07568, 2503.14858",
        losses="critic: InfoNCE + log-sum-exp penalty; actor: alpha log pi - energy; alpha: entropy",
        actor_reads="old",
        layers="4 D",
    )
    passes: tuple[Pass, ...] = (Pass("psi"), Pass("phi"), Pass("actor"), Pass("phi", weights=False))

    def build(self, networks: Networks) -> dict[str, Group]:
        options = self.options
        state, action, goal = self.sizes.state, options.horizon * self.sizes.action, self.sizes.goal
        squashed = options.extraction in ("entropy", "best_of_n")
        self.actor = (networks.actor if squashed else networks.mean_actor)(state + goal, action)
        self.phi = networks.encoder(state + action, options.feature_dim)
        self.psi = networks.encoder(goal, options.feature_dim)
        self._side, self._goals = SecondStream(), SecondStream()
        groups = {
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
            "critic": Group([*self.phi.parameters(), *self.psi.parameters()], options.critic_lr),
        }
        if options.extraction != "entropy":
            return groups | self._build_extraction(networks)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy = options.target_entropy_per_action * action
        groups["alpha"] = Group([self.log_alpha], options.alpha_lr, clip=False, bound=options.log_alpha_bound)
        if options.survival_bonus:
            self.survival = survival.head(networks, state + action)
            groups["survival"] = Group(list(self.survival.parameters()), options.critic_lr)
            self.passes = (*CRL.passes, Pass("survival", weights=False), Pass("survival"))
        return groups

    def _build_extraction(self, networks: Networks) -> dict[str, Group]:
        options, critic, groups = self.options, CRL.passes[:2], {}
        others = (Pass("psi", backward=False),) * (options.random_actor_goals is not None)
        if options.extraction == "awr":
            self.phi_v = networks.encoder(self.sizes.state, options.feature_dim)
            self.psi_v = networks.encoder(self.sizes.goal, options.feature_dim)
            groups["value"] = Group([*self.phi_v.parameters(), *self.psi_v.parameters()], options.critic_lr)
            value = (Pass("psi_v"), Pass("phi_v"))
            self.passes = (
                *critic,
                *value,
                *others,
                *(Pass("psi_v", backward=False) for _ in others),
                Pass("actor"),
            )
        elif options.extraction == "ddpg_bc":
            self.passes = (*critic, *others, Pass("actor"), Pass("phi", weights=False))
        else:
            self.passes = (*critic, Pass("actor"))
        return groups

    @property
    def horizon(self) -> int:
        return self.options.horizon

    @property
    def sampler(self) -> FutureGoals:
        options = self.options
        falls = options.survival_rows or options.survival_bonus > 0
        rows: dict[str, Any] = {"horizon": options.horizon, "falls": falls, "together": options.together}
        if options.random_actor_goals is None:
            return FutureGoals(options.gamma, **rows)
        law = GoalLaw(uniform=1 - options.random_actor_goals, anywhere=options.random_actor_goals)
        return FutureAndActorGoals(options.gamma, law, **rows)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        options, device = self.options, batch.state.device
        if options.extraction != "entropy":
            yield self._extracted(batch)
            return
        start = self._side.mark(device)
        with self._goals.beside(device):
            psi = self.psi(batch.goal)
        taken = torch.cat([batch.state, batch.action], dim=1)
        phi = self.phi(taken)
        with self._side.beside(device, after=start):
            obs = torch.cat([batch.state, batch.goal], dim=1)
            action, log_prob = self.actor(obs, noise, exact=options.exact_tanh, impl=self.op_impl)
            judged = torch.cat([batch.state, action], dim=1)
            phi_of_action = call_frozen(self.phi, judged)
            self._goals.join(device, psi)
            energy = pair_energy(phi_of_action, psi.detach(), options.energy, impl=self.op_impl)
            if options.survival_bonus:
                energy = energy + options.survival_bonus * F.logsigmoid(call_frozen(self.survival, judged))
            policy = policy_losses(log_prob, energy, self.log_alpha, self.target_entropy, impl=self.op_impl)
        self._goals.join(device, psi)
        critic, contrast = self._contrast(phi, psi, batch)
        losses = {"critic": critic}
        if options.survival_bonus:
            losses["survival"] = survival.loss(self.survival(taken), batch.extra)
        self._side.join(device)
        metrics = {
            "critic_loss": critic,
            "actor_loss": policy.actor,
            "alpha_loss": policy.temperature,
            "alpha": policy.alpha,
            "entropy": policy.entropy,
            **contrast,
        }
        metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
        yield {**losses, "actor": policy.actor, "alpha": policy.temperature}, metrics

    def _extracted(self, batch: Batch) -> Losses:
        """The losses without entropy; see extraction.py."""
        options, extra = self.options, batch.extra
        psi = self.psi(batch.goal)
        phi = self.phi(torch.cat([batch.state, batch.action], dim=1))
        critic, contrast = self._contrast(phi, psi, batch)
        losses, metrics = {"critic": critic}, {"critic_loss": critic, **contrast}
        goal = None if options.random_actor_goals is None else extra["actor_goal"]
        valid = extra["valid"] if options.horizon > 1 else None
        seen = torch.cat([batch.state, batch.goal if goal is None else goal], dim=1)
        if options.extraction == "best_of_n":
            mean, log_std = self.actor(seen)
            cloned = log_density(mean, log_std, batch.action)
            actor = -mean_of(cloned, valid)
        else:
            if options.extraction == "awr":
                psi_v, phi_v = self.psi_v(batch.goal), self.phi_v(batch.state)
                losses["value"], _ = self._contrast(phi_v, psi_v, batch)
                metrics["value_loss"] = losses["value"]
            with torch.no_grad():
                aim = psi if goal is None else self.psi(goal)
                if options.extraction == "awr":
                    known = pair_energy(phi_v, psi_v if goal is None else self.psi_v(goal), options.energy)
                    advantage = pair_energy(phi, aim, options.energy) - known
                    metrics["advantage"] = advantage.mean()
            mean = self.actor(seen)
            cloned = unit_log_density(mean, batch.action)
            if options.extraction == "awr":
                actor = awr(advantage, cloned, options.bc_alpha, valid)
            else:
                reached = call_frozen(self.phi, torch.cat([batch.state, mean.clamp(-1, 1)], dim=1))
                energy = pair_energy(reached, aim.detach(), options.energy)
                metrics["actor_energy"] = energy.mean()
                actor = ddpg_bc(energy, cloned, options.bc_alpha, valid)
        metrics |= {"actor_loss": actor, "bc": mean_of(cloned, valid)}
        return {**losses, "actor": actor}, metrics

    def _contrast(self, phi: Tensor, psi: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of a batch's phi and psi [B, d], and what is measured of it."""
        options = self.options
        rows, goals, offset = self._gathered(phi, psi)
        loss, contrast = info_nce(
            rows,
            goals,
            positive_offset=offset,
            logsumexp_penalty=options.logsumexp_penalty,
            energy=options.energy,
            form=options.form,
            return_metrics=True,
            impl=self.op_impl,
            row_weight=self._row_weight(batch),
        )
        return loss, {
            "logsumexp": contrast.lse.mean(),
            "accuracy": contrast.accuracy,
            "positive_logit": contrast.mean_positive,
            "negative_logit": contrast.mean_negative,
        }

    def _row_weight(self, batch: Batch) -> Tensor | None:
        """[B], what multiplies a row's part of the contrastive loss; None where all of them count alike."""
        options, extra = self.options, batch.extra
        weight = survival.row_weight(extra, options.gamma) if options.survival_rows else None
        if options.horizon > 1:
            valid = extra["valid"]
            # the mean over whole chunks: of all processes, where their batches are one
            share = self._joint(valid).mean().clamp_min(1 / len(valid))
            weight = valid / share if weight is None else weight * valid / share
        if weight is None:
            return None
        weight = weight.to(batch.state.dtype)
        return self._joint(weight) if options.form in ("backward", "symmetric") else weight

    def _joint(self, x: Tensor) -> Tensor:
        """x [B] of this process, or of all under `gather_negatives`."""
        return self.exchange.gather_rows(x) if self.options.gather_negatives else x

    def _gathered(self, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, int]:
        """phi, psi and positive_offset for `info_nce`, with `gather_negatives` against the goals of all processes.

        The mean over the processes of the loss, and of its gradients, is then that of one with the joint batch.
        "backward" and "symmetric" compare a goal with every state-action, so for them phi is gathered too.
        """
        if not self.options.gather_negatives or self.exchange.size == 1:
            return phi, psi, 0
        gather = self.exchange.gather_rows
        if self.options.form in ("backward", "symmetric"):
            return gather(phi), gather(psi), 0
        return phi, gather(psi), self.exchange.rank * len(phi)

    def policy(self) -> ActorPolicy:
        options = self.options
        if options.extraction == "entropy":
            return GaussianPolicy(self.actor, options.horizon)
        if options.extraction == "best_of_n":
            state, count, energy = self.sizes.state, options.candidates, options.energy
            judge = Judge(self.actor, self.phi, self.psi, state=state, count=count, energy=energy)
            return BestOfPolicy(judge, options.horizon)
        return ClippedGaussianPolicy(self.actor, options.horizon)
