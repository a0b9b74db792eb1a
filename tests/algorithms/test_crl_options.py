"""CRL's options against their equations, written here anew from the papers: every loss and gradient in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deepres import Batch, Learner
from deepres.algorithms import survival
from deepres.algorithms.base import Exchange
from deepres.config import Config
from helpers.learners import SIZES, B, doubled, learner_of, numbers, same, small, stream
from helpers.plain_networks import Parameters, act, dense, leaves, trunk, value

SAFE = {"survival_rows": True, "survival_bonus": 1.0}
CASES: list[dict[str, object]] = [
    {"horizon": 3},
    {"survival_rows": True},
    {"survival_bonus": 0.5},
    {**SAFE, "horizon": 2, "gamma": 0.9},
    {"energy": "mrn", "form": "backward"},
    {"energy": "mrn", "form": "symmetric", "horizon": 2},
    {"energy": "dot", "form": "binary"},
    {"energy": "l2", "form": "binary", "logsumexp_penalty": 0.0, "survival_rows": True},
    {"energy": "norm", "form": "symmetric"},
    {"energy": "norm", "form": "backward"},
    {"energy": "cosine"},
    {"energy": "l2"},
]


def batch_for(learner: Learner, seed: int = 1) -> tuple[Batch, Tensor]:
    """Rows of every kind: chunks that are whole or not, trajectories that fall or do not, last steps of both."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(B, n, generator=g)  # noqa: E731
    row, horizon = torch.arange(B), learner.algorithm.horizon
    left = row % 6
    valid = (left >= horizon - 1).float()
    action = torch.tanh(draw(horizon * SIZES.action)) * valid[:, None]
    extra = {"valid": valid} if horizon > 1 else {}
    extra |= {"left": left, "falls": row % 4 < 2, "lag": 1 + row % 5}
    batch = Batch(draw(SIZES.state), action, draw(SIZES.goal), extra=extra)
    return batch, learner.noise(batch, g)


def wide(batch: Batch) -> Batch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def energies(phi: Tensor, psi: Tensor, energy: str) -> Tensor:
    """[B, B], pair by pair."""
    if energy in ("dot", "cosine"):
        long = (lambda x: x) if energy == "dot" else (lambda x: x / x.square().sum(1, keepdim=True).sqrt())
        return (long(phi)[:, None] * long(psi)[None]).sum(2)
    apart = phi[:, None] - psi[None]
    if energy in ("norm", "l2"):
        return -apart.square().sum(2) if energy == "l2" else -apart.square().sum(2).sqrt()
    half = phi.shape[1] // 2
    return -(
        apart[..., :half].clamp_min(0).max(dim=2).values + (apart[..., half:].square().sum(2) + 1e-6).sqrt()
    )


def chances(batch: Batch, gamma: float) -> tuple[Tensor, Tensor]:
    """Z and Y of arXiv 2608.26571, row by row."""
    z, y = [], []
    for left, falls, lag in zip(*(batch.extra[k].tolist() for k in ("left", "falls", "lag")), strict=True):
        z.append(0.0 if left == 0 else 1 - gamma**left if falls else 1.0)
        until = left + 1 if falls else math.inf
        y.append(float(until > lag))
    return torch.tensor(z, dtype=torch.double), torch.tensor(y, dtype=torch.double)


def by_the_book(p: Parameters, batch: Batch, noise: Tensor, config: Config) -> dict[str, Tensor]:
    """Each group's loss."""
    get, state, goal = config.get, batch.state, batch.goal

    def encoder(network: str, *inputs: Tensor) -> Tensor:
        return dense(p, f"{network}.head", trunk(p, network, torch.cat(inputs, 1)))

    logits = energies(encoder("phi", state, batch.action), encoder("psi", goal), get("energy"))
    z, y = chances(batch, get("gamma"))
    weight = z if get("survival_rows") else torch.ones_like(z)
    valid = batch.extra["valid"] if get("horizon") > 1 else torch.ones_like(z)
    over_goals = torch.stack([row.exp().sum().log() for row in logits])
    over_actions = torch.stack([column.exp().sum().log() for column in logits.T])
    row = {
        "forward": over_goals - logits.diagonal(),
        "backward": over_actions - logits.diagonal(),
        "symmetric": over_goals + over_actions - 2 * logits.diagonal(),
        "binary": -torch.where(
            torch.eye(B, dtype=torch.bool), torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()
        ).mean(1),
    }[get("form")]
    critic = (weight * row)[valid == 1].mean()  # every row is in the softmax, whole chunks alone in the mean
    critic = critic + get("logsumexp_penalty") * (over_goals + 1e-6).square().mean()
    action, log_prob = act(p, state, goal, noise)
    sought = energies(encoder("phi", state, action), encoder("psi", goal), get("energy")).diagonal()
    alpha = p["log_alpha"].exp()
    losses = {"critic": critic}
    if bonus := get("survival_bonus"):
        taken, chosen = (value(p, "survival", state, a) for a in (batch.action, action))
        sought = sought + bonus * torch.log(torch.sigmoid(chosen))
        chance = torch.sigmoid(taken)
        each = -(y * torch.log(chance) + (1 - y) * torch.log(1 - chance))
        losses["survival"] = each[valid == 1].mean()
    losses["actor"] = (alpha.detach() * log_prob - sought).mean()
    aim = -0.5 * SIZES.action * get("horizon")
    losses["alpha"] = alpha * (-log_prob.detach() - aim).mean()
    return losses


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_step_equals_the_equations(options):
    config = small(impl="reference", **options)
    learner = doubled(learner_of(config, apart=0.05))
    batch, noise = batch_for(learner)
    batch, noise = wide(batch), noise.double()
    p = leaves(learner.parameters())
    losses = by_the_book(p, batch, noise, config)
    of = {id(q): group for group, g in learner.algorithm.groups.items() for q in g.parameters}
    group_of = {name: of[id(q)] for name, q in learner.parameters().items()}
    grads = {n: torch.autograd.grad(losses[group_of[n]], p[n], retain_graph=True)[0] for n in p}

    metrics = learner.update(batch, noise)

    assert metrics["skipped_steps"] == 0
    for group, loss in losses.items():
        assert metrics[f"{group}_loss"].item() == pytest.approx(loss.item(), rel=1e-9), group
    for name, q in learner.parameters().items():
        assert (q.grad - grads[name]).abs().max() <= 1e-9 * max(1.0, float(grads[name].abs().max())), name
        assert grads[name].abs().max() > 0, name


@pytest.mark.parametrize("options", [CASES[3], CASES[4]], ids=str)
def test_fused_kernels_give_the_same_step(options):
    fused, plain = (learner_of(small(impl=impl, **options), apart=0.05) for impl in ("auto", "reference"))
    batch, noise = batch_for(fused)
    got, wanted = fused.update(batch, noise), plain.update(batch, noise)
    for name in got:
        assert got[name].item() == pytest.approx(wanted[name].item(), rel=1e-4, abs=1e-4), name


def test_the_default_has_none_of_it():
    """No column, no head, no noise, no other bit: what a batch holds beside its pairs changes nothing."""
    learner, told = learner_of(small(), apart=0.05), learner_of(small(), apart=0.05)
    assert learner.algorithm.sampler.columns == () and not hasattr(learner.algorithm, "survival")
    for batch, noise in stream(3):
        extra = {"valid": torch.zeros(B), "falls": torch.ones(B).bool(), "left": torch.arange(B)}
        learner.step(batch, noise)
        told.step(Batch(batch.state, batch.action, batch.goal, extra=extra), noise)
    assert same(numbers(learner), numbers(told))


def test_the_ring_keeps_ends_where_falls_count():
    for options in ({"survival_rows": True}, {"survival_bonus": 1.0}):
        assert learner_of(small(**options)).algorithm.sampler.columns == ("terminals",)
    assert learner_of(small(horizon=3)).algorithm.sampler.columns == ()


def test_a_row_without_a_whole_chunk_counts_as_negative_alone():
    """Its own action and pair have no gradient but the penalty's; its goal moves the others."""
    learner = doubled(learner_of(small(horizon=3, logsumexp_penalty=0.0, impl="reference"), apart=0.05))
    batch, noise = batch_for(learner)
    batch, noise = wide(batch), noise.double()
    broken = int((batch.extra["valid"] == 0).nonzero()[0])

    def critic(**changes: Tensor) -> Tensor:
        fields = {**batch.tensors(), **changes}
        losses, _ = next(learner.algorithm.losses(Batch.of(fields), noise))
        return losses["critic"]

    def moved(t: Tensor) -> Tensor:
        return t.index_put((torch.tensor([broken]),), t[broken] + 1.0)

    assert torch.equal(critic(), critic(action=moved(batch.action)))
    assert not torch.equal(critic(), critic(goal=moved(batch.goal)))


def test_a_batch_without_a_whole_chunk_is_finite():
    learner = learner_of(small(**SAFE, horizon=3))
    batch, noise = batch_for(learner)
    batch.extra["valid"].zero_()
    metrics = learner.update(batch, noise)
    assert metrics["skipped_steps"] == 0 and all(value.isfinite() for value in metrics.values())


class OneOfTwo(Exchange):
    """A rank of two, the other of which has given what it gathers: in turn."""

    size = 2

    def __init__(self, rank: int, others: list[Tensor]):
        self.rank, self.others = rank, others

    def gather_rows(self, x: Tensor) -> Tensor:
        other = self.others.pop(0).to(x.dtype)
        return torch.cat([x, other] if self.rank == 0 else [other, x])


@pytest.mark.parametrize("form", ["forward", "symmetric"])
def test_with_gathered_negatives_the_mean_is_over_all_whole_chunks(form):
    """Two ranks' mean loss is that of one with the joint batch."""
    options = {"horizon": 3, "form": form, "impl": "reference", "logsumexp_penalty": 0.0}
    alone = doubled(learner_of(small(**options), apart=0.05))
    halves = [wide(batch_for(alone, seed)[0]) for seed in (1, 2)]
    halves[1].extra["valid"][:] = (torch.arange(B) % 8 < 5).double()
    noise = torch.zeros_like(halves[0].action)
    joint = Batch.of({k: torch.cat([h.tensors()[k] for h in halves]) for k in halves[0].tensors()})
    whole = next(alone.algorithm.losses(joint, torch.cat([noise, noise])))[0]["critic"]

    shared = doubled(learner_of(small(**options, gather_negatives=True), apart=0.05))
    features = [
        [shared.algorithm.phi(torch.cat([h.state, h.action], 1)), shared.algorithm.psi(h.goal)]
        for h in halves
    ]
    parts = []
    for rank in (0, 1):
        valid = [h.extra["valid"] for h in halves]
        phi, psi = features[1 - rank]
        given = [phi, psi] if form == "symmetric" else [psi]
        weights = [valid[1 - rank] / torch.cat(valid).mean()] if form == "symmetric" else []
        shared.algorithm.exchange = exchange = OneOfTwo(rank, [*given, valid[1 - rank], *weights])
        parts.append(next(shared.algorithm.losses(halves[rank], noise))[0]["critic"])
        assert not exchange.others
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-12)


def test_mrn_needs_halves():
    with pytest.raises(ValueError, match="feature_dim must be even with energy=mrn, got 63"):
        Config("crl", energy="mrn", feature_dim=63)


# --- Safe-CRL's parts ---


def test_a_fall_on_the_way_lowers_the_weight_and_a_time_limit_does_not():
    left, falls = torch.tensor([0, 0, 1, 1, 20, 20]), torch.tensor([True, False] * 3)
    weight = survival.row_weight({"left": left, "falls": falls}, 0.9)
    wanted = [0, 0, 0.1, 1, 1 - 0.9**20, 1]
    torch.testing.assert_close(weight, torch.tensor(wanted, dtype=torch.double))


def test_the_label_is_one_while_nothing_falls_within_the_lag():
    extra = {
        "left": torch.tensor([0, 0, 2, 2, 2, 2]),
        "falls": torch.tensor([True, False, True, True, True, False]),
        "lag": torch.tensor([1, 1, 2, 3, 4, 9]),
    }
    assert survival.survived(extra).tolist() == [0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(("skip_every", "depth"), [(4, 4), (0, 4), (1, 4), (8, 8), (3, 6)])
def test_the_head_is_four_layers_deep_or_a_block(skip_every, depth):
    config = Config("crl", depth=24, width=8, skip_every=skip_every, survival_bonus=1.0)
    assert len(learner_of(config).algorithm.survival.trunk.stack.weight) == depth


def test_the_head_learns_who_falls():
    learner = learner_of(small(**SAFE, critic_lr=1e-2, depth=4))
    batch, noise = batch_for(learner)
    first = learner.update(batch, noise)["survival_loss"].item()
    for _ in range(40):
        last = learner.update(batch, noise)["survival_loss"].item()
    assert last < 0.3 * first
