"""The options that TD methods share, in SAC's step against equations of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepres import Batch, Learner
from deepres.algorithms.parts import squashed_gaussian
from helpers import rings
from helpers.learners import SIZES, doubled, small
from helpers.plain_networks import Parameters, act, values
from helpers.steps import check_step, exact_learner

GAMMA = 0.9
GROUPS = {"critic": ("q.",), "actor": ("actor.",), "alpha": ("log_alpha",)}


def soft(
    p: Parameters,
    batch: Batch,
    noise: Tensor,
    *,
    hair: float = 1e-6,
    entropy: bool = True,
    left_out: bool = False,
    published_ends: bool = False,
) -> dict[str, Tensor]:
    s, g = batch.state, batch.goal
    alpha, cut = p["log_alpha"].exp(), batch.extra["truncation"]
    with torch.no_grad():
        action, log_prob = act(p, batch.next_state, g, noise[1], hair)
        after = torch.minimum(*values(p, "q_slow", batch.next_state, g, action))
        after = after - alpha * log_prob if entropy else after
        over = torch.maximum(batch.terminal, cut) if published_ends else batch.terminal
        y = batch.reward + GAMMA * (1 - over) * after
    off = values(p, "q", s, g, batch.action) - y
    if left_out:
        off = torch.where(cut == 1, 0.0, off)  # the divisor stays
    action, log_prob = act(p, s, g, noise[0], hair)
    least = torch.minimum(*values(p, "q", s, g, action))
    return {
        "critic": 0.5 * off.square().mean(),
        "actor": (alpha.detach() * log_prob - least).mean(),
        "alpha": alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean(),
        "target": y.mean(),
    }


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({}, {}),
        ({"time_limit": "left_out"}, {"left_out": True}),
        ({"time_limit": "terminal"}, {"published_ends": True}),
        ({"exact_tanh": True}, {"hair": 0.0}),
        ({"entropy_in_target": False}, {"entropy": False}),
    ],
    ids=str,
)
def test_a_step_of_each_option_equals_its_equations(options, differs):
    config = small("sac", gamma=GAMMA, **options)
    check_step(config, lambda *given: soft(*given, **differs), GROUPS)
    if differs:  # and not those of another
        with pytest.raises(AssertionError):
            check_step(config, soft, GROUPS)


def test_the_exact_correction_keeps_its_gradient_at_the_bounds():
    mean, log_std, noise = torch.full((1, 1), 12.0, requires_grad=True), torch.zeros(1, 1), torch.zeros(1, 1)
    slopes = {}
    for exact in (False, True):
        (slopes[exact],) = torch.autograd.grad(
            squashed_gaussian(mean, log_std, noise, exact=exact)[1].sum(), mean
        )
    assert slopes[False].abs() < 1e-3 and slopes[True].item() == pytest.approx(2.0)
    x = torch.linspace(-6, 6, 49, dtype=torch.double)[:, None]
    wanted = -0.5 * torch.log(torch.tensor(2 * torch.pi)) - torch.log(1 - torch.tanh(x).square())
    got = squashed_gaussian(x, torch.zeros_like(x), torch.zeros_like(x), exact=True)[1]
    torch.testing.assert_close(got, wanted[:, 0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_terminal_rows_end_and_the_others_go_on(name):
    learner, batch, noise = exact_learner(small(name))

    def moved(batch: Batch) -> list[bool]:
        """Of each row, whether the state that follows is in its target."""
        rows = [batch.map(lambda t, i=i: t[i : i + 1]) for i in range(8)]
        own = [noise[..., i : i + 1, :] for i in range(8)]
        return [
            target(row, n) != target(replace(row, next_state=row.next_state + 1), n)
            for row, n in zip(rows, own, strict=True)
        ]

    def target(row: Batch, own: Tensor) -> float:
        return learner.losses(row, own)[1]["target"].item()

    assert moved(batch) == [end == 0 for end in batch.terminal[:8]]


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_what_a_time_limit_cut_goes_on_from_the_state_before_the_reset(name):
    """From the ring to the target: were the limit taken as an end, or the next row of the ring as what follows, the
    target would be another."""
    config = small(name).replace(impl="reference")
    learner = doubled(Learner(config, rings.SIZES, generator=torch.Generator().manual_seed(0)))
    sampler = learner.algorithm.sampler
    (batch,) = rings.draw(rings.filled(columns=sampler.columns), 1, 150, sampler=sampler)
    env, t, traj = batch.state.T.long()
    rows = (rings.trajectory(env, t + 1) != traj) & (env != 1)
    assert rows.any()

    def shrunk(state: Tensor) -> Tensor:
        """Numbers of a network's usual size."""
        return state.double() / 100

    one = Batch(*(shrunk(x[rows]) for x in (batch.state, batch.action, batch.goal, batch.next_state)))
    one = replace(one, reward=batch.reward[rows].double(), terminal=batch.terminal[rows].double())
    noise = torch.zeros(2 if name == "sac" else 1, len(one.state), 1, dtype=torch.float64).squeeze(0)

    def target(batch: Batch) -> float:
        return learner.losses(batch, noise)[1]["target"].item()

    last = shrunk(torch.stack([env, t + 1, traj], dim=1)[rows])
    true = replace(one, next_state=last, terminal=torch.zeros_like(one.terminal))
    assert target(one) == target(true)
    after_reset = shrunk(torch.stack([env, t + 1, traj + 1], dim=1)[rows])
    assert target(replace(one, next_state=after_reset)) != target(one)
    assert target(replace(one, terminal=torch.ones_like(one.terminal))) != target(one)
