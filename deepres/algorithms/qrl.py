"""QRL, quasimetric RL: the number of steps to a goal as a distance that keeps the triangle inequality, pushed apart as
far as single steps allow (arXiv 2304.01203).

With features z = phi(s), z_g = psi(g), a quasimetric d on them, and f a model of what an action does to z

    critic mean 100 softplus(5 - d(z, z_g) / 100)  over goals of other rows, far from the state
           + lam (mean relu(d(phi(s), phi(s')) - 1)^2 + mean d(phi(s), psi(e(s)))^2)   a step costs 1, being there 0
    dual   -lam (the bracket - 0.05), lam = exp(log_lam): it grows while the bracket is larger
    model  mean (d(z', zhat) + d(zhat, z')),   zhat = z + f(z, a), z' = phi(s'), both held constant
    actor  mean(alpha log pi(a''|s, g) + d(z + f(z, a''), z_g))
    alpha  exp(log_alpha) * mean(stop_grad(-log pi - target_entropy))

From recorded data `extraction` (extraction.py), without temperature and its group, learns

    ddpg_bc  -mean(q) / (mean |q| + 1e-6) - alpha mean(bc),   q = -d(z + f(z, clip(mu(s, g), -1, 1)), z_g)
    awr      -mean(min(exp(alpha A), 100) bc),   A = d(z, z_g) - d(z', z_g); the model is not asked

All losses read the parameters from before the step. Ours: a goal is a part e(s) of a state, not a state, so it has
features of its own, held at distance 0 from states that achieve it. Published is the actor of ddpg_bc; online the
entropy takes its place, and awr is for few steps: it does not wait for the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.acting import ActorPolicy, ClippedGaussianPolicy
from deepres.algorithms.base import About, Group, Losses, Pass
from deepres.algorithms.extraction import ddpg_bc
from deepres.algorithms.implicit import weighted_cloning
from deepres.algorithms.parts import pair_energy, policy_losses, unit_log_density
from deepres.algorithms.soft import TEMPERATURE, SoftActor, SoftActorOptions
from deepres.data.batch import Batch
from deepres.data.relabel import FutureTransitions
from deepres.kernels.quasimetric.op import PART, iqe
from deepres.networks import Networks, call_frozen
from deepres.options import option, refuse_unread


@dataclass(frozen=True)
class QRLOptions(SoftActorOptions):
    """Quasimetric RL."""

    distance: Literal["iqe", "mrn"] = option("iqe")
    """Interval quasimetric embedding (arXiv 2211.15120), or metric residual network (arXiv 2208.08133)."""
    feature_dim: int = option(512, least=PART)
    """Numbers of a state's and a goal's features, a multiple of 8."""
    slack: float = option(0.05, above=0)
    """What the constraint may be off by."""
    actor_goals: Literal["random", "future"] = option("future")
    """Goals that the actor learns for: other rows', or those reached later."""
    extraction: Literal["entropy", "ddpg_bc", "awr"] = option("entropy")
    """How the policy learns: what leads nearer, with entropy; from recorded data the same, held to what was done; or
    what was done, weighted by how much nearer it led."""
    bc_alpha: float = option(0.003, least=0)
    """Of ddpg_bc the weight of cloning (OGBench: 0.0003 for points, 0.003 for ants, 0.001 for humanoids, 0.3 for
    arms); of awr how sharply it prefers what led nearer, for each step."""
    gamma: float = option(0.99, above=0, below=1)
    """A goal lies d steps ahead with probability proportional to gamma^d."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of features, distance, model and multiplier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_dim % PART:
            raise ValueError(
                f"feature_dim must be a multiple of {PART}, got {self.feature_dim}; "
                f"use {PART * (self.feature_dim // PART)}"
            )
        unread = ("bc_alpha",) if self.extraction == "entropy" else (*TEMPERATURE, "exact_tanh")
        refuse_unread(self, unread, f"extraction={self.extraction}")


ActorLosses = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The losses of the policy's groups, and what is measured of it."""


class QRL(SoftActor):
    """Quasimetric RL: steps to a goal as a distance, as long as single steps allow."""

    Options = QRLOptions
    options: QRLOptions
    headline = ("critic_loss", "actor_loss", "violation")
    noises = 1
    about = About(
        source="arXiv 2304.01203",
        losses="critic: spread under a constraint on steps; model: distance; actor: alpha log pi + d",
        actor_reads="old",
        layers="4 D",
    )
    passes: tuple[Pass, ...] = (
        Pass("phi", batches=2), Pass("psi", batches=2), Pass("model"),
        Pass("actor"), Pass("model", weights=False),
    )  # fmt: skip

    def build(self, networks: Networks) -> dict[str, Group]:
        options, sizes = self.options, self.sizes
        if options.extraction == "entropy":
            groups = self.build_actor(networks)
        else:
            self.actor = networks.mean_actor(sizes.state + sizes.goal, sizes.action)
            groups = {"actor": Group(list(self.actor.parameters()), options.actor_lr)}
            self.passes = QRL.passes[:-1] if options.extraction == "awr" else QRL.passes
        self.phi = networks.encoder(sizes.state, options.feature_dim)
        self.psi = networks.encoder(sizes.goal, options.feature_dim)
        self.model = networks.encoder(options.feature_dim + sizes.action, options.feature_dim)
        self.log_lam = nn.Parameter(torch.zeros(()))
        critic = [*self.phi.parameters(), *self.psi.parameters()]
        if options.distance == "iqe":
            self.mix = nn.Parameter(torch.zeros(()))
            critic.append(self.mix)
        rate = options.critic_lr
        return groups | {
            "critic": Group(critic, rate),
            "model": Group(list(self.model.parameters()), rate),
            "dual": Group([self.log_lam], rate, clip=False),
        }

    @property
    def sampler(self) -> FutureTransitions:
        return FutureTransitions(self.options.gamma, terminal=False)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        assert batch.next_state is not None
        z, after = self.phi(torch.cat([batch.state, batch.next_state])).chunk(2)
        goals, achieved = self.psi(torch.cat([batch.goal, batch.extra["achieved"]])).chunk(2)
        lam = self.log_lam.exp()
        far = self._distance(z, goals.roll(1, dims=0))
        spread = (100 * F.softplus(5 - far / 100)).mean()
        step = F.relu(self._distance(z, after) - 1).square().mean()
        violation = step + self._distance(z, achieved).square().mean()
        held, held_after, held_goals = z.detach(), after.detach(), goals.detach()
        moved = held + self.model(torch.cat([held, batch.action], dim=1))
        model = self._distance(held_after, moved, held=True) + self._distance(moved, held_after, held=True)
        ahead = 1 if self.options.actor_goals == "random" else 0
        obs = torch.cat([batch.state, batch.goal.roll(ahead, dims=0)], dim=1)
        aim = held_goals.roll(ahead, dims=0)
        if self.options.extraction == "awr":
            nearer = self._distance(held, aim, held=True) - self._distance(held_after, aim, held=True)
            actor, measured = self._weighted(self.actor(obs), batch.action, nearer.detach())
        else:
            actor, measured = self._led(batch, obs, noise, held, aim)
        losses = {
            "critic": spread + lam.detach() * violation,
            "dual": -lam * (violation.detach() - self.options.slack),
            "model": model.mean(),
            **actor,
        }
        metrics = {
            **{f"{name}_loss": loss for name, loss in losses.items()},
            "violation": violation,
            "lam": lam,
            "distance": far.mean(),
            **measured,
        }
        yield losses, metrics

    def _weighted(self, mean: Tensor, action: Tensor, nearer: Tensor) -> ActorLosses:
        """Of a policy's means and what was done [B, A], with the steps that this led nearer [B]."""
        loss, measured = weighted_cloning(mean, action, nearer, self.options.bc_alpha)
        return {"actor": loss}, measured

    def _led(self, batch: Batch, obs: Tensor, noise: Tensor, z: Tensor, goal: Tensor) -> ActorLosses:
        """Of where the model says that the policy's actions lead. obs [B, S + G]; z and goal, features [B, feature_dim]
        of its states and goals, held constant."""
        entropy = self.options.extraction == "entropy"
        if entropy:
            action, log_prob = self.sampled(obs, noise)
        else:
            mean = self.actor(obs)
            action = mean.clamp(-1, 1)
        led = z + call_frozen(self.model, torch.cat([z, action], dim=1))
        left = self._distance(led, goal, held=True)
        if not entropy:
            cloned = unit_log_density(mean, batch.action)
            return {"actor": ddpg_bc(-left, cloned, self.options.bc_alpha)}, {"bc": cloned.mean()}
        policy = policy_losses(log_prob, -left, self.log_alpha, self.target_entropy, impl=self.op_impl)
        losses = {"actor": policy.actor, "alpha": policy.temperature}
        return losses, {"alpha": policy.alpha, "entropy": policy.entropy}

    def _distance(self, x: Tensor, y: Tensor, *, held: bool = False) -> Tensor:
        """[B] from x to y, [B, feature_dim] each. held: the distance itself is not learned by it."""
        if self.options.distance == "mrn":
            return -pair_energy(x, y, "mrn", impl=self.op_impl)
        return iqe(x, y, self.mix.detach() if held else self.mix, impl=self.op_impl)

    def policy(self) -> ActorPolicy:
        if self.options.extraction == "entropy":
            return super().policy()
        return ClippedGaussianPolicy(self.actor)
