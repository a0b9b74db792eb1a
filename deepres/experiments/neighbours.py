"""Studies beside each other share trainings: a run that one of them has finished is taken by the next that asks for it.

Studies are neighbours if their folders lie in one folder, as runs/studies/depth and runs/studies/skips do.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

from deepres._version import __version__
from deepres.config import Config
from deepres.runs.files import read_run
from deepres.runs.folder import RunFolder


def taken(config: Config, folder: Path) -> Path | None:
    """The run of a neighbour's trial that was copied to `folder`, a trial's folder where nothing is yet; None if none
    has finished `config`.

    Its options must be the same, the contents of its data file too, and its row must be there, of this version. Which
    machine trained it is not asked: neighbours lie on one disk. The copy names the neighbour's data file, as its
    checkpoints do.
    """
    trials = folder.parent
    if trials.name != "trials" or folder.exists():
        return None
    for found in sorted(trials.parent.parent.glob("*/trials/*/config.json")):
        run, study = found.parent, found.parents[2]
        if study != trials.parent and _finished(run, study / "rows" / f"{run.name}.json", config):
            draft = folder.with_name(f".{folder.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(run, draft)
            draft.rename(folder)
            return run
    return None


def _finished(run: Path, row: Path, config: Config) -> bool:
    try:
        if json.loads(row.read_text())["made"]["version"] != __version__:
            return False
        return complete(run, config)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def complete(run: Path, config: Config) -> bool:
    """Whether the run there was trained to its end as `config` says, by its own data file or one of the same contents.
    Raises FileNotFoundError or ValueError where there is no run."""
    found = RunFolder(run).read_config()
    return (
        found.replace(data=None) == config.replace(data=None)
        and _same_data(found.schedule.data, config.schedule.data)
        and read_run(run).finished
        and bool(read_run(run).rounds)  # a pruned policy's folder was trained elsewhere
    )


def _same_data(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one == other
    paths = Path(one), Path(other)
    return all(path.is_file() for path in paths) and filecmp.cmp(*paths, shallow=False)
