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
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from deepres.runs.folder import RunFolder


class CsvLog:
    """A CSV file that grows a row at a time; its header is made by the first row.

    `keep_until`: rows whose env_steps are past it are dropped on opening, with any row that a killed process left
    half written: a resumed run then repeats them.
    """

    def __init__(self, path: Path, keep_until: int):
        self.path = path
        self._columns: list[str] | None = None
        if path.exists():
            self._columns = self._keep(keep_until)

    def _keep(self, keep_until: int) -> list[str] | None:
        with open(self.path, newline="") as file:
            rows = list(csv.reader(file))
        if not rows:
            return None
        columns = rows[0]
        at = columns.index("env_steps")
        whole = [
            r for r in rows[1:] if len(r) == len(columns) and r[at].isdigit() and int(r[at]) <= keep_until
        ]
        draft = self.path.with_suffix(".draft")
        draft.write_text(_rows(columns, *whole))
        os.replace(draft, self.path)
        return columns

    def write(self, row: dict[str, Any]) -> None:
        text = ""
        if self._columns is None:
            text, self._columns = _rows(list(row)), list(row)
        text += _rows([_text(row[c]) for c in self._columns])
        with open(self.path, "a", newline="") as file:
            file.write(text)


class RunLog:
    """The logs of a run: metrics.csv (a row per round), evaluations.csv (a row per evaluation), tensorboard/.

    env_steps: those done already; rows past them are dropped. wandb: log to Weights & Biases as well.
    """

    def __init__(self, folder: RunFolder, env_steps: int, *, wandb: bool = False):
        from torch.utils.tensorboard import SummaryWriter

        self._wandb = _WandbLog(folder) if wandb else None
        self._files = {
            "train": CsvLog(folder.metrics, env_steps),
            "eval": CsvLog(folder.evaluations, env_steps),
        }
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=env_steps + 1)
        self._told = False

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Log one row; kind is "train" or "eval", and the row's "env_steps" is the abscissa."""
        try:
            self._files[kind].write(row)
            for name, value in row.items():
                if name != "env_steps":
                    self._writer.add_scalar(f"{kind}/{name}", float(value), int(row["env_steps"]))
            self._writer.flush()
            if self._wandb:
                self._wandb.write(kind, row)
        except OSError as error:
            if not self._told:
                warnings.warn(f"logs are incomplete: {error}; free some space", RuntimeWarning, stacklevel=2)
            self._told = True

    def close(self) -> None:
        with suppress(OSError):  # told by write
            self._writer.close()
        if self._wandb:
            self._wandb.close()


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
