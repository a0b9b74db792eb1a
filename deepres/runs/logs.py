"""What a run leaves to read: CSV files, TensorBoard events and, if asked for, a run on Weights & Biases.

A full disk costs rows of a log, never the run: the first failure is told once, and logging goes on when it can.
"""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from deepres.runs.folder import RunFolder, write_whole


class CsvLog:
    """A CSV file that grows a row at a time; its header is made by the first row.

    `keep_until`: rows whose env_steps are past it are dropped on opening, with any row or header that a killed process
    or a full disk left half written: a resumed run then repeats them. Raises ValueError for a file of something else.
    """

    def __init__(self, path: Path, keep_until: int):
        self.path = path
        self._columns: list[str] | None = None
        if path.exists():
            self._columns = self._keep(keep_until)

    def _keep(self, keep_until: int) -> list[str] | None:
        with open(self.path, newline="", errors="replace") as file:
            text = file.read()
        whole, newline, _ = text.rpartition("\n")
        rows = list(csv.reader(io.StringIO(whole + newline)))
        if not rows:
            write_whole(self.path, "")
            return None
        columns = rows[0]
        if "env_steps" not in columns:
            raise ValueError(f"{self.path} is not a log of a run: it has no column env_steps; move it away")
        at = columns.index("env_steps")
        kept = [
            r for r in rows[1:] if len(r) == len(columns) and r[at].isdecimal() and int(r[at]) <= keep_until
        ]
        write_whole(self.path, _rows(columns, *kept))
        return columns

    def write(self, row: dict[str, Any]) -> None:
        """Append `row`, whole or not at all. Raises OSError where the disk refuses; the next row is tried again."""
        columns = self._columns or list(row)
        text = _rows(columns) if self._columns is None else ""
        text += _rows([_text(row.get(c, "nan")) for c in columns])
        with open(self.path, "ab") as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(text.encode())
                file.flush()
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)
                raise
        self._columns = columns


class RunLog:
    """The logs of a run: metrics.csv (a row per round), evaluations.csv (a row per evaluation), tensorboard/.

    env_steps: those done already, -1 before the first; rows past them are dropped. evaluated: the same of
    evaluations, by default as many. wandb: log to Weights & Biases as well.
    """

    def __init__(
        self, folder: RunFolder, env_steps: int, *, evaluated: int | None = None, wandb: bool = False
    ):
        self._wandb = _WandbLog(folder) if wandb else None
        self._files = {
            "train": CsvLog(folder.metrics, env_steps),
            "eval": CsvLog(folder.evaluations, env_steps if evaluated is None else evaluated),
        }
        self._instruments = CsvLog(folder.instruments, env_steps)
        self._events = _Events(folder, env_steps)
        self._told = False

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Log one row; kind is "train" or "eval", and the row's "env_steps" is the abscissa."""
        self._try(lambda: self._files[kind].write(row))
        self._try(lambda: self._events.write(kind, row))
        if self._wandb:
            self._try(lambda: self._wandb.write(kind, row))  # type: ignore[union-attr]

    def measured(self, env_steps: int, rows: list[dict[str, Any]]) -> None:
        """Log what the instruments told, a row for each block; a file of their own, nothing else."""
        for row in rows:
            self._try(lambda row=row: self._instruments.write({"env_steps": env_steps, **row}))  # type: ignore[misc]

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._told:
                warnings.warn(f"logs are incomplete: {error}; free some space", RuntimeWarning, stacklevel=4)
            self._told = True

    def close(self) -> None:
        self._events.close()
        if self._wandb:
            self._wandb.close()


class _Events:
    """The TensorBoard events of a run, in another file after a disk refused one: TensorBoard's writer never writes
    again then. The run's options are there, too."""

    def __init__(self, folder: RunFolder, env_steps: int):
        self._folder, self._env_steps = folder, env_steps
        self._writer: Any = None

    def write(self, kind: str, row: dict[str, Any]) -> None:
        try:
            if self._writer is None:
                self._writer = self._opened()
            for name, value in row.items():
                if name != "env_steps":
                    self._writer.add_scalar(f"{kind}/{name}", float(value), int(row["env_steps"]))
            self._writer.flush()
        except OSError:
            self.close()
            raise
        self._env_steps = int(row["env_steps"])

    def _opened(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        writer: Any = SummaryWriter(str(self._folder.tensorboard), purge_step=self._env_steps + 1)
        with suppress(FileNotFoundError, ValueError):
            options = self._folder.read_config().flat()
            shown = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in options.items()}
            for summary in hparams(shown, {"eval/success_any": None, "eval/time_at_goal": None}):
                writer.file_writer.add_summary(summary)
        return writer

    def close(self) -> None:
        with suppress(OSError):  # told by write
            if self._writer is not None:
                self._writer.close()
        self._writer = None


def require_packages() -> None:
    """Raise ImportError, with what to install, for a package that a run needs only later: none is to be missed at its
    first checkpoint."""
    for name in ("safetensors.torch", "torch.utils.tensorboard", "rich"):
        try:
            import_module(name)
        except ImportError as error:
            absent = (error.name or name).partition(".")[0]
            raise ImportError(f"training needs {absent}; pip install 'deepres[envs]'") from None


def require_wandb() -> ModuleType:
    """The wandb package. Raises ImportError with a sentence where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise ImportError(
            "--wandb needs the package wandb; pip install 'deepres[wandb]', or leave it out"
        ) from None
    return wandb


class _WandbLog:
    """The run on Weights & Biases, the same one when it is resumed. Its own environment variables say where and how:
    WANDB_MODE=offline keeps everything under the run's folder, WANDB_PROJECT names the project (default: deepres)."""

    def __init__(self, folder: RunFolder):
        wandb = require_wandb()
        identity = folder.path / "wandb.id"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "deepres"),
            name=folder.path.name,
            id=identity.read_text(),
            resume="allow",
            dir=str(folder.path),
            config=json.loads(folder.config.read_text()),
        )

    def write(self, kind: str, row: dict[str, Any]) -> None:
        values = {f"{kind}/{name}": float(value) for name, value in row.items()}
        self._run.log(values, step=int(row["env_steps"]))

    def close(self) -> None:
        self._run.finish()


def _rows(*rows: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
