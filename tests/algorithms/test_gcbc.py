"""GCBC's gradient step against an independent one, written here from its equation (arXiv 1906.05838)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres.algorithms.parts import log_density, squashed_gaussian
from deepres.data.relabel import FutureGoals
from helpers.learners import batch_for, doubled, learner_of, small
from helpers.plain_networks import gaussian, leaves

INSIDE = 1 - 2**-20  # how near to a bound an action is taken


def log_density_by_the_book(law: torch.distributions.Normal, action: Tensor) -> Tensor:
    bounded = action.clamp(-INSIDE, INSIDE)
    return (law.log_prob(torch.atanh(bounded)) - torch.log(1 - bounded.square())).sum(1)


@pytest.mark.parametrize("exact", [True, False], ids=["float64", "fp32"])
def test_a_step_equals_the_equation(exact):
    config = small("gcbc", impl="reference") if exact else small("gcbc")
    learner = learner_of(config, apart=0.05)
    batch, noise = batch_for(learner)
    batch.action[0], batch.action[1] = 1.0, -1.0  # at the bounds, where atanh is infinite
    batch.action[2, 0] = 1 - 2**-24
    truth = batch.map(Tensor.double)
    if exact:
        doubled(learner)
        batch, noise = truth, noise.double()
    hair = 1e-9 if exact else 1e-5
    p = leaves(learner.parameters())
    law = gaussian(p, truth.state, truth.goal)
    loss = -log_density_by_the_book(law, truth.action).mean()
    grads = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))

    metrics = learner.update(batch, noise)

    assert metrics["skipped_steps"] == 0
    assert metrics["actor_loss"].item() == pytest.approx(loss.item(), rel=hair)
    error = (torch.tanh(law.mean) - truth.action).square().mean()
    assert metrics["action_error"].item() == pytest.approx(error.item(), rel=hair)
    assert metrics["log_std"].item() == pytest.approx(law.stddev.log().mean().item(), rel=hair, abs=hair)
    for name, after in learner.parameters().items():
        worst = (after.grad.double() - grads[name]).abs().max()
        assert worst <= hair * max(1.0, float(grads[name].abs().max())), name
        assert not torch.equal(after.double(), p[name]), name


def test_entropy_is_the_policys_own():
    learner = learner_of(small("gcbc"), apart=0.05)
    batch, noise = batch_for(learner)
    mean, log_std = learner.algorithm.actor(torch.cat([batch.state, batch.goal], dim=1))
    _, log_prob = squashed_gaussian(mean, log_std, noise)
    assert learner.update(batch, noise)["entropy"].item() == pytest.approx(-log_prob.mean().item(), rel=1e-6)


def test_log_density_integrates_to_one():
    x = torch.linspace(-7, 7, 40001, dtype=torch.double)[:, None]
    action = torch.tanh(x)
    mean, log_std = torch.full_like(x, 0.3), torch.full_like(x, -0.4)
    total = torch.trapezoid(log_density(mean, log_std, action).exp(), action[:, 0])
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_log_density_keeps_its_digits_near_the_bounds():
    action = torch.tensor([[1.0], [-1.0], [1 - 2**-24], [1 - 2**-18], [0.999], [0.5], [0.0]])
    mean, log_std = torch.full_like(action, 0.3), torch.full_like(action, -0.4)
    got, truth = (
        log_density(*(t.to(d) for t in (mean, log_std, action))) for d in (torch.float, torch.double)
    )
    torch.testing.assert_close(got.double(), truth, rtol=2e-6, atol=2e-6)
    assert torch.equal(got[0], log_density(mean, log_std, torch.full_like(action, 7.0))[0])


@pytest.mark.parametrize(
    ("options", "gamma"), [({}, 0.99), ({"gamma": 0.9}, 0.9), ({"goals": "uniform", "gamma": 0.9}, None)]
)
def test_goals_are_drawn_as_the_options_say(options, gamma):
    sampler = learner_of(small("gcbc", commanded=0.25, **options)).algorithm.sampler
    assert type(sampler) is FutureGoals and (sampler.gamma, sampler.commanded) == (gamma, 0.25)


def test_what_was_done_is_done_again():
    learner = learner_of(small("gcbc", actor_lr=1e-2))
    batch, noise = batch_for(learner)
    first = learner.update(batch, noise)["action_error"].item()
    for _ in range(150):
        last = learner.update(batch, noise)["action_error"].item()
    assert last < 0.6 * first
