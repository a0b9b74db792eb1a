"""The published algorithm as one writes it in JAX: a network is a list of layers, a gradient step is one jitted call.

Same networks, losses and Adam as deepres's learner (arXiv 2503.14858, sections 2 and 3, and its training script): the
actor's loss, the temperature's and the critic's each with its own gradient, psi(g) in both losses that need it.
Up to UNROLLED layers they follow each other in Python, as a Flax module builds them; beyond, where XLA would compile
for many minutes, a scan takes the blocks one by one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from bench.worker import Unavailable
from deepres.learner import Batch, Learner

UNROLLED = 64
EPS = 1e-6
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class JaxLearner:
    """`update` and `act` as deepres's `Learner` has them, from the weights of `given`."""

    def __init__(self, given: Learner):
        try:
            from deepres.envs import xla

            xla.prepare()
            xla.keep_compiled()
            import jax
        except ImportError as error:
            raise Unavailable(f"{error}; pip install 'deepres[envs]'") from None
        from deepres.bridge import to_jax, to_torch

        config = given.config
        self.device, self.to_jax, self.to_torch = given.device, to_jax, to_torch
        lrs = {
            "actor": config.actor_lr,
            "log_alpha": config.alpha_lr,
            "phi": config.critic_lr,
            "psi": config.critic_lr,
        }
        self.parameters = {
            "actor": _network(given.actor, ("mean", "log_std")),
            "phi": _network(given.phi, ("head",)),
            "psi": _network(given.psi, ("head",)),
            "log_alpha": to_jax(given.log_alpha, copy=True),
        }
        zeros = partial(jax.tree.map, lambda p: p * 0)
        self.moments = (zeros(self.parameters), zeros(self.parameters))
        self.steps = jax.numpy.zeros((), jax.numpy.int32)
        # the place said outright: arrays from torch, which are tied to their device, would cost another compile
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        step = partial(_update, lrs, config.logsumexp_penalty, given.target_entropy)
        self._update = jax.jit(step, in_shardings=place, out_shardings=place, donate_argnums=(0, 1, 2))
        self._act = jax.jit(_act, in_shardings=place, out_shardings=place)

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Any]:
        arrays = [self.to_jax(t) for t in (batch.state, batch.action, batch.goal, noise)]
        state = (self.parameters, self.moments, self.steps)
        self.parameters, self.moments, self.steps, metrics = self._update(*state, *arrays)
        return metrics

    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        handed = None if noise is None else self.to_jax(noise)
        return self.to_torch(self._act(self.parameters["actor"], self.to_jax(obs), handed))


def _network(module: Any, heads: tuple[str, ...]) -> dict[str, Any]:
    """{"stem": layer, "layers": list of layers or stacked blocks, "heads": [(kernel, bias), ...]} of JAX arrays."""
    import jax
    import jax.numpy as jnp

    def array(t: Tensor) -> Any:
        return jnp.asarray(t.detach().cpu().numpy().copy())

    trunk = module.trunk
    stem = (trunk.stem.weight.T, trunk.stem.bias, trunk.norm.weight, trunk.norm.bias)
    stack = [trunk.stack.weight, trunk.stack.bias, trunk.stack.gamma, trunk.stack.beta]
    depth = stack[0].shape[0]
    layers = [tuple(array(t[l]) for t in stack) for l in range(depth)]
    if depth > UNROLLED:
        blocks = [layers[i : i + 4] for i in range(0, depth, 4)]
        layers = jax.tree.map(lambda *parts: jnp.stack(parts), *blocks)
    linear = [getattr(module, head) for head in heads]
    return {
        "stem": tuple(array(t) for t in stem),
        "layers": layers,
        "heads": [(array(one.weight.T), array(one.bias)) for one in linear],
    }


def _layer(a: Any, parameters: Any) -> Any:
    import jax
    import jax.numpy as jnp

    kernel, bias, scale, shift = parameters
    u = a @ kernel + bias
    centred = u - u.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
    return jax.nn.silu(normal * scale + shift)


def _apply(network: dict[str, Any], *inputs: Any) -> list[Any]:
    """The heads' outputs for the inputs side by side."""
    import jax
    import jax.numpy as jnp

    def block(a: Any, layers: Any) -> Any:
        inside = a
        for parameters in layers:
            inside = _layer(inside, parameters)
        return a + inside

    layers = network["layers"]
    a = _layer(jnp.concatenate(inputs, -1), network["stem"])
    if isinstance(layers[0][0], tuple) or layers[0][0].ndim == 3:  # stacked blocks
        a, _ = jax.lax.scan(lambda a, block_layers: (block(a, block_layers), None), a, layers)
    else:
        for first in range(0, len(layers), 4):
            a = block(a, layers[first : first + 4])
    return [a @ kernel + bias for kernel, bias in network["heads"]]


def _policy(actor: dict[str, Any], *obs: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    mean, raw = _apply(actor, *obs)
    return mean, -5 + 3.5 * (jnp.tanh(raw) + 1)


def _act(actor: dict[str, Any], obs: Any, noise: Any) -> Any:
    import jax.numpy as jnp

    mean, log_std = _policy(actor, obs)
    return jnp.tanh(mean if noise is None else mean + jnp.exp(log_std) * noise)


def _update(
    lrs: dict[str, float], penalty: float, target_entropy: float,
    parameters: Any, moments: Any, steps: Any, state: Any, action: Any, goal: Any, noise: Any,
) -> tuple[Any, Any, Any, dict[str, Any]]:  # fmt: skip
    """One gradient step of all; both losses read the critic as it was before."""
    import jax
    import jax.numpy as jnp

    def critic_loss(critic: dict[str, Any]) -> Any:
        (phi,) = _apply(critic["phi"], state, action)
        (psi,) = _apply(critic["psi"], goal)
        logits = -jnp.sqrt(jnp.sum(jnp.square(phi[:, None, :] - psi[None, :, :]), -1))
        lse = jax.nn.logsumexp(logits, axis=1)
        return jnp.mean(lse - jnp.diag(logits)) + penalty * jnp.mean(jnp.square(lse + EPS))

    def actor_loss(actor: Any) -> tuple[Any, Any]:
        mean, log_std = _policy(actor, state, goal)
        x = mean + jnp.exp(log_std) * noise
        log_normal = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)
        slope = 4 * jax.nn.sigmoid(2 * x) * jax.nn.sigmoid(-2 * x)  # 1 - tanh(x)^2 without its cancellation
        log_prob = jnp.sum(log_normal - jnp.log(slope + EPS), -1)
        (phi,) = _apply(parameters["phi"], state, jnp.tanh(x))
        (psi,) = _apply(parameters["psi"], goal)
        distance = jnp.sqrt(jnp.sum(jnp.square(phi - psi), -1))
        return jnp.mean(jnp.exp(parameters["log_alpha"]) * log_prob + distance), log_prob

    def alpha_loss(log_alpha: Any, log_prob: Any) -> Any:
        return jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(-log_prob - target_entropy))

    (actor_value, log_prob), actor_gradient = jax.value_and_grad(actor_loss, has_aux=True)(
        parameters["actor"]
    )
    alpha_value, alpha_gradient = jax.value_and_grad(alpha_loss)(parameters["log_alpha"], log_prob)
    critic = {name: parameters[name] for name in ("phi", "psi")}
    critic_value, critic_gradient = jax.value_and_grad(critic_loss)(critic)
    gradients = {"actor": actor_gradient, "log_alpha": alpha_gradient, **critic_gradient}
    steps = steps + 1
    first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], gradients)
    debias = 1 - BETA1**steps, 1 - BETA2**steps

    def adam(name: str) -> Any:
        def one(p: Any, m: Any, v: Any) -> Any:
            return p - lrs[name] * (m / debias[0]) / (jnp.sqrt(v / debias[1]) + ADAM_EPS)

        return jax.tree.map(one, parameters[name], first[name], second[name])

    metrics = {"critic_loss": critic_value, "actor_loss": actor_value, "alpha_loss": alpha_value}
    return {name: adam(name) for name in parameters}, (first, second), steps, metrics


def wait(metrics: dict[str, Any]) -> None:
    """Returns when a step's metrics, and with them the step, are computed."""
    import jax

    jax.block_until_ready(metrics)
