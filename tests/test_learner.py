"""One gradient step against an independent one, written here in JAX straight from the published algorithm."""

from __future__ import annotations

import pytest
import torch

from deepres.config import Config
from deepres.learner import METRICS, Batch, Learner
from deepres.losses import pair_energy, squashed_gaussian
from deepres.networks import Actor, Encoder, call_frozen

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

STATE, ACTION, GOAL, B = 7, 3, 2, 24


def small_config(**changes) -> Config:
    values = {"critic_depth": 8, "actor_depth": 4, "width": 32, "feature_dim": 16, "batch_size": B}
    return Config(**{**values, **changes})


def make_learner(config: Config, seed: int = 0) -> Learner:
    generator = torch.Generator().manual_seed(seed)
    learner = Learner(config, state_dim=STATE, action_dim=ACTION, goal_dim=GOAL, generator=generator)
    with torch.no_grad():  # away from the initial 0s and 1s, so that no gradient is trivially zero
        for p in learner.parameters().values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return learner


def make_batch(seed: int = 1) -> tuple[Batch, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = Batch(*(torch.randn(B, n, generator=g) for n in (STATE, ACTION, GOAL)))
    return batch, torch.randn(B, ACTION, generator=g)


# --- the straightforward implementation: losses by the book, gradients by jax.grad, Adam by hand ---


def jax_trunk(p, x):
    def layer(x, w, b, scale, shift):
        u = x @ w + b
        n = (u - u.mean(-1, keepdims=True)) / jnp.sqrt(u.var(-1, keepdims=True) + 1e-6)
        z = scale * n + shift
        return z * jax.nn.sigmoid(z)

    x = layer(x, p["trunk.stem.weight"].T, p["trunk.stem.bias"], p["trunk.norm.weight"], p["trunk.norm.bias"])
    depth = p["trunk.stack.weight"].shape[0]
    for block in range(depth // 4):
        skip = x
        for l in range(4 * block, 4 * block + 4):
            x = layer(x, *(p[f"trunk.stack.{k}"][l] for k in ("weight", "bias", "gamma", "beta")))
        x = x + skip
    return x


def jax_encoder(p, x):
    return jax_trunk(p, x) @ p["head.weight"].T + p["head.bias"]


def jax_critic_loss(critic, s, a, g):
    phi = jax_encoder(critic["phi"], jnp.concatenate([s, a], 1))
    psi = jax_encoder(critic["psi"], g)
    logits = -jnp.sqrt(((phi[:, None] - psi[None]) ** 2).sum(-1))
    lse = jax.nn.logsumexp(logits, axis=1)
    return jnp.mean(lse - jnp.diag(logits)) + 0.1 * jnp.mean((lse + 1e-6) ** 2)


def jax_actor_loss(actor, critic, log_alpha, s, g, noise):
    features = jax_trunk(actor, jnp.concatenate([s, g], 1))
    mean = features @ actor["mean.weight"].T + actor["mean.bias"]
    raw = features @ actor["log_std.weight"].T + actor["log_std.bias"]
    log_std = -5 + 0.5 * (2 - -5) * (jnp.tanh(raw) + 1)
    std = jnp.exp(log_std)
    x = mean + std * noise
    a = jnp.tanh(x)
    log_prob = (jax.scipy.stats.norm.logpdf(x, mean, std) - jnp.log(1 - a**2 + 1e-6)).sum(1)
    phi = jax_encoder(critic["phi"], jnp.concatenate([s, a], 1))
    psi = jax_encoder(critic["psi"], g)
    distance = jnp.sqrt(((phi - psi) ** 2).sum(1))
    return jnp.mean(jnp.exp(log_alpha) * log_prob + distance), log_prob


def jax_alpha_loss(log_alpha, log_prob):
    return jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(-log_prob - -0.5 * ACTION))


def jax_adam_first_step(p, grad):
    m, v = 0.1 * grad, 0.001 * grad**2
    return p - 3e-4 * (m / (1 - 0.9)) / (jnp.sqrt(v / (1 - 0.999)) + 1e-8)


def test_update_equals_the_published_algorithm_in_jax():
    learner = make_learner(small_config())
    with jax.enable_x64(True):
        params = {n: jnp.asarray(p.detach().double().numpy()) for n, p in learner.parameters().items()}
        pick = lambda prefix: {  # noqa: E731
            n.removeprefix(prefix + "."): p for n, p in params.items() if n.startswith(prefix + ".")
        }
        actor, critic = pick("actor"), {"phi": pick("phi"), "psi": pick("psi")}
        batch, noise = make_batch()
        s, a, g, eps = (
            jnp.asarray(t.double().numpy()) for t in (batch.state, batch.action, batch.goal, noise)
        )
        critic_value, critic_grad = jax.value_and_grad(jax_critic_loss)(critic, s, a, g)
        (actor_value, log_prob), actor_grad = jax.value_and_grad(jax_actor_loss, has_aux=True)(
            actor, critic, params["log_alpha"], s, g, eps
        )
        alpha_value, alpha_grad = jax.value_and_grad(jax_alpha_loss)(params["log_alpha"], log_prob)
        grads = {"log_alpha": alpha_grad, **{f"actor.{n}": v for n, v in actor_grad.items()}}
        for which in ("phi", "psi"):
            grads.update({f"{which}.{n}": v for n, v in critic_grad[which].items()})
        wanted = {n: jax_adam_first_step(params[n], grads[n]) for n in params}

    metrics = learner.update(batch, noise)

    for name, value in (
        ("critic_loss", critic_value),
        ("actor_loss", actor_value),
        ("alpha_loss", alpha_value),
    ):
        assert metrics[name].item() == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    for name, p in learner.parameters().items():
        truth = torch.tensor(jax.device_get(grads[name]).tolist(), dtype=torch.double).reshape(p.shape)
        assert p.grad is not None, name
        assert (p.grad.double() - truth).abs().max() <= 1e-5 * max(1.0, float(truth.abs().max())), name
        after = torch.tensor(jax.device_get(wanted[name]).tolist(), dtype=torch.double).reshape(p.shape)
        # Adam's first step is lr * sign(g): where a gradient is lost in rounding its sign says nothing.
        clear = truth.abs() > 1e-6
        assert clear.any(), name
        assert (p.detach().double() - after)[clear].abs().max() <= 1e-5, name


def test_the_loss_falls_when_pairs_can_be_told_apart():
    learner = make_learner(small_config(critic_lr=1e-3))
    batch, noise = make_batch()
    first = learner.update(batch, noise)["critic_loss"].item()
    for _ in range(60):
        last = learner.update(batch, noise)["critic_loss"].item()
    assert last < 0.5 * first


def test_update_is_the_same_bits_twice():
    batch, noise = make_batch()
    runs = []
    for _ in range(2):
        learner = make_learner(small_config())
        for _ in range(3):
            learner.update(batch, noise)
        runs.append(learner.state_tensors())
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_saved_state_restores_every_number():
    batch, noise = make_batch()
    one, other = make_learner(small_config(), seed=0), make_learner(small_config(), seed=5)
    one.update(batch, noise)
    other.load_state_tensors({k: v.clone() for k, v in one.state_tensors().items()})
    one.update(batch, noise)
    other.update(batch, noise)
    assert all(torch.equal(v, other.state_tensors()[k]) for k, v in one.state_tensors().items())


def test_another_network_shape_is_refused_and_changes_nothing():
    saved = make_learner(small_config()).state_tensors()
    deeper = make_learner(small_config(critic_depth=12))
    before = {k: v.clone() for k, v in deeper.state_tensors().items()}
    with pytest.raises(
        ValueError, match=r"phi.trunk.stack.weight must have shape \[12, 32, 32\], got \[8, 32, 32\]"
    ):
        deeper.load_state_tensors(saved)
    assert all(torch.equal(v, before[k]) for k, v in deeper.state_tensors().items())


@pytest.mark.parametrize("options", [{"norm": False}, {"skip_every": 0}, {"activation": "relu"}])
@pytest.mark.parametrize("energy", ["norm", "l2", "dot", "cosine"])
def test_every_variant_trains_a_step(options, energy):
    learner = make_learner(small_config(energy=energy, form="symmetric", **options))
    metrics = learner.update(*make_batch())
    assert set(metrics) == set(METRICS)
    assert all(torch.isfinite(v) for v in metrics.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.parameters().values())


def test_actor_loss_leaves_the_critic_alone():
    learner = make_learner(small_config())
    batch, noise = make_batch()
    phi = call_frozen(learner.phi, torch.cat([batch.state, noise.requires_grad_()], dim=1))
    phi.sum().backward()
    assert noise.grad is not None and noise.grad.abs().sum() > 0
    assert all(p.grad is None for p in learner.phi.parameters())


def test_policy_density_integrates_to_one():
    grid = torch.linspace(-6, 6, 20001, dtype=torch.double)[:, None]
    mean, log_std = torch.full_like(grid, 0.3), torch.full_like(grid, -0.4)
    action, log_prob = squashed_gaussian(mean, log_std, grid)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-4)


def test_pair_energy_is_finite_where_a_pair_meets():
    phi = torch.zeros(3, 4, requires_grad=True)
    pair_energy(phi, torch.zeros(3, 4), "norm").sum().backward()
    assert torch.equal(phi.grad, torch.zeros(3, 4))


def test_networks_start_as_published():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(10, 64, width=64, depth=8, generator=generator)
    stack = encoder.trunk.stack
    assert len(list(stack.parameters())) == 4
    for weight, fan_in in ((stack.weight, 64), (encoder.trunk.stem.weight, 10), (encoder.head.weight, 64)):
        bound = fan_in**-0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not stack.bias.any() and not stack.beta.any() and (stack.gamma == 1).all()
    actor = Actor(10, 3, width=64, depth=8, generator=generator)
    mean, log_std = actor(100 * torch.randn(50, 10, generator=generator))
    assert mean.shape == log_std.shape == (50, 3)
    assert log_std.min() >= -5 and log_std.max() <= 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"critic_depth": 6}, "critic_depth must be a multiple of skip_every=4, got 6; use 4"),
        ({"actor_lr": float("nan")}, "actor_lr must be a finite number >= 0, got nan"),
        ({"critic_lr": -1.0}, "critic_lr must be a finite number >= 0, got -1.0"),
        ({"gamma": 1.0}, "gamma must lie strictly between 0 and 1, got 1.0"),
        ({"gamma": float("nan")}, "gamma must lie strictly between 0 and 1, got nan"),
        ({"batch_size": 1}, "batch_size must be a whole number >= 2, got 1"),
        ({"num_envs": 2.5}, "num_envs must be a whole number >= 1, got 2.5"),
        ({"energy": "manhattan"}, "energy must be one of norm, l2, dot, cosine, got 'manhattan'"),
        ({"precision": "int8"}, "precision must be one of fp32, tf32, bf16, fp16, got 'int8'"),
        ({"min_buffer_steps": 20_000}, "min_buffer_steps must not exceed buffer_steps=10000, got 20000"),
        ({"checkpoint": "0"}, "checkpoint must be none, auto or a number of blocks >= 1, got '0'"),
        ({"logsumexp_penalty": float("inf")}, "logsumexp_penalty must be a finite number >= 0, got inf"),
    ],
)
def test_config_refuses_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError) as error:
        Config(**changes)
    assert str(error.value) == sentence
