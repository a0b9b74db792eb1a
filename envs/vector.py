"""Many environments of one task, stepped together: one jitted call a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deepres.envs.base import EnvState, GoalEnv


class VectorEnv:
    """`num_envs` environments side by side; what deepres.envs.make returns.

        state = env.reset()
        state = env.step(state, action)      # action [num_envs, action_dim]

    A state is never changed in place and its buffers are never given back to XLA while it is held, so an old
    state stays valid, and so does a torch tensor that shares memory with one of its leaves. `env.functional`
    has the same environment as pure functions of a single state, for jit, vmap and scan.
    """

    def __init__(self, functional: GoalEnv, num_envs: int, seed: int = 0) -> None:
        for name, value, least in (("num_envs", num_envs, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
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
        self.episode_length = functional.episode_length
        self.auto_reset = functional.auto_reset
        self.dt = task.dt
        self._reset = jax.jit(lambda key: jax.vmap(functional.reset)(jax.random.split(key, num_envs)))
        self._step = jax.jit(jax.vmap(functional.step))

    def reset(self, key: jax.Array | None = None) -> EnvState:
        """First states of all environments, each from its own share of `key` (by default the seed's key)."""
        if key is None:
            key = jax.random.PRNGKey(self.seed)
        elif jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        if key.shape != (2,) or key.dtype != jnp.uint32:
            raise ValueError(
                f"key must be one JAX key, as jax.random.PRNGKey(seed) makes it, "
                f"got {key.dtype} {list(key.shape)}"
            )
        return self._reset(key)

    def step(self, state: EnvState, action: jax.Array) -> EnvState:
        """All environments one control period later; where an episode ended, at the start of its next.

        action: [num_envs, action_dim] float32 in [-1, 1], a JAX array (see deepres.bridge for torch's).
        """
        if action.shape != (self.num_envs, self.action_dim):
            raise ValueError(
                f"action must have shape [{self.num_envs}, {self.action_dim}] (num_envs, action_dim) "
                f"for {self.name}, got {list(action.shape)}"
            )
        return self._step(state, action)

    def __repr__(self) -> str:
        return f"VectorEnv({self.name!r}, num_envs={self.num_envs}, seed={self.seed})"
