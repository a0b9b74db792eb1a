"""Checkpoints: a folder each, that is either whole or not there.

    RUN/checkpoints/000000123456/state.safetensors       what all processes share: networks, optimisers
                                 rank-0000.safetensors   what process 0 has: RNG, environments, buffer; and so on
                                 state.json              counters, the config, digests of every file

A save writes into a hidden folder beside its place, flushes it to the disk and renames it: a process killed at
any moment leaves the checkpoints that were there. A load checks the digests, so a file that was cut short or
edited is refused in one sentence and nothing of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from deepres.ranks import ALONE, Ranks, overlap

FORMAT = 3
_SHARED, _HEADER = "state.safetensors", "state.json"
T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole training state, or one process's view of it.

    tensors: flat names to CPU tensors, the same in every process. counters: JSON values. config: of the run.
    shards: what a process has of its own, by its rank: to save, the caller's; loaded, those that were asked for.
    sizes: of the task, numbers by name; {} in those of version 0.1. size: number of processes that wrote it.
    """

    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    config: dict[str, Any]
    shards: dict[int, dict[str, Tensor]]
    sizes: dict[str, int] = field(default_factory=dict)
    size: int = 1


def save(folder: Path, checkpoint: Checkpoint, *, keep: int, ranks: Ranks = ALONE) -> Path:
    """Write `checkpoint` under `folder`, named by its env steps; keep it and the `keep` - 1 whole ones before it.
    Returns its folder. Those of more env steps, which the run did not go on from, stay.

    Every process calls it and writes its own shard; rank 0 writes the rest. Raises CheckpointError in all of them
    when a disk refuses; every checkpoint that was there still is.
    """
    name = f"{checkpoint.counters['env_steps']:012d}"
    draft, final, replaced = folder / f".draft-{name}", folder / name, folder / f".replaced-{name}"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_drafts(folder)
        draft.mkdir()

    def write() -> dict[str, str]:
        mine = {_shard(rank): tensors for rank, tensors in checkpoint.shards.items()}
        if ranks.rank == 0:
            mine[_SHARED] = checkpoint.tensors
        return {name: _write_tensors(draft / name, tensors) for name, tensors in mine.items()}

    def finish(files: dict[str, str]) -> None:
        header = {
            "format": FORMAT,
            "counters": checkpoint.counters,
            "config": checkpoint.config,
            "sizes": checkpoint.sizes,
            "size": ranks.size if ranks.size > 1 else checkpoint.size,
            "files": files,
        }
        header["sha256"] = _digest(header)
        _write_through(draft / _HEADER, (json.dumps(header, indent=2) + "\n").encode())
        _sync_folder(draft)
        if final.exists():
            final.rename(replaced)
        draft.rename(final)
        _sync_folder(folder)

    first = ranks.rank == 0
    try:
        _everywhere(ranks, prepare if first else lambda: None)
        files = {name: digest for part in _everywhere(ranks, write) for name, digest in part.items()}
        _everywhere(ranks, (lambda: finish(files)) if first else lambda: None)
    except _Refused as error:
        if first:
            shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"cannot write a checkpoint to {folder}: {error}; nothing there was lost. "
            "Free some space or point the run at another disk"
        ) from error
    if first:
        shutil.rmtree(replaced, ignore_errors=True)
        for old in _older(folder, name)[:-keep]:
            with suppress(OSError):  # renamed first: a process killed here leaves no half of a checkpoint
                shutil.rmtree((folder / old).rename(folder / f".draft-{old}"))
    return final


def load(path: Path, ranks: Ranks = ALONE, *, check_all: bool = True) -> Checkpoint:
    """Read one checkpoint folder, with the shards that hold something of what `ranks` owns.

    check_all: also check the digests of the shards that are not wanted. Raises CheckpointError if anything in it is
    not as it was written.
    """
    header = _read_header(path)
    size = header["size"]
    wanted = [_SHARED, *(_shard(i) for i in overlap(size, ranks.rank, ranks.size))]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, digest in header["files"].items():
        if name in wanted:
            parts[name] = _parse(path / name, digest)
        elif check_all:
            _check(path / name, digest)
    shards = {i: parts[_shard(i)] for i in range(size) if _shard(i) in parts}
    if header["format"] == 1:
        shards = {0: parts[_SHARED]}
    return Checkpoint(
        parts[_SHARED], header["counters"], header["config"], shards, header.get("sizes", {}), size
    )


def load_shared(path: Path, wanted: Callable[[str], bool]) -> Checkpoint:
    """Of one checkpoint folder, the tensors that all processes share and whose name is `wanted`; no shard at all.

    Raises CheckpointError if what is read is not as it was written.
    """
    from safetensors import safe_open

    header = _read_header(path)
    file = path / _SHARED
    _check(file, header["files"][_SHARED])
    with safe_open(file, framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys() if wanted(name)}  # noqa: SIM118
    return Checkpoint(
        found, header["counters"], header["config"], {}, header.get("sizes", {}), header["size"]
    )


def named_leaves(shard: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """`shard` with its environments' leaves by name; formats 1 and 2 numbered them, in the order of `names`."""
    numbered = {f"env/{i}": f"env/{name}" for i, name in enumerate(names)}
    return {numbered.get(name, name): tensor for name, tensor in shard.items()}


def find(folder: Path, ranks: Ranks = ALONE) -> tuple[Path, Checkpoint]:
    """This rank's part of the newest checkpoint that reads, and its folder; rank 0 says which.

    A newer one that does not read is told. Raises CheckpointError if there is none.
    """
    read: list[Checkpoint] = []

    def newest() -> Path:
        path, restored, skipped = load_newest(folder, ranks)
        for sentence in skipped:
            print(f"{sentence} -- going on from {path.name}")
        read.append(restored)
        return path

    path = ranks.first(newest)
    with ranks.together():
        restored = read[0] if read else load(path, ranks, check_all=False)
    return path, restored


def load_newest(folder: Path, ranks: Ranks = ALONE) -> tuple[Path, Checkpoint, list[str]]:
    """The newest checkpoint that reads, its folder, and a sentence for each newer one that did not.

    Raises CheckpointError if there is none.
    """
    return _newest(folder, lambda path: load(path, ranks))


def find_shared(folder: Path, wanted: Callable[[str], bool]) -> Checkpoint:
    """`load_shared` of the newest checkpoint in `folder` that reads; newer ones that do not are told."""
    path, found, skipped = _newest(folder, lambda path: load_shared(path, wanted))
    for sentence in skipped:
        print(f"{sentence} -- going on from {path.name}")
    return found


def _newest(folder: Path, read: Callable[[Path], Checkpoint]) -> tuple[Path, Checkpoint, list[str]]:
    skipped: list[str] = []
    names: list[str] = []
    while names != (names := _readable(folder)):  # once more if a run wrote and pruned meanwhile
        skipped = []
        for name in reversed(names):
            try:
                return folder / name, read(folder / name), skipped
            except CheckpointError as error:
                skipped.append(str(error))
    raise CheckpointError(
        "; ".join(skipped) or f"there is no checkpoint in {folder}; train a run there first"
    )


def steps(folder: Path) -> list[str]:
    """Names of the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def there_is_one(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, readable or not."""
    return bool(_readable(folder))


def _older(folder: Path, name: str) -> list[str]:
    """Checkpoints up to the one called `name`, oldest first: those with damage that shows in their headers before all
    others, as nobody can go on from them."""
    names = [one for one in steps(folder) if one <= name]
    return sorted(names, key=lambda one: _looks_whole(folder / one))


def _looks_whole(path: Path) -> bool:
    try:
        return all((path / file).is_file() for file in _read_header(path)["files"])
    except (CheckpointError, KeyError, OSError):
        return False


def _readable(folder: Path) -> list[str]:
    """`steps`, and what a save that was killed between its two renames had moved aside."""
    aside = {p.name for p in folder.glob(".replaced-*")} if folder.is_dir() else set()
    names = {name: name for name in steps(folder)}
    for name in aside:
        names.setdefault(name.removeprefix(".replaced-"), name)
    return [names[name] for name in sorted(names)]


class _Refused(Exception):
    """A disk would not; the message is the first process's reason."""


def _everywhere(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Every rank's result of its work, in all; _Refused in all if one of them met an OSError."""
    result, reason = None, None
    try:
        result = work()
    except OSError as error:
        reason = error.strerror or str(error)
    outcomes = ranks.gather((result, reason))
    for _, reason in outcomes:
        if reason is not None:
            raise _Refused(reason)
    return [result for result, _ in outcomes]  # type: ignore[misc]


_REMEDY = "delete it to go on from the checkpoint before, or restore it from a copy"


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / _HEADER).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}; {_REMEDY}") from None
    if not isinstance(header, dict) or header.pop("sha256", None) != _digest(header):
        raise CheckpointError(f"{path / _HEADER} was changed after it was written; {_REMEDY}")
    if header["format"] == 1:  # one process, everything in one file
        return {**header, "size": 1, "files": {_SHARED: header["tensors_sha256"]}}
    if header["format"] not in (2, FORMAT):
        raise CheckpointError(
            f"{path} has checkpoint format {header['format']}, this version reads 1 to {FORMAT}; "
            "use the version of deepres that wrote it"
        )
    return header


def _parse(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check(path, digest)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; {_REMEDY}") from None


def _check(path: Path, digest: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path.parent}: {error}; {_REMEDY}") from None
    if found != digest:
        raise CheckpointError(f"{path} was cut short or changed after it was written; {_REMEDY}")


def _shard(rank: int) -> str:
    return f"rank-{rank:04d}.safetensors"


def _remove_drafts(folder: Path) -> None:
    """Clear what a killed save left: drafts are incomplete; a replaced one whose successor never came is put back."""
    for draft in folder.glob(".draft-*"):
        shutil.rmtree(draft)
    for replaced in folder.glob(".replaced-*"):
        successor = folder / replaced.name.removeprefix(".replaced-")
        if successor.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(successor)


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write, from where the tensors stand in memory, flush to the disk, and give the digest."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({k: v.detach().to("cpu", copy=False).contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:
        reason = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
        if not reason:
            raise
        raise OSError(int(reason[2]), reason[1]) from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_through(path: Path, data: bytes) -> None:
    """Write, and flush to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
