"""TD-InfoNCE's gradient step against an independent one, written here from its equations (arXiv 2310.20141)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepres import Batch
from helpers.learners import SIZES, B, batch_for, learner_of, numbers, same, small
from helpers.plain_networks import Parameters, act, outputs
from helpers.steps import check_step, exact_learner

GAMMA, TAU, TEMPERATURE = 0.9, 0.02, 0.2
CONFIG = small("td_infonce", gamma=GAMMA, tau=TAU, temperature=TEMPERATURE, feature_dim=6)
GROUPS = {"critic": ("phi.", "psi."), "actor": ("actor.",)}


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def logits(p: Parameters, which: str, row: tuple[Tensor, ...], goals: Tensor) -> Tensor:
    """[2, B, B]"""
    phi, psi = unit(outputs(p, f"phi{which}", *row)), unit(outputs(p, f"psi{which}", goals))
    return torch.einsum("kid,kjd->kij", phi, psi) / TEMPERATURE


def cross_entropy(l: Tensor, t: Tensor) -> Tensor:
    return -(t * torch.log_softmax(l, -1)).sum(-1)


def equations(goals: str, entropy: bool):
    def losses(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        s, a, there = batch.state, batch.action, batch.next_state
        given = torch.stack([batch.goal[i - 1] for i in range(B)])
        with torch.no_grad():
            chosen, _ = act(p, there, given, noise[1])
            t = torch.softmax(logits(p, "_slow", (there, given, chosen), batch.goal).min(0).values, 1)
        own = torch.eye(B, dtype=torch.double)
        row = (s, given, a)
        near = cross_entropy(logits(p, "", row, batch.extra["next_achieved"]), own)
        far = cross_entropy(logits(p, "", row, batch.goal), t) * (1 - batch.terminal)
        g = given if goals == "random" else batch.goal
        action, log_prob = act(p, s, g, noise[0])
        actor = cross_entropy(logits(p, "", (s, g, action), g).min(0).values, own).mean()
        found = {
            "critic": ((1 - GAMMA) * near + GAMMA * far).mean(),
            "actor": actor,
            "beyond_loss": far.mean(),
        }
        if entropy:
            alpha = p["log_alpha"].exp()
            found["actor"] = actor + (alpha.detach() * log_prob).mean()
            found["alpha"] = alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean()
        return found

    return losses


@pytest.mark.parametrize(("goals", "entropy"), [("random", False), ("future", True)])
def test_a_step_equals_the_equations(goals, entropy):
    config = CONFIG.replace(actor_goals=goals, entropy=entropy)
    check_step(config, equations(goals, entropy), GROUPS | ({"alpha": ("log_alpha",)} if entropy else {}))


def test_the_fused_loss_gives_the_same_step():
    learners = [learner_of(CONFIG.replace(impl=impl), apart=0.05) for impl in ("auto", "reference")]
    fused, plain = (learner.update(*batch_for(learner)) for learner in learners)
    assert all(fused[name].item() == pytest.approx(plain[name].item(), rel=1e-4) for name in fused)
    for (name, one), other in zip(
        learners[0].parameters().items(), learners[1].parameters().values(), strict=True
    ):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_targets_are_the_slow_critics_and_nothing_follows_an_end():
    learner, batch, noise = exact_learner(CONFIG)
    loss = learner.losses(batch, noise)[1]["beyond_loss"]
    over = replace(batch, terminal=torch.ones_like(batch.terminal))
    assert learner.losses(over, noise)[1]["beyond_loss"] == 0
    with torch.no_grad():
        learner.algorithm.phi_slow.head.weight.mul_(-1)
    assert not torch.isclose(learner.losses(batch, noise)[1]["beyond_loss"], loss)


def test_slow_critics_follow_and_stay_where_a_step_is_skipped():
    learner = learner_of(CONFIG, apart=0.05)
    batch, noise = batch_for(learner)
    before = numbers(learner)
    learner.step(batch, noise)
    after = numbers(learner)
    for name in [n for n in after if n.startswith(("parameters/phi.", "parameters/psi."))]:
        slow = name.replace("/phi.", "/phi_slow.").replace("/psi.", "/psi_slow.")
        wanted = (1 - TAU) * before[slow] + TAU * after[name]
        torch.testing.assert_close(after[slow], wanted, rtol=1e-5, atol=1e-7)
        assert not torch.equal(after[slow], before[slow])
    batch.extra["next_achieved"][3] = torch.nan
    assert learner.update(batch, noise)["skipped_steps"] == 1 and same(after, numbers(learner))


def test_what_is_reached_at_once_is_found_among_the_others():
    learner = learner_of(small("td_infonce", gamma=0.01, temperature=0.2, critic_lr=3e-3))
    batch, noise = batch_for(learner)
    for _ in range(60):
        metrics = learner.update(batch, noise)
    assert metrics["accuracy"] > 0.9
