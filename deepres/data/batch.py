"""The nouns that flow: what a task's vectors measure, what was collected, and what a gradient step is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepres.data.chunks import Chunk

_EXTRA = "extra/"


@dataclass(frozen=True)
class Sizes:
    """A task's vectors, in numbers, and the bytes of one environment's state."""

    state: int
    action: int
    goal: int
    env_bytes: int = 0


@dataclass(frozen=True)
class Batch:
    """B rows: state [B, S] and action [B, A] at a time t, goal [B, G]; and what else the sampler was asked for.

    goal: the one that the row is learned for, e.g. a state reached later. next_state: [B, S] what the action led to,
    an episode's true last state where it ended. reward: [B] for coming there, under `goal`. terminal: [B] float32, 1
    where the episode ended there for good; a time limit is none. extra: [B, ...] whatever else the sampler gives, by
    the names that it documents.
    """

    state: Tensor
    action: Tensor
    goal: Tensor
    next_state: Tensor | None = None
    reward: Tensor | None = None
    terminal: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Batch:
        """The batch whose `tensors()` these are."""
        extra = {name[len(_EXTRA) :]: t for name, t in tensors.items() if name.startswith(_EXTRA)}
        return cls(**{name: t for name, t in tensors.items() if not name.startswith(_EXTRA)}, extra=extra)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field; one of `extra` as "extra/" and its name."""
        named = ((one.name, getattr(self, one.name)) for one in fields(self) if one.name != "extra")
        extra = {_EXTRA + name: value for name, value in self.extra.items()}
        return {name: value for name, value in named if value is not None} | extra

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """This batch with `function` of each tensor."""
        return Batch.of({name: function(value) for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Column:
    """What a ring keeps of each step beside the state, the action and the trajectory.

    size: numbers to a step, for a task of `Sizes`; 0 is one number, without an axis of its own. dtype: None is the
    ring's own, which may have 16 bits.
    """

    size: Callable[[Sizes], int]
    dtype: torch.dtype | None = None


COLUMNS: dict[str, Column] = {
    "goals": Column(lambda sizes: sizes.goal),
    "next_states": Column(lambda sizes: sizes.state),
    "rewards": Column(lambda sizes: 0, torch.float32),
    "successes": Column(lambda sizes: 0, torch.bool),
    "terminals": Column(lambda sizes: 0, torch.bool),
    "truncations": Column(lambda sizes: 0, torch.bool),
}
"""The columns that a sampler may ask for: the commanded goal; the state that the step led to, of an episode's last
step the one before the reset; the environment's reward; whether the goal was reached there; whether the episode ended
for good; whether its time limit cut it. A size of 0 is one number, without an axis of its own."""


@dataclass(frozen=True)
class Unroll:
    """T steps of N environments: states [T, N, S] before acting, actions [T, N, A], traj_ids [T, N].

    columns: [T, N, ...] what else was asked for, by the names of COLUMNS.
    """

    states: Tensor
    actions: Tensor
    traj_ids: Tensor
    columns: dict[str, Tensor]
    success: float
    """Share of the steps that ended within the task's threshold of their goal."""
    chunk: Chunk | None = None
    """What the environments had planned at its end; None where the policy plans one action at a time."""
