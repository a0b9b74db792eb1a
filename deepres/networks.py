"""The networks: one deep residual trunk, worn by the actor, by critic encoders and by value functions.

    stem   Dense(in -> W), LayerNorm, Swish
    stack  D layers of [Dense(W -> W), LayerNorm, Swish], a skip around every 4 (deepres.residual_stack)
    head   Dense(W -> out)

All layers of a stack live in four stacked parameters, so an optimiser or a checkpoint sees 4 tensors, not 4 D.
Source: arXiv 2503.14858, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from deepres.acting import ActorPolicy as ActorPolicy
from deepres.acting import GaussianPolicy as GaussianPolicy
from deepres.initialisation import start_blocks_
from deepres.kernels.arguments import whole_number
from deepres.kernels.policy.op import squashed_gaussian
from deepres.kernels.policy.reference import bounded
from deepres.kernels.residual_stack.options import NAMES
from deepres.kernels.stem.op import norm_activation
from deepres.modules import LAYER_NORM_EPS as LAYER_NORM_EPS
from deepres.modules import Network, ResidualStack, dense, layer_norm, require_columns
from deepres.modules import PlainLayers as PlainLayers
from deepres.modules import lecun_uniform_ as lecun_uniform_
from deepres.options import check, option, refuse_unread

Made = TypeVar("Made", bound=nn.Module)

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
SCALED_FROM = 256
"""Layers of a network from which on init=auto is scaled: after 500 steps on recorded batches the critic's loss was 2.83
for 3.39 at 256 layers, 2.92 for 4.00 at 1024 (one seed), and 2.83 for 2.97 at 64, where we stay with what was published
(docs/results/stability)."""


@dataclass(frozen=True)
class NetworkOptions:
    """The networks of a run (arXiv 2503.14858, section 3)."""

    depth: int = option(64, least=1)
    """Dense layers in the blocks of every network, stem and head not counted; fewer than skip_every are plain ones."""
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
    init: Literal["auto", "published", "scaled", "zero"] = option("auto")
    """How a block starts: as published; with its last LayerNorm's scale at 1/sqrt(blocks), which keeps the stream's
    size the same at every depth; or with that scale at 0, as the identity. auto (ours) is scaled in networks of 256
    layers or more, which learn better so, and published in others."""
    actor_head_scale: float = option(1.0, least=0)
    """Multiplies the weights that the actor's heads start with; 0.01 to 0.1 keeps very deep ones off tanh's ends."""
    trunk: Literal["residual", "plain"] = option("residual")
    """Residual blocks; or plain layers as OGBench's, Dense, GELU and (not in actors) LayerNorm, in float32: theirs are
    depth 3, width 512. An actor's heads then start at a tenth of other heads'."""

    def __post_init__(self) -> None:
        check(self)
        depths = (self.depth, self.depth if self.actor_depth is None else self.actor_depth)
        if self.trunk == "plain":
            refuse_unread(self, ("skip_every", "activation", "norm", "init"), "trunk=plain")
            return
        if self.init in ("scaled", "zero") and not (self.norm and self.skip_every):
            raise ValueError(
                f"init={self.init} sets the last LayerNorm of every residual block; it needs norm and skip_every > 0, "
                f"got norm={self.norm}, skip_every={self.skip_every}"
            )
        if self.init in ("scaled", "zero") and max(depths) < self.skip_every:
            raise ValueError(
                f"init={self.init} sets the last LayerNorm of every residual block, got none in {max(depths)} "
                f"layers with skip_every={self.skip_every}; leave init out"
            )
        for name in ("depth", "actor_depth"):
            depth = getattr(self, name)
            if depth is not None and self.skip_every and depth > self.skip_every and depth % self.skip_every:
                raise ValueError(
                    f"{name} must be a multiple of skip_every={self.skip_every}, got {depth}; "
                    f"use {(less := depth - depth % self.skip_every)} or {less + self.skip_every}"
                )


class Trunk(Network):
    """Stem and stack, without a head: x [B, in_dim] -> features [B, W].

    members: E trunks side by side, x [B, in_dim] for all of them, or [E, B, in_dim], -> [E, B, W].
    """

    def __init__(
        self,
        in_dim: int,
        width: int,
        depth: int,
        *,
        members: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        self.activation = options.get("activation", "swish")
        self.fused = options.get("impl") != "reference"
        made: dict[str, Any] = {"members": members, "device": device, "dtype": dtype}
        self.stem = dense(in_dim, width, generator=generator, **made)
        self.norm = layer_norm(width, **made) if options.get("norm", True) else nn.Identity()
        self.stack: nn.Module = nn.Identity()
        if depth:
            self.stack = ResidualStack(width, depth, generator=generator, **made, **options)

    def forward(self, x: Tensor) -> Tensor:
        require_columns(x, self.stem)
        return self.stack(self._stem(x))

    def _stem(self, x: Tensor) -> Tensor:
        stem, norm, activation = self.stem, self.norm, self.activation
        if self.fused and x.is_cuda and isinstance(stem, nn.Linear) and isinstance(norm, nn.LayerNorm):
            vectors = (stem.bias, norm.weight, norm.bias)
            return norm_activation(F.linear(x, stem.weight), *vectors, eps=norm.eps, activation=activation)
        z = norm(stem(x))
        return F.silu(z) if activation == "swish" else F.relu(z)


def _trunk(
    in_dim: int, width: int, depth: int, made: dict[str, Any], options: dict[str, Any]
) -> tuple[nn.Module, bool]:
    """The hidden layers that `options` ask for, and whether their heads start by the average of in and out."""
    width, trunk = whole_number("width", width), options.pop("trunk", "residual")
    if trunk == "residual":
        return Trunk(in_dim, width, depth, **made, **options), False
    if trunk != "plain":
        raise ValueError(f"trunk must be one of residual, plain, got {trunk!r}")
    for name in options:
        if name not in NAMES:
            raise TypeError(f"a network has no option {name!r}; there are {', '.join(NAMES)}")
    return PlainLayers(in_dim, width, depth, norm=options.get("norm", True), **made), True


class Encoder(Network):
    """A critic encoder: phi over concat(state, action) or psi over the goal, [B, in_dim] -> [B, out_dim].

    members: E encoders side by side, x [B, in_dim] for all of them, or [E, B, in_dim], -> [E, B, out_dim]; each
    parameter of all in one tensor: stem [E, W, in_dim], stack [E, D, W, W], head [E, out_dim, W].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        members: int | None = None,
        width: int = 256,
        depth: int = 64,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        made: dict[str, Any] = {"members": members, "generator": generator, "device": device, "dtype": dtype}
        self.trunk, made["average"] = _trunk(in_dim, width, depth, made, options)
        self.head = dense(width, out_dim, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class Actor(Network):
    """The policy over concat(state, goal): obs [B, in_dim] -> (mean, log_std), each [B, action_dim].

    log_std = -5 + 0.5 * (2 - -5) * (tanh(raw) + 1) lies in [-5, 2]; an action is tanh(mean + std * noise). With noise
    [B, A], standard normal: obs -> (action [B, A], its log-density [B]); see squashed_gaussian of kernels/policy/op.py.
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        width: int = 256,
        depth: int = 64,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        made: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        self.trunk, made["average"] = _trunk(in_dim, width, depth, made, options)
        self.mean = dense(width, action_dim, **made)
        self.log_std = dense(width, action_dim, **made)

    def forward(
        self, obs: Tensor, noise: Tensor | None = None, *, exact: bool = False, impl: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        features = self.trunk(obs)
        mean, raw = self.mean(features), self.log_std(features)
        bounds = (LOG_STD_MIN, LOG_STD_MAX)
        if noise is None:
            return mean, bounded(raw, *bounds)
        return squashed_gaussian(mean, raw, noise, bounds=bounds, exact=exact, impl=impl)


class MeanActor(Encoder):
    """The mean of a policy of fixed spread: obs = concat(state, goal) [B, in_dim] -> [B, action_dim], not bounded."""


class DeterministicActor(Encoder):
    """The policy without spread: obs = concat(state, goal) [B, in_dim] -> actions tanh(...) [B, action_dim]."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(super().forward(obs))


class Value(Encoder):
    """A state-action value: concat(state, goal, action) [B, in_dim] -> [B]."""

    def __init__(self, in_dim: int, **options: Any):
        super().__init__(in_dim, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 0]


class Values(Encoder):
    """E state-action values: concat(state, goal, action) [B, in_dim] for all of them, or [E, B, in_dim], -> [E, B], or
    [E, B, outputs] of several outputs."""

    def __init__(self, in_dim: int, members: int = 2, outputs: int = 1, **options: Any):
        super().__init__(in_dim, outputs, members=members, **options)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        values = super().forward(x)
        return values[..., 0] if self.outputs == 1 else values


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
        actor = self._started(Actor(in_dim, action_dim, **self._shape(self.options.actor_depth, actor=True)))
        self._scale_heads(actor.mean, actor.log_std)
        return actor

    def deterministic_actor(self, in_dim: int, action_dim: int) -> DeterministicActor:
        """The network of a policy without spread: obs [B, in_dim] -> actions [B, action_dim]."""
        actor = self._started(
            DeterministicActor(in_dim, action_dim, **self._shape(self.options.actor_depth, actor=True))
        )
        self._scale_heads(actor.head)
        return actor

    def mean_actor(self, in_dim: int, action_dim: int) -> MeanActor:
        """The network of a policy of fixed spread: obs [B, in_dim] -> its mean [B, action_dim]."""
        actor = self._started(
            MeanActor(in_dim, action_dim, **self._shape(self.options.actor_depth, actor=True))
        )
        self._scale_heads(actor.head)
        return actor

    def encoder(self, in_dim: int, out_dim: int, depth: int | None = None) -> Encoder:
        """[B, in_dim] -> [B, out_dim]. depth: by default that of the options."""
        return self._started(Encoder(in_dim, out_dim, **self._shape(depth)))

    def linear(self, in_dim: int, out_dim: int) -> nn.Module:
        """[B, in_dim] -> [B, out_dim], one Dense layer."""
        return dense(in_dim, out_dim, generator=self.generator, dtype=torch.float32)

    @property
    def half_depth(self) -> int:
        """Half the depth, in whole blocks where it is enough for one."""
        half, block = max(1, self.options.depth // 2), max(1, self.options.skip_every)
        return half if half < block else half - half % block

    def value(self, in_dim: int) -> Value:
        """[B, in_dim] -> [B]."""
        return self._started(Value(in_dim, **self._shape()))

    def _started(self, network: Made) -> Made:
        """`network` with its blocks as `init` says."""
        for stack in network.modules():
            if isinstance(stack, ResidualStack) and stack.skip_every and stack.gamma is not None:
                init = self.options.init
                if init == "auto":
                    init = "scaled" if stack.gamma.shape[-2] >= SCALED_FROM else "published"
                if init != "published":
                    start_blocks_(stack.gamma, self.options.skip_every, init)
        return network

    def encoders(self, in_dim: int, out_dim: int, members: int) -> Encoder:
        """[B, in_dim] or [E, B, in_dim] -> [E, B, out_dim], E = members."""
        return self._started(Encoder(in_dim, out_dim, members=members, **self._shape()))

    def values(self, in_dim: int, members: int = 2, outputs: int = 1) -> Values:
        """[B, in_dim] or [E, B, in_dim] -> [E, B], or [E, B, outputs] of several outputs; E = members."""
        return self._started(Values(in_dim, members, outputs, **self._shape()))

    @torch.no_grad()
    def _scale_heads(self, *heads: nn.Module) -> None:
        for head in heads:
            assert isinstance(head.weight, Tensor)
            head.weight.mul_(self.options.actor_head_scale * (0.1 if self.options.trunk == "plain" else 1))

    def _shape(self, depth: int | None = None, actor: bool = False) -> dict[str, Any]:
        one = self.options
        depth, skip_every = one.depth if depth is None else depth, one.skip_every
        # float32 whatever the process's default is: what is learned from is
        made: dict[str, Any] = {"width": one.width, "generator": self.generator, "dtype": torch.float32}
        if one.trunk == "plain":
            return {**made, "trunk": "plain", "depth": depth, "norm": not actor}
        if depth < skip_every:  # plain layers: the first of them is where a stem would be
            depth, skip_every = depth - 1, 0
        blocks = {"depth": depth, "skip_every": skip_every, "activation": one.activation, "norm": one.norm}
        return {**made, **blocks, **self.stack}


def call_frozen(module: nn.Module, *inputs: Tensor) -> Any:
    """`module(*inputs)` with its parameters held constant: gradients reach the inputs, no weight gradient is made."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return functional_call(module, constants, inputs)
