"""MJX under a task: its JAX engine, and NVIDIA Warp's."""

from __future__ import annotations

import contextlib
import io

import jax
import mujoco

from deepres.envs.engines import PhysicsState, substeps

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints there that its optional Warp engine is absent
    from mujoco import mjx


class MjxPhysics:
    """Steps one environment of `model` by a control period of `dt` seconds with MJX; vmap it for a batch.

    engine: "jax" or "warp". num_envs: how many will be stepped together at most, for Warp's contact buffers.
    """

    def __init__(self, model: mujoco.MjModel, dt: float, engine: str = "jax", num_envs: int = 1) -> None:
        self._model = _warp_model(model) if engine == "warp" else mjx.put_model(model, impl=engine)
        sizes = candidate_sizes(model, num_envs) if engine == "warp" else {}
        self._data = mjx.make_data(model, impl=engine, **sizes)
        self._substeps = substeps(model, dt)

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
            return PhysicsState(after.qpos, after.qvel, after.qacc_warmstart, after.sensordata), None

        with jax.default_matmul_precision("highest"):  # TF32 on a GPU would lose a constraint's last digits
            return jax.lax.scan(substep, state, None, length=self._substeps)[0]


def _warp_model(model: mujoco.MjModel) -> mjx.Model:
    """`model` for Warp, which is not to print a line for every kernel it loads and every solver that stops on time."""
    import warp
    from mujoco.mjx.warp import mjwp_types

    if warp.config.log_level == warp.LOG_INFO:  # its default
        warp.config.log_level = warp.LOG_WARNING
    ours = mjx.put_model(model, impl="warp")
    expected = mjwp_types.OverflowType.ITERATIONS | mjwp_types.OverflowType.LS_ITERATIONS
    told = ours.opt._impl.warn_overflow & ~expected
    return ours.tree_replace({"opt._impl.warn_overflow": int(told)})


def candidate_contacts(model: mujoco.MjModel) -> int:
    """Contact points that MJX computes in every substep, touching or not: what a model costs it."""
    return int(mjx.make_data(model, impl="jax")._impl.contact.dist.shape[0])


def candidate_sizes(model: mujoco.MjModel, num_envs: int) -> dict[str, int]:
    """Buffers of MJX's Warp engine that no state of `num_envs` environments can overflow."""
    data = mjx.make_data(model, impl="jax")
    rows = int(data._impl.efc_J.shape[0])
    return {"naconmax": num_envs * max(1, candidate_contacts(model)), "njmax": max(1, rows)}
