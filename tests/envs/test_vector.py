"""Environments stepped around the C engine: who ends begins anew as if alone, and MuJoCo is left as it was."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from deepres import envs
from deepres.envs.engines.c import BatchPhysics, _all_pairs_listed
from deepres.envs.engines.c_step import FEW
from helpers.envs_fixtures import quick

COUNT = 2 * FEW + 3


def test_the_c_engine_without_jaxs_cpu_is_one_sentence(monkeypatch):
    """JAX_PLATFORMS=cuda on a machine with a GPU."""

    def devices(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return jax.devices()

    monkeypatch.setattr(jax, "local_devices", devices)
    with pytest.raises(
        RuntimeError, match=r"^engine='c' needs JAX's CPU platform, .* as in JAX_PLATFORMS=cuda,cpu"
    ):
        envs.make("point_u_maze", 2, engine="c")


@pytest.mark.parametrize("auto_reset", ["fresh", "first"])
@pytest.mark.parametrize("ended", [0, 1, FEW, FEW + 1, COUNT])
def test_however_many_end_each_begins_anew_as_if_alone(auto_reset, ended):
    env = envs.make("reacher", COUNT, seed=3, episode_length=9, auto_reset=auto_reset, engine="c")
    action = np.random.default_rng(0).uniform(-1, 1, (COUNT, 2)).astype(np.float32)
    last = np.random.default_rng(1).permutation(COUNT)[:ended]
    state = env.step(env.reset(), action)
    state = replace(state, steps=state.steps.at[last].set(8))
    after = env.step(state, action)
    assert np.flatnonzero(after.done).tolist() == sorted(last.tolist())
    alone = jax.jit(env.functional.renew)
    going = env.step(replace(state, steps=jnp.zeros(COUNT, jnp.int32)), action)  # the same, but nobody ends
    for n in range(COUNT):
        own, other = (jax.tree.map(lambda leaf, n=n: np.asarray(leaf[n]), s) for s in (after, going))
        reached = replace(other, done=own.done, truncation=own.done, steps=np.int32(9 if own.done else 2))
        jax.tree.map(assert_same, own, alone(reached))


def assert_same(a, b):
    """Whole numbers to the bit, others but for the rounding of two programs."""
    exact = np.asarray(a).dtype.kind != "f"
    np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-7)


def test_mujocos_clock_goes_on_after_a_step():
    task = envs.make_task("reacher")
    physics, _ = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(0), 2))
    data = mujoco.MjData(task.model)
    BatchPhysics(task.model, task.dt, 2).step(
        jax.tree.map(np.asarray, physics), np.zeros((2, 2), np.float32), None
    )
    mujoco.mj_step(task.model, data, nstep=100)
    assert data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration > 0


def test_pairs_that_are_listed_meet_as_those_that_are_found():
    """The ant lists whom its feet can meet, and the C engine then looks for nobody else: the same bits."""
    task = envs.make_task("ant")
    spec = task.spec()
    for pair in list(spec.pairs):
        spec.delete(pair)
    spec.compiler.discardvisual = True
    found = spec.compile()
    assert task.model.npair == 4 and found.npair == 0
    physics, _ = quick(jax.vmap(task.start))(jax.random.split(jax.random.PRNGKey(0), COUNT))
    states = [jax.tree.map(np.asarray, physics)] * 2
    engines = [BatchPhysics(model, task.dt, COUNT) for model in (task.model, found)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        ctrl = rng.uniform(-1, 1, (COUNT, 8)).astype(np.float32)
        states = [engine.step(state, ctrl, None) for engine, state in zip(engines, states, strict=True)]
        jax.tree.map(np.testing.assert_array_equal, *states)
    assert (states[0].qpos[:, 2] < 0.6).any()  # on the floor


def test_listed_pairs_are_as_hard_as_their_geoms():
    """Of every robot that lists pairs: a pair overrides what its geoms say."""
    for name in ("ant", "ant_push", "ant_ball", "ant_u_maze"):
        model = envs.make_task(name).model
        for pair, (one, other) in enumerate(zip(model.pair_geom1, model.pair_geom2, strict=True)):
            softest = (model.geom_solimp[one] + model.geom_solimp[other]) / 2
            np.testing.assert_allclose(model.pair_solimp[pair, :3], softest[:3], err_msg=name)


def test_a_cloth_meets_what_geoms_alone_would_not():
    grid = '<flexcomp name="c" type="grid" count="3 3 1" spacing=".2 .2 .2" pos="0 0 1" radius=".02" dim="2" mass="1"/>'
    floor = '<geom type="plane" size="2 2 1" contype="0" conaffinity="1"/>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{floor}{grid}</worldbody></mujoco>")
    assert model.nflex == 1 and not _all_pairs_listed(model)
    assert _all_pairs_listed(
        mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{floor}</worldbody></mujoco>")
    )
