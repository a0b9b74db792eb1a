"""The networks: one deep residual trunk, worn by the actor, by critic encoders and by value functions.

    stem   Dense(in -> W), LayerNorm, Swish
    stack  D layers of [Dense(W -> W), LayerNorm, Swish], a skip around every 4 (deepres.residual_stack)
    head   Dense(W -> out)

All layers of a stack live in four stacked parameters, so an optimiser or a checkpoint sees 4 tensors, not 4 D.
Source: arXiv 2503.14858, section 3.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from deepres.kernels import residual_stack
from deepres.options import check, option

LAYER_NORM_EPS = 1e-6
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class NetworkOptions:
    """The networks of a run (arXiv 2503.14858, section 3)."""

    depth: int = option(64, least=1)
    """Dense layers in the blocks of every network, stem and head not counted."""
    actor_depth: int | None = option(None, least=1)
    """The same for the actor alone, None as the others; the paper keeps it at 512 beside 1024 layers."""
    width: int = option(256, least=1)
    """Features of every hidden layer."""
    skip_every: int = option(4, least=0)
    """Dense layers to a residual block; 0 leaves the skips out (ablation)."""
    activation: Literal["swish", "relu"] = option("swish")
    """Swish, or ReLU (ablation)."""
    norm: bool = option(True)
    """LayerNorm after every hidden Dense; False is the ablation."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("depth", "actor_depth"):
            depth = getattr(self, name)
            if depth is not None and self.skip_every and depth % self.skip_every:
                raise ValueError(
                    f"{name} must be a multiple of skip_every={self.skip_every}, got {depth}; "
                    f"use {max(self.skip_every, depth - depth % self.skip_every)}"
                )


def lecun_uniform_(tensor: Tensor, fan_in: int, generator: torch.Generator | None = None) -> Tensor:
    """Fill with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as the published networks start."""
    bound = 1 / math.sqrt(fan_in)
    return nn.init.uniform_(tensor, -bound, bound, generator=generator)


class ResidualStack(nn.Module):
    """D layers of [Dense, LayerNorm, activation] with skips, in one call: x [B, W] -> y [B, W].

    Parameters: weight [D, W, W] (LeCun uniform), bias [D, W] (0), gamma [D, W] (1), beta [D, W] (0).
    options: keyword arguments of `deepres.residual_stack` (skip_every, activation, norm, precision, ...).
    """

    def __init__(self, width: int, depth: int, *, generator: torch.Generator | None = None, **options: Any):
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(lecun_uniform_(torch.empty(depth, width, width), width, generator))
        self.bias = nn.Parameter(torch.zeros(depth, width))
        norm = options.get("norm", True)  # without LayerNorm its scale and shift do not exist
        self.gamma = nn.Parameter(torch.ones(depth, width)) if norm else None
        self.beta = nn.Parameter(torch.zeros(depth, width)) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        return residual_stack(x, self.weight, self.bias, self.gamma, self.beta, **self.options)

    def extra_repr(self) -> str:
        depth, width, _ = self.weight.shape
        return f"depth={depth}, width={width}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class Trunk(nn.Module):
    """Stem and stack, without a head: x [B, in_dim] -> features [B, W]."""

    def __init__(
        self,
        in_dim: int,
        width: int,
        depth: int,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        super().__init__()
        self.activation = options.get("activation", "swish")
        self.stem = _dense(in_dim, width, generator)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS) if options.get("norm", True) else nn.Identity()
        self.stack = ResidualStack(width, depth, generator=generator, **options)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.stem(x))
        return self.stack(F.silu(z) if self.activation == "swish" else F.relu(z))


class Encoder(nn.Module):
    """A critic encoder: phi over concat(state, action) or psi over the goal, [B, in_dim] -> [B, out_dim]."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int = 256,
        depth: int = 64,
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        super().__init__()
        self.trunk = Trunk(in_dim, width, depth, generator=generator, **options)
        self.head = _dense(width, out_dim, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class Actor(nn.Module):
    """The policy over concat(state, goal): obs [B, in_dim] -> (mean, log_std), each [B, action_dim].

    log_std = -5 + 0.5 * (2 - -5) * (tanh(raw) + 1) lies in [-5, 2]; an action is tanh(mean + std * noise).
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        width: int = 256,
        depth: int = 64,
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        super().__init__()
        self.trunk = Trunk(in_dim, width, depth, generator=generator, **options)
        self.mean = _dense(width, action_dim, generator)
        self.log_std = _dense(width, action_dim, generator)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(obs)
        squashed = torch.tanh(self.log_std(features))
        return self.mean(features), LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (squashed + 1)


class Value(Encoder):
    """A state-action value: concat(state, goal, action) [B, in_dim] -> [B]."""

    def __init__(self, in_dim: int, **options: Any):
        super().__init__(in_dim, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


@dataclass(frozen=True)
class Networks:
    """Makes the networks of a run as its options say, one after another from one stream of random numbers.

    stack: keyword arguments of every `deepres.residual_stack` (precision, recompute, impl). generator: draws the
    initial weights.
    """

    options: NetworkOptions = NetworkOptions()
    stack: dict[str, Any] = field(default_factory=dict)
    generator: torch.Generator | None = None

    def actor(self, in_dim: int, action_dim: int) -> Actor:
        """The policy's network: obs [B, in_dim] -> mean and log_std, each [B, action_dim]."""
        depth = self.options.depth if self.options.actor_depth is None else self.options.actor_depth
        return Actor(in_dim, action_dim, depth=depth, **self._shape())

    def encoder(self, in_dim: int, out_dim: int) -> Encoder:
        """[B, in_dim] -> [B, out_dim]."""
        return Encoder(in_dim, out_dim, depth=self.options.depth, **self._shape())

    def value(self, in_dim: int) -> Value:
        """[B, in_dim] -> [B]."""
        return Value(in_dim, depth=self.options.depth, **self._shape())

    def _shape(self) -> dict[str, Any]:
        one = self.options
        blocks = {"skip_every": one.skip_every, "activation": one.activation, "norm": one.norm}
        return {"width": one.width, "generator": self.generator, **blocks, **self.stack}


@dataclass(frozen=True)
class GaussianPolicy:
    """What acts: an actor whose actions are tanh of a Gaussian.

    horizon: H, how many actions it plans at once; the actor then gives the H * A numbers of actions t .. t + H - 1.
    deepres.data.chunks plays them.
    """

    actor: Actor
    horizon: int = 1

    @property
    def device(self) -> torch.device:
        return next(self.actor.parameters()).device

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, A] for obs [N, S + G]: sampled with `noise` [N, H * A], or tanh(mean) without; of a chunk the
        first alone."""
        actions = self._actions(obs, noise)
        return actions[:, : actions.shape[1] // self.horizon]

    @torch.no_grad()
    def plan(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Chunks [N, H, A] for obs [N, S + G], of which `act` gives the first action."""
        return self._actions(obs, noise).unflatten(1, (self.horizon, -1))

    def _actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        mean, log_std = self.actor(obs)
        return torch.tanh(mean if noise is None else mean + log_std.exp() * noise)

    def copy(self) -> GaussianPolicy:
        """This policy with weights of its own, which no gradient step changes."""
        return replace(self, actor=deepcopy(self.actor))


def call_frozen(module: nn.Module, *inputs: Tensor) -> Any:
    """`module(*inputs)` with its parameters held constant: gradients reach the inputs, no weight gradient is made."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return functional_call(module, constants, inputs)


def _dense(in_dim: int, out_dim: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    with torch.no_grad():
        lecun_uniform_(layer.weight, in_dim, generator)
        layer.bias.zero_()
    return layer
