"""Environments and one random rollout of each, made once for all the tests that look at them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from deepres import envs
from deepres.envs import xla

xla.prepare()  # before JAX's first computation

NUM_ENVS = 8
LENGTH = 1000


@cache
def environment(name: str) -> envs.vector.VectorEnv:
    return envs.make(name, num_envs=NUM_ENVS, seed=3, episode_length=LENGTH)


@dataclass(frozen=True)
class Rollout:
    """states: EnvState of numpy leaves [T + 1, N, ...]; actions: [T, N, action_dim]."""

    states: Any
    actions: np.ndarray


@cache
def random_rollout(name: str) -> Rollout:
    """One whole episode and 20 steps of the next under uniformly random actions."""
    env = environment(name)
    steps = env.episode_length + 20
    actions = np.random.default_rng(5).uniform(-1, 1, (steps, env.num_envs, env.action_dim))
    actions = actions.astype(np.float32)
    states = [env.reset()]
    for action in actions:
        states.append(env.step(states[-1], action))
    return Rollout(jax.tree.map(lambda *leaves: np.stack(leaves), *states), actions)
