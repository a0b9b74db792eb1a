"""SAC's gradient step against an independent one, written here from the equations (arXiv 1801.01290, 1812.05905).

Where the public baseline of arXiv 2503.14858 leaves rows cut by a time limit out, here the value goes on from the
state before the reset; its density is that of the package's policy.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepres import Batch, Learner
from helpers import rings
from helpers.learners import SIZES, B, batch_for, doubled, learner_of, numbers, same, small
from helpers.plain_networks import Parameters, act, leaves, values

GAMMA, TAU = 0.95, 0.02
CONFIG = small("sac", gamma=GAMMA, tau=TAU)


def targets(p: Parameters, batch: Batch, noise: Tensor) -> Tensor:
    """y = r + gamma (1 - terminal) (min_k Qbar_k(s', g, a') - alpha log pi(a'|s', g))"""
    with torch.no_grad():
        action, log_prob = act(p, batch.next_state, batch.goal, noise)
        least = torch.minimum(*values(p, "q_slow", batch.next_state, batch.goal, action))
        going_on = least - p["log_alpha"].exp() * log_prob
        return batch.reward + GAMMA * torch.where(batch.terminal == 1, 0.0, going_on)


def losses(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    here, there = noise
    s, g, a = batch.state, batch.goal, batch.action
    y = targets(p, batch, there)
    off = values(p, "q", s, g, a) - y
    action, log_prob = act(p, s, g, here)
    least = torch.minimum(*values(p, "q", s, g, action))
    alpha = p["log_alpha"].exp()
    return {
        "critic": 0.5 * off.square().mean(),
        "actor": (alpha.detach() * log_prob - least).mean(),
        "alpha": alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean(),
    }


def gradients(p: Parameters, found: dict[str, Tensor]) -> Parameters:
    """Of each loss for its own parameters, whatever else it reaches."""
    grads: Parameters = {}
    for group, prefix in {"critic": "q.", "actor": "actor.", "alpha": "log_alpha"}.items():
        own = [name for name in p if name.startswith(prefix)]
        grads |= dict(
            zip(own, torch.autograd.grad(found[group], [p[n] for n in own], retain_graph=True), strict=True)
        )
    return grads


@pytest.mark.parametrize("exact", [True, False], ids=["float64", "fp32"])
def test_a_step_equals_the_equations(exact):
    learner = learner_of(CONFIG.replace(impl="reference") if exact else CONFIG, apart=0.05)
    batch, noise = batch_for(learner)
    assert noise.shape == (2, B, SIZES.action)
    truth_batch, truth_noise = batch.map(Tensor.double), noise.double()
    if exact:
        doubled(learner)
        batch, noise = truth_batch, truth_noise
    hair = 1e-9 if exact else 1e-5
    p = leaves(learner.parameters())
    found = losses(p, truth_batch, truth_noise)
    grads = gradients(p, found)

    metrics = learner.update(batch, noise)

    assert metrics["skipped_steps"] == 0
    for group, loss in found.items():
        assert metrics[f"{group}_loss"].item() == pytest.approx(loss.item(), rel=hair, abs=hair), group
    y = targets(p, truth_batch, truth_noise[1])
    assert metrics["target"].item() == pytest.approx(y.mean().item(), rel=hair, abs=hair)
    assert metrics["reward"].item() == pytest.approx(truth_batch.reward.mean().item(), rel=hair)
    after = learner.parameters()
    learned = {name for name in p if not name.startswith("q_slow.")}
    assert grads.keys() == learned
    for name in learned:
        worst = (after[name].grad.double() - grads[name]).abs().max()
        assert worst <= hair * max(1.0, float(grads[name].abs().max())), name
        assert not torch.equal(after[name].double(), p[name]), name


def test_slow_critics_follow_what_the_step_made():
    learner = learner_of(CONFIG, apart=0.05)
    batch, noise = batch_for(learner)
    before = numbers(learner)
    learner.step(batch, noise)
    after = {name: p.detach() for name, p in learner.parameters().items()}
    names = [name for name in after if name.startswith("q.")]
    assert names
    for name in names:
        slow = name.replace("q.", "q_slow.", 1)
        old = before[f"parameters/{slow}"]
        torch.testing.assert_close(after[slow], (1 - TAU) * old + TAU * after[name], rtol=1e-5, atol=1e-7)
        for now, then in zip(after[slow], old, strict=True):  # of each critic
            assert not torch.equal(now, then)


def test_slow_critics_begin_as_the_others_and_stay_where_a_step_is_skipped():
    learner = learner_of(CONFIG)
    fresh = numbers(learner)
    pairs = [(n, n.replace("/q.", "/q_slow.")) for n in fresh if n.startswith("parameters/q.")]
    assert pairs and all(torch.equal(fresh[one], fresh[slow]) for one, slow in pairs)
    for name in ("head.weight", "trunk.stem.weight", "trunk.stack.weight"):
        one, other = fresh[f"parameters/q.{name}"]
        assert not torch.equal(one, other), name
    batch, noise = batch_for(learner)
    learner.step(batch, noise)
    before = numbers(learner)
    batch.reward[5] = torch.nan
    assert learner.update(batch, noise)["skipped_steps"] == 1
    assert same(before, numbers(learner))


def target_of(learner: Learner, batch: Batch, noise: Tensor) -> float:
    return learner.losses(batch, noise)[1]["target"].item()


def test_terminal_rows_end_and_the_others_go_on():
    learner = doubled(learner_of(CONFIG.replace(impl="reference"), apart=0.05))
    whole, noise = batch_for(learner)
    whole, noise = whole.map(Tensor.double), noise.double()
    for row in range(8):
        batch, own = whole.map(lambda t, row=row: t[row : row + 1]), noise[:, row : row + 1]
        elsewhere = replace(batch, next_state=batch.next_state + 1)
        moved = target_of(learner, elsewhere, own) != target_of(learner, batch, own)
        assert moved == (batch.terminal.item() == 0)
        if batch.terminal.item():
            assert target_of(learner, batch, own) == batch.reward.item()


def test_what_a_time_limit_cut_goes_on_from_its_true_last_state():
    """From the ring to the target: the state after the reset, which the ring holds next, is in none of them."""
    learner = Learner(
        CONFIG.replace(impl="reference"), rings.SIZES, generator=torch.Generator().manual_seed(0)
    )
    doubled(learner)
    sampler = learner.algorithm.sampler
    (batch,) = rings.draw(rings.filled(columns=sampler.columns), 1, 150, sampler=sampler)
    env, t, traj = batch.state.T.long()
    ends = rings.trajectory(env, t + 1) != traj
    # numbers of a network's usual size
    batch = Batch(**{n: v.double() / (100 if v.ndim == 2 else 1) for n, v in batch.tensors().items()})
    p, noise = leaves(learner.parameters()), torch.zeros(2, 150, 1, dtype=torch.float64)
    cut, ended = ends & (env != 1), ends & (env == 1)
    for rows in (cut, ended):
        assert rows.any()
        some = batch.map(lambda t, rows=rows: t[rows])
        last = torch.stack([env, t + 1, traj], dim=1)[rows].double() / 100
        known = Batch(**{**some.tensors(), "next_state": last, "terminal": (env[rows] == 1).double()})
        wanted = targets(p, known, noise[1][rows]).mean().item()
        assert target_of(learner, some, noise[:, rows]) == pytest.approx(wanted, rel=1e-9)
    assert not batch.terminal[cut].any() and batch.terminal[ended].all()


def test_values_are_learned_where_the_reward_is():
    """Every other row ends with a reward of 1: the critics tell these from the rest."""
    learner = learner_of(small("sac", critic_lr=3e-3))
    batch, noise = batch_for(learner)
    paid = batch.reward == 1
    batch.terminal[:] = 1.0
    for _ in range(80):
        learner.step(batch, noise)
    q = learner.algorithm.q(torch.cat([batch.state, batch.goal, batch.action], dim=1)).detach()
    assert q[:, paid].min() > 0.8 and q[:, ~paid].max() < 0.2
