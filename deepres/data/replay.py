"""Replay: a ring of every environment's last steps, read by index alone.

What a batch is made of, and which goals its rows get, is the sampler's business (relabel.py). The ring deals its rows:
a pass draws one window of consecutive steps in each environment and gives every row of them once, without
replacement, with the number of later steps of its trajectory in the window (arXiv 2503.14858, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.data.batch import COLUMNS, Sizes, Unroll

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Reached = Callable[[Tensor, Tensor], Tensor]


def row_bytes(sizes: Sizes, columns: Sequence[str], dtype: torch.dtype) -> int:
    """Bytes that a step of one environment takes in a ring."""
    total = (sizes.state + sizes.action) * dtype.itemsize + torch.int32.itemsize
    for name in columns:
        column = COLUMNS[name]
        total += max(1, column.size(sizes)) * (column.dtype or dtype).itemsize
    return total


@dataclass(frozen=True)
class Rows:
    """Rows dealt from a pass, [n] each: environment, absolute step, later steps of its trajectory in the window, and
    the absolute step at which that begins; length: the windows' steps."""

    env: Tensor
    step: Tensor
    left: Tensor
    start: Tensor
    length: int


class ReplayBuffer:
    """The last `capacity` steps of each of `num_envs` environments.

    A step is the state [S] before acting, the action [A], the id of the trajectory it belongs to, and `columns` (names
    of COLUMNS) that a sampler asked for.

    goal_slice: of a state, what a goal speaks of. reached: (states [n, S], goals [n, G]) -> bool [n], the task's own
    verdict; threshold: the distance to a goal that counts as reached, for samplers that measure it. device: where the
    ring lies. pinned: on the CPU, to feed a GPU by copies that do not wait (see upload.py). dtype: of states, actions
    and goals. bf16 is off by up to 2^-8 of a number and fp16 by 2^-11 (above 6e-5 and below 65504, past which it is
    infinite): a goal's x = 30 m comes back up to 12 cm or 1.5 cm off, so far goals in bf16 blur at the scale of a
    success radius. Batches are float32 whatever it is.
    """

    idle_steps = 0
    """Steps at the end of a window in which no action was taken; see `Episodes`."""

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        sizes: Sizes,
        goal_slice: slice,
        columns: Sequence[str] = (),
        *,
        reached: Reached | None = None,
        threshold: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pinned: bool = False,
    ):
        self.capacity, self.goal_slice, self.pinned = capacity, goal_slice, pinned
        self.reached, self.threshold = reached, threshold
        options: dict[str, Any] = {"device": device, "pin_memory": pinned}

        def ring(size: int, dtype: torch.dtype) -> Tensor:
            shape = (capacity, num_envs, size) if size else (capacity, num_envs)
            return torch.zeros(shape, dtype=dtype, **options)

        self.rings = {
            "states": ring(sizes.state, dtype),
            "actions": ring(sizes.action, dtype),
            "traj_ids": ring(0, torch.int32),
            **{name: ring(COLUMNS[name].size(sizes), COLUMNS[name].dtype or dtype) for name in columns},
        }
        """Every column, [capacity, N, ...]."""
        self.inserted = 0
        """Steps of each environment ever inserted; the ring holds the last `size` of them."""

    @property
    def num_envs(self) -> int:
        return self.rings["traj_ids"].shape[1]

    @property
    def device(self) -> torch.device:
        return self.rings["traj_ids"].device

    @property
    def size(self) -> int:
        """Steps of each environment held now."""
        return min(self.inserted, self.capacity)

    def insert(self, unroll: Unroll) -> None:
        """Append the T <= capacity steps of every environment that `unroll` holds."""
        steps = unroll.states.shape[0]
        if steps > self.capacity:
            raise ValueError(f"at most {self.capacity} steps fit the ring at once, got {steps}; insert fewer")
        first = self.inserted % self.capacity
        before_end = min(steps, self.capacity - first)
        for name, ring in self.rings.items():
            new = unroll.columns[name] if name in COLUMNS else getattr(unroll, name)
            ring[first : first + before_end].copy_(new[:before_end])
            ring[: steps - before_end].copy_(new[before_end:])
        self.inserted += steps

    # --- reading ---

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
        """Rows, `need` in all, a pass at a time.

        A pass draws one window of `window` consecutive steps in each environment (all that is held, when that is
        less) and deals its N * (window - 1) transitions without replacement, with ends=True the windows' last steps
        too, without the last `margin` of those; a pass that runs out is followed by another with windows of its own.
        together: R > 1 deals R rows of one window one after another, as long as a whole R of them is left.
        Raises ValueError before two steps of each environment are held, and `margin` more.
        """
        if min(window, self.size) < 2 + margin:
            raise ValueError(
                f"the buffer and its windows must hold at least {2 + margin} steps of each environment, got "
                f"{min(window, self.size)}"
            )
        while need:
            start, last = self._draw_windows(window, generator)
            count, length = last.shape
            length -= margin + (not ends)
            if together > 1:
                dealt = self._in_groups(count, length, together, generator)[:need]
            else:
                dealt = torch.randperm(count * length, generator=generator, device=self.device)[:need]
            env, t = dealt // length, dealt % length
            yield Rows(env, start[env] + t, last[env, t] - t, start[env], last.shape[1])
            need -= len(dealt)

    def _in_groups(self, count: int, length: int, size: int, generator: torch.Generator) -> Tensor:
        """Of count windows of `length` rows, numbered through, groups of `size` from one window, in random order."""
        size = min(size, length)
        order = torch.rand(count, length, generator=generator, device=self.device).argsort(dim=1)
        order += torch.arange(count, device=self.device)[:, None] * length
        groups = order[:, : length // size * size].reshape(-1, size)
        return groups[torch.randperm(len(groups), generator=generator, device=self.device)].flatten()

    def anywhere(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] where steps lie that are drawn from all that are held, each alike, for `take`."""
        return torch.randint(self.size * self.num_envs, (count,), generator=generator, device=self.device)

    def index(self, rows: Rows, ahead: Tensor | int = 0) -> Tensor:
        """Where the steps `ahead` of `rows` lie: step * num_envs + environment, for `take`."""
        return (rows.step + ahead) % self.capacity * self.num_envs + rows.env

    def newest(self, steps: int) -> Tensor:
        """[steps, N] where the newest steps lie, the oldest first, for `take`. Raises ValueError if fewer are held."""
        if steps > self.size:
            raise ValueError(
                f"the buffer must hold {steps} steps of each environment, got {self.size}; insert more"
            )
        step = torch.arange(self.inserted - steps, self.inserted, device=self.device) % self.capacity
        return step[:, None] * self.num_envs + torch.arange(self.num_envs, device=self.device)

    def ahead(self, index: Tensor, steps: Tensor) -> Tensor:
        """`index`, as many `steps` of the same environments later."""
        return (index + steps * self.num_envs) % (self.capacity * self.num_envs)

    def take(self, name: str, index: Tensor, columns: slice | None = None) -> Tensor:
        """rings[name] at `index`, in float32. columns: a part of the vectors."""
        rows = self.rings[name].flatten(0, 1)
        return (rows if columns is None else rows[:, columns]).index_select(0, index).float()

    def take_chunk(self, index: Tensor, horizon: int, whole: Tensor) -> Tensor:
        """[n, horizon * A] float32: the actions of the step at `index` [n] and of those after it, 0 where not `whole`
        [n] bool (where they leave the row's trajectory or window)."""
        at = self.ahead(index[:, None], torch.arange(horizon, device=self.device))
        return self.take("actions", at.flatten()).view(len(index), -1) * whole[:, None]

    def _draw_windows(self, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[N] the absolute step at which each environment's window begins, and [N, window] the position in the window
        of the last step of the same trajectory."""
        length = min(window, self.size)
        first = self.inserted - self.size
        start = first + torch.randint(
            self.size - length + 1, (self.num_envs,), generator=generator, device=self.device
        )
        at = (start[:, None] + torch.arange(length, device=self.device)) % self.capacity  # [N, window]
        ids = self.rings["traj_ids"][at, torch.arange(self.num_envs, device=self.device)[:, None]]
        # ids only grow along a window, so a trajectory's last step is where its id would next be inserted
        return start, torch.searchsorted(ids, ids, right=True) - 1

    # --- saving ---

    def state_tensors(self) -> dict[str, Tensor]:
        """The steps held, for a checkpoint (the unused end of a ring that never filled is left out)."""
        return {name: ring[: self.size] for name, ring in self.rings.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor], inserted: int) -> None:
        """Restore what `state_tensors` gave; ValueError, nothing changed, if it does not fit."""
        size = min(inserted, self.capacity)
        for name, ring in self.rings.items():
            saved, wanted = tensors.get(name), (size, *ring.shape[1:])
            if saved is None or saved.shape != wanted:
                came = "nothing" if saved is None else str(list(saved.shape))
                raise ValueError(
                    f"the checkpoint does not fit this buffer: {name} must have shape {list(wanted)}, got {came}; "
                    "resume with the environment and the buffer size that the run was started with"
                )
        for name, ring in self.rings.items():
            ring[:size] = tensors[name]
        self.inserted = inserted
