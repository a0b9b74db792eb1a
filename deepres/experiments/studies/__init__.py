"""The studies by name: `deepres experiment NAME`."""

from __future__ import annotations

from difflib import get_close_matches

from deepres.experiments.studies.compression import STUDIES as _COMPRESSION
from deepres.experiments.studies.contact import STUDIES as _CONTACT
from deepres.experiments.studies.depth import STUDIES as _DEPTH
from deepres.experiments.studies.offline import STUDIES as _OFFLINE
from deepres.experiments.studies.offline_ant import STUDIES as _ANT
from deepres.experiments.studies.offline_methods import STUDIES as _METHODS
from deepres.experiments.studies.starts import STUDIES as _STARTS
from deepres.experiments.studies.successors import STUDIES as _SUCCESSORS
from deepres.experiments.studies.transfer import STUDIES as _TRANSFER
from deepres.experiments.study import Study

_STUDIES = (
    *_DEPTH,
    *_STARTS,
    *_CONTACT,
    *_TRANSFER,
    *_SUCCESSORS,
    *_COMPRESSION,
    *_OFFLINE,
    *_METHODS,
    *_ANT,
)
_ALL: dict[str, Study] = {study.name: study for study in _STUDIES}


def names() -> list[str]:
    """All studies."""
    return list(_ALL)


def register(study: Study) -> None:
    """Add a study of your own. Raises ValueError if its name is taken by another."""
    if _ALL.get(study.name, study) is not study:
        raise ValueError(f"there is a study {study.name!r} already; give yours another name")
    _ALL[study.name] = study


def find(name: str) -> Study:
    """The study of that name. Raises ValueError, with the nearest names, if there is none."""
    if name in _ALL:
        return _ALL[name]
    near = get_close_matches(name, _ALL)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(_ALL)}"
    raise ValueError(f"there is no study {name!r}; {hint}")
