"""One trial of a study in a process of its own: python -m deepres.experiments.trial FOLDER NAME."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from deepres._version import __version__
from deepres.experiments.folder import StudyFolder, options_of, row_text
from deepres.machine import cpu_name, pick_device
from deepres.training.stopping import Stopped


def run_trial(folder: StudyFolder, name: str) -> Path:
    """Run the trial `name` of the study at `folder`; returns the file of its row, which is written when it is whole."""
    study, trials = folder.read()
    named = {trial.name: trial for trial in trials}
    if name not in named:
        raise ValueError(f"{folder.path} has no trial {name!r}; it has {', '.join(named)}")
    trial = named[name]
    began = time.time()
    numbers = study.run(trial, folder.trial(trial))
    device = pick_device(trial.config.system.device)
    made = {
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "version": __version__,
        "machine": cpu_name() if device.type == "cpu" else _gpu_name(device.index or 0),
        "options": options_of(trial),
    }
    folder.write(folder.row(trial), row_text(trial, numbers, made))
    return folder.row(trial)


def _gpu_name(index: int) -> str:
    import torch

    return torch.cuda.get_device_name(index)


if __name__ == "__main__":
    try:
        run_trial(StudyFolder(Path(sys.argv[1])), sys.argv[2])
    except Stopped as asked:
        print(asked)
        raise SystemExit(asked.status) from None
