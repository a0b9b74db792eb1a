"""CRL's gradient step against the published one, plain in JAX and in PyTorch (bench/published)."""

from __future__ import annotations

import pytest
import torch

from bench.published.crl import EagerLearner
from bench.published.crl_jax import JaxLearner
from deepres import Batch
from deepres.algorithms.parts import pair_energy, squashed_gaussian
from deepres.networks import call_frozen
from helpers.learners import METRICS, doubled, learner_of, numbers, small, stream

jax = pytest.importorskip("jax")


def make_batch(seed: int = 1) -> tuple[Batch, torch.Tensor]:
    return stream(1, seed)[0]


def test_update_equals_the_published_algorithm_in_jax():
    """Losses and gradients by jax.grad in float64, and Adam's first step."""
    learner, wide = (learner_of(small(), apart=0.05) for _ in range(2))
    batch, noise = make_batch()
    with jax.enable_x64(True):
        published = JaxLearner(doubled(wide))
        exact = batch.map(torch.Tensor.double), noise.double()
        grads = published.gradients(*exact)
        losses = {name: float(value) for name, value in published.update(*exact).items()}
        wanted = published.named_parameters()
    assert {t.dtype for t in (*grads.values(), *wanted.values())} == {torch.double}

    metrics = learner.update(batch, noise)

    assert set(losses) == {"critic_loss", "actor_loss", "alpha_loss"}
    for name, value in losses.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for name, p in learner.parameters().items():
        truth = grads[name]
        assert p.grad is not None, name
        assert (p.grad.double() - truth).abs().max() <= 1e-5 * max(1.0, float(truth.abs().max())), name
        # Adam's first step is lr * sign(g): where a gradient is lost in rounding its sign says nothing.
        clear = truth.abs() > 1e-6
        assert clear.any(), name
        assert (p.detach().double() - wanted[name])[clear].abs().max() <= 1e-5, name


@pytest.mark.parametrize("strong", [False, True])
def test_a_hundred_steps_equal_the_plain_loop(strong):
    """In float64, where nothing but what is computed can tell the two apart."""
    learner = doubled(learner_of(small(impl="reference")))
    plain, start = EagerLearner(learner, strong=strong), numbers(learner)
    for batch, noise in stream(100):
        wide = batch.map(torch.Tensor.double), noise.double()
        learner.step(*wide)
        plain.update(*wide)
    wanted = plain.parameters()
    for name, p in learner.parameters().items():
        assert (p.detach() - wanted[name]).abs().max() <= 1e-9, name
        assert (p.detach() - start[f"parameters/{name}"]).abs().max() > 1e-3, name


# --- what else holds ---


def test_the_loss_falls_when_pairs_can_be_told_apart():
    learner = learner_of(small(critic_lr=1e-3), apart=0.05)
    batch, noise = make_batch()
    first = learner.update(batch, noise)["critic_loss"].item()
    for _ in range(60):
        last = learner.update(batch, noise)["critic_loss"].item()
    assert last < 0.5 * first


@pytest.mark.parametrize("options", [{"norm": False}, {"skip_every": 0}, {"activation": "relu"}])
@pytest.mark.parametrize("energy", ["norm", "l2", "dot", "cosine"])
def test_every_variant_trains_a_step(options, energy):
    learner = learner_of(small(energy=energy, form="symmetric", **options), apart=0.05)
    metrics = learner.update(*make_batch())
    assert tuple(metrics) == METRICS
    assert all(torch.isfinite(v) for v in metrics.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.parameters().values())


def test_actor_loss_leaves_the_critic_alone():
    learner = learner_of(small(), apart=0.05)
    batch, noise = make_batch()
    phi = call_frozen(learner.algorithm.phi, torch.cat([batch.state, noise.requires_grad_()], dim=1))
    phi.sum().backward()
    assert noise.grad is not None and noise.grad.abs().sum() > 0
    assert all(p.grad is None for p in learner.algorithm.phi.parameters())


def test_policy_density_integrates_to_one():
    grid = torch.linspace(-6, 6, 20001, dtype=torch.double)[:, None]
    mean, log_std = torch.full_like(grid, 0.3), torch.full_like(grid, -0.4)
    action, log_prob = squashed_gaussian(mean, log_std, grid)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-4)


def test_pair_energy_is_finite_where_a_pair_meets():
    phi = torch.zeros(3, 4, requires_grad=True)
    pair_energy(phi, torch.zeros(3, 4), "norm").sum().backward()
    assert torch.equal(phi.grad, torch.zeros(3, 4))
