"""The gradient step of any learner: the same bits twice, its state, and what it does with what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepres.algorithms import crl
from deepres.algorithms.base import Group, Pass
from deepres.training import learner as learners
from deepres.training import memory_plan
from helpers.learners import SIZES, learner_of, numbers, same, small, stream


def test_update_is_the_same_bits_twice():
    batch, noise = stream(1)[0]
    runs = []
    for _ in range(2):
        learner = learner_of(small(), apart=0.05)
        for _ in range(3):
            learner.update(batch, noise)
        runs.append(learner.state_tensors())
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_saved_state_restores_every_number():
    batch, noise = stream(1)[0]
    one, other = learner_of(small(), seed=0, apart=0.05), learner_of(small(), seed=5, apart=0.05)
    one.update(batch, noise)
    other.load_state_tensors({k: v.clone() for k, v in one.state_tensors().items()})
    one.update(batch, noise)
    other.update(batch, noise)
    assert all(torch.equal(v, other.state_tensors()[k]) for k, v in one.state_tensors().items())


def test_another_network_shape_is_refused_and_changes_nothing():
    saved = learner_of(small(), apart=0.05).state_tensors()
    deeper = learner_of(small(depth=12))
    before = {k: v.clone() for k, v in deeper.state_tensors().items()}
    with pytest.raises(
        ValueError, match=r"phi.trunk.stack.weight must have shape \[12, 32, 32\], got \[8, 32, 32\]"
    ):
        deeper.load_state_tensors(saved)
    assert all(torch.equal(v, before[k]) for k, v in deeper.state_tensors().items())


@pytest.mark.parametrize("field", ["state", "action", "goal"])
def test_a_nan_in_a_batch_is_skipped_and_counted(field):
    learner = learner_of(small())
    (good, noise), (bad, _) = stream(2)
    learner.step(good, noise)
    before = numbers(learner)
    getattr(bad, field)[3] = torch.nan
    metrics = learner.update(bad, noise)
    assert same(before, numbers(learner))
    assert metrics.pop("skipped_steps") == 1 and not any(metrics.values())
    metrics = learner.update(good, noise)
    assert metrics["skipped_steps"] == 0 and all(v.isfinite() for v in metrics.values())
    assert not same(before, numbers(learner))


def test_an_overflowing_gradient_behind_a_finite_loss_is_skipped():
    learner = learner_of(small())
    batch, noise = stream(1)[0]
    before = numbers(learner)
    learner.algorithm.phi.head.bias.register_hook(lambda grad: grad * torch.inf)
    assert learner.update(batch, noise)["skipped_steps"] == 1
    assert same(before, {k: v for k, v in numbers(learner).items() if k in before})
    assert not learner.optimizers["actor"].state[learner.algorithm.actor.mean.weight]["exp_avg"].any()


def test_a_policys_copy_stays_behind():
    learner = learner_of(small())
    (batch, noise), obs = stream(1)[0], torch.ones(5, SIZES.state + SIZES.goal)
    copied, before = learner.policy.copy(), learner.act(obs)
    learner.step(batch, noise)
    assert torch.equal(copied.act(obs), before) and not torch.equal(learner.act(obs), before)


def test_learning_rates_lowered_stay_lowered_in_a_checkpoint():
    learner, other = learner_of(small()), learner_of(small())
    learner.lr_scale = 0.25
    other.load_state_tensors(numbers(learner))
    (batch, noise), full = stream(1)[0], learner_of(small())
    for each in (other, full):
        each.step(batch, noise)
    moved = (other.algorithm.log_alpha / full.algorithm.log_alpha).item()
    assert other.lr_scale == 0.25 and moved == pytest.approx(0.25, rel=1e-5)


# --- an algorithm of one's own ---


def learner_with(monkeypatch, *, build=None, losses=None):
    """A learner of a CRL whose groups were changed by `build`, or whose yields by `losses`."""

    class Mine(crl.CRL):
        def build(self, networks):
            groups = super().build(networks)
            return build(groups) if build else groups

        def losses(self, batch, noise):
            return losses(super().losses(batch, noise)) if losses else super().losses(batch, noise)

    monkeypatch.setattr(learners.algorithms, "find", lambda name: Mine)
    return learner_of(small())


def every(value):
    return lambda groups: groups | {"actor": Group(groups["actor"].parameters, 1e-3, every=value)}


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda groups: {}, "Mine.build must return the groups that are learned, got none"),
        (
            lambda groups: groups | {"more": Group([], 1e-3)},
            "group 'more' of Mine must have parameters, got none",
        ),
        (
            lambda groups: groups | {"more": groups["actor"]},
            "groups 'actor' and 'more' of Mine share a parameter",
        ),
        (every(0), "every of group 'actor' of Mine must be a whole number >= 1, got 0"),
        (every(2.0), r"every of group 'actor' of Mine must be a whole number >= 1, got 2\.0"),
        (lambda groups: None, r"Mine.build must return .* \{name: Group\(parameters, lr\)\}, got NoneType"),
        (lambda groups: groups | {"actor": []}, r"Mine.build must return .*, got dict"),
    ],
)
def test_groups_that_cannot_be_stepped_get_a_sentence(monkeypatch, build, sentence):
    with pytest.raises(ValueError, match=sentence):
        learner_with(monkeypatch, build=build)


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        (
            "sampler",
            property(lambda self: None),
            "sampler of Mine must be a Sampler, such as .*, got NoneType",
        ),
        (
            "policy",
            lambda self: self.actor,
            r"policy\(\) of Mine must return what acts, such as .*, got Actor",
        ),
        ("passes", (Pass("ph"),), r"passes of Mine must name its networks \(.*phi.*\), got 'ph'; see build"),
    ],
)
def test_parts_that_a_run_cannot_use_get_a_sentence(monkeypatch, part, value, sentence):
    """Of the memory plan too, which comes first."""
    mine = type("Mine", (crl.CRL,), {part: value})
    monkeypatch.setattr(learners.algorithms, "find", lambda name: mine)
    for use in (lambda: learner_of(small()), lambda: memory_plan.plan(small(), SIZES)):
        with pytest.raises(ValueError, match=sentence):
            use()


def renamed(yields):
    for losses, metrics in yields:
        yield {f"{name}s": loss for name, loss in losses.items()}, metrics


def detached(yields):
    for losses, metrics in yields:
        yield losses | {"alpha": losses["alpha"].detach()}, metrics


def without_the_actor(yields):
    for losses, metrics in yields:
        yield {name: loss for name, loss in losses.items() if name != "actor"}, metrics


def leaking(yields):
    for losses, metrics in yields:
        yield losses | {"actor": losses["actor"] + losses["critic"]}, metrics


def of_rows(yields):
    for losses, metrics in yields:
        yield losses | {"actor": losses["actor"].expand(3)}, metrics


def counted(yields):
    for losses, metrics in yields:
        yield losses, metrics | {"rows": 3.0}


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (next, r"Mine.losses must yield \(losses, metrics\), got tuple; write yield, not return"),
        (
            without_the_actor,
            "Mine.losses must yield a loss of each of its groups, got none of 'actor'; yield it",
        ),
        (
            leaking,
            "the loss of group 'actor' of Mine must reach its own parameters alone, and reaches those of 'critic'; "
            "detach",
        ),
        (of_rows, r"the loss of group 'actor' of Mine must be a tensor of one number, got .* shape \[3\]"),
        (counted, r"metric 'rows' of Mine must be a tensor of shape \[\], got float; take a mean"),
        (renamed, r"Mine.losses must yield losses of its groups \(.*actor.*\), got one of '\w+s'"),
        (lambda yields: iter(()), "Mine.losses must yield the groups' losses, got nothing"),
        (
            lambda yields: (({}, metrics) for _, metrics in yields),
            "must yield a loss with its metrics, got none",
        ),
        (lambda yields: ((some, {}) for some, _ in yields), "Mine.losses must yield a metric, got none"),
        (
            detached,
            "the loss of group 'alpha' of Mine must depend on the group's parameters, and reaches none",
        ),
    ],
)
def test_losses_that_cannot_be_stepped_get_a_sentence(monkeypatch, losses, sentence):
    learner = learner_with(monkeypatch, losses=losses)
    with pytest.raises(ValueError, match=sentence):
        learner.step(*stream(1)[0])


def test_a_skipped_step_counts_for_a_group_that_rests(monkeypatch):
    """As it does where a group of an earlier yield was stepped."""
    learner = learner_with(monkeypatch, build=every(2))
    (good, noise), (bad, _) = stream(2)
    bad.state[0] = torch.nan
    moved = []
    for batch in (bad, good, bad, bad, good, good):
        before = learner.algorithm.actor.mean.weight.clone()
        learner.step(batch, noise)
        moved.append(not torch.equal(before, learner.algorithm.actor.mean.weight))
    assert moved == [False, True, False, False, False, True]


def test_a_group_may_rest_from_a_checkpoint_on(monkeypatch):
    saved = numbers(learner_of(small()))
    learner = learner_with(monkeypatch, build=every(2))
    learner.step(*stream(1)[0])
    learner.load_state_tensors(saved)
    assert learner.state_tensors()["steps_taken"] == 0


def test_parameters_may_come_from_a_generator(monkeypatch):
    def build(groups):
        return groups | {"actor": Group((p for p in groups["actor"].parameters), 1e-3)}

    learner = learner_with(monkeypatch, build=build)
    assert all(isinstance(p, nn.Parameter) for p in learner.optimizers["actor"].param_groups[0]["params"])
