"""Environments: what a user of deepres.envs.make relies on, on every registered task."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from envs_fixtures import LENGTH, NUM_ENVS, environment, random_rollout

from deepres import bridge, envs
from deepres.envs import xla

# name: state, goal, action, goal slice, control period, success threshold (published)
TABLE = {
    "ant": (29, 2, 8, (0, 2), 0.05, 0.5),
    "point_u_maze": (4, 2, 2, (0, 2), 0.05, 0.5),
    "reacher": (10, 3, 2, (4, 7), 0.04, 0.05),
}
NAMES = sorted(TABLE)


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_every_registered_name_is_tested():
    assert envs.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_the_published_ones(name):
    state_dim, goal_dim, action_dim, goal_slice, dt, threshold = TABLE[name]
    env = environment(name)
    assert (env.name, env.num_envs, env.episode_length) == (name, NUM_ENVS, LENGTH)
    assert (env.state_dim, env.goal_dim, env.action_dim) == (state_dim, goal_dim, action_dim)
    assert env.obs_dim == state_dim + goal_dim
    assert (env.goal_slice, env.dt, env.threshold) == (slice(*goal_slice), dt, threshold)
    state = env.reset()
    assert state.obs.shape == state.terminal_obs.shape == (NUM_ENVS, env.obs_dim)
    kinds = {"done": "bool", "truncation": "bool", "traj_id": "int32", "steps": "int32"}
    for leaf in ("obs", "reward", "success", "distance", *kinds):
        assert getattr(state, leaf).dtype == kinds.get(leaf, "float32"), leaf
        assert getattr(state, leaf).shape[0] == NUM_ENVS, leaf


@pytest.mark.parametrize("name", NAMES)
def test_a_random_episode_is_finite_and_consistent(name):
    env, rollout = environment(name), random_rollout(name)
    s = rollout.states
    for leaf in jax.tree.leaves(s):
        assert np.isfinite(leaf).all()
    state, goal = s.obs[..., : env.state_dim], s.obs[..., env.state_dim :]
    np.testing.assert_array_equal(goal, s.goal)
    reached = s.terminal_obs[..., env.goal_slice] - s.terminal_obs[..., env.state_dim :]
    np.testing.assert_allclose(np.linalg.norm(reached, axis=-1), s.distance, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(s.success, (s.distance < env.threshold).astype(np.float32))
    assert (np.abs(np.diff(state[:100], axis=0)).max(axis=(0, 2)) > 1e-4).all()  # all of them move
    assert s.success.mean() < 0.5  # nobody solves a task by chance


@pytest.mark.parametrize("name", NAMES)
def test_ids_steps_and_resets_of_an_episode(name):
    env, s = environment(name), random_rollout(name).states
    assert (s.traj_id[0] == 0).all() and (s.steps[0] == 0).all() and not s.done[0].any()
    before, after = jax.tree.map(lambda x: x[:-1], s), jax.tree.map(lambda x: x[1:], s)
    np.testing.assert_array_equal(after.traj_id, before.traj_id + after.done)
    np.testing.assert_array_equal(after.steps, np.where(after.done, 0, before.steps + 1))
    np.testing.assert_array_equal(after.truncation, after.done & (before.steps == LENGTH - 1))
    # Every ant is thrown too high before its time is up; the others never end but by time.
    assert after.truncation.any() == (name != "ant") and after.done.any(axis=0).all()
    going = ~after.done
    np.testing.assert_array_equal(after.obs[going], after.terminal_obs[going])
    np.testing.assert_array_equal(after.goal[going], before.goal[going])
    # A fresh episode: a new start and a new key; the terminal observation is still that of the old one.
    t, n = np.argwhere(after.done)[0]
    assert (after.obs[t, n] != after.terminal_obs[t, n]).any()
    assert (after.key[t, n] != before.key[t, n]).any()
    assert (after.physics.qvel[t, n] != s.physics.qvel[0, n]).any()
    np.testing.assert_array_equal(after.terminal_obs[t, n, env.state_dim :], before.goal[t, n])


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_and_environments_differ(name):
    env, rollout = environment(name), random_rollout(name)
    state = env.reset()
    for action in rollout.actions[:20]:
        state = env.step(state, jnp.asarray(action))
    assert_same_bits(state, jax.tree.map(lambda x: x[20], rollout.states))
    first = env.reset()
    assert len({row.tobytes() for row in np.asarray(first.obs)}) == NUM_ENVS
    assert len({row.tobytes() for row in np.asarray(first.key)}) == NUM_ENVS
    other = env.reset(jax.random.key(4))
    assert (other.obs != first.obs).any(axis=1).all()
    assert_same_bits(env.reset(jax.random.PRNGKey(3)), first)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_and_restored_state_goes_on_bit_for_bit(name):
    env, rollout = environment(name), random_rollout(name)
    cut = LENGTH - 30  # so that what follows crosses the time limit and its random draws
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x[cut], rollout.states))
    saved = [(leaf.tobytes(), leaf.dtype, leaf.shape) for leaf in leaves]
    state = jax.tree.unflatten(
        tree, [np.frombuffer(raw, dtype).reshape(shape) for raw, dtype, shape in saved]
    )
    for action in rollout.actions[cut:]:
        state = env.step(state, action)
    assert_same_bits(state, jax.tree.map(lambda x: x[-1], rollout.states))


def test_an_old_state_stays_valid_and_unchanged():
    env, rollout = environment("point_u_maze"), random_rollout("point_u_maze")
    state = env.reset()
    once, twice = env.step(state, rollout.actions[0]), env.step(state, rollout.actions[0])
    assert_same_bits(once, twice)
    assert_same_bits(state, jax.tree.map(lambda x: x[0], rollout.states))


@pytest.mark.parametrize("height", [1.5, 0.19, float("nan")])
def test_an_ant_off_its_height_terminates_and_is_not_truncated(height):
    env = environment("ant")
    state = env.reset()
    upside_down = jnp.array([height, 0.0, 1.0, 0.0, 0.0])  # so that its feet do not push it up again
    qpos = state.physics.qpos.at[2, 2:7].set(upside_down)
    after = env.step(replace(state, physics=replace(state.physics, qpos=qpos)), jnp.zeros((NUM_ENVS, 8)))
    assert after.done.tolist() == [n == 2 for n in range(NUM_ENVS)]
    assert not after.truncation.any()
    assert after.traj_id.tolist() == [int(n == 2) for n in range(NUM_ENVS)] and after.steps[2] == 0
    assert bool(jnp.isfinite(after.obs).all()) and 0.4 < after.obs[2, 2] < 0.7
    assert not 0.2 <= after.terminal_obs[2, 2] <= 1.0


def test_falling_on_the_last_step_is_a_termination():
    env = environment("ant")
    state = env.reset()
    qpos = state.physics.qpos.at[0, 2].set(3.0)
    late = replace(
        state, physics=replace(state.physics, qpos=qpos), steps=jnp.full(NUM_ENVS, LENGTH - 1, jnp.int32)
    )
    after = env.step(late, jnp.zeros((NUM_ENVS, 8)))
    assert after.done.all() and after.truncation.tolist() == [n != 0 for n in range(NUM_ENVS)]


def test_auto_reset_first_goes_back_to_each_own_start_and_goal():
    env = envs.make("point_u_maze", num_envs=NUM_ENVS, seed=3, episode_length=3, auto_reset="first")
    first = state = env.reset()
    assert_same_bits(first.obs, environment("point_u_maze").reset().obs)
    for t in range(1, 8):
        state = env.step(state, jnp.ones((NUM_ENVS, 2)))
        assert bool(state.done.all()) == (t % 3 == 0)
        assert (state.traj_id == t // 3).all() and (state.goal == first.goal).all()
        if t % 3 == 0:
            assert_same_bits((state.obs, state.physics), (first.obs, first.physics))


def test_one_compiled_step_serves_wherever_state_and_action_come_from():
    env = environment("point_u_maze")
    ones = np.ones((NUM_ENVS, 2), np.float32)
    state = env.step(env.reset(), ones)
    half = jnp.full((NUM_ENVS, 2), 0.5) + jnp.zeros(1, int)  # of a weak type
    env.step(state, half)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for action in (ones, jnp.asarray(ones), bridge.to_jax(torch.from_numpy(ones)), half):
        for given in (state, env.reset(), jax.tree.map(np.array, state)):
            after = env.step(given, action)
        assert env.step(after, action).obs.dtype == jnp.float32
    assert compiled == []


def test_functional_form_runs_under_jit_vmap_and_scan():
    rollout = random_rollout("reacher")
    single = envs.make("reacher", impl="jax").functional

    def unroll(state, actions):
        return jax.lax.scan(lambda s, a: (single.step(s, a), s.obs), state, actions)

    keys = jax.random.split(jax.random.PRNGKey(3), NUM_ENVS)
    last, seen = jax.jit(jax.vmap(unroll, in_axes=(0, 1), out_axes=(0, 1)))(
        jax.vmap(single.reset)(keys), rollout.actions[:50]
    )
    np.testing.assert_allclose(seen, rollout.states.obs[:50], atol=1e-4)
    np.testing.assert_allclose(last.obs, rollout.states.obs[50], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "antt"}, "env must be one of ant, .*point_u_maze.*, got 'antt'"),
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"num_envs": 2.5}, "num_envs must be a whole number >= 1, got 2.5"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"episode_length": 0}, "episode_length must be a number of steps >= 1, got 0"),
        ({"episode_length": True}, "episode_length must be a number of steps >= 1, got True"),
        ({"auto_reset": "never"}, "auto_reset must be one of fresh, first, got 'never'"),
        ({"name": "ant", "goal_distance": -2}, "goal_distance must be a number of metres > 0, got -2"),
        ({"gravity": 3}, "reacher has no option 'gravity'"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.make(**{"name": "reacher", **arguments})


def test_bad_actions_and_keys_get_a_sentence():
    env = environment("ant")
    state = env.reset()
    with pytest.raises(
        ValueError, match=r"action must have shape \[8, 8\] \(num_envs, action_dim\) for ant, got \[8\]"
    ):
        env.step(state, jnp.zeros(8))
    with pytest.raises(ValueError, match=r"action must have shape \[8, 8\].*got \[4, 8\]"):
        env.step(state, np.zeros((4, 8), np.float32))
    with pytest.raises(ValueError, match=r"key must be one JAX key.*got uint32 \[3, 2\]"):
        env.reset(jax.random.split(jax.random.PRNGKey(0), 3))


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_names_need_no_jax_and_xla_is_prepared_before_it_starts():
    out = run_python(
        "import os, sys\n"
        "os.environ.pop('XLA_FLAGS', None); os.environ.pop('NPROC', None); os.cpu_count = lambda: 2\n"
        "from deepres import envs; envs.names(); assert 'jax' not in sys.modules\n"
        "import jax; envs.make_task('reacher')\n"  # JAX imported, but nothing computed: not too late
        "print(os.environ.get('XLA_FLAGS'), os.environ['NPROC'], jax.numpy.ones(3).sum())"
    )
    flag = "--xla_cpu_use_fusion_emitters=false" if jax.lib.__version__.startswith("0.10.") else "None"
    assert out.split() == [flag, "8", "3.0"]


def test_too_late_is_said_once_and_the_users_own_flags_stay():
    out = run_python(
        "import os, warnings\n"
        "os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'; os.environ.pop('NPROC', None)\n"
        "os.cpu_count = lambda: 2\n"
        "import jax; jax.numpy.ones(3).sum()\n"
        "from deepres import envs\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); envs.make_task('reacher'); envs.make_task('reacher')\n"
        "print(sum('came too late' in str(w.message) for w in caught), os.environ['XLA_FLAGS'])"
    )
    assert out.split() == ["1", "--xla_cpu_enable_fast_math=false"]


def test_compiled_code_is_kept_where_the_user_says(tmp_path):
    code = (
        "from deepres import envs; envs.make_task('reacher')\n"
        "import jax; jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "print(jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(5)).sum(), jax.config.jax_compilation_cache_dir)"
    )
    total, folder = run_python(code, XDG_CACHE_HOME=str(tmp_path), DEEPRES_COMPILE_CACHE="").split()
    assert total == "20.0" and folder.startswith(f"{tmp_path}/deepres/xla-")
    kept = {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    assert kept and Path(folder).stat().st_mode & 0o077 == 0
    total, _ = run_python(code, XDG_CACHE_HOME=str(tmp_path), DEEPRES_COMPILE_CACHE="").split()
    assert total == "20.0"
    assert kept == {
        path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()
    }  # found, not rewritten


@pytest.mark.parametrize("choice", ["0", "/proc/cannot/be/made"])
def test_compiled_code_is_not_kept_where_it_cannot_or_must_not(choice, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("DEEPRES_COMPILE_CACHE", choice)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        xla.keep_compiled.__wrapped__()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
