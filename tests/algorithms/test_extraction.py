"""What offline CRL's policy takes from its critic: losses and gradients against the equations; what then acts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deepres import Batch, Config
from deepres.algorithms.extraction import BestOfPolicy
from deepres.data.goal_laws import FutureAndActorGoals
from deepres.data.relabel import FutureGoals
from helpers.learners import SIZES, B, doubled, learner_of, small
from helpers.plain_networks import Parameters, encoded, gaussian, leaves
from helpers.rings import draw, filled

CASES: list[dict[str, object]] = [
    {"extraction": "ddpg_bc", "bc_alpha": 0.3, "random_actor_goals": 0.5},
    {"extraction": "ddpg_bc", "horizon": 2},
    {"extraction": "awr", "bc_alpha": 3.0, "random_actor_goals": 0.0, "horizon": 2},
    {"extraction": "awr", "bc_alpha": 3.0},
    {"extraction": "best_of_n", "random_actor_goals": 0.0},
]


def batch_for(horizon: int) -> Batch:
    g = torch.Generator().manual_seed(1)
    rows = lambda n: torch.randn(B, n, generator=g).double()  # noqa: E731
    valid = (torch.arange(B) % 4 != 0).double()
    action = torch.tanh(rows(horizon * SIZES.action))
    extra = {"actor_goal": rows(SIZES.goal)} | ({"valid": valid} if horizon > 1 else {})
    return Batch(rows(SIZES.state), action, rows(SIZES.goal), extra=extra)


def apart(phi: Tensor, psi: Tensor) -> Tensor:
    return -(phi - psi).square().sum(-1).sqrt()


def contrastive(phi: Tensor, psi: Tensor, counted: Tensor) -> Tensor:
    logits = apart(phi[:, None], psi[None])
    lse = torch.stack([row.exp().sum().log() for row in logits])
    return (lse - logits.diagonal())[counted == 1].mean() + 0.1 * (lse + 1e-6).square().mean()


def by_the_book(p: Parameters, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Each group's loss."""
    get, s, a, held = config.get, batch.state, batch.action, {n: t.detach() for n, t in p.items()}
    aim = batch.goal if get("random_actor_goals") is None else batch.extra["actor_goal"]
    counted = batch.extra["valid"] if get("horizon") > 1 else torch.ones(B)
    losses = {"critic": contrastive(encoded(p, "phi", s, a), encoded(p, "psi", batch.goal), counted)}
    if get("extraction") == "best_of_n":
        law = gaussian(p, s, aim)
        density = law.log_prob(torch.atanh(a)) - torch.log(1 - a.square())
        return {**losses, "actor": -density.sum(1)[counted == 1].mean()}
    mean = encoded(p, "actor", s, aim)
    cloned = torch.distributions.Normal(mean, torch.ones_like(mean)).log_prob(a).sum(1)
    if get("extraction") == "awr":
        losses["value"] = contrastive(encoded(p, "phi_v", s), encoded(p, "psi_v", batch.goal), counted)
        q = apart(encoded(held, "phi", s, a), encoded(held, "psi", aim))
        v = apart(encoded(held, "phi_v", s), encoded(held, "psi_v", aim))
        weight = torch.tensor(
            [min(math.exp(get("bc_alpha") * x), 100.0) for x in (q - v).tolist()], dtype=torch.double
        )
        return {**losses, "actor": -(weight * cloned)[counted == 1].mean()}
    q = apart(encoded(held, "phi", s, mean.clip(-1, 1)), encoded(held, "psi", aim))
    sought = q.mean() / (q.abs().mean().item() + 1e-6)
    return {**losses, "actor": -sought - get("bc_alpha") * cloned[counted == 1].mean()}


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_step_equals_the_equations(options):
    config = small(impl="reference", **options)
    learner = doubled(learner_of(config, apart=0.05))
    batch = batch_for(learner.algorithm.horizon)
    p = leaves(learner.parameters())
    losses = by_the_book(p, batch, config)
    groups = learner.algorithm.groups
    assert losses.keys() == groups.keys() and not hasattr(learner.algorithm, "log_alpha")
    of = {id(q): name for name, group in groups.items() for q in group.parameters}
    metrics = learner.update(batch, torch.zeros(B, batch.action.shape[1]).double())
    assert metrics["skipped_steps"] == 0
    for group, loss in losses.items():
        assert metrics[f"{group}_loss"].item() == pytest.approx(loss.item(), rel=1e-9), group
    for name, q in learner.parameters().items():
        wanted = torch.autograd.grad(losses[of[id(q)]], p[name], retain_graph=True)[0]
        assert (q.grad - wanted).abs().max() <= 1e-9 * max(1.0, float(wanted.abs().max())), name
        assert wanted.abs().max() > 0, name


def test_the_best_of_n_actions_is_done():
    learner = learner_of(small(extraction="best_of_n", candidates=9), apart=0.05)
    algorithm, policy = learner.algorithm, learner.policy
    assert isinstance(policy, BestOfPolicy)
    obs = torch.randn(B, SIZES.state + SIZES.goal, generator=torch.Generator().manual_seed(2))
    state, goal = obs[:, : SIZES.state], obs[:, SIZES.state :]
    done = policy.act(obs)
    with torch.no_grad():
        mean, log_std = algorithm.actor(obs)
        z = torch.randn(9, SIZES.action, generator=torch.Generator().manual_seed(0))
        z[0] = 0
        tries = [torch.tanh(mean + log_std.exp() * row) for row in z]
        energy = torch.stack([
            apart(algorithm.phi(torch.cat([state, a], 1)), algorithm.psi(goal)) for a in tries
        ])  # fmt: skip
        best = energy.argmax(0)
        assert torch.equal(done, torch.stack(tries)[best, torch.arange(B)]) and len(set(best.tolist())) > 2
        noise = torch.randn(B, SIZES.action)
        assert torch.equal(policy.act(obs, noise), torch.tanh(mean + log_std.exp() * noise))
    assert torch.equal(policy.copy().act(obs), done) and torch.equal(policy.act(obs), done)


def test_options_that_do_not_apply_are_told():
    for options, sentence in (
        (
            {"random_actor_goals": 0.0},
            "random_actor_goals does not apply to extraction=entropy, got 0.0; leave it out",
        ),
        ({"extraction": "awr", "survival_bonus": 1.0}, "survival_bonus does not apply to extraction=awr"),
    ):
        with pytest.raises(ValueError, match=sentence):
            small(**options)
    own = learner_of(small(extraction="awr", random_actor_goals=0.5, together=4)).algorithm.sampler
    assert isinstance(own, FutureAndActorGoals) and own.together == 4
    assert own.policy.uniform == own.policy.anywhere == 0.5
    plain = learner_of(small(extraction="awr")).algorithm.sampler
    assert type(plain) is FutureGoals and plain.together == 1


def test_pairs_of_one_window_stand_together():
    """Also at the end of a pass, where no whole group is left; rows come without replacement."""
    sampler = FutureGoals(0.9, together=4)
    batches = draw(filled(num_envs=3), 6, 12, window=11, sampler=sampler)  # groups of 4 of 10 rows: 24 a pass
    for batch in batches:
        env = batch.state[:, 0].view(3, 4)
        assert (env == env[:, :1]).all() and (batch.goal[:, [0, 2]] == batch.state[:, [0, 2]]).all()
    of_a_pass = torch.cat([batches[0].state, batches[1].state])
    assert len(of_a_pass.unique(dim=0)) == 24
    assert len({int(e) for batch in batches for e in batch.state[:, 0].view(3, 4)[:, 0]}) == 3
