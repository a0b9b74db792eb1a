"""What documents quote of studies: a folder for each, an index of all, and the table of what was learned by depth.

WHERE/STUDY/    options, rows, table and figure of a study (folder.py)
      README.md the table, and a section for each study
README.md       of WHERE's folder or of the one above: the same table, between the two lines of MARKS
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from deepres._version import __version__
from deepres.experiments import curves, studies
from deepres.experiments.folder import MADE, Row, StudyFolder, options_of, row_text, same_options
from deepres.experiments.outcome import verdict
from deepres.experiments.settings import finite, most_steps, scored, settings
from deepres.experiments.study import Size, Study, Trial
from deepres.runs.folder import write_whole
from deepres.runs.lock import Lock

FIGURES = ("figure.png", "figure.pdf", "curves.png", "curves.pdf")
FILES = ("study.json", "rows.csv", "table.md", curves.FILE, *FIGURES)
MARKS = ("<!-- learned: deepres experiment NAME --keep docs/results -->", "<!-- /learned -->")
COLUMNS = ("question", "what came out", "seeds", "steps, environment / gradient", "hours", "machine")


def keep(folder: Path, where: Path) -> Path:
    """Copy what a document quotes of the study in `folder` to `where`/<study>, and write the index and the table of all
    that is kept there; returns the study's folder.

    Raises ValueError in one sentence, and changes nothing, where rows are kept that the study in `folder` lacks.
    """
    study, trials = StudyFolder(folder).read()
    target, before_it = where / study.name, where / f".{study.name}.before"
    if before_it.exists() and not target.exists():  # killed between the two renames below
        before_it.rename(target)
    if (target / "rows.csv").exists():
        kept_rows, kept_trials = _rows(study, target)
        before, after = _asked(target), _asked(folder)
        if before["size"] != after["size"]:
            raise ValueError(
                f"{target} keeps {study.name} of size {before['size']}, got size {after['size']}; keep it elsewhere"
            )
        here = {trial.words for trial in trials if StudyFolder(folder).row(trial).exists()}
        names = list(kept_trials[0].labels)
        lost = [row for row in kept_rows if tuple(row.get(name, "") for name in names) not in here]
        if lost:
            raise ValueError(
                f"{target} keeps {len(lost)} rows that {folder} lacks; go on from them (--go-on-from {where}), or "
                f"remove {target} first"
            )
    draft = where / f".{study.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name in FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, draft / name)
    shutil.rmtree(before_it, ignore_errors=True)
    if target.exists():
        target.rename(before_it)
    draft.rename(target)
    shutil.rmtree(before_it, ignore_errors=True)
    write(where)
    return target


def take_up(name: str, size: Size, where: Path, folder: Path, seeds: Sequence[int] = ()) -> list[str]:
    """Make `folder` a folder of the study `name` in which the trials whose rows are kept in `where` are finished, as
    on another machine; returns their names. seeds: what is asked for beside the seeds that are kept or there.

    A trial takes its study's own row, or that of another study whose trial had the same options and was measured alike.
    Rows of another version or of other options are left, and so are those without the study's metric that no trial
    reads: their trials are run again. Rows that are in the folder stay. Raises ValueError in one sentence, and changes
    nothing, where no rows of that size are kept or their files are damaged, InUse while a process runs the study there.
    """
    study, target = studies.find(name), StudyFolder(folder)
    begun = target.of(name, size)
    asked, rows = begun, []
    if (where / name / "rows.csv").is_file() and (where / name / "study.json").is_file():
        asked = _asked(where / name)
        if asked["size"] != size:
            raise ValueError(
                f"{where / name} is of size {asked['size']}, got {size}; pass --size {asked['size']}"
            )
        rows = _rows(study, where / name)[0]
    told = sorted({*begun["seeds"], *asked["seeds"], *seeds}) or list(range(study.many(size)))
    imports = list(dict.fromkeys([*begun["imports"], *asked["imports"]]))
    trials = study.trials(size, told)
    labels, read = list(trials[0].labels), {trial.after for trial in trials}
    by_labels = {tuple(row.get(label, "") for label in labels): row for row in rows}
    alike = _alike(study, size, where)
    found = {
        trial.name: by_labels.get(trial.words) or (None if trial.after else alike.get(options_of(trial)))
        for trial in trials
    }
    if not rows and not any(found.values()):
        raise ValueError(f"{where} keeps no rows of {name}; pass another folder (--go-on-from), or none")
    texts: dict[str, str] = {}
    for trial in trials:
        row = found[trial.name]
        if row is None or target.row(trial).exists():
            continue
        made = {key: row.get(key, "") for key in MADE}
        measured = bool(row.get(study.metric)) or trial.name in read
        if made["version"] == __version__ and same_options(trial, made) and measured:
            numbers = {key: _number(row[key]) for key in row if key not in (*labels, *MADE)}
            numbers = {key: float(n) for key, n in numbers.items() if not isinstance(n, str)}
            texts[trial.name] = row_text(trial, numbers, made)
    both = [curves.read_curves(place / curves.FILE, labels) for place in (where / name, folder)]
    curves_here = both[0] | both[1]
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder):
        target.write(target.asked, json.dumps(begun | {"seeds": told, "imports": imports}, indent=2) + "\n")
        if curves_here:
            target.write(folder / curves.FILE, curves.text(labels, curves_here))
        for trial in trials:
            if trial.name in texts:
                target.write(target.row(trial), texts[trial.name])
    return list(texts)


def _alike(study: Study, size: Size, where: Path) -> dict[str, dict[str, str]]:
    """Rows of other studies that a trial of `study` can have as its own, by their options: of trials that read no other
    one, measured by the same function. None if learning curves are asked for as well."""
    found: dict[str, dict[str, str]] = {}
    for other in () if study.curves else _kept(where):
        if (
            other.name == study.name
            or other.run is not study.run
            or _asked(where / other.name)["size"] != size
        ):
            continue
        rows, trials = _rows(other, where / other.name)
        alone = {trial.words for trial in trials if trial.after is None}
        labels = tuple(trials[0].labels)
        for row in rows:
            if row.get("options") and tuple(row[label] for label in labels) in alone:
                numbers = {key: word for key, word in row.items() if key not in labels}
                found.setdefault(row["options"], numbers)
    return found


def _asked(folder: Path) -> dict[str, Any]:
    asked = StudyFolder(folder).before()
    if asked is None or not asked["seeds"]:
        raise ValueError(f"{folder / 'study.json'} is not as a study wrote it; keep the study again")
    return asked


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
        "here by `deepres experiment NAME --keep docs/results`; `--go-on-from docs/results` takes the rows here\n"
        "for finished, on another machine say, and runs the rest: more seeds with `--seeds 3 4`.",
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
    words, trials = _rows(study, folder)
    rows = [_typed(row, trials) for row in words]
    names = list(trials[0].labels)
    measured = scored(study, rows)
    found = settings(measured, names, study.metric)
    counts = sorted({len(one.scores) for one in found})
    if not counts:
        raise ValueError(
            f"{folder} has no row with {study.metric}, which {study.name} measures now; run and keep it again "
            f"(deepres experiment {study.name} --keep {quote(str(folder.parent))}), or remove the folder"
        )
    steps = most_steps(study, trials, rows)
    said = study.says(measured) if study.says else verdict(study, found)
    left = "" if len(rows) == len(trials) else f" {len(rows)} of {len(trials)} trials finished."
    hours = sum(finite(rows, "seconds")) / 3600
    return (
        _question(study),
        said + left,
        " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))),
        " / ".join(f"{n:,.0f}" if n else "-" for n in steps) if any(steps) else "-",
        f"{hours:.1f}" if hours >= 0.05 else "< 0.1",
        ", ".join(sorted({str(row["machine"]) for row in rows})),
    )


def _rows(study: Study, folder: Path) -> tuple[list[dict[str, str]], list[Trial]]:
    """The rows of rows.csv in words, and the trials that the study was to have."""
    asked = _asked(folder)
    trials = study.trials(asked["size"], asked["seeds"])
    with (folder / "rows.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    names = {*trials[0].labels, *MADE[:3]}
    whole = names <= set(reader.fieldnames or ()) and all(
        None not in row and None not in row.values() for row in rows
    )
    if not rows or not whole:
        raise ValueError(
            f"{folder / 'rows.csv'} is not as a study wrote it, a row per trial with {', '.join(sorted(names))}; "
            f"keep it again (deepres experiment {study.name} --keep {quote(str(folder.parent))}), or remove the folder"
        )
    return rows, trials


def _typed(row: dict[str, str], trials: Sequence[Trial]) -> Row:
    """The row with its trial's labels, and its numbers as such."""
    labels = next((t.labels for t in trials if t.words == tuple(row[name] for name in t.labels)), {})
    return {name: labels.get(name, _number(word)) for name, word in row.items() if word or name in labels}


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return word
