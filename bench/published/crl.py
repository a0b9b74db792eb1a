"""The published step of contrastive RL as one writes it in PyTorch: a module for each layer, three losses, three Adams.

Same networks and losses as deepres's CRL (arXiv 2503.14858, sections 2 and 3, and its training script). The only plain
PyTorch form here, in two strengths:

    plain    each loss asks the networks that it needs, psi(g) in both; `backward` reaches whatever autograd tracks,
             as it does by default; torch.optim.Adam as it comes
    strong   psi(g) once for both losses, no weight gradients where the actor's loss crosses phi, Adam fused over all
             tensors; torch.compile and autocast where asked for
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepres.data.batch import Batch
    from deepres.training.learner import Learner

EPS = 1e-6
SKIP_EVERY = 4
PARAMETERS = ("weight", "bias", "gamma", "beta")  # of a layer
HEADS = {"actor": ("mean", "log_std"), "phi": ("head",), "psi": ("head",)}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager:
    """PyTorch's own 16-bit arithmetic where the precision is one of 16 bits."""
    if precision in HALF:
        return torch.autocast(device, HALF[precision])
    return contextlib.nullcontext()


class Layer(nn.Module):
    """Dense, LayerNorm, Swish with parameters of its own; made from weight [in, out], kept as [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().T.clone(memory_format=torch.contiguous_format))
        self.bias, self.gamma, self.beta = (nn.Parameter(t.detach().clone()) for t in (bias, gamma, beta))

    def forward(self, a: Tensor) -> Tensor:
        u = F.linear(a, self.weight, self.bias)
        return F.silu(F.layer_norm(u, self.bias.shape, self.gamma, self.beta, EPS))


class Stack(nn.Module):
    """The residual stack from weight [D, in, out] and bias, gamma, beta [D, W]. Separate tensors: slicing one stacked
    parameter costs its backward a zero-filled gradient for every layer, and the rival is to be at its strongest."""

    def __init__(self, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor):
        super().__init__()
        layers = (Layer(*parameters) for parameters in zip(weight, bias, gamma, beta, strict=True))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        a = block = x
        for l, layer in enumerate(self.layers, start=1):
            a = layer(a)
            if l % SKIP_EVERY == 0:
                a = block = a + block
        return a

    @staticmethod
    def stacked(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Weight [D, in, out], bias, gamma, beta [D, W] from one tensor for each parameter, in their order."""
        weight, bias, gamma, beta = (torch.stack(list(tensors[i::4])) for i in range(4))
        return weight.mT, bias, gamma, beta


class Network(nn.Module):
    """Stem, residual stack and heads, every layer a module, with the weights of one of deepres's networks."""

    def __init__(self, given: Any, heads: tuple[str, ...], precision: str):
        super().__init__()
        trunk = given.trunk
        self.precision = precision
        self.stem = Layer(trunk.stem.weight.T, trunk.stem.bias, trunk.norm.weight, trunk.norm.bias)
        self.stack = Stack(*(getattr(trunk.stack, name) for name in PARAMETERS))
        self.heads = nn.ModuleDict({name: _linear(getattr(given, name)) for name in heads})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        with autocast(x.device.type, self.precision):
            x = self.stack(x)
        return tuple(head(x) for head in self.heads.values())

    def named(self, take: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """take(parameter) of each by the name that deepres gives it."""
        stem = zip(("stem.weight", "stem.bias", "norm.weight", "norm.bias"), PARAMETERS, strict=True)
        found = {f"trunk.{name}": take(getattr(self.stem, own)) for name, own in stem}
        stack = Stack.stacked([take(p) for p in self.stack.parameters()])
        found |= {f"trunk.stack.{name}": t for name, t in zip(PARAMETERS, stack, strict=True)}
        return found | {f"{h}.{n}": take(p) for h, m in self.heads.items() for n, p in m.named_parameters()}


class EagerLearner:
    """`update` and `act` as deepres's `Learner` has them, from the weights of `given` and in their dtype.

    strong, compile, precision: see above; precision is that of the stacks.
    seconds: of the last plain update's parts, on a CPU, where a call returns when its work is done.
    """

    horizon, clocked = 1, False  # actions that it plans at once; whether it sees the steps left

    def __init__(
        self, given: Learner, *, strong: bool = False, compile: bool = False, precision: str = "fp32"
    ):
        config, algorithm = given.config, given.algorithm
        self.device, self.strong = given.device, strong
        self.networks = {
            name: Network(getattr(algorithm, name), heads, precision).to(self.device)
            for name, heads in HEADS.items()
        }
        self._calls = {
            name: torch.compile(network, dynamic=False) if compile else network
            for name, network in self.networks.items()
        }
        self.log_alpha = nn.Parameter(algorithm.log_alpha.detach().clone())
        self.penalty = config.get("logsumexp_penalty")
        self.target_entropy = config.get("target_entropy_per_action") * algorithm.actor.mean.out_features
        self._actor = list(self.networks["actor"].parameters())
        self._critic = [p for name in ("phi", "psi") for p in self.networks[name].parameters()]
        # capturable: a CUDA graph may hold the step
        fused = {"fused": True, "capturable": self.device.type == "cuda"} if strong else {}
        self._adams = {
            name: torch.optim.Adam(parameters, lr=config.get(f"{name}_lr"), **fused)
            for name, parameters in (
                ("actor", self._actor),
                ("critic", self._critic),
                ("alpha", [self.log_alpha]),
            )
        }
        self.seconds: dict[str, float] = {}

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One gradient step; all losses read the networks as they were before it."""
        for adam in self._adams.values():
            adam.zero_grad()
        critic_loss, actor_loss, alpha_loss = (self._strong if self.strong else self._plain)(batch, noise)
        began = time.perf_counter()
        for adam in self._adams.values():
            adam.step()
        self.seconds["optimiser"] = time.perf_counter() - began
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
        return {name: loss.detach() for name, loss in losses.items()}

    def _plain(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        began = time.perf_counter()
        actor_loss, log_prob = self.actor_loss(batch, noise, self.psi(batch))
        actor_loss.backward()
        alpha_loss = self.alpha_loss(log_prob)
        alpha_loss.backward()
        actor_done = time.perf_counter()
        self._adams["critic"].zero_grad()  # the actor's loss left gradients there
        critic_loss = self.critic_loss(batch, self.psi(batch))
        critic_loss.backward()
        self.seconds = {"actor": actor_done - began, "critic": time.perf_counter() - actor_done}
        return critic_loss, actor_loss, alpha_loss

    def _strong(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        psi = self.psi(batch)
        critic_loss = self.critic_loss(batch, psi)
        critic_loss.backward(inputs=self._critic)
        actor_loss, log_prob = self.actor_loss(batch, noise, psi.detach())
        actor_loss.backward(inputs=self._actor)
        alpha_loss = self.alpha_loss(log_prob)
        alpha_loss.backward()
        return critic_loss, actor_loss, alpha_loss

    def call(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._calls[name](torch.cat(inputs, dim=1))

    def psi(self, batch: Batch) -> Tensor:
        (psi,) = self._calls["psi"](batch.goal)
        return psi

    def critic_loss(self, batch: Batch, psi: Tensor) -> Tensor:
        (phi,) = self.call("phi", batch.state, batch.action)
        logits = -torch.cdist(phi, psi, compute_mode="donot_use_mm_for_euclid_dist")
        lse = logits.logsumexp(dim=1)
        return (lse - logits.diagonal()).mean() + self.penalty * (lse + EPS).square().mean()

    def actor_loss(self, batch: Batch, noise: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the action's log-density [B]."""
        mean, log_std = self.policy(batch.state, batch.goal)
        x = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        slope = 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)  # 1 - tanh(x)^2 without its cancellation
        log_prob = (log_normal - torch.log(slope + EPS)).sum(dim=1)
        (phi,) = self.call("phi", batch.state, torch.tanh(x))
        distance = (phi - psi).norm(dim=1)
        return (self.log_alpha.exp().detach() * log_prob + distance).mean(), log_prob

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        return self.log_alpha.exp() * (-log_prob.detach() - self.target_entropy).mean()

    def policy(self, *obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.call("actor", *obs)
        return mean, -5 + 3.5 * (torch.tanh(raw) + 1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_std = self.policy(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)

    def parameters(self) -> dict[str, Tensor]:
        """By the names that deepres's networks give them."""
        return self._named(lambda p: p.detach())

    def gradients(self) -> dict[str, Tensor]:
        """What the last update's losses left, by name."""
        return self._named(_gradient)

    def _named(self, take: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        found = {
            f"{n}.{name}": t
            for n, network in self.networks.items()
            for name, t in network.named(take).items()
        }
        return {"log_alpha": take(self.log_alpha), **found}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _linear(given: nn.Linear) -> nn.Linear:
    """A copy with weights of its own."""
    weight = given.weight
    layer = nn.Linear(given.in_features, given.out_features, device=weight.device, dtype=weight.dtype)
    layer.load_state_dict(given.state_dict())
    return layer
