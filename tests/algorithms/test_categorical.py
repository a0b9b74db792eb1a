"""Steps of the critics that classify against equations of their own (arXiv 2403.03950, 1707.06887)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres import Batch, Config, algorithms
from helpers.learners import SIZES, B, batch_for, learner_of, small
from helpers.plain_networks import Parameters, act, outputs
from helpers.steps import check_step, exact_learner

GAMMA, BINS = 0.9, 9
GROUPS = {"critic": ("q.",), "actor": ("actor.",), "alpha": ("log_alpha",)}
SUPPORT = {"dwell": (0.0, 1.0), "first_hit": (0.0, 1.0), "step": (-10.0, 0.0)}
NAMES = ("hl_gauss", "two_hot", "c51", "td_mse")


def config_of(name: str, **options: object) -> Config:
    bins = {} if name == "td_mse" else {"bins": BINS}
    return small(name, gamma=GAMMA, **bins, **options)


def row(value: str, hit: bool, over: bool) -> tuple[float, float]:
    """Reward and discount of one row, case by case."""
    if value == "dwell":
        return (1 - GAMMA) * hit, 0.0 if over else GAMMA
    if value == "first_hit":
        return float(hit), 0.0 if hit or over else GAMMA
    if hit:
        return 0.0, 0.0
    return (-1 / (1 - GAMMA), 0.0) if over else (-1.0, GAMMA)


def atoms_of(name: str, value: str) -> Tensor:
    least, most = SUPPORT[value]
    if name == "hl_gauss":
        width = (most - least) / BINS
        return torch.tensor([least + (i + 0.5) * width for i in range(BINS)], dtype=torch.double)
    return torch.tensor([least + i * (most - least) / (BINS - 1) for i in range(BINS)], dtype=torch.double)


def two_hot(y: float, atoms: list[float]) -> list[float]:
    """Beside each other, and with the mean y."""
    t = [0.0] * len(atoms)
    l = max(i for i in range(len(atoms)) if atoms[i] <= y + 1e-12)
    if l == len(atoms) - 1:
        t[l] = 1.0
        return t
    t[l + 1] = (y - atoms[l]) / (atoms[l + 1] - atoms[l])
    t[l] = 1 - t[l + 1]
    return t


def classes(name: str, y: Tensor, atoms: Tensor) -> Tensor:
    if name == "two_hot":
        return torch.tensor([two_hot(float(one), atoms.tolist()) for one in y], dtype=torch.double)
    width = atoms[1] - atoms[0]
    law = torch.distributions.Normal(y[:, None], 0.75 * width)
    inside = law.cdf(atoms + width / 2) - law.cdf(atoms - width / 2)
    return inside / inside.sum(1, keepdim=True)


def equations(name: str, value: str):
    atoms = atoms_of(name, value)
    least, most = SUPPORT[value]

    def mean(out: Tensor) -> Tensor:
        return out[..., 0] if name == "td_mse" else (torch.softmax(out, -1) * atoms).sum(-1)

    def losses(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        s, g, alpha = batch.state, batch.goal, p["log_alpha"].exp()
        rows = [row(value, bool(h), bool(o)) for h, o in zip(batch.reward, batch.terminal, strict=True)]
        reward, discount = torch.tensor(rows, dtype=torch.double).T
        with torch.no_grad():
            slow = outputs(p, "q_slow", batch.next_state, g, act(p, batch.next_state, g, noise[1])[0])
            y = reward + discount * torch.minimum(*mean(slow))
            if name == "c51":
                t = torch.zeros(B, BINS, dtype=torch.double)
                for i in range(B):
                    k = int(mean(slow)[1, i] < mean(slow)[0, i])
                    for mass, z in zip(torch.softmax(slow[k, i], 0), atoms, strict=True):
                        to = min(max(float(reward[i] + discount[i] * z), least), most)
                        t[i] += mass * torch.tensor(two_hot(to, atoms.tolist()), dtype=torch.double)
            elif name != "td_mse":
                y = y.clip(least, most)
                t = classes(name, y, atoms)
        out = outputs(p, "q", s, g, batch.action)
        if name == "td_mse":
            critic = 0.5 * (out[..., 0] - y).square().mean()
        else:
            critic = -(t * torch.log_softmax(out, -1)).sum(-1).mean()
        action, log_prob = act(p, s, g, noise[0])
        chosen = torch.minimum(*mean(outputs(p, "q", s, g, action)))
        chosen = chosen / (1 - GAMMA) if value == "dwell" else chosen  # in units of the reward, as SAC's
        return {
            "critic": critic,
            "actor": (alpha.detach() * log_prob - chosen).mean(),
            "alpha": alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean(),
            "q": mean(out).mean(),
            "target": (t * atoms).sum(1).mean() if name == "c51" else y.mean(),
        }

    return losses


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", SUPPORT)
def test_a_step_equals_the_equations(name, value):
    check_step(config_of(name, value=value), equations(name, value), GROUPS)


@pytest.mark.parametrize("name", NAMES)
def test_entropy_does_not_carry_the_target_off_its_support(name):
    """However hot the policy is; with the entropy asked for, the target rises to the bound and no further."""
    targets = {}
    for asked in (False, True):
        learner, batch, noise = exact_learner(config_of(name, entropy_in_target=asked))
        batch.terminal[:] = 0
        for log_alpha in (0.0, 5.0):
            learner.algorithm.log_alpha.data.fill_(log_alpha)
            targets[asked, log_alpha] = learner.losses(batch, noise)[1]["target"].item()
    assert targets[False, 0.0] == targets[False, 5.0]
    assert targets[True, 5.0] != targets[True, 0.0] != targets[False, 0.0]
    if name != "td_mse":
        assert all(0 <= target <= 1 for target in targets.values())


def test_time_at_the_goal_is_sacs_value_in_another_unit():
    """The control with the entropy in its target, its critics 1 - gamma times SAC's."""
    metrics = {}
    for name, unit in (("sac", 1.0), ("td_mse", 1 - GAMMA)):
        options = {"entropy_in_target": True}
        learner, batch, noise = exact_learner(
            config_of("td_mse", **options) if name == "td_mse" else small("sac", gamma=GAMMA)
        )
        with torch.no_grad():
            for head in (learner.algorithm.q.head, learner.algorithm.q_slow.head):
                head.weight.mul_(unit)
                head.bias.mul_(unit)
        metrics[name] = learner.losses(batch, noise)[1]
    assert metrics["td_mse"]["target"].item() == pytest.approx((1 - GAMMA) * metrics["sac"]["target"].item())
    assert metrics["td_mse"]["actor_loss"].item() == pytest.approx(metrics["sac"]["actor_loss"].item())


@pytest.mark.parametrize("name", NAMES[:3])
def test_classes_are_distributions_with_the_values_as_means(name):
    algorithm = learner_of(config_of(name)).algorithm.double()
    values = torch.linspace(0, 1, 41, dtype=torch.double)
    if name == "c51":
        t = torch.eye(BINS, dtype=torch.double)
        out = t.clamp_min(1e-300).log().expand(2, -1, -1)
        nothing = torch.zeros(BINS, dtype=torch.double)
        torch.testing.assert_close(
            algorithm.target(nothing, nothing + 1, out, nothing), t
        )  # not moved at all
        t, values = (
            algorithm.target(nothing + 0.1, nothing + GAMMA, out, nothing),
            0.1 + GAMMA * algorithm.centres(t),
        )
    else:
        t = algorithm.classes(values)
    assert (t >= 0).all()
    torch.testing.assert_close(t.sum(1), torch.ones_like(values))
    off = (t @ algorithm.centres(t) - values).abs()
    if name == "hl_gauss":  # held to the support, the law's mean leans inwards at the bounds
        inside = (values > 0.3) & (values < 0.7)
        assert off[inside].max() < 2e-3 and off.max() < 0.75 / BINS
    else:
        assert off.max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_values_are_learned_where_the_reward_is(name):
    learner = learner_of(config_of(name, critic_lr=3e-3, value="first_hit"))
    batch, noise = batch_for(learner)
    paid = batch.reward == 1
    batch.terminal[:] = 1.0
    for _ in range(60):
        learner.step(batch, noise)
    algorithm = learner.algorithm
    q = algorithm.values(algorithm.q(torch.cat([batch.state, batch.goal, batch.action], dim=1))).detach()
    assert q[:, paid].min() > 0.75 and q[:, ~paid].max() < 0.25


def test_the_support_is_that_of_the_value_unless_said_otherwise():
    options = algorithms.find("hl_gauss").Options
    assert options().support == options(value="first_hit").support == (0.0, 1.0)
    assert options(value="step", gamma=0.99).support == pytest.approx((-100.0, 0.0))
    assert options(v_min=-1.0, v_max=2.0).support == (-1.0, 2.0)
    with pytest.raises(ValueError, match="v_min must be less than v_max, got 3 and 1; leave out one of them"):
        small("c51", v_min=3.0)
    assert learner_of(small("hl_gauss", bins=4)).algorithm.centres(torch.zeros(1)).tolist() == [
        0.125, 0.375, 0.625, 0.875,
    ]  # fmt: skip


def test_a_time_limit_that_ends_a_row_is_worth_never_arriving():
    """Not one step from the goal, which reward - 1 without anything behind it would say."""
    learner = learner_of(config_of("td_mse", value="step", time_limit="terminal"))
    batch, _ = batch_for(learner)
    batch.reward[:], batch.terminal[:] = 0, 0
    batch.extra["truncation"] = (torch.arange(B) % 2).float()
    reward, discount = learner.algorithm.outcome(batch)
    cut = batch.extra["truncation"].bool()
    assert torch.allclose(reward[cut], torch.tensor(-1 / (1 - GAMMA))) and (discount[cut] == 0).all()
    assert (reward[~cut] == -1).all() and torch.allclose(discount[~cut], torch.tensor(GAMMA))
