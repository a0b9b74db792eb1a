"""The folder of a study:

FOLDER/study.json      which study, size and seeds
       trials/NAME/    what a trial trained; NAME.log: what it printed
       rows/NAME.json  a finished trial's numbers, and on which machine and version they were made
       rows.csv        all of them, a row per seed
       table.md        the table, the sentence, and how it was made
       figure.png, .pdf
       curves.csv, .png  learning curves, of studies that ask for them (curves.py)
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deepres.experiments import studies
from deepres.experiments.study import Size, Study, Trial
from deepres.runs.folder import write_whole

Row = dict[str, Any]
MADE = ("date", "version", "machine")  # of a row, what is neither a label nor a number


@dataclass(frozen=True)
class StudyFolder:
    """The files of one study."""

    path: Path

    @property
    def asked(self) -> Path:
        return self.path / "study.json"

    def trial(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.name

    def log(self, trial: Trial) -> Path:
        return self.path / "trials" / f"{trial.name}.log"

    def row(self, trial: Trial) -> Path:
        return self.path / "rows" / f"{trial.name}.json"

    def seeds(self, name: str, size: Size) -> list[int]:
        """Those that `name` was asked for here; none if nothing is here yet. Raises ValueError in one sentence for
        what is not a folder of that study and size."""
        if not self.asked.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise ValueError(f"{self.path} is not empty and holds no study; pass another folder (--out)")
            return []
        before = json.loads(self.asked.read_text())
        if (before.get("study"), before.get("size")) != (name, size):
            raise ValueError(
                f"{self.path} holds the study {before.get('study')} of size {before.get('size')}, got {name} of size "
                f"{size}; pass another folder (--out)"
            )
        return list(before["seeds"])

    def imports(self) -> list[str]:
        """Modules that its trials import first, as far as the study is asked for already."""
        return list(json.loads(self.asked.read_text())["imports"]) if self.asked.exists() else []

    def write(self, file: Path, text: str) -> None:
        """Whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)

    def read(self) -> tuple[Study, list[Trial]]:
        """The study that is run here, and its trials. Raises FileNotFoundError or ValueError in one sentence."""
        try:
            asked = json.loads(self.asked.read_text())
            for module in asked["imports"]:
                import_module(module)
            study, size, seeds = studies.find(asked["study"]), asked["size"], asked["seeds"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(
                f"{self.asked} is not as a study wrote it; pass another folder (--out)"
            ) from None
        return study, study.trials(size, seeds)


def default_folder(name: str) -> Path:
    """Where the study `name` is run unless another folder is asked for."""
    return Path("runs") / "studies" / name


def row_text(trial: Trial, numbers: Row, made: Row) -> str:
    """What the file of a finished trial's row holds."""
    return json.dumps({"labels": trial.labels, "numbers": numbers, "made": made}, indent=2) + "\n"


def write_rows(folder: StudyFolder, trials: list[Trial]) -> list[Row]:
    """rows.csv of what is finished, in the trials' order; returns the rows."""
    rows: list[Row] = []
    for trial in trials:
        if folder.row(trial).exists():
            found = json.loads(folder.row(trial).read_text())
            rows.append({**found["labels"], **found["numbers"], **found["made"]})
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        folder.write(folder.path / "rows.csv", text.getvalue())
    return rows
