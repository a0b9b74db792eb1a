"""MuJoCo under a task: one control period of a model as a function of a few small arrays.

What physics needs to go on is qpos, qvel and the solver's warm start; everything else in MuJoCo's data is
derived from them at each substep. So an environment carries those three arrays, and what its model's sensors
read, and nothing more: its state is small to save, quick to dispatch and the same for every engine.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

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


def pick_engine(engine: str) -> str:
    """The one of ENGINES that `engine` names; "auto" is the fastest that this machine has.

    Raises: ValueError for another name; ImportError with what to install where an engine is absent.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}, got {engine!r}")
    warp, batch = importlib.util.find_spec("warp"), importlib.util.find_spec("mujoco.batch")
    if engine == "auto":
        if jax.default_backend() == "gpu":
            return "warp" if warp else "jax"
        return "c" if batch else "jax"
    if engine == "warp" and not warp:
        raise ImportError(
            "engine='warp' needs NVIDIA Warp; pip install 'deepres[warp]', or pass engine='jax'"
        )
    if engine == "c" and not batch:
        raise ImportError("engine='c' needs mujoco 4; pip install 'mujoco>=4,<5', or pass engine='jax'")
    return engine


def threads() -> int:
    """Threads that the C engine steps on: DEEPRES_ENV_THREADS, by default every core of this process."""
    choice = os.environ.get("DEEPRES_ENV_THREADS", "")
    if not choice:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not choice.isdecimal() or int(choice) < 1:
        raise ValueError(f"DEEPRES_ENV_THREADS must be a number of threads >= 1, got {choice!r}")
    return int(choice)


def substeps(model: mujoco.MjModel, dt: float) -> int:
    """Timesteps of `model` in a control period of `dt` seconds. Raises ValueError unless it is a whole number."""
    count = dt / model.opt.timestep
    if round(count) < 1 or abs(count - round(count)) > 1e-6 * count:
        raise ValueError(
            f"dt must be a whole number of the model's timesteps of {model.opt.timestep:g} s, got {dt:g} s"
        )
    return round(count)
