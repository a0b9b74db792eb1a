"""C-learning's gradient step against an independent one, written here from its equations (arXiv 2011.08909)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepres import Batch
from helpers.learners import SIZES, B, batch_for, learner_of, numbers, small
from helpers.plain_networks import Parameters, act, values
from helpers.steps import check_step, exact_learner

GAMMA, TAU = 0.9, 0.02
GROUPS = {"critic": ("q.",), "actor": ("actor.",), "alpha": ("log_alpha",)}
CONFIG = small("c_learning", gamma=GAMMA, tau=TAU)


def bce(logits: Tensor, label: Tensor | float) -> Tensor:
    p = torch.sigmoid(logits)
    return -(label * torch.log(p) + (1 - label) * torch.log(1 - p))


def equations(year: str, share: float = 0.5):
    def losses(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        s, a, there = batch.state, batch.action, batch.next_state
        others = torch.stack([batch.goal[i - 1] for i in range(B)])
        with torch.no_grad():
            chosen, _ = act(p, there, others, noise[1])
            likely = torch.sigmoid(values(p, "q_slow", there, others, chosen)).min(0).values
            most = 20.0 if year == "2022" else 1 / (1 - GAMMA)
            w = (likely / (1 - likely)).clip(0, most) * (1 - batch.terminal)
        following = values(p, "q", s, batch.extra["next_achieved"], a)
        random = values(p, "q", s, others, a)
        if year == "2022":
            each = (1 - GAMMA) * bce(following, 1.0) + GAMMA * w * bce(random, 1.0) + bce(random, 0.0)
            critic = each.mean()
        else:  # half the rows of a batch are of the next state, half of random goals
            label = GAMMA * w / (1 + GAMMA * w)
            critic = torch.cat(
                [(1 - GAMMA) * bce(following, 1.0), (1 + GAMMA * w) * bce(random, label)]
            ).mean()
        g = torch.cat([others[: int(share * B)], batch.goal[int(share * B) :]])
        action, log_prob = act(p, s, g, noise[0])
        alpha = p["log_alpha"].exp()
        return {
            "critic": critic,
            "actor": (alpha.detach() * log_prob - torch.minimum(*values(p, "q", s, g, action))).mean(),
            "alpha": alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean(),
            "weight": w.mean(),
        }

    return losses


@pytest.mark.parametrize("year", ["2022", "2020"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_equals_the_equations(year, share):
    check_step(CONFIG.replace(weights=year, random_goals=share), equations(year, share), GROUPS)


@pytest.mark.parametrize(("year", "most"), [("2022", 20.0), ("2020", 1 / (1 - GAMMA))])
def test_the_weight_is_clipped_and_nothing_follows_an_end(year, most):
    learner, batch, noise = exact_learner(CONFIG.replace(weights=year))
    learner.algorithm.q_slow.head.bias.data.fill_(1e4)  # beyond what exp can hold
    weight = learner.losses(batch, noise)[1]["weight"].item()
    assert weight == pytest.approx(most * (1 - batch.terminal).mean().item())
    learner.algorithm.q_slow.head.bias.data.fill_(-1e4)
    assert learner.losses(batch, noise)[1]["weight"] == 0
    one = replace(batch, terminal=torch.ones_like(batch.terminal))
    elsewhere = replace(one, next_state=one.next_state + 1)
    learner.algorithm.q_slow.head.bias.data.zero_()
    assert torch.equal(learner.losses(one, noise)[0], learner.losses(elsewhere, noise)[0])
    assert not torch.equal(learner.losses(batch, noise)[0], learner.losses(one, noise)[0])


def test_slow_critics_follow():
    learner = learner_of(CONFIG, apart=0.05)
    before = numbers(learner)
    learner.step(*batch_for(learner))
    after = numbers(learner)
    for name in [n for n in after if n.startswith("parameters/q.")]:
        slow = name.replace("/q.", "/q_slow.")
        wanted = (1 - TAU) * before[slow] + TAU * after[name]
        torch.testing.assert_close(after[slow], wanted, rtol=1e-5, atol=1e-7)
        assert not torch.equal(after[slow], before[slow])


def test_what_is_reached_at_once_is_told_from_other_rows_goals():
    """Nothing follows (gamma near 0): logits rise on what the next state achieves and fall on the others."""
    learner = learner_of(small("c_learning", gamma=0.01, critic_lr=3e-3))
    batch, noise = batch_for(learner)
    for _ in range(60):
        metrics = learner.update(batch, noise)
    assert metrics["positive_logit"] > 1 > -1 > metrics["negative_logit"]
