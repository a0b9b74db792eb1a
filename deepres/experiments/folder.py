"""The folder of a study:

FOLDER/study.json      which study, size and seeds
       trials/NAME/    what a trial trained; NAME.log: what it printed
       rows/NAME.json  a finished trial's numbers, and on which machine and version they were made
       rows.csv        all of them, a row per seed
       table.md        the table, the sentence, and how it was made
       figure.png, .pdf
       curves.csv, .png, .pdf  learning curves, of studies that ask for them (curves.py)
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Any

from deepres.experiments import studies
from deepres.experiments.study import Size, Study, Trial
from deepres.runs.folder import draft_of, write_whole
from deepres.runs.lock import leftovers

Row = dict[str, Any]
MADE = ("date", "version", "machine", "options")
"""Of a row, what is neither a label nor a number. options: what `options_of` gives of the trial; rows of before it was
written have none."""


YOUNGER = ("options", "goal_sampler", "eval_options")
"""Options of the environment that rows are older than: left at their default they count for nothing."""


def options_of(trial: Trial) -> str:
    """Twelve letters that change with every option of the trial which bears on its numbers."""
    told = trial.config.replace(data=None).to_dict()
    told.pop("system")  # where and how it is computed
    told["env"] = {name: value for name, value in told["env"].items() if value or name not in YOUNGER}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


def same_options(trial: Trial, made: Row) -> bool:
    """Whether a row that was made so is the trial's, as far as it says."""
    return made.get("options") in (None, "", options_of(trial))


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

    def before(self) -> dict[str, Any] | None:
        """What study.json says: study, size, seeds and imports; None if nothing is here yet. Raises ValueError in one
        sentence for what is no folder of a study."""
        if not self.asked.exists():
            there = {file.name for file in self.path.iterdir()} if self.path.exists() else set()
            if there - leftovers(self.path) - {draft_of(self.asked).name}:
                raise ValueError(f"{self.path} is not empty and holds no study; pass another folder (--out)")
            return None
        try:
            asked = json.loads(self.asked.read_text())
            kinds = {"study": str, "size": str, "seeds": list, "imports": list}
            whole = all(isinstance(asked[name], kind) for name, kind in kinds.items())
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{self.asked} is not as a study wrote it; pass another folder (--out)")
        return dict(asked)

    def of(self, name: str, size: Size) -> dict[str, Any]:
        """`before` where it is of that study and size; of a new folder no seeds and no imports. Raises ValueError in
        one sentence otherwise."""
        asked = self.before() or {"study": name, "size": size, "seeds": [], "imports": []}
        if (asked["study"], asked["size"]) != (name, size):
            raise ValueError(
                f"{self.path} holds the study {asked['study']} of size {asked['size']}, got {name} of size {size}; "
                "pass another folder (--out)"
            )
        return asked

    def trial_finished(self, name: str) -> bool:
        """Whether the trial of that name has finished here, so that others can read its run."""
        return (self.path / "rows" / f"{name}.json").exists() and (self.path / "trials" / name).exists()

    def finished(self, trial: Trial) -> Row | None:
        """The trial's row: labels, numbers and how it was made; None if it is not there. Raises ValueError in one
        sentence for a damaged file, and for a row of other options."""
        file = self.row(trial)
        if not file.exists():
            return None
        try:
            found = json.loads(file.read_text())
            whole = all(isinstance(found[part], dict) for part in ("labels", "numbers", "made"))
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{file} is not as a study wrote it; remove it, and its trial is run again")
        if not same_options(trial, found["made"]):
            raise ValueError(
                f"{file} was made with other options than {trial.name} has now; pass another folder (--out)"
            )
        return dict(found)

    def write(self, file: Path, text: str) -> None:
        """Whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)

    def read(self) -> tuple[Study, list[Trial]]:
        """The study that is run here, and its trials. Raises FileNotFoundError or ValueError in one sentence."""
        asked = self.before()
        if asked is None:
            raise FileNotFoundError(
                f"{self.path} holds no study; run `deepres experiment NAME --out {quote(str(self.path))}`"
            )
        for module in asked["imports"]:
            import_module(module)
        study = studies.find(asked["study"])
        return study, study.trials(asked["size"], asked["seeds"])


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
        if found := folder.finished(trial):
            rows.append({**found["labels"], **found["numbers"], **found["made"]})
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        folder.write(folder.path / "rows.csv", text.getvalue())
    return rows
