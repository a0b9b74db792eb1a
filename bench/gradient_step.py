"""One whole CRL gradient step: critic, actor and temperature, losses, gradients and Adam.

Sizes are the humanoid's; depth is the critic's, and the actor's too up to the 512 that the paper stays at.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.registry import ACTOR_DEPTH_LIMIT, Case
from bench.residual_stack import (
    EPS,
    PARAMETERS,
    Stack,
    autocast,
    layer_products,
    served_by,
    settle_precision,
    waiter,
)
from bench.worker import Prepared
from deepres.config import Config
from deepres.learner import Batch, Learner

STATE_DIM, ACTION_DIM, GOAL_DIM, FEATURE_DIM = 268, 17, 3, 64
NETWORKS = ("actor", "phi", "psi")
LR = 3e-4


def batch_and_noise(case: Case) -> tuple[Batch, Tensor]:
    random = torch.Generator().manual_seed(case.seed + 1)

    def normal(columns: int) -> Tensor:
        return torch.randn(case.batch, columns, generator=random).to(case.device)

    return Batch(normal(STATE_DIM), torch.tanh(normal(ACTION_DIM)), normal(GOAL_DIM)), normal(ACTION_DIM)


def learner(case: Case, impl: str) -> Learner:
    """deepres's own learner; the same initial weights in every process."""
    config = Config(
        critic_depth=case.depth,
        actor_depth=min(case.depth, ACTOR_DEPTH_LIMIT),
        width=case.width,
        feature_dim=FEATURE_DIM,
        batch_size=case.batch,
        precision=case.precision,
        impl=impl,
    )
    dims = {"state_dim": STATE_DIM, "action_dim": ACTION_DIM, "goal_dim": GOAL_DIM}
    return Learner(config, **dims, device=case.device, generator=torch.Generator().manual_seed(case.seed))


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64's loss gradients, plain PyTorch's in the case's own precision), by parameter."""

    def gradients(own: Learner, double: bool) -> dict[str, Tensor]:
        batch, noise = batch_and_noise(case)
        if double:
            for network in NETWORKS:
                getattr(own, network).double()
            own.log_alpha.data = own.log_alpha.data.double()
            batch, noise = Batch(*(t.double() for t in vars(batch).values())), noise.double()
        total, _ = own.losses(batch, noise)
        names, leaves = zip(*own.parameters().items(), strict=True)
        return dict(zip(names, torch.autograd.grad(total, leaves), strict=True))

    exact = Case(**{**vars(case), "precision": "fp32"})
    return gradients(learner(exact, "reference"), True), gradients(learner(case, "reference"), False)


def fused(case: Case, impl: str) -> Prepared:
    settle_precision(case)
    server = served_by(case, impl)
    own, (batch, noise) = learner(case, impl), batch_and_noise(case)

    def named(_: Any) -> dict[str, Tensor]:
        return {name: p.grad for name, p in own.parameters().items() if p.grad is not None}

    return Prepared(lambda: own.update(batch, noise), named, waiter(case.device), server)


class Network(nn.Module):
    """Stem, stack and heads in plain PyTorch, every layer a module with parameters of its own."""

    def __init__(self, given: nn.Module, heads: tuple[str, ...], case: Case):
        super().__init__()
        self.case = case
        trunk: Any = given.trunk
        self.stem, self.norm = trunk.stem, trunk.norm
        self.stack = Stack(*(getattr(trunk.stack, name).detach() for name in PARAMETERS))
        self.heads = nn.ModuleDict({name: getattr(given, name) for name in heads})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.silu(self.norm(self.stem(x)))
        with autocast(self.case):
            features = self.stack(x)
        return tuple(head(features) for head in self.heads.values())

    def gradients(self) -> dict[str, Tensor]:
        """By the names that deepres's own networks have."""
        named = {f"trunk.stem.{name}": p.grad for name, p in self.stem.named_parameters()}
        named |= {f"trunk.norm.{name}": p.grad for name, p in self.norm.named_parameters()}
        named |= {f"{head}.{n}": p.grad for head, m in self.heads.items() for n, p in m.named_parameters()}
        for name in PARAMETERS:
            stacked = torch.stack([getattr(layer, name).grad for layer in self.stack.layers])
            named[f"trunk.stack.{name}"] = stacked.mT if name == "weight" else stacked
        return named


class PlainStep:
    """The step as one writes it in plain PyTorch, at its strongest: psi(g) once for both losses, no weight
    gradients where the actor's loss crosses phi, Adam fused over all tensors."""

    def __init__(self, case: Case, *, compile: bool):
        given = learner(case, "reference")
        self.networks = {
            "actor": Network(given.actor, ("mean", "log_std"), case),
            "phi": Network(given.phi, ("head",), case),
            "psi": Network(given.psi, ("head",), case),
        }
        for network in self.networks.values():
            network.to(case.device)
        self.calls = {
            name: torch.compile(network, dynamic=False) if compile else network
            for name, network in self.networks.items()
        }
        self.log_alpha = nn.Parameter(torch.zeros((), device=case.device))
        self.actor_parameters = list(self.networks["actor"].parameters())
        self.critic_parameters = [p for name in ("phi", "psi") for p in self.networks[name].parameters()]
        self.optimizers = [
            torch.optim.Adam(parameters, lr=LR, fused=True)
            for parameters in (self.actor_parameters, self.critic_parameters, [self.log_alpha])
        ]

    def call(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.calls[name](torch.cat(inputs, dim=1))

    def update(self, batch: Batch, noise: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        (phi,) = self.call("phi", batch.state, batch.action)
        (psi,) = self.call("psi", batch.goal)
        logits = -torch.cdist(phi, psi, compute_mode="donot_use_mm_for_euclid_dist")
        lse = logits.logsumexp(dim=1)
        critic_loss = (lse - logits.diagonal()).mean() + 0.1 * (lse + 1e-6).square().mean()
        critic_loss.backward(inputs=self.critic_parameters)

        mean, raw = self.call("actor", batch.state, batch.goal)
        log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
        x = mean + log_std.exp() * noise
        action = torch.tanh(x)
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)  # 1 - tanh(x)^2 without its cancellation
        log_prob = (log_normal - torch.log(slope + EPS)).sum(dim=1)
        (reached,) = self.call("phi", batch.state, action)
        distance = (reached - psi.detach()).norm(dim=1)
        alpha = self.log_alpha.exp()
        (alpha.detach() * log_prob + distance).mean().backward(inputs=self.actor_parameters)

        target_entropy = -0.5 * ACTION_DIM
        (alpha * (-log_prob.detach() - target_entropy).mean()).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        named = {
            f"{n}.{name}": g
            for n, network in self.networks.items()
            for name, g in network.gradients().items()
        }
        return {"log_alpha": self.log_alpha.grad, **named}


def eager(case: Case, variant: str) -> Prepared:
    return _plain(case, compile=False)


def compiled(case: Case, variant: str) -> Prepared:
    return _plain(case, compile=True)


def _plain(case: Case, *, compile: bool) -> Prepared:
    settle_precision(case)
    step, (batch, noise) = PlainStep(case, compile=compile), batch_and_noise(case)
    return Prepared(lambda: step.update(batch, noise), lambda _: step.gradients(), waiter(case.device))


def products(case: Case, variant: str) -> Prepared:
    """The stacks' products of one step: phi, psi and actor, forward and backward; phi to its input again."""
    forward, input_gradient, weight_gradient = layer_products(case)

    def run() -> None:
        for depth, needs_weights in (
            (case.depth, True),
            (case.depth, True),
            (min(case.depth, ACTOR_DEPTH_LIMIT), True),
            (case.depth, False),
        ):
            for l in range(depth):
                forward(l)
            for l in reversed(range(depth)):
                input_gradient(l)
                if needs_weights:
                    weight_gradient(l)

    return Prepared(run, lambda result: {}, waiter(case.device))
