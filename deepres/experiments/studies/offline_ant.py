"""Does depth help an ant when the data are fixed? A run of its own teaches it to walk, and then makes the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepres.config import Config
from deepres.experiments.studies.offline import AWR, BASE, DDPG, MADE, PAPER, SOURCE, TRANSITIONS, known, made
from deepres.experiments.studies.transfer import Objective
from deepres.experiments.study import Numbers, Size, Study, Trial, grid, trained

MAZE, LENGTH = "ant_big_maze", 1000
WALKER = Config(
    "crl",
    env="ant",
    depth=4,
    width=128,
    batch_size=256,
    num_envs=64,
    gradient_steps=100,
    total_steps=6_000_000,
    eval_envs=64,
    eval_every=50,
    checkpoint_every=50,
    keep_checkpoints=1,
    threads=1,
    device="cpu",
)
"""The run that teaches the ant to walk, on open ground: about an hour of one core."""
METHODS = {
    "CRL, DDPG+BC": Objective("crl", DDPG | {"bc_alpha": 0.1}),
    "CRL, AWR": Objective("crl", AWR),
    "GCBC": Objective("gcbc", {"goals": "uniform"}),
}
"""With OGBench's weight of cloning for the ant."""
DEPTHS = (4, 16, 64)


def _trials(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = BASE.replace(eval_envs=64, eval_every=16) if size == "cpu" else PAPER
    base = base.replace(env=MAZE, episode_length=1000)
    file = Trial({"method": MADE, "depth": 0, "seed": 0}, base)
    return [file] + [
        Trial({"method": name, **trial.labels}, trial.config, after=file.name)
        for seed in seeds
        for name, one in METHODS.items()
        for trial in grid(one.config(base), {"depth": DEPTHS}, [seed])
    ]


def learned(trial: Trial, folder: Path) -> Numbers:
    """Teach an ant to walk and make the data, or learn from them."""
    if trial.after is None:
        walker = folder / "walker"
        taught = trained(Trial({}, WALKER), walker)
        return made(folder, TRANSITIONS, "navigate", LENGTH, MAZE, walker) | {"walker": taught["success"]}
    data = folder.with_name(trial.after) / "data.npz"
    numbers = trained(Trial(trial.labels, trial.config.replace(data=str(data))), folder)
    return numbers | (known(folder) if trial.config.algorithm_name == "crl" else {})


def takes(trial: Trial) -> tuple[int, int]:
    """Environment and gradient steps: of the data and of who walks for them, or of who learns."""
    from deepres.experiments.budget import steps
    from deepres.experiments.make_data import VALIDATION

    if trial.after is not None:
        return 0, trial.config.schedule.total_steps
    acted, taught = steps(WALKER)
    return acted + round((1 + VALIDATION) * TRANSITIONS), taught


STUDIES = (
    Study(
        name="offline-ant",
        source=SOURCE,
        question="offline, does depth help an ant in a maze?",
        claim="Cloning gains with depth, contrastive RL that follows its critic's slope loses.",
        refuted="a slope of cloning at or below 0, or one of DDPG+BC above it.",
        trials=_trials,
        run=learned,
        seeds=(3, 3),
        also=("final_distance", "val_accuracy", "time_rank", "seconds"),
        takes=takes,
    ),
)
