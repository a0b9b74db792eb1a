"""Replay: a ring of every environment's last steps, and pairs drawn from it by index alone.

A pair is (state, action) at time t and, as its goal, the goal coordinates of a state d steps later in the same
trajectory, P(d) proportional to gamma^d, d >= 1, cut off at the end of the trajectory or of the sampled window. The
law has a closed-form inverse, so a draw costs O(1) and no probability matrix is built (arXiv 2503.14858, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.config import Config
from deepres.learner import Batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def buffer_bytes(config: Config, *, state_dim: int, action_dim: int) -> int:
    """Bytes of the ring that `config` asks for, wherever it lies; a checkpoint of a full one holds as many."""
    row = (state_dim + action_dim) * DTYPES[config.buffer_dtype].itemsize + torch.int32.itemsize
    return config.num_envs * config.buffer_steps * row


@dataclass(frozen=True)
class Pairs:
    """Where the pairs of a round lie in the ring, as step * num_envs + environment: now and later, [count, B]."""

    now: Tensor
    later: Tensor


class ReplayBuffer:
    """The last `capacity` steps of each of `num_envs` environments.

    A step is the state [S] before acting, the action [A], and the id of the trajectory it belongs to.

    device: where the ring lies. pinned: on the CPU, to feed a GPU by copies that do not wait (see `uploaded`).
    dtype: of states and actions. bf16 is off by up to 2^-8 of a number and fp16 by 2^-11 (above 6e-5 and below
    65504, past which it is infinite): a goal's x = 30 m comes back up to 12 cm or 1.5 cm off, so far goals in
    bf16 blur at the scale of a success radius. Batches are float32 whatever it is.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        state_dim: int,
        action_dim: int,
        goal_slice: slice,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        pinned: bool = False,
    ):
        self.capacity, self.goal_slice, self.pinned = capacity, goal_slice, pinned
        options: dict[str, Any] = {"device": device, "pin_memory": pinned}
        self.states = torch.zeros(capacity, num_envs, state_dim, dtype=dtype, **options)
        self.actions = torch.zeros(capacity, num_envs, action_dim, dtype=dtype, **options)
        self.traj_ids = torch.zeros(capacity, num_envs, dtype=torch.int32, **options)
        self.inserted = 0
        """Steps of each environment ever inserted; the ring holds the last `size` of them."""

    @property
    def num_envs(self) -> int:
        return self.states.shape[1]

    @property
    def device(self) -> torch.device:
        return self.states.device

    @property
    def size(self) -> int:
        """Steps of each environment held now."""
        return min(self.inserted, self.capacity)

    def insert(self, states: Tensor, actions: Tensor, traj_ids: Tensor) -> None:
        """Append T steps of every environment: states [T, N, S], actions [T, N, A], traj_ids [T, N], T <= capacity."""
        steps = states.shape[0]
        if steps > self.capacity:
            raise ValueError(f"at most {self.capacity} steps fit the ring at once, got {steps}; insert fewer")
        first = self.inserted % self.capacity
        before_end = min(steps, self.capacity - first)
        for ring, new in ((self.states, states), (self.actions, actions), (self.traj_ids, traj_ids)):
            ring[first : first + before_end].copy_(new[:before_end])
            ring[: steps - before_end].copy_(new[before_end:])
        self.inserted += steps

    def batches(
        self, count: int, batch_size: int, *, window: int, gamma: float, generator: torch.Generator
    ) -> Iterator[Batch]:
        """`count` batches for one round of gradient steps, in float32 on the ring's device; see `draw`."""
        pairs = self.draw(count, batch_size, window=window, gamma=gamma, generator=generator)
        return (self.batch(pairs, i) for i in range(count))

    def draw(
        self, count: int, batch_size: int, *, window: int, gamma: float, generator: torch.Generator
    ) -> Pairs:
        """The pairs of `count` batches.

        A pass draws one window of `window` consecutive steps in each environment (all that is held, when that is
        less) and deals its N * (window - 1) transitions without replacement; a pass that runs out is followed by
        another with windows of its own. A generator on another device than the ring's seeds one there. Raises
        ValueError before two steps of each environment are held.
        """
        if self.size < 2:
            raise ValueError(f"the buffer must hold at least 2 steps of each environment, got {self.size}")
        if generator.device.type != self.device.type:
            seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
            generator = torch.Generator(self.device).manual_seed(int(seed))
        parts: list[tuple[Tensor, Tensor]] = []
        need = count * batch_size
        while need:
            windows = self._draw_windows(window, generator)
            dealt = torch.randperm(windows.transitions, generator=generator, device=self.device)[:need]
            parts.append(self._pairs(windows, dealt, gamma, generator))
            need -= len(dealt)
        now, later = (torch.cat(each).view(count, batch_size) for each in zip(*parts, strict=True))
        return Pairs(now, later)

    def batch(self, pairs: Pairs, index: int) -> Batch:
        """Batch `index` of `pairs`; as long as nothing was inserted since they were drawn."""
        now, later = pairs.now[index], pairs.later[index]
        states, actions = self.states.flatten(0, 1), self.actions.flatten(0, 1)
        return Batch(
            self._take(states, now), self._take(actions, now), self._take(states[:, self.goal_slice], later)
        )

    def _take(self, rows: Tensor, index: Tensor) -> Tensor:
        """rows[index] in float32; pinned where the ring is."""
        taken = rows.index_select(0, index).float()
        return taken.pin_memory() if self.pinned else taken

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

    def _pairs(
        self, windows: _Windows, items: Tensor, gamma: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        env, t = items // (windows.length - 1), items % (windows.length - 1)
        uniform = torch.rand(len(items), dtype=torch.float64, generator=generator, device=self.device)
        ahead = truncated_geometric(uniform, windows.last[env, t] - t, gamma)
        first = windows.start[env] + t
        now, later = (step % self.capacity * self.num_envs + env for step in (first, first + ahead))
        return now, later

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


def uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, the next one already on its way there while the last one is in use.

    From pinned memory to a GPU the copies run on a stream of their own; elsewhere this only looks one batch ahead.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    coming: tuple[Batch, torch.cuda.Event | None] | None = None
    for batch in batches:
        ready, coming = coming, _sent(batch, device, stream)
        if ready is not None:
            yield _arrived(*ready)
    if coming is not None:
        yield _arrived(*coming)


def _sent(
    batch: Batch, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[Batch, torch.cuda.Event | None]:
    with torch.cuda.stream(stream):  # None: where we are
        sent = Batch(*(t.to(device, non_blocking=True) for t in (batch.state, batch.action, batch.goal)))
    return sent, None if stream is None else stream.record_event()


def _arrived(batch: Batch, event: torch.cuda.Event | None) -> Batch:
    if event is not None:
        user = torch.cuda.current_stream(batch.state.device)
        user.wait_event(event)
        for t in (batch.state, batch.action, batch.goal):
            t.record_stream(user)
    return batch
