"""Replay: a ring of every environment's last steps, and pairs drawn from it by index alone.

A pair is (state, action) at time t and, as its goal, the goal coordinates of a state d steps later in the same
trajectory, P(d) proportional to gamma^d, d >= 1, cut off at the end of the trajectory or of the sampled window. The
law has a closed-form inverse, so a draw costs O(1) and no probability matrix is built (arXiv 2503.14858, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.learner import Batch


def truncated_geometric(uniform: Tensor, longest: Tensor, gamma: float) -> Tensor:
    """d in 1..longest with P(d) proportional to gamma^d, by inverting its distribution function.

        P(d <= k) = (1 - gamma^k) / (1 - gamma^longest)
        d = ceil(log(1 - uniform * (1 - gamma^longest)) / log(gamma))

    uniform: float64 in [0, 1). longest: whole numbers >= 0 of the same shape; 0 gives d = 0 (no later step).
    """
    log_gamma = math.log(gamma)
    within = -torch.expm1(longest * log_gamma)
    d = torch.ceil(torch.log1p(-uniform * within) / log_gamma)
    return torch.minimum(d.clamp_min(1).long(), longest)


class ReplayBuffer:
    """The last `capacity` steps of each of `num_envs` environments, on one device, in fp32.

    A step is the state [S] before acting, the action [A], and the id of the trajectory it belongs to.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        state_dim: int,
        action_dim: int,
        goal_slice: slice,
        device: torch.device | str = "cpu",
    ):
        self.capacity, self.goal_slice = capacity, goal_slice
        self.states = torch.zeros(capacity, num_envs, state_dim, device=device)
        self.actions = torch.zeros(capacity, num_envs, action_dim, device=device)
        self.traj_ids = torch.zeros(capacity, num_envs, dtype=torch.int32, device=device)
        self.inserted = 0
        """Steps of each environment ever inserted; the ring holds the last `size` of them."""

    @property
    def num_envs(self) -> int:
        return self.states.shape[1]

    @property
    def size(self) -> int:
        """Steps of each environment held now."""
        return min(self.inserted, self.capacity)

    def insert(self, states: Tensor, actions: Tensor, traj_ids: Tensor) -> None:
        """Append T steps of every environment: states [T, N, S], actions [T, N, A], traj_ids [T, N], T <= capacity."""
        steps = states.shape[0]
        if steps > self.capacity:
            raise ValueError(f"at most {self.capacity} steps fit the ring at once, got {steps}; insert fewer")
        at = (torch.arange(steps, device=states.device) + self.inserted) % self.capacity
        self.states[at], self.actions[at], self.traj_ids[at] = states, actions, traj_ids
        self.inserted += steps

    def batches(
        self, count: int, batch_size: int, *, window: int, gamma: float, generator: torch.Generator
    ) -> Iterator[Batch]:
        """`count` batches for one round of gradient steps.

        A pass draws one window of `window` consecutive steps in each environment (all that is held, when that is
        less) and deals its N * (window - 1) transitions without replacement; a pass that runs out is followed by
        another with windows of its own. Raises ValueError before two steps of each environment are held.
        """
        if self.size < 2:
            raise ValueError(f"the buffer must hold at least 2 steps of each environment, got {self.size}")
        windows = self._draw_windows(window, generator)
        order = self._deal(windows, generator)
        for _ in range(count):
            parts: list[Batch] = []
            need = batch_size
            while need:
                if not len(order):
                    windows = self._draw_windows(window, generator)
                    order = self._deal(windows, generator)
                items, order = order[:need], order[need:]
                need -= len(items)
                parts.append(self._pairs(windows, items, gamma, generator))
            yield parts[0] if len(parts) == 1 else _concatenate(parts)

    def _deal(self, windows: _Windows, generator: torch.Generator) -> Tensor:
        """The pass's transitions in the order in which they are dealt."""
        return torch.randperm(windows.transitions, generator=generator, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.states.device

    def _draw_windows(self, window: int, generator: torch.Generator) -> _Windows:
        length = min(window, self.size)
        first = self.inserted - self.size
        start = first + torch.randint(
            self.size - length + 1, (self.num_envs,), generator=generator, device=self.device
        )
        at = (start[:, None] + torch.arange(length, device=self.device)) % self.capacity  # [N, window]
        ids = self.traj_ids[at, torch.arange(self.num_envs, device=self.device)[:, None]]
        # ids only grow along a window, so a trajectory's last step is where its id would next be inserted
        last = torch.searchsorted(ids, ids, right=True) - 1
        return _Windows(start, last)

    def _pairs(self, windows: _Windows, items: Tensor, gamma: float, generator: torch.Generator) -> Batch:
        env, t = items // (windows.length - 1), items % (windows.length - 1)
        uniform = torch.rand(len(items), dtype=torch.float64, generator=generator, device=self.device)
        ahead = truncated_geometric(uniform, windows.last[env, t] - t, gamma)
        now = (windows.start[env] + t) % self.capacity
        later = (windows.start[env] + t + ahead) % self.capacity
        return Batch(
            self.states[now, env], self.actions[now, env], self.states[later, env][:, self.goal_slice]
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """The steps held, for a checkpoint (the unused end of a ring that never filled is left out)."""
        held = slice(0, self.size)
        return {
            "states": self.states[held],
            "actions": self.actions[held],
            "traj_ids": self.traj_ids[held],
        }

    def load_state_tensors(self, tensors: dict[str, Tensor], inserted: int) -> None:
        """Restore what `state_tensors` gave; ValueError, nothing changed, if it does not fit."""
        size = min(inserted, self.capacity)
        for name, held in (
            ("states", self.states),
            ("actions", self.actions),
            ("traj_ids", self.traj_ids),
        ):
            saved, wanted = tensors.get(name), (size, *held.shape[1:])
            if saved is None or saved.shape != wanted:
                came = "nothing" if saved is None else str(list(saved.shape))
                raise ValueError(
                    f"the checkpoint does not fit this buffer: {name} must have shape {list(wanted)}, got {came}; "
                    "resume with the environment and the buffer size that the run was started with"
                )
        self.states[:size] = tensors["states"]
        self.actions[:size] = tensors["actions"]
        self.traj_ids[:size] = tensors["traj_ids"]
        self.inserted = inserted


@dataclass(frozen=True)
class _Windows:
    start: Tensor  # [N] absolute step at which each environment's window begins
    last: Tensor  # [N, window] position in the window of the last step of the same trajectory

    @property
    def length(self) -> int:
        return self.last.shape[1]

    @property
    def transitions(self) -> int:
        """Steps that can be paired: the window's last one has nothing after it."""
        return self.last.shape[0] * (self.length - 1)


def _concatenate(parts: list[Batch]) -> Batch:
    return Batch(
        torch.cat([p.state for p in parts]),
        torch.cat([p.action for p in parts]),
        torch.cat([p.goal for p in parts]),
    )
