"""One process at a time trains in a folder: a file there says which, and that it still does.

    RUN/lock.json    its machine, its process, and since when; changed every BEAT_S seconds while the process lives

A holder on this machine is looked for among its processes. Of one on another machine only the file's age tells: with
no sign of life for GONE_S seconds it is taken for dead. Ages are the file system's, so machines may differ on the time.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock.json"
BEAT_S = 20.0
GONE_S = 180.0
_TRIES = 10  # to take what others take and leave at the same moment


class InUse(RuntimeError):
    """Another process trains in the folder; the message says which."""


class Lock:
    """The right to write into `folder`, from `take` to `give_back`; a context manager does both.

    Raises InUse if another process has it, OSError if the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self._mine = ""
        self._left = threading.Event()

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(self, *_: Any) -> None:
        self.give_back()

    def take(self) -> None:
        self._mine = json.dumps({**_this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n"
        draft = self.folder / f"{NAME}.{uuid.uuid4().hex[:8]}"
        try:
            for _ in range(_TRIES):
                draft.write_text(self._mine)
                if self._place(draft):
                    break
                self._remove_dead(draft)
            else:
                raise InUse(f"{self.folder} is being taken by several processes at once; start one alone")
        finally:
            draft.unlink(missing_ok=True)
        self._left.clear()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def require(self) -> None:
        """Raise InUse if another process has taken the folder meanwhile, as one does after a machine slept."""
        now = _read(self.path)
        if now not in (None, "", self._mine):
            raise InUse(
                f"{self.folder} was taken by {_told(now)} while this process gave no sign of life; it goes on with "
                "the run there, this one ends"
            )

    def give_back(self) -> None:
        self._left.set()
        with suppress(OSError), _alone_with(self.path) as held:
            if held == self._mine:
                self.path.unlink()

    def _place(self, draft: Path) -> bool:
        """Whether the file was not there, and is now, whole."""
        try:
            os.link(draft, self.path)
            return True
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError:  # a file system without links
            try:
                with open(self.path, "x") as file:
                    file.write(self._mine)
                return True
            except FileExistsError:
                return False

    def _remove_dead(self, draft: Path) -> None:
        """Take away the file of a holder that is dead. Raises InUse if it is alive."""
        with _alone_with(self.path) as held:
            if held is None:
                return
            try:
                age = draft.stat().st_mtime - self.path.stat().st_mtime
            except FileNotFoundError:
                return
            if _alive(held, age):
                raise InUse(
                    f"{self.folder} is in use: {_told(held)} trains there, with a sign of life {max(age, 0):.0f} s "
                    "ago; end it first, or pass another folder"
                )
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._left.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self.path)


def leftovers(folder: Path) -> set[str]:
    """Names of the files that locks leave in `folder`."""
    return {path.name for path in folder.glob(f"{NAME}*")}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "place": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _alive(held: str, age: float) -> bool:
    try:
        holder = json.loads(held)
        here = (holder["host"], holder["place"]) == (socket.gethostname(), _place())
        pid, started = int(holder["pid"]), holder["started"]
    except (ValueError, KeyError, TypeError):  # not whole yet, or damaged
        return age < GONE_S
    if not here:
        return age < GONE_S
    if started is not None:
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _place() -> str:
    """What tells this boot of this machine, and the numbering of processes that this one sees, from all others."""
    names = []
    with suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it is dead, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _told(held: str) -> str:
    try:
        holder = json.loads(held)
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def _alone_with(path: Path) -> Iterator[str | None]:
    """Text of the file at `path`, None if there is none. Nobody else who asks is inside with the same file.

    Who removes the file does it inside. Without that, of two processes that found one dead holder the slower would
    remove the file of the faster.
    """
    try:
        try:
            file = open(path, "r+", errors="replace")  # noqa: SIM115
        except PermissionError:  # another user's
            file = open(path, errors="replace")  # noqa: SIM115
    except FileNotFoundError:
        yield None
        return
    with file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without such locks: then two may be inside
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            still = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            still = False
        yield file.read() if still else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
