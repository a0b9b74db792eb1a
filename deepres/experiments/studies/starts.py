"""How very deep networks start, and whether they then learn: what lies beyond 1024 layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.experiments.presets import paper
from deepres.experiments.study import Numbers, Size, Study, Trial, grid, trained
from deepres.machine import seeded
from deepres.runs.files import read_run
from deepres.training.instruments import live_outputs
from deepres.training.learner import build_algorithm

DEPTHS = {"cpu": [4, 16, 64, 256, 1024, 4096], "paper": [4, 16, 64, 256, 512, 1024, 2048, 4096]}
STARTS: dict[str, dict[str, object]] = {
    "published": {"init": "published"},
    "scaled": {"init": "scaled"},
    "zero": {"init": "zero"},
    "small heads": {"init": "published", "actor_head_scale": 0.01},
}
ANT = Sizes(state=29, action=8, goal=2)
ROWS = 64


def _starts(size: Size, seeds: Sequence[int]) -> list[Trial]:
    base = Config("crl", env="ant", width=256, recompute="auto", device="cpu")
    return _of_each(base, STARTS, DEPTHS[size], seeds)


def _of_each(
    base: Config, variants: dict[str, dict[str, object]], depths: Sequence[int], seeds: Sequence[int]
) -> list[Trial]:
    return [
        Trial({"start": name, **trial.labels}, trial.config, trial.after)
        for seed in seeds
        for name, options in variants.items()
        for trial in grid(base.replace(**options), {"depth": depths}, [seed])
    ]


def started(trial: Trial, folder: Path) -> Numbers:
    """CRL's networks as they start, on 64 rows of standard normal numbers of the ant's sizes.

    mean_spread: standard deviation of the action's means before tanh. live_means: share of them below 7.6, where
    1 - tanh^2 is 1e-6. live_spreads: share of the log-std heads whose tanh has a slope above 1e-3. stream, varying: rms
    of the actor's last features, and of their part that depends on the input. first_gradient, last_gradient: norms of
    the actor loss's gradient in the first and the last block's weights.
    """
    seed, options = trial.labels["seed"], trial.config.network
    algorithm = build_algorithm(trial.config, ANT, seeded(seed))
    draw = seeded(seed + 1)
    state, action, goal, noise = (
        torch.randn(ROWS, n, generator=draw) for n in (ANT.state, ANT.action, ANT.goal, ANT.action)
    )
    (losses, metrics), *_ = algorithm.losses(Batch(state, action.tanh(), goal), noise)
    losses["actor"].backward()
    actor = algorithm.policy().actor
    weight = actor.get_parameter("trunk.stack.weight").grad
    assert weight is not None
    block = options.skip_every or 1
    with torch.no_grad():
        features = actor.get_submodule("trunk")(torch.cat([state, goal], dim=1))
        mean, _ = actor(torch.cat([state, goal], dim=1))
    live_means, live_spreads = live_outputs(actor, torch.cat([state, goal], dim=1))
    return {
        "mean_spread": float(mean.std()),
        "live_means": _share(live_means),
        "live_spreads": _share(live_spreads),
        "stream": _rms(features),
        "varying": _rms(features - features.mean(0)),
        "critic_loss": float(metrics["critic_loss"].detach()),
        "actor_loss": float(metrics["actor_loss"].detach()),
        "first_gradient": float(weight[:block].norm()),
        "last_gradient": float(weight[-block:].norm()),
    }


def _share(true: Tensor) -> float:
    return float(true.float().mean())


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# --- 500 steps on recorded batches ---

CURED: dict[str, object] = {"init": "scaled", "exact_tanh": True, "actor_head_scale": 0.01}
CURES: dict[str, dict[str, object]] = {
    "published": {"init": "published"},
    "exact tanh": {"init": "published", "exact_tanh": True},
    "scaled": {"init": "scaled"},
    "scaled, exact, small heads": CURED,
    "cured, slower, bounded": CURED | {"lr_depth": 64, "log_alpha_bound": 2.0},
}
ENDS = ("published", "cured, slower, bounded")
STEPS, ROUND = 500, 50
RECORDER = "recorder"
STABILITY_DEPTHS = {"cpu": [64, 256, 1024, 2048, 4096], "paper": [64, 256, 512, 1024, 2048, 4096]}


def _stability(size: Size, seeds: Sequence[int]) -> list[Trial]:
    small = Config(
        "crl", env="ant", width=64, batch_size=64, num_envs=32, unroll_length=100, gradient_steps=ROUND,
        buffer_steps=1000, min_buffer_steps=1000, eval_envs=2, episode_length=200, eval_every=1000,
        checkpoint_every=5, keep_checkpoints=1, recompute="auto", threads=1, device="cpu", depth=4,
        init="published", max_skipped=0.999,
    )  # fmt: skip
    base = small if size == "cpu" else paper("humanoid").replace(max_skipped=0.999, gradient_steps=ROUND)
    trials = []
    for seed in seeds:
        recorder = Trial(
            {"start": RECORDER, "depth": 4, "seed": seed},
            base.replace(seed=seed, depth=4, actor_depth=None, total_steps=base.env.num_envs * 1000),
        )
        trials.append(recorder)
        for trial in _of_each(base.replace(total_steps=STEPS), CURES, STABILITY_DEPTHS[size], [seed]):
            if size == "paper" or _affordable(**trial.labels):
                trials.append(Trial(trial.labels, trial.config, after=recorder.name))
    return sorted(trials, key=lambda trial: trial.labels["depth"])


def _affordable(start: str, depth: int, seed: int) -> bool:
    """On two cores: all cures to 256 layers, and of seed 0 to 1024; beyond, the first and the last of them alone."""
    if depth < 1024 or (depth == 1024 and seed == 0):
        return True
    return start in ENDS and (depth == 1024 or seed == 0)


def stepped(trial: Trial, folder: Path) -> Numbers:
    """500 gradient steps from the recorder's ring, the same batches at every depth; the losses' first and last round.

    finite: share of the steps that were not skipped. entropy: of the last round, nats. log_alpha: of the last.
    """
    if trial.after is None:
        return trained(trial, folder)
    config = trial.config.replace(data=str(folder.with_name(trial.after)))
    numbers = trained(Trial(trial.labels, config), folder)
    rounds = read_run(folder).rounds
    if numbers["diverged"]:  # in the round after the last one here, whose steps count as lost
        done = numbers["gradient_steps"]
        return {"loss": math.inf, "finite": (done - numbers["skipped_steps"]) / STEPS, **numbers}
    first, last = rounds[0], rounds[-1]
    return {
        "loss": last["critic_loss"],
        "first_loss": first["critic_loss"],
        "actor_loss": last["actor_loss"],
        "entropy": last["entropy"],
        "log_alpha": math.log(last["alpha"]) if last["alpha"] > 0 else -math.inf,
        "accuracy": last["accuracy"],
        "finite": 1 - numbers["skipped_steps"] / STEPS,
        "diverged": numbers["diverged"],
        "gradient_steps": numbers["gradient_steps"],
        "seconds": numbers["seconds"],
    }


def ended(rows: Sequence[dict[str, Any]]) -> str:
    """Where each start's losses ended at its greatest depth, beside where depth 64 began."""
    first = [row for row in rows if (row["start"], row["depth"]) == ("published", 64)]
    began = [row["first_loss"] for row in first if "first_loss" in row]
    told = []
    for start in dict.fromkeys(row["start"] for row in rows):
        own = [row for row in rows if row["start"] == start]
        deepest = max(row["depth"] for row in own)
        at = [row for row in own if row["depth"] == deepest]
        diverged = sum(bool(row["diverged"]) for row in at)
        at = [row for row in at if not row["diverged"]]
        if at:
            skipped = STEPS * sum(1 - row["finite"] for row in at)
            told.append(
                f"{start} {fmean(row['loss'] for row in at):.2f} at depth {deepest} ({_seeds(len(at))}, entropy "
                f"{fmean(row['entropy'] for row in at):.1f} nats, {skipped:.0f} steps skipped)"
            )
        if diverged:
            told.append(f"{start} diverged at depth {deepest} ({_seeds(diverged)})")
    before = (
        f"over the first {ROUND} the published start had {fmean(began):.2f} at depth 64; " if began else ""
    )
    return (
        f"Critic's loss over the last {ROUND} of {STEPS} steps on recorded batches, mean of the seeds there: {before}"
        f"{'; '.join(told)}."
    )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


STUDIES = (
    Study(
        name="starts",
        source="arXiv 2503.14858, section 5 (the actor beyond 512 layers), and a derivation of ours",
        question="does the published start saturate a very deep actor?",
        claim="With the published start fewer action means are live the deeper the actor is.",
        refuted="a share of live means that does not fall with depth.",
        trials=_starts,
        run=started,
        takes=lambda trial: (0, 0),
        metric="live_means",
        seeds=(3, 5),
        also=("mean_spread", "live_spreads", "varying", "critic_loss", "first_gradient", "last_gradient"),
    ),
    Study(
        name="stability",
        source="arXiv 2503.14858, figure 12 (1024 layers with an actor of 512)",
        question="do actor and critic of the same depth learn beyond 1024 layers?",
        claim="With a scaled start 500 steps on recorded batches skip none and end below where depth 64 began.",
        refuted="a skipped step, or a last loss above the first one of depth 64.",
        trials=_stability,
        run=stepped,
        metric="loss",
        seeds=(3, 3),
        slopes=False,
        also=("first_loss", "actor_loss", "entropy", "log_alpha", "finite"),
        says=ended,
    ),
)
