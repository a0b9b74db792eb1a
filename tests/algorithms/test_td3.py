"""TD3's gradient step against an independent one, written here from the equations (arXiv 1802.09477)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres import Batch
from deepres.data.relabel import Hindsight
from helpers.learners import batch_for, learner_of, numbers, small
from helpers.plain_networks import Parameters, encoded, values
from helpers.steps import check_step, exact_learner

GAMMA, TAU = 0.95, 0.02
CONFIG = small("td3", gamma=GAMMA, tau=TAU)


def equations(p: Parameters, batch: Batch, noise: Tensor, ends: Tensor | None = None) -> dict[str, Tensor]:
    s, g, a = batch.state, batch.goal, batch.action
    over = batch.terminal if ends is None else ends
    with torch.no_grad():
        blur = torch.minimum(torch.maximum(0.2 * noise, torch.tensor(-0.5)), torch.tensor(0.5))
        action = torch.tanh(encoded(p, "actor_slow", batch.next_state, g)) + blur
        action = action.clip(-1, 1)
        least = torch.minimum(*values(p, "q_slow", batch.next_state, g, action))
        y = batch.reward + GAMMA * torch.where(over == 1, 0.0, least)
    q = values(p, "q", s, g, a)
    chosen = torch.tanh(encoded(p, "actor", s, g))
    return {
        "critic": 0.5 * (q - y).square().mean(),
        "actor": -values(p, "q", s, g, chosen)[0].mean(),
        "q": q.mean(),
        "target": y.mean(),
        "reward": batch.reward.mean(),
    }


GROUPS = {"critic": ("q.",), "actor": ("actor.",)}


def test_a_step_equals_the_equations():
    check_step(CONFIG, equations, GROUPS)


def test_the_public_time_limit_ends_a_row():
    def published(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        return equations(p, batch, noise, torch.maximum(batch.terminal, batch.extra["truncation"]))

    check_step(CONFIG.replace(time_limit="terminal"), published, GROUPS)
    with pytest.raises(AssertionError):
        check_step(CONFIG, published, GROUPS)


@pytest.mark.parametrize("published", [False, True])
def test_slow_copies_follow_at_the_actors_steps_alone(published):
    """Two steps: at the first, the critics' alone, no slow copy moves; the policy's is an average of all before it, or
    as published of the last two."""
    learner = learner_of(CONFIG.replace(published_target_policy=published), apart=0.05)
    states = [numbers(learner)]
    for seed in (1, 2, 3, 4):
        learner.step(*batch_for(learner, seed))
        states.append(numbers(learner))
    for network in ("actor", "q"):
        names = [name for name in states[0] if name.startswith(f"parameters/{network}.")]
        assert names
        for name in names:
            slow = name.replace(f"/{network}.", f"/{network}_slow.")
            online = [state[name] for state in states]
            assert torch.equal(states[1][slow], states[0][slow]) and torch.equal(
                states[3][slow], states[2][slow]
            )
            assert torch.equal(online[1], online[0]) == (network == "actor"), name
            for now in (2, 4):
                before = online[now - 1] if published and network == "actor" else states[now - 1][slow]
                wanted = (1 - TAU) * before + TAU * online[now]
                torch.testing.assert_close(states[now][slow], wanted, rtol=1e-5, atol=1e-7)
                assert not torch.equal(states[now][slow], states[now - 1][slow]), name


def test_it_explores_by_noise_that_is_clipped_and_held_in_bounds():
    learner = learner_of(CONFIG, apart=0.05)
    obs = torch.randn(400, 9)
    plain = learner.act(obs)
    assert plain.abs().max() < 1 and torch.equal(plain, learner.act(obs, torch.zeros(400, 3)))
    noise = torch.randn(400, 3)
    wanted = torch.minimum(torch.maximum(0.4 * noise, torch.tensor(-0.5)), torch.tensor(0.5)) + plain
    torch.testing.assert_close(learner.act(obs, noise), wanted.clip(-1, 1))
    assert (0.4 * noise).abs().max() > 0.5 and wanted.abs().max() > 1  # both bounds were met
    copy = learner.policy.copy()
    learner.step(*batch_for(learner, 1))
    learner.step(*batch_for(learner, 2))
    assert torch.equal(copy.act(obs), plain) and not torch.equal(learner.act(obs), plain)


def test_goals_are_drawn_as_the_options_say():
    sampler = learner_of(small("td3", hindsight=0.8, hindsight_strategy="final")).algorithm.sampler
    assert type(sampler) is Hindsight and (sampler.share, sampler.strategy) == (0.8, "final")
    with pytest.raises(
        ValueError, match="reward=dense is that of the commanded goal and hindsight must then be 0"
    ):
        small("td3", hindsight=0.8, reward="dense")


def test_the_slow_policy_acts_in_the_target():
    """Not the one that is learned: moving that alone leaves the target as it is."""
    learner, batch, noise = exact_learner(CONFIG)
    target = learner.losses(batch, noise)[1]["target"]
    with torch.no_grad():
        for p in learner.algorithm.actor.parameters():
            p.add_(0.1)
    assert torch.equal(learner.losses(batch, noise)[1]["target"], target)
    with torch.no_grad():
        for p in learner.algorithm.actor_slow.parameters():
            p.add_(0.1)
    assert not torch.equal(learner.losses(batch, noise)[1]["target"], target)
