"""TD-InfoNCE: a contrastive critic learned from one step and itself (arXiv 2310.20141).

Two critics with unit vectors phi_k(s, a, g) and psi_k(x), g the goal that the policy is given, another row's; slow
copies with a bar; logits of row i against the goals x_j of all rows l_k[i, j] = phi_k,i . psi_k(x_j) / temperature:

    t      softmax_j(min_k lbar_k(s', a', g)[i, j]) over the batch's goals, a' ~ pi(.|s', g): how s' goes on
    critic mean over rows and both critics of
           (1 - gamma) CE(l_k(s, a, g) against e(s'_j), i) + gamma CE(l_k(s, a, g) against the goals, t)
    actor  mean CE(min_k l_k(s, a'', g'') against the g''_j, i),   a'' ~ pi(.|s, g''), g'' another row's goal
    slow   slow + tau (fast - slow), after the step

e(s') is what the next state achieves; where the episode ended for good nothing goes on and the second term is 0. All
losses read the parameters from before the step. As published there is no entropy term; `entropy` adds alpha log pi with
a temperature as elsewhere. The published networks are 4 layers of 512 ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.algorithms.base import About, Group, Losses, Pass
from deepres.algorithms.parts import alpha_loss, average_into
from deepres.algorithms.soft import TEMPERATURE, SoftActor, SoftActorOptions
from deepres.data.batch import Batch
from deepres.data.relabel import FutureTransitions
from deepres.kernels import info_nce
from deepres.networks import Networks, call_frozen
from deepres.options import option, refuse_unread


@dataclass(frozen=True)
class TDInfoNCEOptions(SoftActorOptions):
    """TD-InfoNCE; the defaults are the published ones."""

    feature_dim: int = option(16, least=1)
    """Numbers that phi and psi end in."""
    temperature: float = option(1.0, above=0)
    """Divides the logits, which lie in [-1, 1] before."""
    actor_goals: Literal["random", "future"] = option("random")
    """Goals that the actor learns for: other rows', or those reached later."""
    entropy: bool = option(False)
    """Whether the policy's entropy is held by a temperature; as published it has no part in the loss."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount."""
    tau: float = option(0.005, above=0, most=1)
    """Share by which the slow critics follow in a step."""
    actor_lr: float = option(5e-5, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entropy:
            refuse_unread(self, TEMPERATURE, "entropy=False")


class TDInfoNCE(SoftActor):
    """TD-InfoNCE: contrastive critics that learn from one step and from what they say of the next."""

    Options = TDInfoNCEOptions
    options: TDInfoNCEOptions
    headline = ("critic_loss", "actor_loss", "accuracy")
    about = About(
        source="arXiv 2310.20141",
        losses="critics: InfoNCE of the next state, soft InfoNCE of the goals; actor: InfoNCE",
        actor_reads="old",
        layers="4 D",
    )
    passes = (
        Pass("psi", batches=2), Pass("actor"), Pass("phi", weights=False),
        Pass("actor", backward=False), Pass("phi_slow", backward=False), Pass("psi_slow", backward=False),
        Pass("phi"),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        options, sizes = self.options, self.sizes
        groups = self.build_actor(networks)
        if not options.entropy:
            del groups["alpha"], self.log_alpha
        self.phi = networks.encoders(sizes.state + sizes.goal + sizes.action, options.feature_dim, 2)
        self.psi = networks.encoders(sizes.goal, options.feature_dim, 2)
        self.phi_slow, self.psi_slow = (deepcopy(one).requires_grad_(False) for one in (self.phi, self.psi))
        both = [*self.phi.parameters(), *self.psi.parameters()]
        return groups | {"critic": Group(both, options.critic_lr)}

    @property
    def sampler(self) -> FutureTransitions:
        return FutureTransitions(self.options.gamma)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        options, device = self.options, batch.state.device
        here, there = noise.unbind()
        given = batch.goal.roll(1, dims=0)
        psi, following = self.psi(torch.cat([batch.goal, batch.extra["next_achieved"]])).chunk(2, dim=1)
        with self.side.beside(device):
            actor, log_prob = self._actor_loss(batch, psi.detach(), here)
        targets = self._targets(batch, given, there)
        phi = self.phi(torch.cat([batch.state, given, batch.action], dim=1))
        assert batch.terminal is not None
        goes_on = 1 - batch.terminal
        each = []
        for k in range(2):
            one_step, told = self._info_nce(phi[k], following[k], return_metrics=True)
            beyond, _ = self._info_nce(
                phi[k], psi[k], targets=targets, row_weight=goes_on, row_divisor="batch"
            )
            each.append((one_step, beyond, told.accuracy))
        one_step, beyond, accuracy = (torch.stack(values).mean() for values in zip(*each, strict=True))
        critic = (1 - options.gamma) * one_step + options.gamma * beyond
        losses = {"critic": critic, "actor": actor}
        metrics = {
            "critic_loss": critic,
            "actor_loss": actor,
            "one_step_loss": one_step,
            "beyond_loss": beyond,
            "accuracy": accuracy,
            "entropy": -log_prob.mean(),
        }
        if options.entropy:
            losses["alpha"] = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
            metrics |= {"alpha_loss": losses["alpha"], "alpha": self.log_alpha.exp()}
        self.side.join(device)
        yield losses, metrics

    def _info_nce(self, phi: Tensor, psi: Tensor, **more: Any) -> Any:
        own: dict[str, Any] = {"temperature": self.options.temperature, "impl": self.op_impl, **more}
        return info_nce(phi, psi, energy="cosine", logsumexp_penalty=0.0, **own)

    def _logits(self, phi: Tensor, psi: Tensor) -> Tensor:
        """[B, M] the lesser of both critics' logits; phi [2, B, d], psi [2, M, d]."""
        phi, psi = F.normalize(phi, dim=-1), F.normalize(psi, dim=-1)
        return (phi @ psi.mT).amin(dim=0) / self.options.temperature

    def _actor_loss(self, batch: Batch, psi: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's loss, and its log-densities [B]. psi: [2, B, d] of the batch's goals."""
        ahead = 1 if self.options.actor_goals == "random" else 0
        obs = torch.cat([batch.state, batch.goal.roll(ahead, dims=0)], dim=1)
        action, log_prob = self.sampled(obs, noise)
        phi = call_frozen(self.phi, torch.cat([obs, action], dim=1))
        logits = self._logits(phi, psi.roll(ahead, dims=1))
        loss = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        if self.options.entropy:
            loss = loss + (self.log_alpha.detach().exp() * log_prob).mean()
        return loss, log_prob

    @torch.no_grad()
    def _targets(self, batch: Batch, given: Tensor, noise: Tensor) -> Tensor:
        """t [B, B] of the module's head, over the batch's goals."""
        assert batch.next_state is not None
        obs = torch.cat([batch.next_state, given], dim=1)
        action, _ = self.sampled(obs, noise)
        phi = self.phi_slow(torch.cat([obs, action], dim=1))
        return self._logits(phi, self.psi_slow(batch.goal)).softmax(dim=1)

    def after_step(self, skip: Tensor) -> None:
        slow = [*self.phi_slow.parameters(), *self.psi_slow.parameters()]
        average_into(slow, [*self.phi.parameters(), *self.psi.parameters()], self.options.tau, skip)
