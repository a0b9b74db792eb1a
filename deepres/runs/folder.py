"""A run's folder: what its files are called.

RUN/config.json        the options
    checkpoints/       see checkpoint.py
    metrics.csv        a row per round
    evaluations.csv    a row per evaluation
    tensorboard/
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deepres.config import Config


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
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def read_config(self) -> Config:
        """The run's options. Raises FileNotFoundError or ValueError in one sentence if there is no run here."""
        return Config.from_file(self.config)

    def claim(self, config: Config, *, resume: bool) -> None:
        """Make the folder this run's, and write its options. Raises FileExistsError if something else is there."""
        if not resume:
            if self.path.exists() and any(self.path.iterdir()):
                raise FileExistsError(
                    f"{self.path} is not empty; pass a new folder, or resume the run that is there "
                    f"(--resume {self.path})"
                )
            self.path.mkdir(parents=True, exist_ok=True)
        draft = self.config.with_name("config.json.draft")
        draft.write_text(config.to_json())
        os.replace(draft, self.config)


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
    """runs/<env>-<algorithm>-d<depth>-s<seed>, numbered if it is taken."""
    name = f"{config.env.name}-{config.algorithm_name}-d{config.network.depth}-s{config.schedule.seed}"
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return RunFolder(folder)
