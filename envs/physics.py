"""MJX under a task: one control period of a MuJoCo model as a pure function of a few small arrays.

What physics needs to go on is qpos, qvel and the solver's warm start; everything else in MuJoCo's data is
derived from them at each substep. So an environment carries those three arrays and nothing more, which keeps
its state small to save, quick to dispatch and free of shapes that depend on the engine.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints there that its optional Warp engine is absent
    from mujoco import mjx

if TYPE_CHECKING:
    import mujoco


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PhysicsState:
    """One environment's physics.

    qpos: [nq] float32, positions in MuJoCo's order. qvel: [nv] float32, velocities.
    warmstart: [nv] float32, the last substep's acceleration, from which the constraint solver starts.
    """

    qpos: jax.Array
    qvel: jax.Array
    warmstart: jax.Array


def at_rest(qpos: jax.Array, qvel: jax.Array) -> PhysicsState:
    """The physics of a robot put at `qpos` [nq] and moving with `qvel` [nv]."""
    return PhysicsState(
        qpos.astype(jnp.float32), qvel.astype(jnp.float32), jnp.zeros(qvel.shape, jnp.float32)
    )


class MjxPhysics:
    """Steps one environment of `model` by a control period of `dt` seconds with MJX; vmap it for a batch."""

    def __init__(self, model: mujoco.MjModel, dt: float) -> None:
        self._model = mjx.put_model(model, impl="jax")
        self._data = mjx.make_data(model, impl="jax")
        self._substeps = round(dt / model.opt.timestep)

    def step(self, state: PhysicsState, ctrl: jax.Array, mocap_pos: jax.Array | None) -> PhysicsState:
        """The state after one control period.

        ctrl: [nu] float32, held for the whole period. mocap_pos: [nmocap, 3], where the model's mocap bodies
        stand during it, or None if it has none.
        """
        data = self._data.replace(ctrl=ctrl)
        if mocap_pos is not None:
            data = data.replace(mocap_pos=mocap_pos)

        def substep(carry: PhysicsState, _: None) -> tuple[PhysicsState, None]:
            after = mjx.step(
                self._model,
                data.replace(qpos=carry.qpos, qvel=carry.qvel, qacc_warmstart=carry.warmstart),
            )
            return PhysicsState(after.qpos, after.qvel, after.qacc_warmstart), None

        with jax.default_matmul_precision("highest"):  # TF32 on a GPU would lose a constraint's last digits
            return jax.lax.scan(substep, state, None, length=self._substeps)[0]
