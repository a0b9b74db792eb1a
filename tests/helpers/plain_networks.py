"""The networks of section 3 of arXiv 2503.14858 in a few lines of torch, float64: what a step is compared with.

Parameters come as a dictionary of tensors by their full names; nothing of the package computes here.
"""

from __future__ import annotations

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def leaves(named: Parameters) -> Parameters:
    """A float64 copy of every parameter, with a gradient of its own."""
    return {name: p.detach().double().clone().requires_grad_() for name, p in named.items()}


def layer(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """swish(LayerNorm(x @ weight + bias)), weight [in, out]."""
    u = x @ weight + bias
    centred = u - u.mean(-1, keepdim=True)
    z = scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + shift
    return z * torch.sigmoid(z)


def trunk(p: Parameters, network: str, x: Tensor) -> Tensor:
    at = f"{network}.trunk"
    if f"{at}.dense.0.weight" in p:
        return plain_layers(p, at, x)
    x = layer(
        x, p[f"{at}.stem.weight"].T, *(p[f"{at}.{k}"] for k in ("stem.bias", "norm.weight", "norm.bias"))
    )
    for block in range(len(p[f"{at}.stack.weight"]) // 4):
        skip = x
        for l in range(4 * block, 4 * block + 4):
            x = layer(x, *(p[f"{at}.stack.{k}"][l] for k in ("weight", "bias", "gamma", "beta")))
        x = x + skip
    return x


def plain_layers(p: Parameters, at: str, x: Tensor) -> Tensor:
    """OGBench's hidden layers: GELU by its tanh form, then LayerNorm where there is one."""
    for l in range(sum(name.startswith(f"{at}.dense.") for name in p) // 2):
        u = dense(p, f"{at}.dense.{l}", x)
        x = u / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
        if f"{at}.norm.{l}.weight" in p:
            centred = x - x.mean(-1, keepdim=True)
            scale, shift = p[f"{at}.norm.{l}.weight"], p[f"{at}.norm.{l}.bias"]
            x = scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + shift
    return x


def dense(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def value(p: Parameters, network: str, *inputs: Tensor) -> Tensor:
    """[B] of concat(inputs)."""
    return dense(p, f"{network}.head", trunk(p, network, torch.cat(inputs, 1)))[:, 0]


def member(p: Parameters, group: str, k: int) -> Parameters:
    """The k-th network of a group, by the names of one alone; autograd reaches the group's tensors."""
    return {name: t[k] for name, t in p.items() if name.startswith(f"{group}.")}


def values(p: Parameters, group: str, *inputs: Tensor) -> Tensor:
    """[E, B] of concat(inputs), by each of the group's networks."""
    count = len(p[f"{group}.head.weight"])
    return torch.stack([value(member(p, group, k), group, *inputs) for k in range(count)])


def outputs(p: Parameters, group: str, *inputs: Tensor) -> Tensor:
    """[E, B, out] of concat(inputs), by each of the group's networks; inputs [B, ...]."""
    x, each = torch.cat(inputs, 1), []
    for k in range(len(p[f"{group}.head.weight"])):
        own = member(p, group, k)
        each.append(dense(own, f"{group}.head", trunk(own, group, x)))
    return torch.stack(each)


def encoded(p: Parameters, network: str, *inputs: Tensor) -> Tensor:
    """[B, out] of concat(inputs)."""
    return dense(p, f"{network}.head", trunk(p, network, torch.cat(inputs, 1)))


def gaussian(p: Parameters, state: Tensor, goal: Tensor) -> torch.distributions.Normal:
    """The policy's Gaussian, before the tanh."""
    features = trunk(p, "actor", torch.cat([state, goal], 1))
    log_std = -5 + 3.5 * (torch.tanh(dense(p, "actor.log_std", features)) + 1)
    return torch.distributions.Normal(dense(p, "actor.mean", features), log_std.exp())


def act(
    p: Parameters, state: Tensor, goal: Tensor, noise: Tensor, hair: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """An action [B, A] and its log-density [B] under the tanh of that Gaussian."""
    law = gaussian(p, state, goal)
    x = law.mean + law.stddev * noise
    slope = torch.cosh(x).pow(-2)  # 1 - tanh(x)^2, which would cancel far from 0
    return torch.tanh(x), (law.log_prob(x) - torch.log(slope + hair)).sum(1)
