"""One gradient step of contrastive RL: critic, actor and temperature.

Both losses read the critic as it was before the step, so phi and psi serve them at once and psi(g) is computed
once; the actor's loss asks phi for its input gradient alone and psi for none (see `call_frozen`). On a GPU the
actor's branch runs on a stream of its own beside the critic's.

A step whose loss or gradient is not finite changes nothing and is counted (metric `skipped_steps`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.config import Config
from deepres.distributed import ALONE, Ranks
from deepres.kernels import info_nce
from deepres.kernels.info_nce.op import InfoNCEMetrics
from deepres.losses import actor_loss, alpha_loss, pair_energy, squashed_gaussian
from deepres.networks import Actor, Encoder, call_frozen
from deepres.optimizer import Adam, sum_of_squares

METRICS = (
    "critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy",
    "logsumexp", "accuracy", "positive_logit", "negative_logit",
    "skipped_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """B pairs: state [B, S] and action [B, A] at a time t, goal [B, G] reached later in the same trajectory."""

    state: Tensor
    action: Tensor
    goal: Tensor


@dataclass(frozen=True)
class Policy:
    """What acts: an actor, and the device that it is on."""

    actor: Actor
    device: torch.device

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, A] for obs [N, S + G]: sampled with `noise` [N, A], or tanh(mean) without."""
        mean, log_std = self.actor(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)

    def copy(self) -> Policy:
        """This policy with weights of its own, which no gradient step changes."""
        return Policy(deepcopy(self.actor), self.device)


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
        options: dict[str, Any] = {"warmup_steps": config.warmup_steps}
        clipped = {**options, "max_grad_norm": config.max_grad_norm}
        critic = [*self.phi.parameters(), *self.psi.parameters()]
        self.actor_optimizer = Adam(self.actor.parameters(), config.actor_lr, **clipped)
        self.critic_optimizer = Adam(critic, config.critic_lr, **clipped)
        self.alpha_optimizer = Adam([self.log_alpha], config.alpha_lr, **options)
        self._beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.rebuilt = 0
        """Grows when what a captured step has taken in is no longer what a step would use (see graph.py)."""

    def losses(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the three losses (their gradients reach disjoint parameters), and the metrics of `METRICS`,
        but for `skipped_steps`.

        noise: [B, A] standard normal, the actor's exploration.
        """
        config = self.config
        psi = self.psi(batch.goal)
        with self._second_stream():
            mean, log_std = self.actor(torch.cat([batch.state, batch.goal], dim=1))
            action, log_prob = squashed_gaussian(mean, log_std, noise)
            energy = pair_energy(
                call_frozen(self.phi, torch.cat([batch.state, action], dim=1)), psi.detach(), config.energy
            )
            alpha = self.log_alpha.exp()
            actor = actor_loss(alpha.detach(), log_prob, energy)
            temperature = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        phi = self.phi(torch.cat([batch.state, batch.action], dim=1))
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
        self._join()
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
        return critic + actor + temperature, {k: v.detach() for k, v in zip(METRICS, values, strict=False)}

    @contextmanager
    def _second_stream(self) -> Iterator[None]:
        if self._beside is None:
            yield
            return
        self._beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._beside):
            yield

    def _join(self) -> None:
        if self._beside is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._beside)

    def step(self, batch: Batch, noise: Tensor) -> Tensor:
        """One gradient step of all three networks; returns the metrics, [len(METRICS)] in the order of `METRICS`.

        Nothing waits for the device. Where the loss or any gradient is not finite, nothing changes: parameters,
        moments and step counts stay, the metrics are 0 and `skipped_steps` is 1.
        """
        total, metrics = self.losses(batch, noise)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        with torch.no_grad():
            optimizers = tuple(self.optimizers.values())
            grads = [optimizer.gradients() for optimizer in optimizers]
            self.ranks.average([gradient for each in grads for gradient in each])
            squares = [sum_of_squares(each) for each in grads]
            # averaged gradients are the same everywhere, so all ranks agree; a loss is each rank's own
            judged = squares if self.ranks.size > 1 else [total.detach(), *squares]
            finite = torch.stack(judged).isfinite().all()
            skip = (~finite).float()
            for optimizer, square in zip(optimizers, squares, strict=True):
                optimizer.step(skip=skip, squares=square)
            values = torch.where(finite, torch.stack(tuple(metrics.values())), 0.0)
            return torch.cat([values, skip[None]])

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """`step`, with the metrics by name."""
        return dict(zip(METRICS, self.step(batch, noise).unbind(), strict=True))

    @property
    def policy(self) -> Policy:
        """The actor as it is now and as it will be: no copy."""
        return Policy(self.actor, self.device)

    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """`Policy.act` of the policy as it is now."""
        return self.policy.act(obs, noise)

    @property
    def optimizers(self) -> dict[str, Adam]:
        return {
            "actor": self.actor_optimizer,
            "critic": self.critic_optimizer,
            "alpha": self.alpha_optimizer,
        }

    @property
    def lr_scale(self) -> float:
        """What multiplies all learning rates: 1 unless a run was rolled back; saved with the rest."""
        return self.actor_optimizer.lr_scale

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        for optimizer in self.optimizers.values():
            optimizer.lr_scale = scale
        self.rebuilt += 1

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
        tensors["lr_scale"] = torch.tensor(self.lr_scale, dtype=torch.float64)
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
        self.lr_scale = float(tensors.get("lr_scale", 1.0))  # checkpoints of version 0.1 have none
