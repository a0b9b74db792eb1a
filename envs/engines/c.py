"""MuJoCo's C engine under a task: many environments together, on threads."""

from __future__ import annotations

import copy
import ctypes
import logging
import threading

import jax
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, substeps, threads


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
    """Whether every two geoms of `model` whose masks let them meet are among its listed pairs, and nothing else
    can be met."""
    meet = (model.geom_contype[:, None] & model.geom_conaffinity[None]) != 0
    met = {frozenset(pair) for pair in np.argwhere(meet).tolist()}
    return model.nflex == 0 and met <= {
        frozenset(pair) for pair in np.stack([model.pair_geom1, model.pair_geom2], axis=1).tolist()
    }
