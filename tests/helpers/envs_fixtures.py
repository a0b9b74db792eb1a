"""Environments and a random rollout of each, for the tests that look at them; all on the C engine."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from deepres import envs
from deepres.envs import xla
from deepres.envs.engines.c import BatchPhysics
from deepres.envs.engines.mjx import MjxPhysics

xla.prepare()  # before JAX's first computation

# What a test computes a few times takes longer to compile than to compute: so compilers are told to optimise nothing.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
if importlib.util.find_spec("warp"):
    importlib.import_module("warp").config.optimization_level = 0

NUM_ENVS = 8
LENGTH = 1000


@cache
def environment(name: str) -> envs.vector.VectorEnv:
    return envs.make(name, num_envs=NUM_ENVS, seed=3, episode_length=LENGTH, engine="c")


def stepper(
    model: Any, dt: float, count: int, engine: str, jit: Callable[..., Any] = quick
) -> Callable[..., Any]:
    """`engine`'s step of `count` environments of `model`: (PhysicsState, ctrl, mocap_pos or None) -> PhysicsState."""
    if engine == "c":
        return BatchPhysics(model, dt, count).step
    return jit(jax.vmap(MjxPhysics(model, dt, engine, count).step))


def hurried(env: envs.vector.VectorEnv) -> envs.vector.VectorEnv:
    """`env` of MJX, whose functions are compiled without optimising: half the seconds, the same to rounding."""
    single = env.functional
    env._reset = quick(lambda key: jax.vmap(single.reset)(jax.random.split(key, env.num_envs)))
    env._step = quick(jax.vmap(single.step))
    return env


@dataclass(frozen=True)
class Rollout:
    """states: EnvState of numpy leaves [T + 1, N, ...]; actions: [T, N, action_dim]."""

    states: Any
    actions: np.ndarray


def rollout(env: Any, actions: np.ndarray) -> Rollout:
    """`env` from its reset on under `actions` [T, N, action_dim]."""
    states = [env.reset()]
    for action in actions:
        states.append(env.step(states[-1], action))
    return Rollout(jax.tree.map(lambda *leaves: np.stack(leaves), *states), actions)


@cache
def random_rollout(name: str) -> Rollout:
    """One whole episode and 20 steps of the next under uniformly random actions."""
    env = environment(name)
    shape = (env.episode_length + 20, env.num_envs, env.action_dim)
    return rollout(env, np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32))
