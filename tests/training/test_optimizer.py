"""Adam in one pass: against torch's own, clipped, warmed up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepres.training.optimizer import Adam, squares_of
from helpers.learners import batch_for, learner_of, numbers, same, small, stream


def test_adam_equals_torchs_in_double():
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((40, 33), (7,), ())]
    exact, plain = (
        [nn.Parameter(p.detach().clone().to(d)) for p in ours] for d in (torch.double, torch.float)
    )
    optimizers = [
        (ours, Adam(ours, 3e-4)),
        (exact, torch.optim.Adam(exact, 3e-4)),
        (plain, torch.optim.Adam(plain, 3e-4)),
    ]
    for _ in range(60):
        grads = [torch.randn(p.shape, generator=generator) for p in ours]
        for parameters, optimizer in optimizers:
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad.to(p.dtype)
            optimizer.step()
    for got, truth, rival in zip(ours, exact, plain, strict=True):
        ours_off, theirs_off = ((t.double() - truth).abs().max().item() for t in (got, rival))
        assert ours_off <= 2 * theirs_off + 2e-7
    saved = optimizers[0][1].state_dict()
    torch.optim.Adam(exact, 3e-4).load_state_dict(saved)  # and its state is torch's own


@pytest.mark.parametrize("bound", [0.1, 1e6])
def test_clipping_is_clip_grad_norm(bound):
    learner, batch_noise = learner_of(small(max_grad_norm=bound)), stream(1)[0]
    free = learner_of(small())
    free.step(*batch_noise)
    learner.step(*batch_noise)
    for which in ("actor", "critic"):
        ours, theirs = (each.optimizers[which].gradients() for each in (learner, free))
        for mine, grad in zip(ours, _clipped(theirs, bound), strict=True):
            torch.testing.assert_close(mine, grad, rtol=1e-5, atol=1e-9)
    assert torch.equal(learner.algorithm.log_alpha.grad, free.algorithm.log_alpha.grad)
    if bound == 1e6:  # out of reach: the very same step
        assert same(numbers(learner), numbers(free))
    else:
        assert squares_of(learner.optimizers["critic"].gradients()).sum().sqrt() == pytest.approx(
            bound, rel=1e-4
        )


def _clipped(grads: list[torch.Tensor], bound: float) -> list[torch.Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    nn.utils.clip_grad_norm_(parameters, bound)
    return [p.grad for p in parameters]


def test_warm_up_grows_step_by_step_and_skipped_steps_do_not_count():
    p = nn.Parameter(torch.zeros(1))
    optimizer = Adam([p], lr=1.0, warmup_steps=4)
    sizes = []
    for skip in (0, 0, 1, 0, 0, 0):
        before = p.item()
        p.grad = torch.ones(1)  # the same gradient always: Adam moves by its step size
        optimizer.step(skip=torch.tensor(float(skip)))
        sizes.append(before - p.item())
    assert sizes == pytest.approx([0.25, 0.5, 0, 0.75, 1, 1], rel=1e-5)


def test_deeper_networks_learn_slower_where_asked():
    """sqrt(lr_depth / D) of the learning rate, none above it: the critic has 8 layers, the actor 4."""
    full, slow = learner_of(small()), learner_of(small(lr_depth=4))
    rates = {name: (full.optimizers[name], slow.optimizers[name]) for name in ("critic", "actor", "alpha")}
    scales = {
        name: ours.param_groups[0]["lr"] / its.param_groups[0]["lr"] for name, (its, ours) in rates.items()
    }
    assert scales == {"critic": pytest.approx(0.5**0.5), "actor": 1.0, "alpha": 1.0}


@pytest.mark.parametrize("algorithm", ["crl", "sac"])
def test_the_temperature_stays_within_its_bound(algorithm):
    bounded, free = (learner_of(small(algorithm, **o)) for o in ({"log_alpha_bound": 1e-4}, {}))
    batch, noise = batch_for(free)
    for learner in (bounded, free):
        learner.step(batch, noise)
    at = free.algorithm.log_alpha.item()
    assert abs(at) > 2e-4 and bounded.algorithm.log_alpha.item() == pytest.approx(math.copysign(1e-4, at))


def test_survival_methods_bound_their_temperature_too():
    assert learner_of(small("srl", log_alpha_bound=2.0)).algorithm.groups["alpha"].bound == 2.0
