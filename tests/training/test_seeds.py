"""A run's seed has 63 bits: each is a run of its own, and those that PyTorch and JAX read whole are what they were."""

from __future__ import annotations

from itertools import combinations

import torch

from deepres import Sizes, envs
from deepres.envs import registry
from deepres.training.learner import build_algorithm
from deepres.training.run import Run
from helpers.own_environments import Reach
from helpers.tiny_runs import TINY


def begun(seed: int) -> dict[str, torch.Tensor]:
    """Everything that such a run draws with, and what it has drawn when it begins."""
    run = Run(TINY.replace(env="reach", seed=seed))
    weights = torch.cat([p.detach().flatten() for p in run.learner.algorithm.parameters()])
    first = run.eval_env.reset(run.config.schedule.seed + 1_000_003).obs
    return {
        "weights": weights, "draws": run.generator.get_state(), "obs": run.standing.obs, "evaluation": first,
    }  # fmt: skip


def test_every_seed_is_a_run_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    envs.register("reach", gymnasium=Reach)
    runs = [begun(seed) for seed in (3, 3 + 2**31, 3 + 2**32, 3 + 2**33, 3 + 2**62, 2**63 - 1)]
    for a, b in combinations(runs, 2):
        assert not any(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(runs[0]["draws"], torch.Generator().manual_seed(4).get_state())
    assert all(torch.equal(tensor, runs[0][name]) for name, tensor in begun(3).items())
    plain = build_algorithm(TINY, Sizes(3, 2, 2), torch.Generator().manual_seed(3))
    assert torch.equal(runs[0]["weights"], torch.cat([p.detach().flatten() for p in plain.parameters()]))
