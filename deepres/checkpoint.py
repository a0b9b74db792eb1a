"""Checkpoints: a folder each, `state.safetensors` and `state.json`, that is either whole or not there.

    RUN/checkpoints/000000123456/state.safetensors   every tensor: networks, optimisers, RNG, environments, buffer
                                 state.json          counters, the config, digests of both files

A save writes into a hidden folder beside its place, flushes it to the disk and renames it: a process killed at
any moment leaves the checkpoints that were there. A load checks the digests, so a file that was cut short or
edited is refused in one sentence and nothing of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = 1
_TENSORS, _HEADER = "state.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole training state. tensors: flat names to CPU tensors. counters: JSON values. config: of the run."""

    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    config: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `checkpoint` under `folder`, named by its env steps; keep the newest `keep`. Returns its folder.

    Raises CheckpointError when the disk refuses; every checkpoint that was there still is.
    """
    name = f"{checkpoint.counters['env_steps']:012d}"
    draft, final, replaced = folder / f".draft-{name}", folder / name, folder / f".replaced-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_drafts(folder)
        draft.mkdir()
        data = _serialise(checkpoint.tensors)
        _write_through(draft / _TENSORS, data)
        header = {
            "format": FORMAT,
            "counters": checkpoint.counters,
            "config": checkpoint.config,
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
        }
        header["sha256"] = _digest(header)
        _write_through(draft / _HEADER, (json.dumps(header, indent=2) + "\n").encode())
        _sync_folder(draft)
        if final.exists():
            final.rename(replaced)
        draft.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"cannot write a checkpoint to {folder}: {error.strerror or error}; nothing there was lost. "
            "Free some space or point the run at another disk"
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / old, ignore_errors=True)
    return final


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder. Raises CheckpointError if anything in it is not as it was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        header = json.loads((path / _HEADER).read_text())
        data = (path / _TENSORS).read_bytes()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}; {_REMEDY}") from None
    if not isinstance(header, dict) or header.pop("sha256", None) != _digest(header):
        raise CheckpointError(f"{path / _HEADER} was changed after it was written; {_REMEDY}")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header['format']}, this version reads {FORMAT}; "
            "use the version of deepres that wrote it"
        )
    if hashlib.sha256(data).hexdigest() != header["tensors_sha256"]:
        raise CheckpointError(f"{path / _TENSORS} was cut short or changed after it was written; {_REMEDY}")
    try:
        tensors = parse(data)
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path / _TENSORS}: {error}; {_REMEDY}") from None
    return Checkpoint(tensors, header["counters"], header["config"])


def load_newest(folder: Path) -> tuple[Path, Checkpoint, list[str]]:
    """The newest checkpoint that reads, its folder, and a sentence for each newer one that did not.

    Raises CheckpointError if there is none.
    """
    skipped: list[str] = []
    for name in reversed(steps(folder)):
        try:
            return folder / name, load(folder / name), skipped
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


_REMEDY = "delete it to go on from the checkpoint before, or restore it from a copy"


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


def _serialise(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save as serialise

    return serialise({k: v.detach().to("cpu", copy=False).contiguous() for k, v in tensors.items()})


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _write_through(path: Path, data: bytes) -> None:
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
