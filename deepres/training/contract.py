"""What an algorithm must be and yield, checked where a learner meets it: each error says what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepres.acting import ActorPolicy
from deepres.algorithms.base import Algorithm, Group, Losses
from deepres.data.batch import Batch
from deepres.data.relabel import Sampler


def kind(algorithm: Algorithm) -> str:
    """The name that errors give it."""
    return type(algorithm).__name__


def check_parts(algorithm: Algorithm) -> None:
    """ValueError, naming what cannot be, unless groups, sampler, policy and passes are what a run asks for."""
    name, groups = kind(algorithm), algorithm.groups
    if not isinstance(groups, dict) or not all(isinstance(group, Group) for group in groups.values()):
        raise ValueError(
            f"{name}.build must return the groups that are learned, {{name: Group(parameters, lr)}}, got "
            f"{_told(groups)}"
        )
    if not isinstance(algorithm.sampler, Sampler):
        raise ValueError(
            f"sampler of {name} must be a Sampler, such as deepres.data.relabel.FutureGoals, got "
            f"{_told(algorithm.sampler)}"
        )
    policy = algorithm.policy()
    if not isinstance(policy, ActorPolicy):
        raise ValueError(
            f"policy() of {name} must return what acts, such as deepres.acting.GaussianPolicy(self.actor), got "
            f"{_told(policy)}"
        )
    if policy.horizon != algorithm.horizon:
        raise ValueError(
            f"policy() of {name} must have the algorithm's horizon {algorithm.horizon}, got {policy.horizon}; pass "
            "it to GaussianPolicy"
        )
    own = dict(algorithm.named_children())
    for one in algorithm.passes:
        if one.network not in own:
            raise ValueError(
                f"passes of {name} must name its networks ({', '.join(own)}), got {one.network!r}; see build"
            )


def checked(groups: dict[str, Group], name: str) -> dict[str, list[nn.Parameter]]:
    """The parameters of each group of the algorithm `name`. Raises ValueError, naming the group that cannot be."""
    if not groups:
        raise ValueError(f"{name}.build must return the groups that are learned, got none")
    parameters = {group: list(each.parameters) for group, each in groups.items()}
    owner: dict[int, str] = {}
    for group, each in groups.items():
        if not parameters[group]:
            raise ValueError(f"group {group!r} of {name} must have parameters, got none; leave it out")
        if isinstance(each.every, bool) or not isinstance(each.every, int) or each.every < 1:
            raise ValueError(
                f"every of group {group!r} of {name} must be a whole number >= 1, got {each.every!r}"
            )
        for p in parameters[group]:
            other = owner.setdefault(id(p), group)
            if other != group:
                raise ValueError(
                    f"groups {other!r} and {group!r} of {name} share a parameter; give it to one of them"
                )
    return parameters


def yields(algorithm: Algorithm, batch: Batch, noise: Tensor) -> Iterator[Losses]:
    """What Algorithm.losses yields; ValueError where it is nothing, no group's or no number, or a group has none."""
    name, left = kind(algorithm), dict.fromkeys(algorithm.groups)
    came: Any = algorithm.losses(batch, noise)
    if not isinstance(came, Iterator):
        raise ValueError(
            f"{name}.losses must yield (losses, metrics), got {_told(came)}; write yield, not return"
        )
    for losses, measured in came:
        for group, loss in losses.items():
            if group not in algorithm.groups:
                raise ValueError(
                    f"{name}.losses must yield losses of its groups ({', '.join(algorithm.groups)}), got one of "
                    f"{group!r}; name it as build does"
                )
            left.pop(group, None)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(
                    f"the loss of group {group!r} of {name} must be a tensor of one number, got "
                    f"{_told(loss)}; take a mean"
                )
        for metric, value in measured.items():
            if not isinstance(value, Tensor) or value.ndim:
                raise ValueError(
                    f"metric {metric!r} of {name} must be a tensor of shape [], got {_told(value)}; take a mean"
                )
        if not losses:
            raise ValueError(f"{name}.losses must yield a loss with its metrics, got none")
        yield losses, measured
    if len(left) == len(algorithm.groups):
        raise ValueError(f"{name}.losses must yield the groups' losses, got nothing")
    if left:
        raise ValueError(
            f"{name}.losses must yield a loss of each of its groups, got none of {next(iter(left))!r}; yield it, or "
            "leave the group out of build"
        )


def check_apart(
    algorithm: Algorithm, losses: dict[str, Tensor], groups: Mapping[str, list[nn.Parameter]]
) -> None:
    """ValueError where a loss of an algorithm of one's own has a gradient in another group's parameters: they would be
    stepped by it, too. Next to nothing is computed where it has none. (Of ours, tests compare every gradient.)"""
    if type(algorithm).__module__.startswith("deepres.algorithms."):
        return
    for group, loss in losses.items():
        others = [(other, p) for other, own in groups.items() if other != group for p in own]
        if not others or not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss.sum(), [p for _, p in others], retain_graph=True, allow_unused=True)
        # a fused op of several outputs gives zeros for those that this loss is not made of
        reached = [
            o for (o, _), slope in zip(others, found, strict=True) if slope is not None and slope.any()
        ]
        if reached:
            raise ValueError(
                f"the loss of group {group!r} of {kind(algorithm)} must reach its own parameters alone, and reaches "
                f"those of {reached[0]!r}; detach() what is to stay constant, or call a network by "
                "deepres.networks.call_frozen(network, x)"
            )


def _told(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
