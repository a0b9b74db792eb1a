"""Several processes train one agent: what each of them owns, and what they tell each other.

    torchrun --nproc-per-node 2 -m deepres train crl --env ant

Every process (a rank) steps its own share of the environments, holds their buffer and learns from its share of the
batch; gradients are averaged, so parameters stay the same everywhere. Rank 0 evaluates, logs and saves. CPU tensors
travel by gloo, CUDA ones by NCCL.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deepres.config import Config
from deepres.machine import cores

T = TypeVar("T")

_SEPARATE = 1 << 18  # elements from which a gradient travels alone, not copied together with the small ones


class LostRank(RuntimeError):
    """Another process of the run ended, or stopped answering."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; on its own (`ALONE`) every method is the identity.

    rank: 0 to size - 1, over all machines. local_rank, local_size: the same on this machine.
    Each method except `share`, `seed`, `place` and `threads` is called by all ranks in the same order; it raises
    LostRank when one of them does not answer.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    # --- what a rank owns ---

    def share(self, config: Config) -> Config:
        """The config of this rank's share: num_envs and batch_size are split evenly, or ValueError."""
        values = {"num_envs": config.env.num_envs, "batch_size": config.schedule.batch_size}
        for name, value in values.items():
            least = self.size * (2 if name == "batch_size" and self.size > 1 else 1)
            if value % self.size or value < least:
                nearest = max(least, value - value % self.size)
                raise ValueError(
                    f"{name} is split evenly over the processes and must be a multiple of {self.size}, at least "
                    f"{least}, got {value}; use {nearest} or another number of processes"
                )
        return config.replace(**{name: value // self.size for name, value in values.items()})

    def seed(self, seed: int, *purpose: object) -> int:
        """A seed of this rank's own, derived from the run's; rank 0 without a purpose has the run's itself."""
        if self.rank == 0 and not purpose:
            return seed
        words = "/".join(map(str, (seed, self.rank, *purpose)))
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") >> 1

    def place(self, device: torch.device) -> torch.device:
        """`device`, or for CUDA without an index this rank's own."""
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None and self.local_size > 1:
            raise ValueError(f"several processes cannot share {device}; pass device=cuda, each takes its own")
        if self.local_size > torch.cuda.device_count():
            raise ValueError(
                f"{self.local_size} processes need as many CUDA devices, PyTorch sees {torch.cuda.device_count()}; "
                "start fewer processes, or pass device=cpu"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def threads(self, wanted: int) -> int:
        """CPU threads of this rank: as wanted; if that is 0, its share of the cores; 0 (no change) when alone."""
        if wanted or self.size == 1:
            return wanted
        return max(1, cores() // self.local_size)

    # --- what a gradient step exchanges ---

    @torch.no_grad()
    def average(self, gradients: list[Tensor]) -> None:
        """Replace every gradient by its mean over the ranks, the same bits everywhere.

        Large ones (a stack's) are reduced where they lie, at once; the small ones together in one flat tensor.
        """
        if self.size == 1:
            return
        small = [g for g in gradients if g.numel() < _SEPARATE]
        flat = torch.cat([g.reshape(-1) for g in small]) if small else None
        large = [g for g in gradients if g.numel() >= _SEPARATE]
        with _answered():
            under_way = [dist.all_reduce(t, async_op=True) for t in (*large, flat) if t is not None]
            for work in under_way:
                work.wait()
        if flat is not None:
            parts = flat.split([g.numel() for g in small])
            torch._foreach_copy_(small, [part.view_as(g) for part, g in zip(parts, small, strict=True)])
        torch._foreach_div_(gradients, self.size)

    def gather_rows(self, x: Tensor) -> Tensor:
        """x [B, ...] of each rank -> [size * B, ...], in the order of the ranks; its gradient is summed over them."""
        return x if self.size == 1 else _Gather.apply(x, self)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the ranks."""
        if self.size == 1:
            return values
        stacked = torch.tensor(list(values.values()), dtype=torch.float64)
        with _answered():
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))

    # --- what a run agrees on ---

    def gather(self, value: T) -> list[T]:
        """Every rank's value (anything that pickles), in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some rank."""
        return any(self.gather(flag))

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, for all; an exception there ends all (see `together`)."""
        result: list[Any] = [None]
        with self.together():
            if self.rank == 0:
                result[0] = make()
        if self.size > 1:
            with _answered():
                dist.broadcast_object_list(result, src=0)
        return result[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in one rank fails in all: rank 0 raises the first exception, the others end with status 1.

        The body must not exchange anything.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.size == 1 or isinstance(raised, LostRank):
                raise
            error = raised
        errors = [e for e in self.gather(error and _portable(error)) if e]
        if errors:
            raise self.agreed(error or errors[0])

    def agreed(self, error: Exception) -> BaseException:
        """What to raise for an error that every rank has alike: it is told once, by rank 0."""
        return error if self.rank == 0 else SystemExit(1)


ALONE = Ranks()


@contextmanager
def join(config: Config) -> Iterator[Ranks]:
    """This process's place in its run: under torchrun a process group, `ALONE` without.

    A process group that the caller made is used, and left as it is. Being asked to end (SIGTERM: torchrun does that
    when another process died) raises LostRank in one sentence.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not dist.is_available() or not (dist.is_initialized() or all(name in os.environ for name in names)):
        yield ALONE
        return
    ours = not dist.is_initialized()
    cuda = config.system.device != "cpu" and torch.cuda.is_available()
    if ours:
        if int(os.environ["WORLD_SIZE"]) == 1:
            yield ALONE
            return
        with _answered():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                timeout=timedelta(seconds=config.system.rank_timeout),
            )
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(
        rank,
        size,
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", size)),
    )
    # physics takes this rank's share of the cores too: XLA (no fewer than envs/xla.py asks for) and the C engine
    os.environ.setdefault("NPROC", str(max(8, ranks.threads(0))))
    os.environ.setdefault("DEEPRES_ENV_THREADS", str(ranks.threads(0)))
    with _ends_when_asked():
        try:
            yield ranks
        except BaseException:
            if ours and not cuda:  # gloo lets go of ranks that are gone, NCCL would wait for them
                dist.destroy_process_group()
            raise
        if ours:
            dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that tells its user things; before and after a run as well."""
    return os.environ.get("RANK", "0") == "0"


class _Gather(torch.autograd.Function):
    """x [B, d] of each rank -> [size * B, d]; backward sums what all ranks have for this one's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.rows = slice(ranks.rank * len(x), (ranks.rank + 1) * len(x))
        parts = [torch.empty_like(x) for _ in range(ranks.size)]
        with _answered():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        with _answered():
            dist.all_reduce(total)
        return total[ctx.rows], None


def deal(held: dict[int, Tensor], saved: int, rank: int, size: int, dim: int) -> Tensor:
    """The part of rank `rank` of `size`, out of a tensor whose dimension `dim` `saved` ranks had split evenly.

    held: the parts of those ranks of the `saved` that `overlap` names. Raises ValueError if it does not split.
    """
    part = next(iter(held.values())).shape[dim]
    total = part * saved
    if total % size:
        raise ValueError(
            f"{total} environments cannot be split evenly over {size} processes; resume with a number of processes "
            f"that divides {total}"
        )
    first = min(held)
    joined = torch.cat([held[i] for i in sorted(held)], dim=dim)
    return joined.narrow(dim, rank * total // size - first * part, total // size)


def overlap(saved: int, rank: int, size: int) -> range:
    """Which of `saved` ranks held something of what rank `rank` of `size` owns now."""
    return range(rank * saved // size, -(-(rank + 1) * saved // size))


@contextmanager
def _answered() -> Iterator[None]:
    """What PyTorch says when a rank is gone, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LostRank):
            raise
        reason = re.sub(r"^\[[^\]]*\] *", "", str(error)).split("\n")[0].split(". ")[0]
        raise LostRank(
            f"another process of the run ended or stopped answering ({reason}); {_REMEDY}"
        ) from error


@contextmanager
def _ends_when_asked() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: this process is on its way out
        raise LostRank(
            f"asked to end (SIGTERM), as torchrun does when another process of the run died; {_REMEDY}"
        )

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the sentence is being told
        raise
    signal.signal(signal.SIGTERM, before)


def _portable(error: Exception) -> Exception:
    """`error` as another process can read it."""
    known = type(error).__module__ == "builtins" or type(error).__module__.startswith("deepres")
    return error if known else RuntimeError(f"{type(error).__name__}: {error}")


_REMEDY = "the newest checkpoint is whole: start the run again with --resume"
