"""Policies of any size, made at once: what was never trained acts as well as what was."""

from __future__ import annotations

import copy
from typing import Any

import torch

from deepres import Config, Policy, Sizes
from deepres.deploy.plain import PlainNetwork
from deepres.training.learner import build_algorithm
from helpers.tiny_runs import SIZES

TASK = Sizes(state=4, action=2, goal=2, env_bytes=100)
"""Of point_u_maze."""


def untrained(algorithm: str = "crl", sizes: Sizes = TASK, **options: Any) -> Policy:
    """A policy whose every parameter is drawn, the ones that start at 0 and 1 too."""
    config = Config(algorithm, **SIZES).replace(**options)
    torch.manual_seed(0)
    network = build_algorithm(config, sizes).policy()
    with torch.no_grad():
        for p in network.actor.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return Policy(network, config, sizes, env_steps=120)


def observations(policy: Policy, count: int) -> torch.Tensor:
    """[count, S + G], and the steps left where the policy is clocked."""
    obs = 2 * torch.randn(count, policy.sizes.state + policy.sizes.goal)
    if policy.network.clocked:
        obs = torch.cat([obs, torch.randint(0, 25, (count, 1)).float()], dim=1)
    return obs


def doubled(network: PlainNetwork) -> PlainNetwork:
    """The same in float64: the truth."""
    double = copy.copy(network)
    for name, value in vars(network).items():
        if isinstance(value, torch.Tensor):
            setattr(double, name, value.double())
    return double
