"""What methods share that learn values from values (temporal differences): options, sampler, discount, row weights.

A row is a transition (s, a, s') under a goal with its reward (deepres.data.relabel.Hindsight). Its target

    y = r + gamma (1 - terminal) V(s', g)

goes on from the true s', the state before the reset, where a time limit cut the episode: `time_limit="bootstrap"`. The
public baselines of arXiv 2503.14858 (JaxGCRL) do otherwise, and can be had: SAC leaves such rows out of its loss, the
divisor unchanged ("left_out"), TD3 ends there ("terminal").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from deepres.algorithms.soft import SoftActorOptions
from deepres.data.batch import Batch
from deepres.data.relabel import Hindsight
from deepres.options import check, option, refuse_unread


@dataclass(frozen=True)
class TDOptions:
    """What every TD method has."""

    hindsight: float = option(0.0, least=0, most=1, share=True)
    """Share of the rows that are learned for a goal reached later in their trajectory; 0 is none."""
    hindsight_strategy: Literal["future", "final", "published"] = option("future")
    """Which one: a uniformly drawn later step's; the trajectory's last; the last, as the public baselines do."""
    time_limit: Literal["bootstrap", "left_out", "terminal"] = option("bootstrap")
    """A row that the time limit cut goes on in value, is left out (published SAC), or ends there (published TD3)."""
    gamma: float = option(0.99, above=0, below=1)
    """Discount."""
    tau: float = option(0.005, above=0, most=1)
    """Share by which the slow critics follow in a step."""
    actor_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the actor."""
    critic_lr: float = option(3e-4, least=0, resume=True)
    """Adam step size of the critics."""

    def __post_init__(self) -> None:
        check(self)
        if not self.hindsight:
            refuse_unread(self, ("hindsight_strategy",), "hindsight=0")


@dataclass(frozen=True)
class SoftOptions(TDOptions, SoftActorOptions):
    """And those whose policy is a Gaussian with a temperature of its own."""

    entropy_in_target: bool = option(True)
    """Whether the value of the next state counts the entropy that the policy will have from there on."""


def check_reward(reward: str, hindsight: float) -> None:
    """Raise ValueError where the environment's own reward is asked for under goals that it does not speak of."""
    if reward == "dense" and hindsight:
        raise ValueError(
            f"reward=dense is that of the commanded goal and hindsight must then be 0, got {hindsight}; "
            "leave one of them out"
        )


def transitions(options: TDOptions) -> Hindsight:
    """The sampler that `options` ask for."""
    return Hindsight(
        options.hindsight,
        options.hindsight_strategy,
        dense=getattr(options, "reward", "sparse") == "dense",
        truncation=options.time_limit != "bootstrap",
    )


def ended(batch: Batch, options: TDOptions) -> Tensor:
    """[B] float32, 1 where no value follows the row."""
    assert batch.terminal is not None
    if options.time_limit == "terminal":
        return batch.terminal + batch.extra["truncation"]  # a step that ends for good is not cut
    return batch.terminal


def counted(errors: Tensor, batch: Batch, options: TDOptions) -> Tensor:
    """`errors` [..., B] with 0 where the row is left out of the loss."""
    return errors * (1 - batch.extra["truncation"]) if options.time_limit == "left_out" else errors
