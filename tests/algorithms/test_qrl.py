"""QRL's gradient step against an independent one, written here from its equations (arXiv 2304.01203); its distances."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from deepres import Batch
from deepres.algorithms.parts import pair_energy
from deepres.kernels.quasimetric.op import iqe
from helpers.learners import SIZES, B, batch_for, learner_of, small
from helpers.plain_networks import Parameters, act, encoded
from helpers.steps import check_step

GROUPS = {
    "critic": ("phi.", "psi.", "mix"), "model": ("model.",), "dual": ("log_lam",),
    "actor": ("actor.",), "alpha": ("log_alpha",),
}  # fmt: skip
CONFIG = small("qrl", feature_dim=16)


def union(lows: list[float], highs: list[float]) -> float:
    """The length of the union of intervals, piece by piece."""
    ends = sorted({*lows, *highs})
    return sum(
        right - left
        for left, right in pairwise(ends)
        if any(low <= left and right <= high for low, high in zip(lows, highs, strict=True))
    )


def plain_iqe(x: Tensor, y: Tensor, mix: Tensor) -> Tensor:
    """The measure of a union as the integral of an indicator: each of the pieces between sorted ends, if covered."""
    low, high = x.unflatten(1, (-1, 8)), torch.maximum(x, y).unflatten(1, (-1, 8))
    ends = torch.cat([low, high], -1).sort(-1).values
    left, right = ends[..., :-1], ends[..., 1:]
    middle = ((left + right) / 2)[..., None]
    covered = ((low[..., None, :] <= middle) & (middle <= high[..., None, :])).any(-1)
    parts = ((right - left) * covered).sum(-1)
    share = torch.sigmoid(mix)
    return share * parts.mean(1) + (1 - share) * parts.max(1).values


def plain_mrn(x: Tensor, y: Tensor) -> Tensor:
    half = x.shape[1] // 2
    over = torch.where(x > y, x - y, 0.0)[:, :half].max(1).values
    return over + torch.sqrt(((x - y)[:, half:] ** 2).sum(1) + 1e-6)


def equations(distance: str, goals: str, extraction: str):
    def losses(p: Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        def d(x: Tensor, y: Tensor, learned: bool = True) -> Tensor:
            if distance == "mrn":
                return plain_mrn(x, y)
            return plain_iqe(x, y, p["mix"] if learned else p["mix"].detach())

        s, a, g = batch.state, batch.action, batch.goal
        others = torch.stack([g[i - 1] for i in range(B)])
        z, after = encoded(p, "phi", s), encoded(p, "phi", batch.next_state)
        spread = 100 * torch.log(1 + torch.exp(5 - d(z, encoded(p, "psi", others)) / 100))
        bracket = ((d(z, after) - 1).clip(0) ** 2).mean()
        bracket = bracket + (d(z, encoded(p, "psi", batch.extra["achieved"])) ** 2).mean()
        lam = p["log_lam"].exp()
        fixed, there = z.detach(), after.detach()
        hat = fixed + encoded(p, "model", fixed, a)
        g = others if goals == "random" else g
        told = {
            "critic": spread.mean() + lam.detach() * bracket,
            "dual": -lam * (bracket.detach() - 0.05),
            "model": (d(there, hat, False) + d(hat, there, False)).mean(),
            "violation": bracket,
        }

        def left(action: Tensor) -> Tensor:
            led = fixed + encoded(p, "model", fixed, action)
            return d(led, encoded(p, "psi", g).detach(), False)

        if extraction != "entropy":
            mean = encoded(p, "actor", s, g)
            bc = torch.distributions.Normal(mean, 1.0).log_prob(a).sum(1)
            if extraction == "awr":
                aim = encoded(p, "psi", g).detach()
                nearer = (d(fixed, aim, False) - d(there, aim, False)).detach()
                return {**told, "actor": -((0.1 * nearer).exp().clip(max=100) * bc).mean()}
            far = left(mean.clip(-1, 1))
            return {**told, "actor": far.mean() / (far.mean().detach() + 1e-6) - 0.1 * bc.mean()}
        action, log_prob = act(p, s, g, noise)
        alpha = p["log_alpha"].exp()
        return {
            **told,
            "actor": (alpha.detach() * log_prob + left(action)).mean(),
            "alpha": alpha * (-log_prob.detach() + 0.5 * SIZES.action).mean(),
        }

    return losses


@pytest.mark.parametrize(
    ("distance", "goals", "extraction"),
    [
        ("iqe", "future", "entropy"),
        ("mrn", "random", "entropy"),
        ("iqe", "random", "ddpg_bc"),
        ("iqe", "future", "awr"),
    ],
)
def test_a_step_equals_the_equations(distance, goals, extraction):
    groups = dict(GROUPS)
    if extraction != "entropy":
        del groups["alpha"]
    if distance == "mrn":
        groups["critic"] = ("phi.", "psi.")
    cloning = {} if extraction == "entropy" else {"bc_alpha": 0.1}
    config = CONFIG.replace(distance=distance, actor_goals=goals, extraction=extraction, **cloning)
    check_step(config, equations(distance, goals, extraction), groups)


def test_distances_are_quasimetrics():
    g = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(3, 200, 32, dtype=torch.double, generator=g)
    mix = torch.tensor(0.3, dtype=torch.double)
    for d in (lambda one, other: iqe(one, other, mix), lambda one, other: -pair_energy(one, other, "mrn")):
        assert (d(x, z) <= d(x, y) + d(y, z) + 1e-12).all()
        assert d(x, x).max() <= 1e-3 and (d(x, y) > 0).all()  # mrn keeps its root from 0
        assert (d(x, y) - d(y, x)).abs().max() > 0.1
    parts = [[union(*each) for each in zip(*pair, strict=True)] for pair in zip(
        x.unflatten(1, (4, 8)).tolist(), torch.maximum(x, y).unflatten(1, (4, 8)).tolist(), strict=True
    )]  # fmt: skip
    length = torch.tensor(parts, dtype=torch.double)
    wanted = mix.sigmoid() * length.mean(1) + (1 - mix.sigmoid()) * length.max(1).values
    torch.testing.assert_close(iqe(x, y, mix), wanted)
    torch.testing.assert_close(plain_iqe(x, y, mix), wanted)


def test_what_is_elsewhere_moves_away_and_the_multiplier_holds_steps_short():
    learner = learner_of(small("qrl", feature_dim=16, critic_lr=3e-3))
    batch, noise = batch_for(learner)
    first = learner.update(batch, noise)
    for _ in range(60):
        last = learner.update(batch, noise)
    assert last["distance"] > first["distance"] and last["lam"] > 1
    assert last["model_loss"] < first["model_loss"] or last["violation"] < 1


def test_features_come_in_parts():
    with pytest.raises(ValueError, match="feature_dim must be a multiple of 8, got 20; use 16"):
        small("qrl", feature_dim=20)
