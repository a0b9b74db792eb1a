"""An algorithm of your own: one class, registered by name; everything else of deepres serves it unchanged.

    python examples/own_algorithm.py
    deepres --import examples.own_algorithm train regress --env point_u_maze --beta 2.0

It imitates: the policy's mean is drawn to the action that led to a goal, the more so the sooner it led there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import deepres
from deepres.algorithms.base import Algorithm, Group, Losses, Pass
from deepres.data.relabel import FutureGoals
from deepres.networks import GaussianPolicy, Networks
from deepres.options import check, option


@dataclass(frozen=True)
class RegressOptions:
    """Regression on one's own past."""

    gamma: float = option(0.98, above=0, below=1)
    """Discount: a goal lies d steps ahead with probability proportional to gamma^d."""
    beta: float = option(1.0, least=0)
    """Weight of the standard deviation's pull towards 1."""
    lr: float = option(1e-3, least=0, resume=True)
    """Adam step size."""

    def __post_init__(self) -> None:
        check(self)


class Regress(Algorithm):
    """Draws the policy's mean to the actions that led to a goal."""

    Options = RegressOptions
    headline = ("error",)  # what the progress bar shows
    passes = (Pass("actor"),)  # what the memory plan counts

    def build(self, networks: Networks) -> dict[str, Group]:
        self.actor = networks.actor(self.sizes.state + self.sizes.goal, self.sizes.action)
        return {"actor": Group(list(self.actor.parameters()), self.options.lr)}

    @property
    def sampler(self) -> FutureGoals:
        return FutureGoals(self.options.gamma)

    def losses(self, batch: deepres.Batch, noise: Tensor) -> Iterator[Losses]:
        mean, log_std = self.actor(torch.cat([batch.state, batch.goal], dim=1))
        error = (torch.tanh(mean) - batch.action).square().mean()
        loss = error + self.options.beta * log_std.square().mean()
        yield {"actor": loss}, {"error": error, "log_std": log_std.mean()}

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor)


deepres.algorithms.register("regress", Regress)


def main(run_dir: str | None = None) -> None:
    config = deepres.Config(
        "regress",
        env="point_u_maze",
        depth=4,
        width=32,
        num_envs=16,
        episode_length=100,
        batch_size=64,
        unroll_length=25,
        gradient_steps=20,
        buffer_steps=500,
        min_buffer_steps=100,
        eval_envs=16,
        total_steps=8_000,
    )
    result = deepres.train(config, run_dir and Path(run_dir))
    print(f"goals reached: {result.before.success_any:.1%} untrained, {result.after.success_any:.1%} trained")


if __name__ == "__main__":
    main(*sys.argv[1:])
