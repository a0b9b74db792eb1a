"""MuJoCo under a task: one control period of a model as a function of a few small arrays.

What physics needs to go on is qpos, qvel and the solver's warm start; everything else in MuJoCo's data is
derived from them at each substep. So an environment carries those three arrays, and what its model's sensors
read, and nothing more: its state is small to save, quick to dispatch and the same for every engine.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib.util
import io
import logging
import os
import threading
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints there that its optional Warp engine is absent
    from mujoco import mjx

ENGINES = ("c", "jax", "warp")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PhysicsState:
    """One environment's physics.

    qpos: [nq] float32, positions in MuJoCo's order. qvel: [nv] float32, velocities.
    warmstart: [nv] float32, the last substep's acceleration, from which the constraint solver starts.
    sensors: [nsensordata] float32, what the model's <sensor> elements read, in the model's order. A step of
    MuJoCo leaves them one substep behind qpos; a model without sensors has [0].
    """

    qpos: jax.Array
    qvel: jax.Array
    warmstart: jax.Array
    sensors: jax.Array


def at_rest(qpos: jax.Array, qvel: jax.Array, sensors: jax.Array | np.ndarray | None = None) -> PhysicsState:
    """The physics of a robot put at `qpos` [nq] and moving with `qvel` [nv]: no warm start yet.

    sensors: [nsensordata] what the model's sensors read there (see `resting_sensors`); None for a model without.
    """
    return PhysicsState(
        qpos.astype(jnp.float32),
        qvel.astype(jnp.float32),
        jnp.zeros(qvel.shape, jnp.float32),
        jnp.zeros(0, jnp.float32) if sensors is None else jnp.asarray(sensors, jnp.float32),
    )


def resting_sensors(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """[nsensordata] float32: what the sensors of `model` read at `qpos` [nq], at rest and with no control."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    return data.sensordata.astype(np.float32)


def pick_engine(impl: str) -> str:
    """The engine that `impl` names, one of ENGINES; "auto" is the fastest that this machine has.

    Raises: ValueError for another name; ImportError with what to install where an engine is absent.
    """
    if impl not in ("auto", *ENGINES):
        raise ValueError(f"impl must be one of auto, {', '.join(ENGINES)}, got {impl!r}")
    warp, batch = importlib.util.find_spec("warp"), importlib.util.find_spec("mujoco.batch")
    if impl == "auto":
        if jax.default_backend() == "gpu":
            return "warp" if warp else "jax"
        return "c" if batch else "jax"
    if impl == "warp" and not warp:
        raise ImportError("impl='warp' needs NVIDIA Warp; pip install 'deepres[warp]', or pass impl='jax'")
    if impl == "c" and not batch:
        raise ImportError("impl='c' needs mujoco 4; pip install 'mujoco>=4,<5', or pass impl='jax'")
    return impl


class MjxPhysics:
    """Steps one environment of `model` by a control period of `dt` seconds with MJX; vmap it for a batch.

    impl: "jax" or "warp". num_envs: how many will be stepped together at most, for Warp's contact buffers.
    """

    def __init__(self, model: mujoco.MjModel, dt: float, impl: str = "jax", num_envs: int = 1) -> None:
        self._model = _warp_model(model) if impl == "warp" else mjx.put_model(model, impl=impl)
        sizes = candidate_sizes(model, num_envs) if impl == "warp" else {}
        self._data = mjx.make_data(model, impl=impl, **sizes)
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


class BatchPhysics:
    """Steps `num_envs` environments of `model` together by `dt` seconds with MuJoCo's C engine, on threads.

    It computes in float64 and starts every period from float32, so that what a state holds is all that
    decides how it goes on; the number of threads changes no bit. Two threads of Python may share one: they take
    turns.
    """

    def __init__(self, model: mujoco.MjModel, dt: float, num_envs: int) -> None:
        from mujoco.batch import Batch

        if mujoco.get_mju_user_warning() is None:  # else MuJoCo writes a file into the working folder
            mujoco.set_mju_user_warning(logging.getLogger("deepres.envs").debug)
        model = copy.copy(model)
        # As MJX has it: all constraints are solved as one, and a NaN is not put back to the model's first pose.
        flags = mujoco.mjtDisableBit.mjDSBL_ISLAND.value | mujoco.mjtDisableBit.mjDSBL_AUTORESET.value
        model.opt.disableflags |= flags
        if _all_pairs_listed(model):  # then the search for bodies near each other can only cost time
            model.body_contype[:], model.body_conaffinity[:] = 0, 0
        self._batch = Batch(model, num_envs, min(threads(), num_envs))
        self._substeps = substeps(model, dt)
        self._turn = threading.Lock()
        self._ctrl = self._batch.bind("ctrl")
        self._mocap_pos = self._batch.bind("mocap_pos")
        fields = ("qpos", "qvel", "qacc_warmstart", "sensordata")
        self._before = [self._batch.bind(name) for name in fields[:3]]
        self._after = [self._batch.bind(name) for name in fields]

    def step(
        self, state: PhysicsState, ctrl: np.ndarray | jax.Array, mocap_pos: np.ndarray | jax.Array | None
    ) -> PhysicsState:
        """The state after one control period, of numpy arrays; like MjxPhysics.step, with a leading axis [N]."""
        with self._turn, _CLOCK:
            for field, value in zip(self._before, (state.qpos, state.qvel, state.warmstart), strict=True):
                field[:] = value
            self._ctrl[:] = ctrl
            if mocap_pos is not None:
                self._mocap_pos[:] = mocap_pos
            self._batch.step(nstep=self._substeps)
            return PhysicsState(*(field.astype(np.float32) for field in self._after))


class _Clock:
    """MuJoCo's clock, stopped while anybody is within.

    Every stage of a substep reads it, for the statistics in MjData.timer, which nobody looks at here.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(mujoco._functions.__file__)
            self._reader = ctypes.c_void_p.in_dll(library, "mjcb_time")
        except (AttributeError, OSError, ValueError):  # not to be seen from here: it goes on
            self._reader = ctypes.c_void_p()
        self._kept: int | None = None
        self._within = 0
        self._turn = threading.Lock()

    def __enter__(self) -> None:
        with self._turn:
            if self._within == 0:
                self._kept, self._reader.value = self._reader.value, None
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._within -= 1
            if self._within == 0:
                self._reader.value = self._kept


_CLOCK = _Clock()


def _all_pairs_listed(model: mujoco.MjModel) -> bool:
    """Whether every two geoms of `model` whose masks let them meet are among its listed pairs."""
    meet = (model.geom_contype[:, None] & model.geom_conaffinity[None]) != 0
    met = {frozenset(pair) for pair in np.argwhere(meet).tolist()}
    return met <= {
        frozenset(pair) for pair in np.stack([model.pair_geom1, model.pair_geom2], axis=1).tolist()
    }


def threads() -> int:
    """Threads that the C engine steps on: DEEPRES_ENV_THREADS, by default every core of this process."""
    choice = os.environ.get("DEEPRES_ENV_THREADS", "")
    if not choice:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not choice.isdecimal() or int(choice) < 1:
        raise ValueError(f"DEEPRES_ENV_THREADS must be a number of threads >= 1, got {choice!r}")
    return int(choice)


def substeps(model: mujoco.MjModel, dt: float) -> int:
    """Timesteps of `model` in a control period of `dt` seconds."""
    return round(dt / model.opt.timestep)


def candidate_contacts(model: mujoco.MjModel) -> int:
    """Contact points that MJX computes in every substep, touching or not: what a model costs it."""
    return int(mjx.make_data(model, impl="jax")._impl.contact.dist.shape[0])


def candidate_sizes(model: mujoco.MjModel, num_envs: int) -> dict[str, int]:
    """Buffers of MJX's Warp engine that no state of `num_envs` environments can overflow."""
    data = mjx.make_data(model, impl="jax")
    rows = int(data._impl.efc_J.shape[0])
    return {"naconmax": num_envs * max(1, candidate_contacts(model)), "njmax": max(1, rows)}
