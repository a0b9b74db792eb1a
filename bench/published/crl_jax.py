"""The published step of contrastive RL as one writes it in JAX: a network is a list of layers, a step one jitted call.

Same networks, losses and Adam as deepres's CRL (arXiv 2503.14858, sections 2 and 3, and its training script): the
actor's loss, the temperature's and the critic's each with its own gradient, psi(g) in both losses that need it.
Up to UNROLLED layers they follow each other in Python, as a Flax module builds them; beyond, where XLA would compile
for many minutes, a scan takes the blocks one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bench.harness.workers import Unavailable
from bench.published.crl import EPS, HEADS, PARAMETERS, SKIP_EVERY

if TYPE_CHECKING:
    from deepres.data.batch import Batch
    from deepres.training.learner import Learner

UNROLLED = 64
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class JaxLearner:
    """`update` and `act` as deepres's `Learner` has them, from the weights of `given` and in their dtype (float64
    asks for `jax.enable_x64` around all of it)."""

    horizon, clocked = 1, False  # actions that it plans at once; whether it sees the steps left

    def __init__(self, given: Learner):
        try:
            from deepres.envs import xla

            xla.prepare()
            xla.keep_compiled()
            import jax
        except ImportError as error:
            raise Unavailable(f"{error}; pip install 'deepres[envs]'") from None
        from deepres.data.bridge import to_jax, to_torch

        config, algorithm = given.config, given.algorithm
        self.device, self.to_jax, self.to_torch = given.device, to_jax, to_torch
        critic_lr = config.get("critic_lr")
        lrs = {
            "actor": config.get("actor_lr"),
            "log_alpha": config.get("alpha_lr"),
            "phi": critic_lr,
            "psi": critic_lr,
        }
        self.parameters = {
            **{name: _network(getattr(algorithm, name), heads) for name, heads in HEADS.items()},
            "log_alpha": to_jax(algorithm.log_alpha, copy=True),
        }
        zeros = partial(jax.tree.map, lambda p: p * 0)
        self.moments = (zeros(self.parameters), zeros(self.parameters))
        self.steps = jax.numpy.zeros((), jax.numpy.int32)
        # the place said outright: arrays from torch, which are tied to their device, would cost another compile
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target_entropy = config.get("target_entropy_per_action") * algorithm.actor.mean.out_features
        self._losses = partial(_gradients, config.get("logsumexp_penalty"), target_entropy)
        step = partial(_update, lrs, self._losses)
        self._update = jax.jit(step, in_shardings=place, out_shardings=place, donate_argnums=(0, 1, 2))
        self._act = jax.jit(_act, in_shardings=place, out_shardings=place)

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Any]:
        """One gradient step; the losses by name."""
        state = (self.parameters, self.moments, self.steps)
        self.parameters, self.moments, self.steps, losses = self._update(*state, *self._arrays(batch, noise))
        return losses

    def gradients(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """Of the losses before a step, by the names that deepres's networks give their parameters."""
        import jax

        gradients, _ = jax.jit(self._losses)(self.parameters, *self._arrays(batch, noise))
        return _named(gradients)

    def named_parameters(self) -> dict[str, Tensor]:
        return _named(self.parameters)

    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        handed = None if noise is None else self.to_jax(noise)
        return self.to_torch(self._act(self.parameters["actor"], self.to_jax(obs), handed))

    def _arrays(self, batch: Batch, noise: Tensor) -> list[Any]:
        return [self.to_jax(t) for t in (batch.state, batch.action, batch.goal, noise)]


def _network(module: Any, heads: tuple[str, ...]) -> dict[str, Any]:
    """{"stem": layer, "layers": list of layers or stacked blocks, "heads": {name: (kernel, bias)}} of JAX arrays."""
    import jax
    import jax.numpy as jnp

    def array(t: Tensor) -> Any:
        return jnp.asarray(t.detach().cpu().numpy().copy())

    trunk = module.trunk
    stem = (trunk.stem.weight.T, trunk.stem.bias, trunk.norm.weight, trunk.norm.bias)
    stack = [getattr(trunk.stack, name) for name in PARAMETERS]
    depth = stack[0].shape[0]
    layers = [tuple(array(t[l]) for t in stack) for l in range(depth)]
    if depth > UNROLLED:
        every = [layers[i : i + SKIP_EVERY] for i in range(0, depth, SKIP_EVERY)]
        layers = jax.tree.map(lambda *parts: jnp.stack(parts), *every)
    linear = {head: getattr(module, head) for head in heads}
    return {
        "stem": tuple(array(t) for t in stem),
        "layers": layers,
        "heads": {name: (array(one.weight.T), array(one.bias)) for name, one in linear.items()},
    }


def _named(tree: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays of `tree`, shaped like JaxLearner.parameters, by deepres's names and in its shapes."""
    import numpy as np
    import torch

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(np.array(array))

    found = {"log_alpha": tensor(tree["log_alpha"])}
    for name in HEADS:
        network = tree[name]
        kernel, bias, scale, shift = network["stem"]
        stem = {"stem.weight": kernel.T, "stem.bias": bias, "norm.weight": scale, "norm.bias": shift}
        found |= {f"{name}.trunk.{n}": tensor(a) for n, a in stem.items()}
        layers = network["layers"]
        for i, parameter in enumerate(PARAMETERS):
            own = np.stack([np.array(layer[i]) for layer in layers])
            if _scanned(layers):  # a layer's place in its block comes first
                own = own.swapaxes(0, 1).reshape(-1, *own.shape[2:])
            found[f"{name}.trunk.stack.{parameter}"] = tensor(own)
        for head, (kernel, bias) in network["heads"].items():
            found |= {f"{name}.{head}.weight": tensor(kernel.T), f"{name}.{head}.bias": tensor(bias)}
    return found


def layer(a: Any, parameters: Any, kind: Any = None) -> Any:
    """Dense, LayerNorm, Swish. kind: dtype of the product's operands, summed in float32; None leaves them."""
    import jax
    import jax.numpy as jnp

    kernel, bias, scale, shift = parameters
    if kind is None:
        u = a @ kernel + bias
    else:
        u = jnp.dot(a.astype(kind), kernel.astype(kind), preferred_element_type=jnp.float32) + bias
    centred = u - u.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
    return jax.nn.silu(normal * scale + shift)


def blocks(a: Any, layers: Any, layer: Callable[[Any, Any], Any] = layer) -> Any:
    """All layers, a skip around every SKIP_EVERY."""
    for first in range(0, len(layers), SKIP_EVERY):
        inside = a
        for parameters in layers[first : first + SKIP_EVERY]:
            inside = layer(inside, parameters)
        a = a + inside
    return a


def _scanned(layers: Any) -> bool:
    """Whether blocks are stacked: then a block's kernels of one place are one array, [blocks, W, W]."""
    return layers[0][0].ndim == 3


def _apply(network: dict[str, Any], *inputs: Any) -> dict[str, Any]:
    """The heads' outputs by name, for the inputs side by side."""
    import jax
    import jax.numpy as jnp

    layers = network["layers"]
    a = layer(jnp.concatenate(inputs, -1), network["stem"])
    if _scanned(layers):
        a, _ = jax.lax.scan(lambda a, block: (blocks(a, block), None), a, layers)
    else:
        a = blocks(a, layers)
    return {name: a @ kernel + bias for name, (kernel, bias) in network["heads"].items()}


def _policy(actor: dict[str, Any], *obs: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    heads = _apply(actor, *obs)
    return heads["mean"], -5 + 3.5 * (jnp.tanh(heads["log_std"]) + 1)


def _act(actor: dict[str, Any], obs: Any, noise: Any) -> Any:
    import jax.numpy as jnp

    mean, log_std = _policy(actor, obs)
    return jnp.tanh(mean if noise is None else mean + jnp.exp(log_std) * noise)


def _gradients(
    penalty: float, target_entropy: float, parameters: Any, state: Any, action: Any, goal: Any, noise: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gradients of all three losses, shaped like the parameters, and the losses by name."""
    import jax
    import jax.numpy as jnp

    def critic_loss(critic: dict[str, Any]) -> Any:
        phi = _apply(critic["phi"], state, action)["head"]
        psi = _apply(critic["psi"], goal)["head"]
        logits = -jnp.sqrt(jnp.sum(jnp.square(phi[:, None, :] - psi[None, :, :]), -1))
        lse = jax.nn.logsumexp(logits, axis=1)
        return jnp.mean(lse - jnp.diag(logits)) + penalty * jnp.mean(jnp.square(lse + EPS))

    def actor_loss(actor: Any) -> tuple[Any, Any]:
        mean, log_std = _policy(actor, state, goal)
        x = mean + jnp.exp(log_std) * noise
        log_normal = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)
        slope = 4 * jax.nn.sigmoid(2 * x) * jax.nn.sigmoid(-2 * x)  # 1 - tanh(x)^2 without its cancellation
        log_prob = jnp.sum(log_normal - jnp.log(slope + EPS), -1)
        phi = _apply(parameters["phi"], state, jnp.tanh(x))["head"]
        psi = _apply(parameters["psi"], goal)["head"]
        distance = jnp.sqrt(jnp.sum(jnp.square(phi - psi), -1))
        return jnp.mean(jnp.exp(parameters["log_alpha"]) * log_prob + distance), log_prob

    def alpha_loss(log_alpha: Any, log_prob: Any) -> Any:
        return jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(-log_prob - target_entropy))

    with_log_prob = jax.value_and_grad(actor_loss, has_aux=True)
    (actor_value, log_prob), actor_gradient = with_log_prob(parameters["actor"])
    alpha_value, alpha_gradient = jax.value_and_grad(alpha_loss)(parameters["log_alpha"], log_prob)
    critic = {name: parameters[name] for name in ("phi", "psi")}
    critic_value, critic_gradient = jax.value_and_grad(critic_loss)(critic)
    gradients = {"actor": actor_gradient, "log_alpha": alpha_gradient, **critic_gradient}
    losses = {"critic_loss": critic_value, "actor_loss": actor_value, "alpha_loss": alpha_value}
    return gradients, losses


def _update(
    lrs: dict[str, float], losses: Callable[..., Any], parameters: Any, moments: Any, steps: Any, *inputs: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """One gradient step of all; the losses read the networks as they were before."""
    import jax
    import jax.numpy as jnp

    gradients, values = losses(parameters, *inputs)
    steps = steps + 1
    first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], gradients)
    debias = 1 - BETA1**steps, 1 - BETA2**steps

    def adam(name: str) -> Any:
        def one(p: Any, m: Any, v: Any) -> Any:
            return p - lrs[name] * (m / debias[0]) / (jnp.sqrt(v / debias[1]) + ADAM_EPS)

        return jax.tree.map(one, parameters[name], first[name], second[name])

    return {name: adam(name) for name in parameters}, (first, second), steps, values


def wait(losses: dict[str, Any]) -> None:
    """Returns when a step's losses, and with them the step, are computed."""
    import jax

    jax.block_until_ready(losses)
