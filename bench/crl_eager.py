"""The published algorithm as one writes it in PyTorch: modules, three losses, three `torch.optim.Adam`, nothing shared.

Same networks and losses as deepres's learner (arXiv 2503.14858, sections 2 and 3, and its training script). Each loss
asks the networks that it needs, psi(g) in both, and `backward` reaches whatever autograd tracks, as it does by default.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.learner import Batch, Learner

EPS = 1e-6
SKIP_EVERY = 4


class Network(nn.Module):
    """Stem, residual blocks and heads, every layer a module, with the weights of one of deepres's networks."""

    def __init__(self, given: Any, heads: tuple[str, ...]):
        super().__init__()
        trunk = given.trunk
        self.stem, self.norm = (
            _linear(trunk.stem.weight, trunk.stem.bias),
            _norm(trunk.norm.weight, trunk.norm.bias),
        )
        stack = [
            p.detach() for p in (trunk.stack.weight, trunk.stack.bias, trunk.stack.gamma, trunk.stack.beta)
        ]
        self.dense, self.norms = nn.ModuleList(), nn.ModuleList()
        for weight, bias, gamma, beta in zip(*stack, strict=True):
            self.dense.append(_linear(weight.T, bias))
            self.norms.append(_norm(gamma, beta))
        self.heads = nn.ModuleList(
            _linear(one.weight, one.bias) for one in (getattr(given, n) for n in heads)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = block = F.silu(self.norm(self.stem(x)))
        for layer, (dense, norm) in enumerate(zip(self.dense, self.norms, strict=True), start=1):
            x = F.silu(norm(dense(x)))
            if layer % SKIP_EVERY == 0:
                x = block = x + block
        return tuple(head(x) for head in self.heads)


class EagerLearner:
    """`update` and `act` as deepres's `Learner` has them, from the weights of `given`.

    seconds: of the last update's parts, on a CPU, where a call returns when its work is done.
    """

    def __init__(self, given: Learner):
        config = given.config
        self.device, self.target_entropy = given.device, given.target_entropy
        self.penalty = config.logsumexp_penalty
        self.actor = Network(given.actor, ("mean", "log_std")).to(self.device)
        self.phi = Network(given.phi, ("head",)).to(self.device)
        self.psi = Network(given.psi, ("head",)).to(self.device)
        self.log_alpha = nn.Parameter(given.log_alpha.detach().clone())
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        critic = [*self.phi.parameters(), *self.psi.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic, lr=config.critic_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=config.alpha_lr)
        self.seconds: dict[str, float] = {}

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        began = time.perf_counter()
        actor_loss, log_prob = self.actor_loss(batch, noise)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        alpha_loss = self.log_alpha.exp() * (-log_prob.detach() - self.target_entropy).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        actor_done = time.perf_counter()
        self.critic_optimizer.zero_grad()  # the actor's loss left gradients there
        critic_loss = self.critic_loss(batch)
        critic_loss.backward()
        critic_done = time.perf_counter()
        for optimizer in (self.actor_optimizer, self.alpha_optimizer, self.critic_optimizer):
            optimizer.step()
        self.seconds = {
            "actor": actor_done - began,
            "critic": critic_done - actor_done,
            "optimiser": time.perf_counter() - critic_done,
        }
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
        return {name: loss.detach() for name, loss in losses.items()}

    def critic_loss(self, batch: Batch) -> Tensor:
        (phi,) = self.phi(torch.cat([batch.state, batch.action], dim=1))
        (psi,) = self.psi(batch.goal)
        logits = -torch.cdist(phi, psi, compute_mode="donot_use_mm_for_euclid_dist")
        lse = logits.logsumexp(dim=1)
        return (lse - logits.diagonal()).mean() + self.penalty * (lse + EPS).square().mean()

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(torch.cat([batch.state, batch.goal], dim=1))
        x = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)  # 1 - tanh(x)^2 without its cancellation
        log_prob = (log_normal - torch.log(slope + EPS)).sum(dim=1)
        (phi,) = self.phi(torch.cat([batch.state, torch.tanh(x)], dim=1))
        (psi,) = self.psi(batch.goal)
        distance = (phi - psi).norm(dim=1)
        return (self.log_alpha.exp().detach() * log_prob + distance).mean(), log_prob

    def policy(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.actor(obs)
        return mean, -5 + 3.5 * (torch.tanh(raw) + 1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_std = self.policy(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """weight [out, in], as nn.Linear keeps it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    _set(layer, weight, bias)
    return layer


def _norm(gamma: Tensor, beta: Tensor) -> nn.LayerNorm:
    layer = nn.LayerNorm(gamma.shape[0], eps=EPS)
    _set(layer, gamma, beta)
    return layer


def _set(layer: Any, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
