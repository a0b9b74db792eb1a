"""Many environments of one task, stepped together: by one jitted call, or around a call of the C engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepres.envs import xla
from deepres.envs.draws import seeded
from deepres.envs.engines.c_step import CStep
from deepres.envs.env import EnvState, GoalEnv
from deepres.envs.registry import LARGEST_SEED, check_whole


class VectorEnv:
    """`num_envs` environments side by side; what deepres.envs.make returns.

        state = env.reset()
        state = env.step(state, action)      # action [num_envs, action_dim]

    A state is never changed in place and its buffers are never given back to XLA while it is held, so an old
    state stays valid, and so does a torch tensor that shares memory with one of its leaves. `env.functional`
    has the same environment as pure functions of a single state, for jit, vmap and scan.
    """

    def __init__(self, functional: GoalEnv, num_envs: int, seed: int = 0, engine: str = "jax") -> None:
        task = functional.task
        self.functional = functional
        self.task = task
        self.name = task.name
        self.num_envs = num_envs
        self.seed = seed
        self.state_dim = task.state_dim
        self.goal_dim = task.goal_dim
        self.obs_dim = task.state_dim + task.goal_dim
        self.action_dim = functional.action_dim
        self.goal_slice = task.goal_slice
        self.threshold = task.threshold
        self.threshold_easy = task.threshold_easy
        self.threshold_hard = task.threshold_hard
        self.engine = engine
        self.episode_length = functional.episode_length
        self.auto_reset = functional.auto_reset
        self.dt = task.dt
        # Said outright: else arrays from torch, which are tied to their device, cost another compile.
        place = jax.sharding.SingleDeviceSharding(_home(engine))
        # What is left to XLA beside the C engine is so little that optimizing it gains nothing.
        options = {"xla_backend_optimization_level": 0} if engine == "c" else None
        jit = partial(jax.jit, in_shardings=place, out_shardings=place, compiler_options=options)
        self._reset = jit(lambda key: jax.vmap(functional.reset)(jax.random.split(key, num_envs)))
        self._step: Callable[[EnvState, Any], EnvState] = (
            CStep(functional, num_envs, jit) if engine == "c" else jit(jax.vmap(functional.step))
        )

    def reset(self, key: jax.Array | None = None, *, seed: int | None = None) -> EnvState:
        """First states of all environments, each from its own share of `key`: a JAX key, or that of `seed`, by default
        the seed that they were made with."""
        if key is None:
            if seed is not None:
                check_whole("seed", seed, 0, LARGEST_SEED)
            with xla.settled():
                key = seeded(self.seed if seed is None else seed)
        elif seed is not None:
            raise ValueError("reset takes a key or a seed, got both; leave one of them out")
        elif not hasattr(key, "dtype"):
            raise ValueError(
                f"key must be one JAX key, as jax.random.PRNGKey(seed) makes it, got {key!r}; pass seed={key!r}"
            )
        elif jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        if key.shape != (2,) or key.dtype != jnp.uint32:
            raise ValueError(
                f"key must be one JAX key, as jax.random.PRNGKey(seed) makes it, "
                f"got {key.dtype} {list(key.shape)}"
            )
        with xla.settled():
            return self._reset(key)

    def step(self, state: EnvState, action: jax.Array | np.ndarray) -> EnvState:
        """All environments one control period later; where an episode ended, at the start of its next.

        action: [num_envs, action_dim] float32 in [-1, 1], of JAX or numpy (see deepres.bridge for torch's).
        """
        if np.shape(action) != (self.num_envs, self.action_dim):
            raise ValueError(
                f"action must have shape [{self.num_envs}, {self.action_dim}] (num_envs, action_dim) "
                f"for {self.name}, got {list(np.shape(action))}"
            )
        with xla.settled():
            if self.engine == "c":
                action = np.asarray(action, np.float32)
            elif not isinstance(action, jax.Array) or action.weak_type or action.dtype != jnp.float32:
                action = jnp.asarray(action, jnp.float32)  # another type would be compiled for anew
            return self._step(state, action)

    def __repr__(self) -> str:
        return f"VectorEnv({self.name!r}, num_envs={self.num_envs}, seed={self.seed})"


def _home(engine: str) -> jax.Device:
    """Where the environments' arrays are: with the C engine on a CPU, else on JAX's first device."""
    if engine != "c":
        return jax.local_devices()[0]
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            f"engine='c' needs JAX's CPU platform, which is not there ({error}); let JAX_PLATFORMS have cpu as "
            "well, as in JAX_PLATFORMS=cuda,cpu, or pass engine='jax'"
        ) from None
