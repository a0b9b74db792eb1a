"""What documents quote of studies: a folder for each, an index of all, and the table of what was learned by depth.

WHERE/STUDY/    options, rows, table and figure of a study (folder.py)
      README.md the table, and a section for each study
README.md       of WHERE's folder or of the one above: the same table, between the two lines of MARKS
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from deepres._version import __version__
from deepres.experiments import curves, studies
from deepres.experiments.budget import budget
from deepres.experiments.folder import MADE, Row, StudyFolder, row_text
from deepres.experiments.outcome import scored, settings, verdict
from deepres.experiments.study import Size, Study, Trial
from deepres.runs.folder import write_whole

FILES = ("study.json", "rows.csv", "table.md", "figure.png", "figure.pdf", curves.FILE, "curves.png")
MARKS = ("<!-- learned: deepres experiment NAME --keep docs/results -->", "<!-- /learned -->")
COLUMNS = ("question", "what came out", "seeds", "steps, environment / gradient", "hours", "machine")


def keep(folder: Path, where: Path) -> Path:
    """Copy what a document quotes of the study in `folder` to `where`/<study>, and write the index and the table of all
    that is kept there; returns the study's folder."""
    study, _ = StudyFolder(folder).read()
    target = where / study.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    write(where)
    return target


def take_up(name: str, size: Size, where: Path, folder: Path) -> list[str]:
    """Make `folder` a folder of the study `name` in which the trials whose rows are kept in `where` are finished, as
    on another machine; returns their names.

    Rows of another version are left, and those of trials whose run a missing one reads: they are trained again. Rows
    that are in the folder stay. Raises ValueError in one sentence where no rows of that size are kept.
    """
    study, source = studies.find(name), where / name
    if not (source / "rows.csv").is_file() or not (source / "study.json").is_file():
        raise ValueError(f"{where} keeps no rows of {name}; pass another folder (--go-on-from), or none")
    asked = json.loads((source / "study.json").read_text(encoding="utf-8"))
    if asked["size"] != size:
        raise ValueError(f"{source} is of size {asked['size']}, got {size}; pass --size {asked['size']}")
    trials, target = study.trials(size, asked["seeds"]), StudyFolder(folder)
    seeds = sorted({*target.seeds(name, size), *asked["seeds"]})
    target.write(target.asked, json.dumps(asked | {"seeds": seeds}, indent=2) + "\n")
    rows = {tuple(str(row.get(label)) for label in trials[0].labels): row for row in _rows(study, source)[0]}
    here = {
        trial.name: row
        for trial in trials
        if (row := rows.get(_labels(trial))) and row["version"] == __version__
    }
    read = {one.after for one in trials if one.name not in here and not target.row(one).exists()}
    taken = [one for one in trials if one.name in here.keys() - read and not target.row(one).exists()]
    if (source / curves.FILE).exists() and not (folder / curves.FILE).exists():
        target.write(folder / curves.FILE, (source / curves.FILE).read_text(encoding="utf-8"))
    for trial in taken:
        row = here[trial.name]
        made = {key: row[key] for key in MADE}
        numbers = {key: row[key] for key in row if key not in trial.labels and key not in MADE}
        target.write(target.row(trial), row_text(trial, numbers, made))
    return [trial.name for trial in taken]


def write(where: Path) -> list[Path]:
    """Write the index, and the table into the README that quotes it, from the files in `where`; returns the files."""
    where.mkdir(parents=True, exist_ok=True)
    write_whole(where / "README.md", index(where))
    written = [where / "README.md"]
    for readme in (above / "README.md" for above in where.resolve().parents[:2]):
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        if all(mark in text for mark in MARKS):
            head, _, rest = text.partition(MARKS[0])
            tail = rest.partition(MARKS[1])[2]
            write_whole(readme, f"{head}{MARKS[0]}\n\n{table(where)}\n{MARKS[1]}{tail}")
            written.append(readme)
    return written


def index(where: Path) -> str:
    """`where`/README.md: the table, then a section for each study."""
    told = [
        "# What was learned by depth",
        "Each study is one command, `deepres experiment NAME`; its rows stand beside its table. A study is kept\n"
        "here by `deepres experiment NAME --keep docs/results`.",
        table(where).rstrip(),
    ]
    for study in _kept(where):
        name, parts = study.name, (where / study.name / "table.md").read_text(encoding="utf-8").split("\n\n")
        source, task, sentence, made, *_ = [part for part in parts[1:] if not part.startswith("|")]
        told += [f"## {_question(study)}", source, task, sentence, made]
        if (where / name / "figure.png").exists():
            told.append(f"![{name}]({name}/figure.png)")
        if (where / name / "curves.png").exists():
            told.append(f"![learning curves of {name}]({name}/curves.png)")
        told.append(f"[Table]({name}/table.md), [rows]({name}/rows.csv)")
    return "\n\n".join(told) + "\n"


def table(where: Path) -> str:
    """Markdown, a row for each study kept in `where`: what came out, of how much."""
    cells = [_cells(study, where / study.name) for study in _kept(where)]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *cells]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _kept(where: Path) -> Iterable[Study]:
    return [studies.find(name) for name in studies.names() if (where / name / "table.md").exists()]


def _question(study: Study) -> str:
    return study.question[:1].upper() + study.question[1:]


def _cells(study: Study, folder: Path) -> tuple[str, ...]:
    rows, trials = _rows(study, folder)
    names = list(trials[0].labels)
    measured = scored(study, rows)
    found = settings(measured, names, study.metric)
    counts = sorted({len(one.scores) for one in found})
    if not counts:
        raise ValueError(
            f"{folder} has no row with {study.metric}, which {study.name} measures now; run and keep it again "
            f"(deepres experiment {study.name} --keep {folder.parent}), or remove the folder"
        )
    acting = {_labels(trial) for trial in trials if budget(study, trial).env_steps}
    acted = [row for row in rows if tuple(str(row.get(name)) for name in names) in acting]
    steps = [_most(acted, "env_steps"), _most(rows, "gradient_steps")]
    said = study.says(measured) if study.says else verdict(study, found)
    left = "" if len(rows) == len(trials) else f" {len(rows)} of {len(trials)} trials finished."
    hours = _sum(rows, "seconds") / 3600
    return (
        _question(study),
        said + left,
        " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))),
        " / ".join(f"{n:,.0f}" if n else "-" for n in steps) if any(steps) else "-",
        f"{hours:.1f}" if hours >= 0.05 else "< 0.1",
        ", ".join(sorted({str(row["machine"]) for row in rows})),
    )


def _labels(trial: Trial) -> tuple[str, ...]:
    return tuple(map(str, trial.labels.values()))


def _rows(study: Study, folder: Path) -> tuple[list[Row], list[Trial]]:
    """The rows of rows.csv, and the trials that the study was to have."""
    asked = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    trials = study.trials(asked["size"], asked["seeds"])
    names = list(trials[0].labels)
    with (folder / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows: list[Row] = [
            {name: _typed(word) for name, word in row.items() if word} for row in csv.DictReader(file)
        ]
    if not rows or not set(names) <= rows[0].keys():
        raise ValueError(
            f"{folder / 'rows.csv'} lacks rows with {', '.join(names)}; keep the study again "
            f"(deepres experiment {study.name} --keep {folder.parent})"
        )
    return rows, trials


def _typed(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return word


def _numbers(rows: list[Row], name: str) -> list[float]:
    found = (row.get(name) for row in rows)
    return [float(n) for n in found if isinstance(n, int | float) and math.isfinite(n)]


def _most(rows: list[Row], name: str) -> float:
    return max(_numbers(rows, name), default=0.0)


def _sum(rows: list[Row], name: str) -> float:
    return sum(_numbers(rows, name))
