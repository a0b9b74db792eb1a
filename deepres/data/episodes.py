"""Recorded episodes as a ring that samplers read: every row of every episode, none ever overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deepres.data.datasets import Dataset
from deepres.data.replay import Reached, Rows

COLUMNS = ("next_states", "terminals", "truncations")
"""What recorded episodes have beside states, actions and trajectories: no commanded goals, no rewards."""


class Episodes:
    """E recorded episodes of L + 1 states and L actions, read as a `ReplayBuffer` is.

    An "environment" is an episode, a step its row number in the file; a pass is endless, its rows are drawn with
    replacement, uniformly over all transitions. `next_states` is the next row, `terminals` is 0 (episodes of these
    data sets do not end at a goal), `truncations` is 1 of the last transition.

    data: of the file. goal_slice, reached, threshold: as of `ReplayBuffer`. Raises ValueError for a column that is not
    there.
    """

    pinned = False
    idle_steps = 1  # an episode's last state: no action was taken there

    def __init__(
        self,
        data: Dataset,
        goal_slice: slice,
        columns: Sequence[str] = (),
        *,
        reached: Reached | None = None,
        threshold: float | None = None,
        device: torch.device | str = "cpu",
    ):
        lacks = [name for name in columns if name not in COLUMNS]
        if lacks:
            raise ValueError(
                f"a data set has no {', '.join(lacks)}: learn for goals that were reached alone (hindsight=1), or with "
                "an algorithm that does"
            )
        self.goal_slice, self.reached, self.threshold = goal_slice, reached, threshold
        self.states = torch.from_numpy(data.observations).to(device)
        self.actions = torch.from_numpy(data.actions).to(device)
        self.rows = data.rows
        """L + 1, rows of an episode."""
        self.num_envs = data.episodes
        self.inserted = self.rows

    @property
    def device(self) -> torch.device:
        return self.states.device

    @property
    def size(self) -> int:
        return self.rows

    def deal(
        self,
        need: int,
        window: int,
        generator: torch.Generator,
        *,
        ends: bool = False,
        margin: int = 0,
        together: int = 1,
    ) -> Iterator[Rows]:
        """`need` rows at once. window: the most that `left` reaches ahead. ends: `left` stops at the last transition,
        not at the last state. margin: the last transitions of an episode that are no rows. together: R > 1 draws so
        many rows of an episode one after another."""
        length = self.rows - 1 - margin
        if length < 1:
            raise ValueError(f"episodes must hold at least {2 + margin} states, got {self.rows}")
        drawn = torch.randint(self.num_envs * length, (need,), generator=generator, device=self.device)
        env, t = drawn // length, drawn % length
        if together > 1:
            env = env[::together].repeat_interleave(together)[:need]
        start = env * self.rows
        left = (self.rows - 1 - int(ends) - t).clamp(max=window - 1)
        yield Rows(env, start + t, left, start, self.rows)

    def anywhere(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] rows of transitions, each alike; an episode's last state is none."""
        length = self.rows - 1
        drawn = torch.randint(self.num_envs * length, (count,), generator=generator, device=self.device)
        return drawn // length * self.rows + drawn % length

    def index(self, rows: Rows, ahead: Tensor | int = 0) -> Tensor:
        return rows.step + ahead

    def ahead(self, index: Tensor, steps: Tensor) -> Tensor:
        return index + steps

    def take(self, name: str, index: Tensor, columns: slice | None = None) -> Tensor:
        if name == "terminals":
            return torch.zeros(len(index), device=self.device)
        if name == "truncations":
            return (index % self.rows == self.rows - 2).float()
        rows = self.actions if name == "actions" else self.states
        rows = rows if columns is None else rows[:, columns]
        return rows.index_select(0, index + 1 if name == "next_states" else index).float()

    def take_chunk(self, index: Tensor, horizon: int, whole: Tensor) -> Tensor:
        at = torch.where(whole[:, None], index[:, None] + torch.arange(horizon, device=self.device), 0)
        return self.take("actions", at.flatten()).view(len(index), -1) * whole[:, None]
