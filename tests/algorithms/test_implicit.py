"""GCIVL, GCIQL and HIQL: a gradient step against independent ones, written here from OGBench's equations; what each of
their parts is there for."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor

from deepres import Batch, Policy
from deepres.algorithms.implicit import backed_up, expectile_loss
from deepres.data.goal_laws import GoalLaw
from helpers.learners import learner_of, small
from helpers.plain_networks import Parameters, encoded, value, values
from helpers.policies import observations, untrained
from helpers.steps import check_step, exact_learner


def there(batch: Batch, value: Tensor, gamma: float = 0.99) -> Tensor:
    """One step's return, row by row."""
    rows = []
    for i in range(len(batch.state)):
        if batch.reward[i] == 0:
            rows.append(torch.zeros((), dtype=torch.double))
        elif batch.terminal[i] == 1:
            rows.append(torch.tensor(-1 / (1 - gamma), dtype=torch.double))
        else:
            rows.append(-1 + gamma * value[i])
    return torch.stack(rows)


def sided(u: Tensor, error: Tensor, share: float) -> Tensor:
    return torch.stack([(share if up >= 0 else 1 - share) * e**2 for up, e in zip(u, error, strict=True)])


def bc(mean: Tensor, action: Tensor) -> Tensor:
    return torch.distributions.Normal(mean, torch.ones_like(mean)).log_prob(action).sum(1)


def awr(mean: Tensor, action: Tensor, advantage: Tensor, alpha: float) -> Tensor:
    weight = torch.tensor([min(math.exp(alpha * a), 100.0) for a in advantage.tolist()], dtype=torch.double)
    return -(weight * bc(mean, action)).mean()


def two_values(p: Parameters, batch: Batch, share: float, rows=lambda s, g: (s, g)) -> Tensor:
    """Twin values' loss. rows: what the values read of states and goals."""
    slow = values(p, "v_slow", *rows(batch.state, batch.goal)).detach()
    after = values(p, "v_slow", *rows(batch.next_state, batch.goal)).detach()
    u = there(batch, after.min(0).values) - slow.mean(0)
    each = values(p, "v", *rows(batch.state, batch.goal))
    return sum(sided(u, there(batch, after[k]) - each[k], share).mean() for k in range(2))


def gcivl(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    goal = batch.extra["actor_goal"]
    came = values(p, "v", batch.next_state, goal).mean(0) - values(p, "v", batch.state, goal).mean(0)
    return {
        "value": two_values(p, batch, 0.9),
        "actor": awr(encoded(p, "actor", batch.state, goal), batch.action, came, 10.0),
    }


def gciql(p: Parameters, batch: Batch, extraction: str, alpha: float) -> dict[str, Tensor]:
    s, g, a, goal = batch.state, batch.goal, batch.action, batch.extra["actor_goal"]
    u = values(p, "q_slow", s, g, a).min(0).values.detach() - value(p, "v", s, g)
    target = there(batch, value(p, "v", batch.next_state, g).detach())
    mean = encoded(p, "actor", s, goal)
    held = {name: t.detach() for name, t in p.items()}
    if extraction == "awr":
        advantage = values(held, "q", s, goal, a).min(0).values - value(held, "v", s, goal)
        actor = awr(mean, a, advantage, alpha)
    else:
        q = values(held, "q", s, goal, mean.clip(-1, 1)).min(0).values
        actor = -q.mean() / (q.abs().mean().item() + 1e-6) - alpha * bc(mean, a).mean()
    return {
        "value": sided(u, u, 0.9).mean(),
        "critic": sum(((target - each) ** 2).mean() for each in values(p, "q", s, g, a)),
        "actor": actor,
    }


def drawn_out(z: Tensor) -> Tensor:
    return z / z.square().sum(1, keepdim=True).sqrt() * 10**0.5


def hiql(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    extra, s, after = batch.extra, batch.state, batch.next_state

    def told(s: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return s, drawn_out(encoded(p, "rep", s, g))

    def v(s: Tensor, g: Tensor) -> Tensor:
        return values(p, "v", *told(s, g)).mean(0).detach()

    far, near = extra["actor_goal"], extra["near"]
    wanted = told(s, extra["waypoint"])[1].detach()
    toward = v(extra["waypoint_state"], far) - v(s, far)
    subgoal = told(s, near)[1].detach()
    return {
        "value": two_values(p, batch, 0.7, told),
        "high": awr(encoded(p, "high", s, far), wanted, toward, 3.0),
        "low": awr(encoded(p, "low", s, subgoal), batch.action, v(after, near) - v(s, near), 3.0),
    }


def offline(batch: Batch) -> Batch:
    """Every fifth row is at its goal; the others pay for a step."""
    return replace(batch, reward=-(torch.arange(len(batch.state)) % 5 != 0).double())


STEPS = {
    "gcivl": ({}, gcivl, {"value": ("v.",), "actor": ("actor.",)}),
    "gciql": (
        {"bc_alpha": 0.3}, lambda p, batch, noise: gciql(p, batch, "ddpg_bc", 0.3),
        {"value": ("v.",), "critic": ("q.",), "actor": ("actor.",)},
    ),
    "gciql, awr": (
        {"extraction": "awr", "bc_alpha": 3.0}, lambda p, batch, noise: gciql(p, batch, "awr", 3.0),
        {"value": ("v.",), "critic": ("q.",), "actor": ("actor.",)},
    ),
    "gciql, plain": (
        {"trunk": "plain", "depth": 3, "actor_depth": 2, "bc_alpha": 0.3},
        lambda p, batch, noise: gciql(p, batch, "ddpg_bc", 0.3),
        {"value": ("v.",), "critic": ("q.",), "actor": ("actor.",)},
    ),
    "hiql": ({}, hiql, {"value": ("v.", "rep."), "high": ("high.",), "low": ("low.",)}),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_the_equations(name):
    options, equations, groups = STEPS[name]
    check_step(small(name.split(",")[0], **options), equations, groups, offline)


def test_a_goal_that_is_there_ends_the_count_and_a_fall_never_arrives():
    reward, terminal = torch.tensor([[0.0, -1, -1, 0], [0, 0, 1, 1]])
    row = torch.zeros(4, 1)
    batch = Batch(row, row, row, reward=reward, terminal=terminal)
    wanted = torch.tensor([0.0, -1 + 0.5 * 8, -2, 0])  # -2 = -1 / (1 - 0.5)
    assert torch.equal(backed_up(batch, torch.full((2, 4), 8.0), 0.5), wanted.expand(2, 4))


def test_the_expectile_leans_to_what_is_better():
    """Of targets 0 and 1 alike, the value that the loss is least at is the expectile itself."""
    targets, tried = torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 11)
    for expectile in (0.5, 0.7, 0.9):
        error = targets - tried[:, None]
        at = tried[expectile_loss(error, error, expectile).mean(1).argmin()]
        assert at.item() == pytest.approx(expectile)


READS = {  # of the nudged network, what changes of a step's metrics and losses; the rest may not
    ("gcivl", "v_slow"): {"value_loss", "target"},
    ("gcivl", "v"): {"value_loss", "actor_loss", "v"},
    ("gciql", "q_slow"): {"value_loss"},
    ("gciql", "q"): {"critic_loss", "actor_loss", "q"},
    ("gciql", "v"): {"value_loss", "critic_loss", "v", "target"},
    ("hiql", "v_slow"): {"value_loss", "target"},
    ("hiql", "v"): {"value_loss", "high_loss", "low_loss", "v"},
    ("hiql", "rep"): {"value_loss", "high_loss", "low_loss", "v", "target"},
}


@pytest.mark.parametrize(("name", "network"), READS)
def test_who_reads_the_slow_copies_and_who_the_networks(name, network):
    learner, batch, noise = exact_learner(small(name))
    batch = offline(batch)
    _, before = learner.losses(batch, noise)
    with torch.no_grad():
        for p in getattr(learner.algorithm, network).parameters():
            p.add_(0.1 * torch.ones_like(p))
    _, after = learner.losses(batch, noise)
    watched = ("value_loss", "critic_loss", "actor_loss", "high_loss", "low_loss", "v", "q", "target")
    assert {m for m in watched if m in after and after[m] != before[m]} == READS[name, network]


@pytest.mark.parametrize("name", ["gcivl", "hiql"])
def test_the_lower_of_the_next_values_decides_the_weight(name):
    """Slow values of -160 and -240 everywhere: by their mean a step is worth -199 and above -200, by the lower -239."""
    learner, batch, noise = exact_learner(small(name))
    batch = offline(batch)
    with torch.no_grad():
        head = learner.algorithm.v_slow.head
        head.weight.zero_()
        head.bias.copy_(torch.tensor([[-160.0], [-240.0]]))
    _, metrics = learner.losses(batch, noise)
    fixed = (batch.reward == 0) | (batch.terminal == 1)  # worth 0 and -100 whatever follows
    assert metrics["above"].item() == pytest.approx(fixed.double().mean().item())


@pytest.mark.parametrize(("name", "slow"), [("gcivl", "v"), ("gciql", "q"), ("hiql", "v")])
def test_slow_copies_follow_what_the_step_has_made(name, slow):
    learner, batch, noise = exact_learner(small(name, tau=0.25, critic_lr=0.01))
    own = {n: p.detach().clone() for n, p in learner.parameters().items() if n.startswith(f"{slow}_slow.")}
    learner.step(offline(batch), noise)
    made = learner.parameters()
    for n, p in own.items():
        fast = made[n.replace(f"{slow}_slow.", f"{slow}.")].detach()
        torch.testing.assert_close(made[n].detach(), 0.75 * p + 0.25 * fast)


def test_two_levels_act_as_one_policy_through_files(tmp_path):
    policy = untrained("hiql", width=8)
    obs, levels = observations(policy, 5), policy.network.actor
    subgoal = drawn_out(levels.high(obs))
    action = levels.low(torch.cat([obs[:, :4], subgoal], 1)).clip(-1, 1)
    torch.testing.assert_close(policy.act(obs), action.detach())
    assert torch.equal(Policy.load(policy.save(tmp_path / "policy.safetensors")).act(obs), policy.act(obs))
    with pytest.raises(ValueError, match=r"what is deployed must be a policy of one of .* of TwoLevels"):
        policy.export(tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match="networks of trunk=plain cannot be deployed; load the run"):
        untrained("gcivl", width=8, trunk="plain").export(tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match="ends in tanh, and this one's mean is clipped; export it to ONNX"):
        untrained("gcivl", width=8).compiled()


def test_goals_come_in_the_published_shares():
    sampler = learner_of(small("hiql")).algorithm.sampler
    assert astuple(sampler.values) == pytest.approx(astuple(GoalLaw(0.2, 0.5, 0.0, 0.3)))
    assert (sampler.policy, sampler.clipped, sampler.subgoal) == (GoalLaw(uniform=1.0), True, 25)
    stitch = learner_of(small("gcivl", random_actor_goals=0.5, goal_cut="renormalised")).algorithm.sampler
    assert (stitch.policy, stitch.clipped, stitch.subgoal) == (GoalLaw(uniform=0.5, anywhere=0.5), False, 0)
    with pytest.raises(ValueError, match=r"current_goals . later_goals must be at most 1, got 0.7 . 0.5"):
        small("gcivl", current_goals=0.7)
