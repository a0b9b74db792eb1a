"""Two ranks go on with what others saved: CONFIG.json FOLDER, with the runs killed, one and undisturbed in it."""

import sys
from pathlib import Path

import torch.distributed as dist

from deepres.config import Config
from deepres.ranks import join
from deepres.runs.folder import RunFolder
from deepres.training.loop import find_state, roll_back, train
from deepres.training.run import Run
from deepres.training.stability import Diverged

dist.init_process_group("gloo")
config, folder = Config.from_file(Path(sys.argv[1])), Path(sys.argv[2])
steps = config.schedule.total_steps
results = [train(config, folder / "killed", resume=True), train(config, folder / "undisturbed")]
assert results[0].after == results[1].after
train(config.replace(total_steps=steps + 40), folder / "one", resume=True)
with join(config) as ranks:
    careful, killed = config.replace(on_divergence="rollback"), RunFolder(folder / "killed")
    run = Run(careful, ranks=ranks, restored=find_state(killed, careful, ranks))
    if ranks.rank == 1:
        run.buffer.rings["states"][:] = float("nan")
    try:
        run.round()
    except Diverged as reason:
        roll_back(run, killed, reason)
    assert run.env_steps == steps and run.learner.lr_scale == 0.5
    assert run.round()["skipped_steps"] == 0
dist.destroy_process_group()
