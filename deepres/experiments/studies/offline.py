"""Does depth help when the data are fixed? A ladder of hypotheses on data made in one maze, the same for all trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deepres.algorithms.parts import pair_energy
from deepres.config import Config
from deepres.data import datasets
from deepres.data.episodes import Episodes
from deepres.data.relabel import FutureGoals
from deepres.experiments.make_data import VALIDATION, Kind, make_data, plan
from deepres.experiments.studies.transfer import QRL, Objective
from deepres.experiments.study import Numbers, Size, Study, Trial, grid, trained
from deepres.report.correlation import spearman

MAZE, LENGTH = "point_big_maze", 200
TRANSITIONS = 1_000_000
MADE = "the data"
BASE = Config(
    "crl",
    env=MAZE,
    episode_length=300,
    width=64,
    init="published",
    batch_size=128,
    gradient_steps=100,
    total_steps=8000,
    eval_envs=128,
    eval_every=10,
    checkpoint_every=10,
    keep_checkpoints=1,
    threads=1,
    device="cpu",
)
"""Of size "cpu": all studies here take about three hours of two cores."""

PAPER = BASE.replace(
    width=256, batch_size=1024, gradient_steps=1000, total_steps=1_000_000, eval_envs=256, eval_every=50, device="auto",
    threads=0,
)  # fmt: skip
DEPTHS = (4, 16, 64)
AWR: dict[str, Any] = {"extraction": "awr", "bc_alpha": 3.0, "random_actor_goals": 0.0}
DDPG: dict[str, Any] = {"extraction": "ddpg_bc", "bc_alpha": 0.03, "random_actor_goals": 0.0}

EXTRACTIONS = {
    "DDPG+BC": Objective("crl", DDPG),
    "AWR": Objective("crl", AWR),
    "best of 16": Objective("crl", {"extraction": "best_of_n", "random_actor_goals": 0.0}),
}
TOGETHER = {f"{pairs} of an episode": Objective("crl", {**AWR, "together": pairs}) for pairs in (1, 4)}
OBJECTIVES = {
    "CRL": Objective("crl", AWR),
    "GCBC": Objective("gcbc", {"goals": "uniform"}),
    "GCIVL": Objective("gcivl"),
    "GCIQL": Objective("gciql", {"bc_alpha": 0.003}),
    "QRL": Objective("qrl", QRL),
    "HIQL": Objective("hiql"),
    "SRL": Objective("srl"),
}
GOALS = {"xy": MAZE, "whole observation": f"{MAZE}_whole_goal"}
"""The task by what its goals are: a place, or a whole state, as OGBench has them."""
AMOUNTS = {f"{count:,} transitions": count for count in (10_000, 100_000, 1_000_000)}
"""Of size "cpu" a run draws a million pairs: of the largest data each transition comes once on average."""


def _trials(
    label: str,
    variants: Mapping[str, Objective],
    size: Size,
    seeds: Sequence[int],
    amounts: Mapping[str, int],
    tasks: Mapping[str, str],
) -> list[Trial]:
    """Every variant at every depth and seed, from data of as many transitions as `amounts` says of the variant, in the
    task that `tasks` does."""
    base = BASE if size == "cpu" else PAPER
    counts = {variant: amounts.get(variant, TRANSITIONS) for variant in variants}
    made = {
        count: Trial({label: f"{MADE} {count}", "depth": 0, "seed": 0}, base)
        for count in dict.fromkeys(counts.values())
    }
    trials = list(made.values())
    for seed in seeds:
        for variant, one in variants.items():
            config = one.config(base, env=tasks.get(variant, MAZE))
            for trial in grid(config, {"depth": DEPTHS}, [seed]):
                labels = {label: variant, **trial.labels}
                trials.append(Trial(labels, trial.config, after=made[counts[variant]].name))
    return trials


def learned(trial: Trial, folder: Path) -> Numbers:
    """Make the data, or train the trial from what the one that it comes after has made."""
    if trial.after is None:
        return made(folder, int(next(iter(trial.labels.values())).split()[-1]))
    numbers = from_data(trial, folder)
    known_of = trial.config.algorithm_name == "crl" and not numbers["diverged"]
    return numbers | (known(folder) if known_of else {})


def from_data(trial: Trial, folder: Path) -> Numbers:
    """Train the trial on the data that the one that it comes after has made."""
    assert trial.after is not None
    data = folder.with_name(trial.after) / "data.npz"
    return trained(Trial(trial.labels, trial.config.replace(data=str(data))), folder)


def made(
    folder: Path, transitions: int, kind: Kind = "navigate", length: int = LENGTH, maze: str = MAZE
) -> Numbers:
    """Make a data set of episodes of `length` in `folder`, unless it is there; how many transitions it has."""
    path = folder / "data.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_data(plan(maze, kind, -(-transitions // length), length, None, 0), path)
    return {"transitions": float(datasets.read(path).transitions)}


def takes(trial: Trial) -> tuple[int, int]:
    """Environment and gradient steps: of those that make data the former, of those that learn the latter."""
    if trial.after is not None:
        return 0, trial.config.schedule.total_steps
    count = str(next(iter(trial.labels.values()))).split()[-1]
    return round((1 + VALIDATION) * (int(count) if count.isdecimal() else TRANSITIONS)), 0


PAIRS, BATCHES, EPISODES = 256, 8, 32


@torch.no_grad()
def known(folder: Path) -> Numbers:
    """What the critic of the run of CRL at `folder` knows of its data, and of episodes that were held out.

    train_accuracy, val_accuracy: the share of state-actions that find their own goal among 256. time_rank: rank
    correlation (Spearman), within a held-out episode, of the energy to its last state with minus the steps until then.
    """
    from deepres.training.loop import load_run

    run = load_run(folder)
    algorithm: Any = run.learner.algorithm
    energy, place = algorithm.options.energy, Path(run.config.schedule.data or "")
    held_out = datasets.read(place.with_name(f"{place.stem}-val.npz"))
    validation = Episodes(held_out, run.env.goal_slice, device=run.device)
    generator = torch.Generator(run.device).manual_seed(0)

    def accuracy(episodes: Any) -> float:
        right = []
        for batch in FutureGoals(algorithm.options.gamma).batches(
            episodes, BATCHES, PAIRS, window=episodes.size, generator=generator
        ):
            phi = algorithm.phi(torch.cat([batch.state, batch.action], dim=1))
            psi = algorithm.psi(batch.goal)
            pairs = phi.repeat_interleave(PAIRS, dim=0), psi.repeat(PAIRS, 1)
            best = pair_energy(*pairs, energy).view(PAIRS, PAIRS).argmax(dim=1)
            right.append((best == torch.arange(PAIRS, device=best.device)).float().mean().item())
        return sum(right) / BATCHES

    def rank(episode: int) -> float:
        first, length = episode * validation.rows, validation.rows - 1
        row = torch.arange(first, first + length, device=run.device)
        states, actions = validation.take("states", row), validation.take("actions", row)
        goal = validation.take("states", row[-1:] + 1, run.env.goal_slice).expand(length, -1)
        found = pair_energy(algorithm.phi(torch.cat([states, actions], dim=1)), algorithm.psi(goal), energy)
        return spearman(found.double().cpu().numpy(), torch.arange(length).double().numpy())

    ranks = [rank(episode) for episode in range(min(EPISODES, validation.num_envs))]
    return {
        "train_accuracy": accuracy(run.buffer),
        "val_accuracy": accuracy(validation),
        "time_rank": sum(ranks) / len(ranks),
    }


def _study(
    name: str,
    label: str,
    variants: Mapping[str, Objective],
    amounts: Mapping[str, int] | None = None,
    tasks: Mapping[str, str] | None = None,
    **told: Any,
) -> Study:
    diagnosed = ("train_accuracy", "val_accuracy", "time_rank")
    return Study(
        name=name,
        trials=lambda size, seeds: _trials(label, variants, size, seeds, amounts or {}, tasks or {}),
        run=learned,
        takes=takes,
        seeds=(3, 3),
        also=("time_at_goal", "seconds") if variants is OBJECTIVES else (*diagnosed, "seconds"),
        **told,
    )


SOURCE = "arXiv 2503.14858, section 4.6: offline, contrastive RL did not gain with depth"
STUDIES = (
    _study(
        "offline-extraction", "extraction", EXTRACTIONS,
        source=SOURCE,
        question="offline, is it the way from critic to policy that depth spoils?",
        claim="Following the critic's slope loses with depth, weighted cloning and the best of N actions gain.",
        refuted="a slope of DDPG+BC that is no less than the others'.",
    ),
    _study(
        "offline-trajectories", "pairs", TOGETHER,
        source="arXiv 2508.13113, on what telling trajectories apart does to the critic",
        question="offline, do deep critics learn episodes by heart?",
        claim="With four pairs of an episode in a batch success grows with depth, with one it does not.",
        refuted="equal slopes, or a rank within an episode that depth does not lower with one pair.",
    ),
    _study(
        "offline-amount", "data", {name: Objective("crl", AWR) for name in AMOUNTS}, AMOUNTS,
        source=SOURCE,
        question="offline, does depth gain once there are data enough?",
        claim="Success grows with depth where a transition comes once on average.",
        refuted="a slope on the largest data whose interval lies at or below 0.",
    ),
    _study(
        "offline-goal", "goal", {name: Objective("crl", AWR) for name in GOALS}, tasks=GOALS,
        source="arXiv 2410.20092, whose goals are whole observations; 2503.14858, section 4.6, is about its tasks",
        question="offline, do deep critics learn too much of what a goal has beside its place?",
        claim="Success grows with depth where a goal is a place, and does not where it is a whole observation.",
        refuted="equal slopes, or the larger one with whole observations.",
    ),
    _study(
        "offline-objective", "objective", OBJECTIVES,
        source="arXiv 2410.20092 for the methods, 2503.14858 for their depth",
        question="offline, which objectives get better with depth?",
        claim="Cloning and contrastive critics gain with depth, critics that back up values do not.",
        refuted="a slope of GCIVL, GCIQL or HIQL that lies above 0 with its interval.",
    ),
)  # fmt: skip
