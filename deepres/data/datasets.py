"""Data sets of episodes as files: the format of OGBench (arXiv 2410.20092, release 1.2), read and written.

NAME.npz holds observations [N, S] and actions [N, A] in float32 and terminals [N] bool. An episode of L transitions has
L + 1 rows; terminals is 1 on its last row alone, whose action leads nowhere. Two other layouts, in which OGBench hands
the same data out, are read too:

    regular   an episode has L rows, next_observations stand beside, terminals is 1 on the last
    compact   all L + 1 rows; valids is 0 on the last one, terminals is 1 on the last two
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

IN_MEMORY = 256_000_000  # bytes; members of more are unpacked and mapped


@dataclass(frozen=True)
class Dataset:
    """observations [E * rows, S], actions [E * rows, A] float32; an episode is `rows` = L + 1 of them."""

    observations: Array
    actions: Array
    rows: int

    @property
    def episodes(self) -> int:
        return len(self.observations) // self.rows

    @property
    def transitions(self) -> int:
        return self.episodes * (self.rows - 1)


def write(path: Path, data: Dataset, more: Mapping[str, Array] | None = None) -> Path:
    """Write a data set, whole or not at all. more: other arrays [N, ...], e.g. qpos, qvel."""
    import numpy as np

    ends = np.zeros(len(data.observations), dtype=bool)
    ends[data.rows - 1 :: data.rows] = True
    draft = path.with_name(f".{path.name}.draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "observations": data.observations,
        "actions": data.actions,
        "terminals": ends,
        **(more or {}),
    }
    try:
        with open(draft, "wb") as file:
            np.savez_compressed(file, **arrays)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def read(path: Path, state_dim: int | None = None, action_dim: int | None = None) -> Dataset:
    """The data set at `path`, in any of the three layouts.

    state_dim, action_dim: the task's, to be checked. Raises FileNotFoundError, or ValueError in one sentence for what
    is no data set, damaged, of another task, or of episodes that differ in length.
    """
    import numpy as np

    arrays = _members(path)
    lacks = [name for name in ("observations", "actions", "terminals") if name not in arrays]
    if lacks:
        raise _damaged(path, f"it lacks {', '.join(lacks)}")
    observations, actions, ends = arrays["observations"], arrays["actions"], arrays["terminals"]
    if observations.ndim != 2 or actions.ndim != 2 or not len(observations) == len(actions) == len(ends):
        shapes = [list(a.shape) for a in (observations, actions, ends)]
        raise _damaged(path, f"observations [N, S], actions [N, A] and terminals [N] must fit, got {shapes}")
    for name, wanted, found in (("state", state_dim, observations), ("action", action_dim, actions)):
        if wanted is not None and found.shape[1] != wanted:
            raise ValueError(
                f"{path} has {name}s of {found.shape[1]} numbers, the task has {wanted}; pass a data set of that task"
            )
    if "next_observations" in arrays and "valids" not in arrays:
        data = _from_regular(path, observations, actions, ends.astype(bool), arrays["next_observations"])
    else:
        last = arrays["valids"] == 0 if "valids" in arrays else ends.astype(bool)
        data = Dataset(observations, actions, _rows(path, last))
    for name, array in (("observations", data.observations), ("actions", data.actions)):
        if array.dtype != np.float32:
            raise _damaged(path, f"{name} must be float32, got {array.dtype}")
        if not _finite(array):
            raise _damaged(path, f"{name} holds numbers that are not finite")
    if (most := float(np.abs(data.actions).max())) > 1 + 1e-6:
        raise _damaged(path, f"actions must lie in [-1, 1], got {most:g}")
    return data


def _rows(path: Path, last: Array) -> int:
    """Rows of an episode, where `last` [N] is 1 on the last of each."""
    import numpy as np

    ends = np.flatnonzero(last)
    if not len(ends) or ends[-1] != len(last) - 1:
        raise _damaged(path, "its last row must end an episode; it was cut short")
    lengths = np.diff(ends, prepend=-1)
    if lengths.min() != lengths.max() or lengths[0] < 2:
        raise ValueError(
            f"{path}: episodes must have as many transitions each, at least one, got {lengths.min() - 1} to "
            f"{lengths.max() - 1}; split the file by length"
        )
    return int(lengths[0])


def _from_regular(path: Path, observations: Array, actions: Array, ends: Array, following: Array) -> Dataset:
    """L rows an episode become L + 1: its last next observation, with an action of zeros."""
    import numpy as np

    if following.shape != observations.shape:
        raise _damaged(
            path, f"next_observations must be {list(observations.shape)}, got {list(following.shape)}"
        )
    steps = np.diff(np.flatnonzero(ends), prepend=-1)
    if not len(steps) or not ends[-1]:
        raise _damaged(path, "its last row must end an episode; it was cut short")
    if steps.min() != steps.max():
        raise ValueError(
            f"{path}: episodes must have as many transitions each, got {steps.min()} to {steps.max()}"
        )
    length = int(steps[0])
    episodes = observations.reshape(-1, length, observations.shape[1])
    final = following.reshape(episodes.shape)[:, -1:]
    acted = actions.reshape(len(episodes), length, -1)
    joined = np.concatenate([episodes, final], axis=1)
    padded = np.concatenate([acted, np.zeros_like(acted[:, :1])], axis=1)
    return Dataset(joined.reshape(-1, joined.shape[2]), padded.reshape(-1, padded.shape[2]), length + 1)


def _members(path: Path) -> dict[str, Array]:
    """The file's arrays: read, or those of a large file unpacked into NAME.unpacked beside it and mapped; where nothing
    can be written there, in a temporary folder, which is gone when nobody reads them any more."""
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"there is no data set at {path}; pass an .npz file")
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
            names = [member.filename for member in file.infolist()]
        if size <= IN_MEMORY:
            with np.load(path) as file:
                return {name: file[name] for name in file.files}
        folder = path.with_name(f"{path.name}.unpacked")
        try:
            if not _unpacked(path, folder):
                _unpack(path, folder)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            with tempfile.TemporaryDirectory(prefix="deepres-") as elsewhere:
                _unpack(path, Path(elsewhere) / folder.name)
                return _mapped(Path(elsewhere) / folder.name, names)
        return _mapped(folder, names)
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        raise _damaged(path, f"it is not readable as .npz ({error})") from None


_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def _mapped(folder: Path, names: Sequence[str]) -> dict[str, Array]:
    """The members in `folder`; a file that is removed stays where it is mapped."""
    import numpy as np

    return {
        name.removesuffix(".npy"): np.load(folder / name, mmap_mode="c", allow_pickle=False) for name in names
    }


def member_bytes(path: Path, names: Sequence[str]) -> int:
    """Bytes that these arrays of the file at `path` take in memory."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no data set at {path}; pass an .npz file")
    try:
        with zipfile.ZipFile(path) as file:
            return sum(m.file_size for m in file.infolist() if m.filename.removesuffix(".npy") in names)
    except zipfile.BadZipFile as error:
        raise _damaged(path, f"it is not readable as .npz ({error})") from None


_STAMP = "unpacked-from.txt"


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{path.name} of {about.st_size} bytes, {about.st_mtime_ns}"


def _unpacked(path: Path, folder: Path) -> bool:
    """Whether `folder` holds the members of `path` as it is now."""
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == _stamp(path)


def _unpack(path: Path, folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as file:
            file.extractall(draft)
        (draft / _STAMP).write_text(_stamp(path))
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _finite(array: Array, at_once: int = 1 << 20) -> bool:
    import numpy as np

    return all(np.isfinite(array[i : i + at_once]).all() for i in range(0, len(array), at_once))


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is no data set of episodes: {what}; restore it from a copy, or make it anew")
