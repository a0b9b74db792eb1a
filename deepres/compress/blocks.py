"""The residual blocks of a policy's actor, one by one: its stream, what is added to it, and the policy without some.

    x_0 = the stem's output;   x_{b+1} = x_b + F_b(x_b), b = 0 ... B - 1;   a = the action without noise, of x_B

A block is `skip_every` layers of the stack, a slice of its stacked parameters, so all of it goes through the same
kernels as the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deepres.acting import ActorPolicy
from deepres.deploy.plain import FrozenPolicy
from deepres.kernels import residual_stack
from deepres.networks import ResidualStack

_PARTS = ("weight", "bias", "gamma", "beta")


class Blocks:
    """The blocks of `network`, a policy of the networks of deepres.networks.

    Their parameters are constants here: gradients reach streams alone. Raises ValueError in one sentence for a
    policy whose network is not there, or has no residual blocks.
    """

    def __init__(self, network: ActorPolicy):
        if isinstance(network, FrozenPolicy):
            raise ValueError(
                "this policy only acts, its network is not there to be taken apart; load the run that it came from"
            )
        stack = _stack(network.actor)
        self.network = network
        self._parts = [None if p is None else p.detach() for p in (getattr(stack, name) for name in _PARTS)]
        self._options = stack.options
        self.size = stack.skip_every
        """Layers of a block."""
        self.count: int = stack.depth // self.size
        """B."""
        actor = deepcopy(network.actor)
        self._given = _Given()
        _trunk(actor).stack = self._given
        self._ends = replace(network, actor=actor)

    @torch.no_grad()
    def start(self, obs: Tensor) -> Tensor:
        """x_0 [N, W] for obs [N, S + G], and a column more of clocked policies."""
        self._given.y = None
        self._ends.actions(obs, None)
        assert self._given.x is not None
        return self._given.x

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """x_last [N, W] of x = x_first [N, W]."""
        if first == last:
            return x
        layers = slice(first * self.size, last * self.size)
        weight, bias, gamma, beta = (None if p is None else p[layers] for p in self._parts)
        assert weight is not None and bias is not None
        return residual_stack(x, weight, bias, gamma, beta, **self._options)

    def act(self, obs: Tensor, x: Tensor) -> Tensor:
        """Actions [N, H * A] without noise, were x_B = x [N, W] for obs [N, S + G]; differentiable in x."""
        self._given.y = x
        return self._ends.actions(obs, None)

    def kept(self, blocks: Sequence[int]) -> ActorPolicy:
        """The policy of these blocks alone, in this order, with parameters of its own: weight[kept]."""
        actor = deepcopy(self.network.actor)
        stack = _stack(actor)
        layers = [block * self.size + layer for block in blocks for layer in range(self.size)]
        for name in _PARTS:
            whole = getattr(stack, name)
            if whole is not None:
                setattr(stack, name, nn.Parameter(whole.detach()[layers].clone()))
        return replace(self.network, actor=actor)


class _Given(nn.Module):
    """Stands where a stack stood: keeps what comes, x, and puts out y; x itself while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x if self.y is None else self.y


def _trunk(actor: nn.Module) -> Any:
    return getattr(actor, "trunk", None)


def _stack(actor: nn.Module) -> ResidualStack:
    stack = getattr(_trunk(actor), "stack", None)
    if not isinstance(stack, ResidualStack) or stack.members is not None:
        raise ValueError(
            f"the policy must be an actor of deepres.networks, got a {type(actor).__name__}; pass a run of crl, say"
        )
    if not stack.skip_every:
        raise ValueError(
            "the policy must have residual blocks, got layers without a skip; train it with skip_every=4 and a depth "
            "of at least that"
        )
    return stack
