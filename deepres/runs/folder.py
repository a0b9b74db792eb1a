"""A run's folder: what its files are called.

RUN/config.json        the options
    checkpoints/       see checkpoint.py
    metrics.csv        a row per round
    evaluations.csv    a row per evaluation
    tensorboard/
    lock.json          while a process trains there, see lock.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.runs.lock import Lock, leftovers


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, whether it is there already or not."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.csv"

    @property
    def instruments(self) -> Path:
        return self.path / "instruments.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def read_config(self) -> Config:
        """The run's options. Raises FileNotFoundError or ValueError in one sentence if there is no run here."""
        return Config.from_file(self.config)

    def claim(self, config: Config, *, resume: bool) -> None:
        """Make the folder this run's, and write its options. Raises FileExistsError if something else is there."""
        if not resume:
            self._require_empty()
            self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, config.to_json())

    def take(self, *, resume: bool) -> Lock:
        """The right to write here, made a folder of if there is none. Raises FileExistsError if something else is here
        already, InUse if another process trains here, ValueError for a path that safetensors cannot be told."""
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"a run's folder must have a name in UTF-8, got {str(self.path)!r}; pass another one"
            ) from None
        if not resume:
            self._require_empty()
            self.path.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.path)
        lock.take()
        return lock

    def _require_empty(self) -> None:
        """A process that was killed before it had written its options leaves nothing that counts."""
        there = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        if there - leftovers(self.path) - {draft_of(self.config).name}:
            raise FileExistsError(
                f"{self.path} is not empty; pass a new folder, or resume the run that is there "
                f"(--resume {self.path})"
            )


def draft_of(path: Path) -> Path:
    """What `write_whole` writes first."""
    return path.with_name(f"{path.name}.draft")


def write_whole(path: Path, text: str) -> None:
    """Write `text`: a process killed at any moment leaves the file as it was or as it is to be."""
    draft = draft_of(path)
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def require_asked(file: Path, asked: Mapping[str, Any], what: str) -> None:
    """Write to `file` what is asked for; where it is there, raise ValueError unless it says the same. what: whose it
    is, for the sentence."""
    if not file.exists():
        write_whole(file, json.dumps(dict(asked), indent=2) + "\n")
    was = json.loads(file.read_text())
    if differing := [name for name in asked if was.get(name) != asked[name]]:
        told = ", ".join(f"{name}={was.get(name)!r}" for name in differing)
        raise ValueError(f"{what} under way with {told}; ask for the same to go on, or delete it")


def require_same(started: Config, config: Config) -> None:
    """Raise ValueError, naming the option, if a run that was started with `started` cannot go on as `config`."""
    fields, now = config.fields(), config.flat()
    for name, was in started.flat().items():
        may_change = name in fields and fields[name].metadata.get("resume")
        if not may_change and now.get(name) != was:
            raise ValueError(
                f"{name} cannot change when a run is resumed: it was started with {was!r}, got {now.get(name)!r}; "
                "leave it out, or start a new run"
            )


def new_folder(config: Config) -> RunFolder:
    """runs/<env>-<algorithm>-d<depth>-s<seed>, numbered if it is taken; made, so that no other process has it."""
    name = f"{config.env.name}-{config.algorithm_name}-d{config.network.depth}-s{config.schedule.seed}"
    folder, n = Path("runs") / name, 1
    folder.parent.mkdir(exist_ok=True)
    while True:
        try:
            folder.mkdir()
            return RunFolder(folder)
        except FileExistsError:
            n += 1
            folder = Path("runs") / f"{name}-{n}"
