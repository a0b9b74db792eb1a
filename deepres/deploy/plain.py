"""What a policy computes without noise, as plain tensors: what every form that it is deployed in is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.acting import (
    ActorPolicy,
    ClippedGaussianPolicy,
    ClockedGaussianPolicy,
    DeterministicPolicy,
    GaussianPolicy,
)
from deepres.kernels.residual_stack import reference
from deepres.kernels.residual_stack.options import StackOptions
from deepres.networks import (
    LAYER_NORM_EPS,
    Actor,
    DeterministicActor,
    MeanActor,
    PlainLayers,
    ResidualStack,
    Trunk,
)


class PlainNetwork(nn.Module):
    """obs [N, S + G] -> actions [N, H * A], by PyTorch's own operators and in float32, whatever the run's precision.

    a = act(norm(obs @ stem_weight.T + stem_bias))               of clocked policies log1p(obs[:, -1]) for obs[:, -1]
    a = residual_stack(a, weight, bias, gamma, beta)
    return tanh(a @ head_weight.T + head_bias)                   where `clipped`, clip(., -1, 1) in tanh's place

    stem_weight [W, in], stem_bias [W], stem_gamma and stem_beta [W]; weight [D, W, W], bias, gamma, beta [D, W], D may
    be 0; head_weight [H * A, W], head_bias [H * A]; the four of LayerNorm are None without it. All are copies.
    """

    def __init__(self, policy: ActorPolicy):
        super().__init__()
        actor = policy.actor
        if type(actor) not in (Actor, DeterministicActor, MeanActor) or type(policy) not in (
            GaussianPolicy, ClockedGaussianPolicy, DeterministicPolicy, ClippedGaussianPolicy,
        ):  # fmt: skip
            raise ValueError(
                "what is deployed must be a policy of one of deepres.networks' actors, got "
                f"{type(policy).__name__} of {type(actor).__name__}; load the run that it was trained in, or export "
                "a network of your own by torch.onnx.export"
            )
        assert isinstance(actor, (Actor, DeterministicActor, MeanActor))
        if isinstance(actor.trunk, PlainLayers):
            raise ValueError(
                "networks of trunk=plain cannot be deployed; load the run with deepres.Policy, or train with residual "
                "blocks"
            )
        assert isinstance(actor.trunk, Trunk)
        trunk, head = actor.trunk, actor.mean if isinstance(actor, Actor) else actor.head
        assert isinstance(trunk.stem, nn.Linear) and isinstance(head, nn.Linear)
        self.clocked, self.horizon = policy.clocked, policy.horizon
        self.clipped = isinstance(policy, ClippedGaussianPolicy)
        self.stem_weight, self.stem_bias = _own(trunk.stem.weight), _own(trunk.stem.bias)
        self.stem_gamma = self.stem_beta = None
        if norm := isinstance(trunk.norm, nn.LayerNorm):
            self.stem_gamma, self.stem_beta = _own(trunk.norm.weight), _own(trunk.norm.bias)
        width, skip_every = self.stem_weight.shape[0], 0
        self.weight, self.bias = torch.empty(0, width, width), torch.empty(0, width)
        self.gamma = self.beta = torch.empty(0, width) if norm else None
        if isinstance(stack := trunk.stack, ResidualStack):
            if (eps := stack.options.get("eps", LAYER_NORM_EPS)) != LAYER_NORM_EPS:
                raise ValueError(
                    f"what is deployed has eps={LAYER_NORM_EPS:g} in every LayerNorm, got eps={eps:g} in its stack; "
                    "make the network with that one"
                )
            skip_every = stack.skip_every
            self.weight, self.bias = _own(stack.weight), _own(stack.bias)
            if stack.gamma is not None and stack.beta is not None:
                self.gamma, self.beta = _own(stack.gamma), _own(stack.beta)
        self.head_weight, self.head_bias = _own(head.weight), _own(head.bias)
        self.options = StackOptions(skip_every, trunk.activation, norm, LAYER_NORM_EPS)

    @property
    def depth(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def inputs(self) -> int:
        return self.stem_weight.shape[1]

    @property
    def outputs(self) -> int:
        """H * A."""
        return self.head_weight.shape[0]

    def forward(self, obs: Tensor) -> Tensor:
        if self.clocked:
            obs = torch.cat([obs[:, :-1], obs[:, -1:].log1p()], dim=1)
        a = F.linear(obs, self.stem_weight, self.stem_bias)
        if self.stem_gamma is not None:
            a = F.layer_norm(a, a.shape[-1:], self.stem_gamma, self.stem_beta, self.options.eps)
        a = F.silu(a) if self.options.activation == "swish" else F.relu(a)
        if self.depth:
            a = reference.residual_stack(a, self.weight, self.bias, self.gamma, self.beta, self.options)
        mean = F.linear(a, self.head_weight, self.head_bias)
        return mean.clamp(-1, 1) if self.clipped else torch.tanh(mean)


def _own(p: Tensor) -> Tensor:
    return p.detach().to("cpu", torch.float32, copy=True).contiguous()


@dataclass(frozen=True)
class FrozenPolicy(ActorPolicy):
    """A policy that only acts: `actor` gives the actions [N, H * A] in [-1, 1] themselves, on the CPU, by its mean."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def actions(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        if noise is not None:
            raise ValueError(
                "a deployed policy acts by its mean alone and takes no noise; load its run to explore"
            )
        return self.actor(obs)

    def copy(self) -> Self:
        return self  # nothing changes it


@dataclass(frozen=True)
class ClockedFrozenPolicy(FrozenPolicy):
    """The same for a policy that also sees the steps that are left."""

    clocked: ClassVar[bool] = True


def frozen(actor: nn.Module, horizon: int, clocked: bool) -> FrozenPolicy:
    """A policy that acts by `actor`, [N, S + G] -> [N, H * A]."""
    return (ClockedFrozenPolicy if clocked else FrozenPolicy)(actor, horizon)
