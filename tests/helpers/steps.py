"""A gradient step beside the equations that it is said to follow, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepres import Batch, Config, Learner
from helpers.learners import batch_for, doubled, learner_of
from helpers.plain_networks import Parameters, leaves

Equations = Callable[[Parameters, Batch, Tensor], dict[str, Tensor]]
"""The losses by group, and whatever else a step measures, from parameters, batch and noise."""

HAIR = 1e-9


def exact_learner(config: Config) -> tuple[Learner, Batch, Tensor]:
    """A learner away from its first numbers, a batch with every column and the noise of a step, all float64."""
    learner = doubled(learner_of(config.replace(impl="reference"), apart=0.05))
    batch, noise = batch_for(learner)
    return learner, batch.map(Tensor.double), noise.double()


def check_step(
    config: Config,
    equations: Equations,
    groups: dict[str, tuple[str, ...]],
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> None:
    """One step of `config` has the losses, the metrics and every gradient of `equations`.

    groups: the beginnings of the names of each group's parameters. prepare: makes the batch one of the algorithm's.
    """
    learner, batch, noise = exact_learner(config)
    check_update(learner, prepare(batch), noise, equations, groups)


def check_update(
    learner: Learner, batch: Batch, noise: Tensor, equations: Equations, groups: dict[str, tuple[str, ...]]
) -> None:
    """The same of one step of `learner`, all float64."""
    p = leaves(learner.parameters())
    found = equations(p, batch, noise)
    assert set(learner.algorithm.groups) == set(groups) <= found.keys()
    metrics = learner.update(batch, noise)
    assert metrics["skipped_steps"] == 0
    for name, wanted in found.items():
        got = metrics[f"{name}_loss" if name in groups else name]
        assert got.item() == pytest.approx(wanted.item(), rel=HAIR, abs=HAIR), name
    after = learner.parameters()
    learned = {name for name, each in after.items() if each.requires_grad}
    for group, prefixes in groups.items():
        own = [name for name in p if name.startswith(prefixes)]
        assert own
        wanted = torch.autograd.grad(found[group], [p[name] for name in own], retain_graph=True)
        for name, gradient in zip(own, wanted, strict=True):
            worst = (after[name].grad - gradient).abs().max()
            assert worst <= HAIR * max(1.0, float(gradient.abs().max())), (group, name)
            assert gradient.any(), (group, name)
        learned -= set(own)
    assert not learned
