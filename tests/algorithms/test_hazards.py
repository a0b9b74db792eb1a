"""SRL's and ChronoSRL's gradient steps against their equations, written out in float64 row by row and bin by bin."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from deepres import Batch, Learner
from deepres.algorithms.chrono import bin_edges
from deepres.networks import NetworkOptions, Networks, ResidualStack
from helpers.learners import SIZES, B, doubled, learner_of, small
from helpers.plain_networks import Parameters, act, dense, layer, leaves, trunk

BINS, GAMMA, RADIUS = 12, 0.7, 0.5  # kappa K = 4.3: some pairs are nearer, some further
OPTIONS = {"bins": BINS, "gamma": GAMMA, "feature_dim": 16, "impl": "reference"}
EDGES = bin_edges(BINS)


def made(name: str, **options: object) -> Learner:
    return learner_of(small(name, **{**OPTIONS, **options}), apart=0.05)


def batch_of(learner: Learner, seed: int = 1) -> tuple[Batch, Tensor]:
    """Rows of every kind: there already, reached, censored at the horizon and before; some with a chunk that is not
    whole, some that will fall; goals near and far from one another."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    chance = lambda share, *shape: torch.rand(*shape, generator=g) < share  # noqa: E731
    algorithm = learner.algorithm
    horizon, m = algorithm.horizon, learner.config.algorithm.goal_sequence
    event = chance(0.6, B)
    lag = torch.where(
        event, torch.randint(BINS, (B,), generator=g), torch.randint(1, BINS + 1, (B,), generator=g)
    )
    lag[:3], event[:3] = torch.tensor([0, BINS, 1]), torch.tensor([True, False, True])
    goals = 0.5 * draw(B, m, SIZES.goal)
    extra = {"lag": lag, "event": event}
    if m > 1:
        extra["sequence"] = goals.flatten(1)
    if horizon > 1:
        extra["valid"] = chance(0.7, B).float()
        extra["valid"][:3] = 1
    if learner.config.algorithm_name == "chrono":
        apart = (goals[:, None] - goals[None]).norm(dim=3).amax(dim=2) > RADIUS
        extra |= {
            "occupancy": torch.rand(B, len(EDGES) - 1, generator=g),
            "observed": chance(0.7, B, len(EDGES) - 1),
            "falls": chance(0.5, B),
            "apart": apart,
        }
        assert 0.1 < apart.float().mean() < 0.95
    action = torch.tanh(draw(B, horizon * SIZES.action))
    batch = Batch(draw(B, SIZES.state), action, goals[:, 0], extra=extra)
    return batch, learner.noise(batch, g)


def wide(batch: Batch, noise: Tensor) -> tuple[Batch, Tensor]:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t), noise.double()


# --- the equations ---


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + shift


def embedded(p: Parameters, which: str, *inputs: Tensor) -> Tensor:
    x = torch.cat(inputs, 1)
    if f"{which}.norm.weight" in p:  # SRL's
        raw = dense(p, f"{which}.encoder.head", trunk(p, f"{which}.encoder", x))
        return layer_norm(raw, p[f"{which}.norm.weight"], p[f"{which}.norm.bias"])
    return dense(p, f"{which}.head", trunk(p, which, x))


def outlook(p: Parameters, z: Tensor, z_goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """l0 [B], the hazards' logits [B, K], the occupancy's logits."""
    f, b = dense(p, "head.film", z_goal).chunk(2, 1)
    z = (1 + 0.1 * f) * z + 0.1 * b
    h = trunk(p, "head.net", torch.cat([z, z_goal, z - z_goal, z * z_goal], 1))
    out = dense(p, "head.net.head", h)
    return out[:, 0], out[:, 1:65] @ p["head.basis"].T + p["head.bias"], out[:, 65:]


def nll(l0: Tensor, logits: Tensor, lag: int, event: bool) -> Tensor:
    """Of one row: l0 [], logits [K]."""
    if event and lag == 0:
        return -torch.log(torch.sigmoid(l0))
    chance = torch.sigmoid(-l0)
    for k in range(lag):
        chance = chance * torch.sigmoid(-logits[k])
    return -torch.log(chance * torch.sigmoid(logits[lag]) if event else chance)


def value(l0: Tensor, logits: Tensor) -> Tensor:
    survival, total = torch.sigmoid(-l0), torch.zeros_like(l0)
    for k in range(BINS):
        total = total - GAMMA**k * survival
        survival = survival * torch.sigmoid(-logits[k])
    return total


def critic_loss(p: Parameters, batch: Batch, chrono: bool) -> Tensor:
    extra = batch.extra
    z = embedded(p, "phi", batch.state, batch.action)
    z_goal = embedded(p, "psi", extra.get("sequence", batch.goal))
    l0, logits, more = outlook(p, z, z_goal)
    lag, event = extra["lag"].tolist(), extra["event"].tolist()
    valid = extra.get("valid", torch.ones(B)).bool().tolist()
    rows = [nll(l0[i], logits[i], lag[i], event[i]) for i in range(B) if valid[i]]
    loss = torch.stack(rows).mean()
    if not chrono:
        return loss
    kappa = -math.log(GAMMA)
    d = [[((z[i] - z_goal[j]).square().sum() + 1e-12).sqrt() for j in range(B)] for i in range(B)]
    times, separations, shares = [], [], []
    for i in range(B):
        if event[i] and valid[i] and lag[i] >= 1:
            off = (d[i][i] - kappa * lag[i]).abs()
            times.append(torch.where(off <= 1, off.square() / 2, off - 0.5))
        for j in range(B):
            told = valid[i] and not event[i] if i == j else bool(extra["apart"][i, j])
            if told:
                separations.append(torch.relu(kappa * BINS - d[i][j]))
        for k in range(len(EDGES) - 1):
            if valid[i] and extra["observed"][i, k]:
                share, o = extra["occupancy"][i, k], torch.sigmoid(more[i, k])
                shares.append(-share * torch.log(o) - (1 - share) * torch.log(1 - o))
    return loss + sum(torch.stack(part).mean() for part in (times, separations, shares))


def actor_losses(p: Parameters, critic: Parameters, batch: Batch, noise: Tensor, chrono: bool):
    """The actor's and the temperature's, of a critic that is constant."""
    action, log_prob = act(p, batch.state, batch.goal, noise)
    m = batch.extra["sequence"].shape[1] // SIZES.goal if "sequence" in batch.extra else 1
    z_goal = embedded(critic, "psi", torch.cat([batch.goal] * m, 1))
    l0, logits, more = outlook(critic, embedded(critic, "phi", batch.state, action), z_goal)
    worth = torch.stack([value(l0[i], logits[i]) for i in range(B)])
    if chrono:
        valid = batch.extra.get("valid", torch.ones(B)).bool()
        falling = (batch.extra["falls"] & valid).sum() / valid.sum()
        weights = [0.0, *(sum(GAMMA**lag for lag in range(a, b)) for a, b in list(pairwise(EDGES))[1:])]
        worth = worth + falling * (torch.sigmoid(more) * torch.tensor(weights)).sum(1)
    alpha = p["log_alpha"].exp()
    target = -0.5 * action.shape[1]
    return (alpha.detach() * log_prob - worth).mean(), (alpha * (-log_prob - target).detach()).mean()


def gradients(p: Parameters, loss: Tensor) -> Parameters:
    grads = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    return {name: g for name, g in zip(p, grads, strict=True) if g is not None}


def stepped(p: Parameters, grads: Parameters, lr: float) -> Parameters:
    """After Adam's first step."""
    change = {name: lr * g / (g.abs() + 1e-8) for name, g in grads.items()}
    return {name: (t - change.get(name, torch.zeros(()))).detach() for name, t in p.items()}


CASES = [
    ("srl", {}),
    ("srl", {"actor_reads": "old", "goal_sequence": 3}),
    ("chrono", {}),
    ("chrono", {"actor_reads": "old", "goal_sequence": 3, "horizon": 1}),
    ("chrono", {"horizon": 3}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_step_is_what_the_equations_say(name, options):
    """Losses and every gradient; the actor's are of the critic that Adam has stepped."""
    learner, chrono = doubled(made(name, critic_lr=1e-2, **options)), name == "chrono"
    p = leaves(learner.parameters())
    batch, noise = wide(*batch_of(learner))
    critic = critic_loss(p, batch, chrono)
    grads = gradients(p, critic)
    read = {n: t.detach() for n, t in p.items()} if "actor_reads" in options else stepped(p, grads, 1e-2)
    actor, alpha = actor_losses(p, read, batch, noise, chrono)
    grads |= gradients(p, actor) | gradients(p, alpha)

    metrics = learner.update(batch, noise)

    for metric, loss in (("critic_loss", critic), ("actor_loss", actor), ("alpha_loss", alpha)):
        assert metrics[metric].item() == pytest.approx(loss.item(), rel=1e-5), metric
    assert not chrono or all(metrics[f"{part}_loss"] > 0 for part in ("time", "separation", "occupancy"))
    assert grads.keys() == learner.parameters().keys()
    for which, parameter in learner.parameters().items():
        assert parameter.grad is not None, which
        error = (parameter.grad - grads[which]).abs().max()
        assert error <= 1e-5 * min(1.0, grads[which].abs().max().item()), which


@pytest.mark.parametrize(("name", "options"), CASES[::2], ids=str)
def test_the_kernels_step_is_the_same(name, options):
    """In fp32, with a critic that stays where it is, as Adam's first step has no size to compare."""
    fused, exact = (made(name, critic_lr=0.0, impl=impl, **options) for impl in ("auto", "reference"))
    batch, noise = batch_of(fused)
    metrics, truth = fused.update(batch, noise), doubled(exact).update(*wide(batch, noise))
    for metric in ("critic_loss", "actor_loss", "alpha_loss"):
        assert metrics[metric].item() == pytest.approx(truth[metric].item(), rel=1e-5), metric
    for which, parameter in fused.parameters().items():
        wanted = exact.parameters()[which].grad
        assert (parameter.grad - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item()), which


def test_the_actor_reads_the_critic_as_the_option_says():
    """A critic that is stepped far changes the actor's loss of the same step, unless it reads the old one."""
    losses = {}
    for reads in ("updated", "old"):
        for lr in (0.0, 0.1):
            learner = made("srl", critic_lr=lr, actor_reads=reads)
            losses[reads, lr] = learner.update(*batch_of(learner))["actor_loss"].item()
    assert losses["updated", 0.0] == pytest.approx(losses["old", 0.0]) == pytest.approx(losses["old", 0.1])
    assert abs(losses["updated", 0.1] - losses["old", 0.1]) > 1e-2


# --- what must not count ---


@pytest.mark.parametrize("name", ["srl", "chrono"])
def test_what_comes_after_the_event_or_the_censoring_counts_for_nothing(name):
    learner = made(name)
    batch, _ = batch_of(learner)
    batch.extra["lag"].clamp_(max=4)
    batch.extra["event"][:] = torch.arange(B) % 2 == 0
    loss = learner.algorithm._critic(batch)[0]
    loss.backward()
    late = learner.algorithm.head.bias.grad[5:]
    assert late.numel() == BINS - 5 and not late.any() and learner.algorithm.head.bias.grad[:4].all()


def test_a_row_whose_chunk_is_not_whole_is_another_rows_negative_and_no_more():
    learner = made("chrono")
    batch, _ = batch_of(learner)
    valid = batch.extra["valid"].bool()

    def losses(changed: Batch) -> dict[str, Tensor]:
        return learner.algorithm._critic(changed)[1]

    before = losses(batch)
    extra = {**batch.extra, "lag": batch.extra["lag"].clone(), "event": batch.extra["event"] ^ ~valid}
    extra["occupancy"] = torch.where(valid[:, None], extra["occupancy"], 1 - extra["occupancy"])
    extra["lag"][~valid] = 5
    after = losses(Batch(batch.state, batch.action, batch.goal, extra=extra))
    for part in ("likelihood_loss", "time_loss", "separation_loss", "occupancy_loss"):
        assert torch.equal(before[part], after[part]), part
    moved = torch.where(valid[:, None], batch.action, batch.action + 1)
    assert (
        losses(Batch(batch.state, moved, batch.goal, extra=extra))["separation_loss"]
        != after["separation_loss"]
    )


def test_lags_that_nobody_observed_teach_nothing_of_occupancy():
    learner = made("chrono")
    batch, _ = batch_of(learner)
    seen = batch.extra["observed"]
    other = {**batch.extra, "occupancy": torch.where(seen, batch.extra["occupancy"], 0.5)}
    here, there = (
        learner.algorithm._critic(Batch(batch.state, batch.action, batch.goal, extra=extra))[0]
        for extra in (batch.extra, other)
    )
    assert torch.equal(here, there) and not seen.all()


def test_without_a_row_of_its_kind_a_loss_is_0():
    learner = made("chrono")
    batch, noise = batch_of(learner)
    batch.extra["valid"].zero_()
    batch.extra["apart"].zero_()
    metrics = learner.update(batch, noise)
    assert metrics["critic_loss"] == metrics["falling"] == 0 and metrics["skipped_steps"] == 0


# --- the networks and the bins ---


def test_bins_of_the_occupancy_are_the_published_ones():
    edges = bin_edges(1000)
    assert len(edges) == 31 and edges[:5] == (0, 1, 2, 3, 4) and edges[-1] == 1000
    assert all(a < b for a, b in pairwise(edges)) and set(edges) >= {
        round(1000 ** (k / 32)) for k in range(33)
    }


@pytest.mark.parametrize(
    ("depth", "layers", "blocks"), [(1, 1, 0), (2, 1, 0), (4, 2, 0), (8, 4, 1), (12, 4, 1), (16, 8, 2)]
)
def test_srls_embeddings_have_half_the_depth(depth, layers, blocks):
    """In whole blocks behind a stem, or as so many plain layers; in all networks of ChronoSRL the whole depth."""
    algorithm = made("srl", depth=depth).algorithm
    stacks = [m for m in algorithm.phi.modules() if isinstance(m, ResidualStack)]
    stem = int(blocks == 0)  # the first of plain layers stands where a stem does
    assert sum(s.depth for s in stacks) == layers - stem
    assert all(s.options["skip_every"] == (4 if blocks else 0) for s in stacks)
    whole = [m for m in algorithm.head.modules() if isinstance(m, ResidualStack)]
    assert sum(s.depth for s in whole) == (depth if depth >= 4 else depth - 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fewer_layers_than_a_block_are_plain(depth):
    net = Networks(NetworkOptions(depth=depth, width=8), generator=torch.Generator().manual_seed(0)).encoder(
        5, 3
    )
    p = leaves({f"net.{name}": t for name, t in net.named_parameters()})
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    at = "net.trunk"
    y = layer(
        x, p[f"{at}.stem.weight"].T, *(p[f"{at}.{k}"] for k in ("stem.bias", "norm.weight", "norm.bias"))
    )
    for l in range(depth - 1):
        y = layer(y, *(p[f"{at}.stack.{k}"][l] for k in ("weight", "bias", "gamma", "beta")))
    torch.testing.assert_close(net.double()(x), dense(p, "net.head", y))
