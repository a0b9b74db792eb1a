"""GCIVL, GCIQL and HIQL: a gradient step against independent ones, written here from OGBench's equations; what each of
their parts is there for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepres import Batch
from helpers.learners import small
from helpers.plain_networks import Parameters, encoded, value, values
from helpers.steps import check_step


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
        {"alpha": 0.3}, lambda p, batch, noise: gciql(p, batch, "ddpg_bc", 0.3),
        {"value": ("v.",), "critic": ("q.",), "actor": ("actor.",)},
    ),
    "gciql, awr": (
        {"extraction": "awr", "alpha": 3.0}, lambda p, batch, noise: gciql(p, batch, "awr", 3.0),
        {"value": ("v.",), "critic": ("q.",), "actor": ("actor.",)},
    ),
    "hiql": ({}, hiql, {"value": ("v.", "rep."), "high": ("high.",), "low": ("low.",)}),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_the_equations(name):
    options, equations, groups = STEPS[name]
    check_step(small(name.split(",")[0], **options), equations, groups, offline)
