"""A step of many environments around MuJoCo's C engine: what XLA does before and after it, at little cost.

A step of 64 ants takes the C engine 0.7 ms, so what stands around it counts in microseconds. XLA works through a
program on the thread that calls it, and so through a branch or the body of a loop, while it has at most eleven
operations that could run side by side; of more, it hands some to threads of its own, and waking one takes longer than
all the operations do. So what a step needs is cut into branches here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepres.envs.engines import PhysicsState
from deepres.envs.engines.c import BatchPhysics
from deepres.envs.env import BEGINNING, EnvState, GoalEnv, began

FEW = 4  # environments that begin anew together, or a 32nd of all, if that is more


class CStep:
    """A step whose physics is the C engine's; the task's own code before and after it is jitted.

    Kept apart from XLA, for a callback from inside a jitted step can lock up XLA's thread pool on two cores.
    """

    def __init__(self, functional: GoalEnv, num_envs: int, jit: Callable[..., Any]) -> None:
        self._physics = BatchPhysics(functional.model, functional.task.dt, num_envs)
        self._drive = jit(jax.vmap(functional.drive))
        self._arrive = jit(partial(_arrive, functional))

    def __call__(self, state: EnvState, action: np.ndarray) -> EnvState:
        ctrl, mocap_pos = self._drive(state.physics, action)
        physics = self._physics.step(state.physics, ctrl, mocap_pos)
        return self._arrive(state, action, _marked(physics, np.asarray(ctrl)))


def _marked(physics: PhysicsState, ctrl: np.ndarray) -> PhysicsState:
    """`physics`, NaN where a control [N, nu] was not finite, as with MJX: the C engine takes 0 for it and goes on."""
    broken = ~np.isfinite(ctrl).all(axis=1)
    if broken.any():
        for field in (physics.qpos, physics.qvel, physics.warmstart, physics.sensors):
            field[broken] = np.nan
    return physics


def _arrive(functional: GoalEnv, state: EnvState, action: jax.Array, physics: PhysicsState) -> EnvState:
    """What a step reached, and where it ended an episode the first state of the next."""
    reached = jax.vmap(functional.arrive)(state, action, physics)
    own = {name: getattr(reached, name) for name in BEGINNING}
    renew = partial(_renew, functional, reached)
    return began(reached, jax.lax.cond(reached.done.any(), renew, lambda leaves: leaves, own))


def _renew(functional: GoalEnv, reached: EnvState, leaves: dict[str, Any]) -> dict[str, Any]:
    """`leaves` of all environments, with the first of the next episode where one ended: a few environments at a time,
    for most steps end only a few episodes, and random draws cost more than all the rest.
    """
    done, count = reached.done, len(reached.done)
    few = min(count, max(FEW, count // 32))
    rank = jnp.where(done, jnp.cumsum(done) - 1, -1)  # among those that ended
    # Their numbers, then the others'; filled up so that a slice of `few` is never moved to fit.
    ended = jnp.pad(jnp.argsort(~done), (0, few))

    def again(which: jax.Array) -> dict[str, Any]:
        keys, first = jax.tree.map(lambda leaf: leaf[which], (reached.key, reached.first))
        return jax.vmap(functional.again)(keys, first)

    def nothing(which: jax.Array) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(again, which))

    def renew_few(carry: tuple[jax.Array, dict[str, Any]]) -> tuple[jax.Array, dict[str, Any]]:
        begin, leaves = carry
        some = jax.lax.cond(  # always: a branch only to be one, see the top
            begin >= 0, again, nothing, jax.lax.dynamic_slice(ended, (begin,), (few,))
        )
        place = rank - begin

        def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
            here = jnp.expand_dims((place >= 0) & (place < few), range(1, leaf.ndim))
            return jnp.where(here, new.at[place].get(mode="clip"), leaf)

        return begin + few, jax.tree.map(put, leaves, some)

    more = rank.max()
    return jax.lax.while_loop(lambda carry: carry[0] <= more, renew_few, (jnp.int32(0), leaves))[1]
