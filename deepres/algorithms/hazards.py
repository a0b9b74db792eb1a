"""What survival RL (srl.py) and ChronoSRL (chrono.py) share: a critic that tells when a goal is first reached.

    z, z_g    the embeddings phi(s, a) and psi(g), [B, E] each
    film      (f, b) = Dense(z_g);  z' = (1 + 0.1 f) z + 0.1 b
    h         trunk([z', z_g, z' - z_g, z' * z_g])
    l0, l     whether the goal is reached already, and the hazard logits features @ basis.T + bias of lags 0..K-1, with
              l0, features and more linear in h (deepres.hazard_nll, deepres.hazard_value)

The critic is stepped first and the actor reads what it has become, as published; actor_reads="old" gives all losses the
parameters from before the step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deepres.acting import GaussianPolicy
from deepres.algorithms.base import Algorithm, Group, Losses, Pass
from deepres.algorithms.parts import policy_losses
from deepres.data.batch import Batch
from deepres.data.first_hits import FirstHits, GoalMix
from deepres.kernels import hazard_nll, hazard_value
from deepres.networks import LAYER_NORM_EPS, Networks, call_frozen
from deepres.options import check, option

FACTORS = 64  # of the logits: features [B, 64] @ basis [K, 64].T
FILM = 0.1
BASIS_STD = 0.02


@dataclass(frozen=True)
class SurvivalOptions:
    """Options of both algorithms; the defaults are the published ones."""

    feature_dim: int = option(128, least=1)
    """Numbers that phi and psi end in."""
    bins: int = option(1000, least=1)
    """Lags that the critic tells apart, steps; the horizon."""
    gamma: float = option(0.999, above=0, below=1)
    """Discount of the time until the goal."""
    goal_gamma: float = option(0.999, above=0, below=1)
    """A later goal lies d steps ahead with probability proportional to goal_gamma^d."""
    later_goals: float = option(0.85, least=0, most=1, share=True)
    """Share of the rows whose goal is a later state of their trajectory."""
    current_goals: float = option(0.05, least=0, most=1, share=True)
    """Share of the rows whose goal is their own state; the others get a random step of the same window."""
    goal_radius: float | None = option(None, above=0)
    """Distance to a goal that counts as reached, in its coordinates; None is the task's own."""
    goal_sequence: int = option(1, least=1)
    """States in a row that must be reached one after another to be at a goal; published for humanoids: 32."""
    censor: Literal["horizon", "observed"] = option("horizon")
    """A goal that was not reached counts as not reached within the horizon, or (ours) within what was observed."""
    actor_reads: Literal["updated", "old"] = option("updated")
    """The critic that the actor learns from: as the step has made it, or (ours) as it was before."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critic."""
    alpha_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the temperature."""
    log_alpha_bound: float | None = option(None, above=0, resume=True)
    """Holds the temperature's logarithm within plus and minus this (ours), lest it grow for ever; None does not."""
    target_entropy_per_action: float = option(-0.5)
    """Entropy that the temperature aims at, nats for each number of an action or of a chunk of actions."""

    def __post_init__(self) -> None:
        check(self)
        if self.later_goals + self.current_goals > 1:
            raise ValueError(
                f"later_goals + current_goals must be at most 1, got {self.later_goals} + {self.current_goals}"
            )


class Embedding(nn.Module):
    """An encoder and a LayerNorm of what it gives."""

    def __init__(self, encoder: nn.Module, feature_dim: int):
        super().__init__()
        self.encoder, self.norm = encoder, nn.LayerNorm(feature_dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.encoder(x))


class Outlook(NamedTuple):
    """What the head says of a state-action and a goal: l0 [B], features [B, 64] of the hazards, and `more` [B, n]."""

    l0: Tensor
    features: Tensor
    more: Tensor


class HazardHead(nn.Module):
    """z, z_g [B, E] -> Outlook; see the module's head. basis [K, 64] and bias [K] make logits of its features.

    more: further linear outputs.
    """

    def __init__(self, networks: Networks, feature_dim: int, bins: int, more: int = 0):
        super().__init__()
        self.film = networks.linear(feature_dim, 2 * feature_dim)
        self.net = networks.encoder(4 * feature_dim, 1 + FACTORS + more)
        self.basis = nn.Parameter(torch.empty(bins, FACTORS))
        if not self.basis.is_meta:  # where PyTorch would import a symbolic algebra for it, 140 MB and seconds
            nn.init.normal_(self.basis, std=BASIS_STD, generator=networks.generator)
        self.bias = nn.Parameter(torch.zeros(bins))

    def forward(self, z: Tensor, z_goal: Tensor) -> Outlook:
        scale, shift = self.film(z_goal).chunk(2, dim=1)
        z = (1 + FILM * scale) * z + FILM * shift
        out = self.net(torch.cat([z, z_goal, z - z_goal, z * z_goal], dim=1))
        return Outlook(out[:, 0], out[:, 1 : 1 + FACTORS], out[:, 1 + FACTORS :])


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x where mask (bool) holds, of the same shape; 0 where it holds nowhere."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


class Survival(Algorithm):
    """The base of both: networks phi, psi, head and actor, and the order of the losses."""

    options: Any
    phi: nn.Module
    psi: nn.Module
    head: HazardHead

    @property
    def passes(self) -> tuple[Pass, ...]:  # type: ignore[override]
        late = int(self.options.actor_reads == "updated")
        return (
            Pass("phi"), Pass("psi"), Pass("head"),
            Pass("actor", turn=late), Pass("phi", weights=False, turn=late),
            Pass("psi", backward=False, turn=late), Pass("head", weights=False, turn=late),
        )  # fmt: skip

    def _groups(self, networks: Networks) -> dict[str, Group]:
        """The actor, the temperature and, of phi, psi and head, which `build` has made, the critic."""
        options, sizes = self.options, self.sizes
        self.actor = networks.actor(sizes.state + sizes.goal, self.horizon * sizes.action)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy = options.target_entropy_per_action * self.horizon * sizes.action
        critic = [p for net in (self.phi, self.psi, self.head) for p in net.parameters()]
        return {
            "critic": Group(critic, options.critic_lr),
            "actor": Group(list(self.actor.parameters()), options.actor_lr),
            "alpha": Group([self.log_alpha], options.alpha_lr, clip=False, bound=options.log_alpha_bound),
        }

    def _sampler(self, edges: tuple[int, ...] = ()) -> FirstHits:
        options = self.options
        return FirstHits(
            options.bins,
            radius=options.goal_radius,
            mix=GoalMix(options.later_goals, options.current_goals, options.goal_gamma),
            censor=options.censor,
            sequence=options.goal_sequence,
            horizon=self.horizon,
            edges=edges,
        )

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        critic, critic_metrics = self._critic(batch)
        if self.options.actor_reads == "updated":
            yield {"critic": critic}, critic_metrics
        losses, metrics = self._actor(batch, noise)
        if self.options.actor_reads == "updated":
            yield losses, metrics
        else:
            yield {"critic": critic, **losses}, {**critic_metrics, **metrics}

    @abstractmethod
    def _critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and metrics."""

    def _worth(self, batch: Batch, outlook: Outlook) -> tuple[Tensor, dict[str, Tensor]]:
        """[B] what the actor seeks, and metrics: the value, unless an algorithm adds to it."""
        head, gamma = self.head, self.options.gamma
        factors = outlook.features, head.basis.detach(), head.bias.detach(), outlook.l0
        value = hazard_value(*factors, gamma=gamma, impl=self.op_impl)
        return value, {"value": value.mean()}

    def _actor(self, batch: Batch, noise: Tensor) -> Losses:
        action, log_prob = self.actor(torch.cat([batch.state, batch.goal], dim=1), noise, impl=self.op_impl)
        z = call_frozen(self.phi, torch.cat([batch.state, action], dim=1))
        with torch.no_grad():
            z_goal = self.psi(batch.goal.repeat(1, self.options.goal_sequence))
        worth, metrics = self._worth(batch, call_frozen(self.head, z, z_goal))
        policy = policy_losses(log_prob, worth, self.log_alpha, self.target_entropy, impl=self.op_impl)
        own = {
            "actor_loss": policy.actor,
            "alpha_loss": policy.temperature,
            "alpha": policy.alpha,
            "entropy": policy.entropy,
        }
        return {"actor": policy.actor, "alpha": policy.temperature}, {**own, **metrics}

    def _embedded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """z and z_g [B, E] of the batch's state-actions and goals."""
        goal = batch.extra["sequence"] if self.options.goal_sequence > 1 else batch.goal
        return self.phi(torch.cat([batch.state, batch.action], dim=1)), self.psi(goal)

    def _nll(self, batch: Batch, outlook: Outlook) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of the valid rows' negative log-likelihoods, and metrics."""
        extra = batch.extra
        factors = outlook.features, self.head.basis, self.head.bias, outlook.l0
        valid = extra.get("valid")
        weight = None if valid is None else valid.to(outlook.l0.dtype)
        loss, _ = hazard_nll(*factors, extra["lag"], extra["event"], weight=weight, impl=self.op_impl)
        metrics = {
            "event_share": extra["event"].to(loss.dtype).mean(),
            "lag": extra["lag"].to(loss.dtype).mean(),
        }
        return loss, metrics

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor, self.horizon)
