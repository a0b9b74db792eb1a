"""One gradient step of contrastive RL: critic, actor and temperature.

Both losses read the critic as it was before the step, so phi and psi serve them at once and psi(g) is computed
once; the actor's loss asks phi for its input gradient alone and psi for none (see `call_frozen`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.config import Config
from deepres.distributed import ALONE, Ranks
from deepres.kernels import info_nce
from deepres.kernels.info_nce import InfoNCEMetrics
from deepres.losses import actor_loss, alpha_loss, pair_energy, squashed_gaussian
from deepres.networks import Actor, Encoder, call_frozen

METRICS = (
    "critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy",
    "logsumexp", "accuracy", "positive_logit", "negative_logit",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """B pairs: state [B, S] and action [B, A] at a time t, goal [B, G] reached later in the same trajectory."""

    state: Tensor
    action: Tensor
    goal: Tensor


class Learner:
    """The three networks and their optimisers.

    state_dim, action_dim, goal_dim: sizes of the environment's vectors. generator: makes the initial weights.
    ranks: the processes that gradients are averaged over; config's batch_size is this process's own.
    """

    def __init__(
        self,
        config: Config,
        *,
        state_dim: int,
        action_dim: int,
        goal_dim: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ):
        self.config = config
        self.ranks = ranks
        self.device = torch.device(device)
        shape = {"width": config.width, "generator": generator, **config.stack_options}
        self.actor = Actor(state_dim + goal_dim, action_dim, depth=config.actor_depth, **shape)
        self.phi = Encoder(state_dim + action_dim, config.feature_dim, depth=config.critic_depth, **shape)
        self.psi = Encoder(goal_dim, config.feature_dim, depth=config.critic_depth, **shape)
        for network in (self.actor, self.phi, self.psi):
            network.to(self.device)
        self.log_alpha = nn.Parameter(torch.zeros((), device=self.device))
        self.target_entropy = config.target_entropy_per_action * action_dim
        # fused: one pass over each stacked parameter instead of a dozen
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(
            [*self.phi.parameters(), *self.psi.parameters()], lr=config.critic_lr, fused=True
        )
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=config.alpha_lr, fused=True)

    def losses(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the three losses (their gradients reach disjoint parameters), and the metrics of `METRICS`.

        noise: [B, A] standard normal, the actor's exploration.
        """
        config = self.config
        phi = self.phi(torch.cat([batch.state, batch.action], dim=1))
        psi = self.psi(batch.goal)
        rows, goals, offset = phi, psi, 0
        if config.gather_negatives:
            rows, goals, offset = self.ranks.gather_pairs(phi, psi, config.form)
        critic, contrast = info_nce(
            rows,
            goals,
            positive_offset=offset,
            logsumexp_penalty=config.logsumexp_penalty,
            energy=config.energy,
            form=config.form,
            return_metrics=True,
            impl="reference" if config.impl == "reference" else "auto",
        )
        mean, log_std = self.actor(torch.cat([batch.state, batch.goal], dim=1))
        action, log_prob = squashed_gaussian(mean, log_std, noise)
        energy = pair_energy(
            call_frozen(self.phi, torch.cat([batch.state, action], dim=1)), psi.detach(), config.energy
        )
        alpha = self.log_alpha.exp()
        actor = actor_loss(alpha.detach(), log_prob, energy)
        temperature = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        assert isinstance(contrast, InfoNCEMetrics)
        values = (
            critic,
            actor,
            temperature,
            alpha,
            -log_prob.mean(),
            contrast.lse.mean(),
            contrast.accuracy,
            contrast.mean_positive,
            contrast.mean_negative,
        )
        return critic + actor + temperature, {k: v.detach() for k, v in zip(METRICS, values, strict=True)}

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One gradient step of all three; returns the metrics as tensors on the device (no synchronisation)."""
        total, metrics = self.losses(batch, noise)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.ranks.average_gradients(self.parameters().values())
        for optimizer in self.optimizers.values():
            optimizer.step()
        return metrics

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, A] for obs [N, S + G]: sampled with `noise` [N, A], or tanh(mean) without."""
        mean, log_std = self.actor(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        return {
            "actor": self.actor_optimizer,
            "critic": self.critic_optimizer,
            "alpha": self.alpha_optimizer,
        }

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter by its full name, e.g. "phi.trunk.stack.weight"."""
        named: dict[str, Tensor] = {"log_alpha": self.log_alpha}
        for prefix in ("actor", "phi", "psi"):
            for name, p in getattr(self, prefix).named_parameters():
                named[f"{prefix}.{name}"] = p
        return named

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters and optimiser moments, flat, for a checkpoint."""
        tensors = {f"parameters/{name}": p.detach() for name, p in self.parameters().items()}
        for which, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizers/{which}/{index}/{key}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; ValueError, nothing changed, if a name or a shape does not fit."""
        for name, p in self.parameters().items():
            saved = tensors.get(f"parameters/{name}")
            if saved is None or saved.shape != p.shape:
                came = "nothing" if saved is None else str(list(saved.shape))
                raise ValueError(
                    f"the checkpoint does not fit this network: {name} must have shape {list(p.shape)}, got {came}; "
                    "resume with the depths and width that the run was started with"
                )
        for name, p in self.parameters().items():
            p.copy_(tensors[f"parameters/{name}"])
        for which, optimizer in self.optimizers.items():
            prefix = f"optimizers/{which}/"
            state: dict[int, dict[str, Any]] = {}
            for name, value in tensors.items():
                if name.startswith(prefix):
                    index, key = name[len(prefix) :].split("/")
                    state.setdefault(int(index), {})[key] = value.clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
