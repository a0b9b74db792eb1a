"""Environments: what a user of deepres.envs.make relies on, on every registered task."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bench import envs as bench
from bench.envs import sizes
from deepres import envs
from deepres.data import bridge
from deepres.envs import engines, listing
from deepres.envs.task import Task
from helpers.envs_fixtures import LENGTH, NUM_ENVS, environment, hurried, quick, random_rollout, rollout

# The beginning of a name, the longest that fits: control period; easy, own and hard success threshold (published).
TIMES_AND_THRESHOLDS = {
    "reacher": (0.04, None, 0.05, None),
    "pusher": (0.05, None, 0.1, 0.05),
    "half_cheetah": (0.05, 2.0, 0.5, None),
    "ant": (0.05, 2.0, 0.5, None),
    "humanoid": (0.03, 2.0, 0.5, None),
    **{f"humanoid_{layout}": (0.015, 2.0, 0.5, None) for layout in ("u", "big", "hardest")},
    "point": (0.05, 2.0, 0.5, None),
    "arm": (0.05, 0.3, 0.1, 0.03),
    "arm_grasp": (0.05, 0.15, 0.05, 0.02),
}
NAMES = envs.names()
FAMILIES = [name for name in NAMES if not re.search("_maze_|big|hardest|u._maze|hard", name)]
# A robot's mazes are one program and differ in their grids, which test_maze.py has.
WHOLE = [*FAMILIES, "ant_u5_maze_gen_4f", "arm_binpick_hard", "point_u_maze_eval"]


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_every_published_task_is_registered():
    assert set(FAMILIES) == {
        "ant", "ant_ball", "ant_push", "ant_u_maze", "arm_binpick_easy", "arm_grasp", "arm_push_easy", "arm_reach",
        "half_cheetah", "humanoid", "humanoid_u_maze", "point_u_maze", "pusher_easy", "reacher",
    }  # fmt: skip
    assert {"arm_binpick_hard", "arm_push_hard", "pusher_hard", "ant_u4_maze", "ant_u5_maze"} < set(NAMES)
    for robot in ("ant", "humanoid", "point"):
        assert {f"{robot}_{layout}_maze" for layout in ("u", "big", "hardest")} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_thresholds_are_the_published_ones(name):
    task = envs.make_task(name)
    assert sizes(name)["sizes_are_published"]
    longest = max((start for start in TIMES_AND_THRESHOLDS if name.startswith(start)), key=len)
    thresholds = (task.threshold_easy, task.threshold, task.threshold_hard)
    assert (task.dt, *thresholds) == pytest.approx(TIMES_AND_THRESHOLDS[longest])
    steps = task.dt / task.model.opt.timestep
    assert steps == pytest.approx(round(steps)) and steps >= 1
    assert envs.make_task(name, parity=True).goal_dim == task.goal_dim


@pytest.mark.parametrize("name", NAMES)
def test_goals_are_drawn_apart_from_the_start(name):
    task = envs.make_task(name)

    def begun(key):
        physics, goal = task.start(key)
        state = task.observe(physics)
        return state, goal, task.success(state, goal)

    states, goals, solved = quick(jax.vmap(begun))(jax.random.split(jax.random.PRNGKey(0), 256))
    assert states.shape == (256, task.state_dim) and states.dtype == goals.dtype == jnp.float32
    assert np.isfinite(states).all() and np.isfinite(goals).all()
    assert float(solved.mean()) < 0.15  # hardly anybody starts where the goal is
    maze = getattr(task, "maze", None)
    if maze is not None:
        allowed = maze.path() if "_gen_" in name else maze.goals
        drawn = set(map(tuple, np.asarray(goals)[:, :2].tolist()))
        assert drawn <= set(map(tuple, allowed.tolist()))
        # Of the U maze's seven cells only the last is six away from another.
        assert len(drawn) > 1 or len(maze.goals) == 1 or name == "ant_u_maze_gen_6f"
    elif name != "half_cheetah":  # its goal is always 5 m ahead
        assert len(np.unique(np.asarray(goals), axis=0)) > 200


@pytest.mark.parametrize("name", WHOLE)
def test_a_random_episode_is_finite_and_consistent(name):
    """One whole episode and the start of the next, in every kind of environment: what a state says of itself holds."""
    env, s = environment(name), random_rollout(name).states
    assert (env.name, env.num_envs, env.episode_length, env.engine) == (name, NUM_ENVS, LENGTH, "c")
    kinds = {"done": "bool", "truncation": "bool", "traj_id": "int32", "steps": "int32"}
    for leaf in ("obs", "terminal_obs", "reward", "success", "distance", "goal", *kinds):
        assert getattr(s, leaf).dtype == kinds.get(leaf, "float32"), leaf
    for leaf in jax.tree.leaves(s):
        assert np.isfinite(leaf).all()
    assert s.obs.shape[2] == env.obs_dim == env.state_dim + env.goal_dim
    state, goal = s.obs[..., : env.state_dim], s.obs[..., env.state_dim :]
    np.testing.assert_array_equal(goal, s.goal)
    assert (np.abs(np.diff(state[:100], axis=0)).max(axis=(0, 2)) > 1e-4).all()  # all of them move
    assert s.success.mean() < 0.5  # nobody solves a task by chance
    # Ids and counts
    assert (s.traj_id[0] == 0).all() and (s.steps[0] == 0).all() and not s.done[0].any()
    before, after = jax.tree.map(lambda x: x[:-1], s), jax.tree.map(lambda x: x[1:], s)
    np.testing.assert_array_equal(after.traj_id, before.traj_id + after.done)
    np.testing.assert_array_equal(after.steps, np.where(after.done, 0, before.steps + 1))
    np.testing.assert_array_equal(after.truncation & (before.steps < LENGTH - 1), np.zeros_like(after.done))
    terminates = type(env.task).terminated is not Task.terminated
    assert after.done.any(axis=0).all() and (after.done == after.truncation).all() == (not terminates)
    going = ~after.done
    np.testing.assert_array_equal(after.obs[going], after.terminal_obs[going])
    # A fresh episode: a new start and a new key; the terminal observation is still that of the old one.
    t, n = np.argwhere(after.done)[0]
    assert (after.obs[t, n] != after.terminal_obs[t, n]).any()
    assert (after.key[t, n] != before.key[t, n]).any()
    # The same seed gives the same bits, and environments differ.
    assert_same_bits(rollout(env, random_rollout(name).actions[:5]).states, jax.tree.map(lambda x: x[:6], s))
    assert len({row.tobytes() for row in s.key[0]}) == NUM_ENVS
    assert [jitted._cache_size() for jitted in (env._reset, env._step._drive, env._step._arrive)] == [1, 1, 1]
    random_rollout.cache_clear()


@pytest.mark.parametrize("name", ["ant", "arm_grasp", "humanoid_u_maze", "reacher"])
def test_a_saved_and_restored_state_goes_on_bit_for_bit(name):
    env, whole = environment(name), random_rollout(name)
    cut = LENGTH - 30  # so that what follows crosses the time limit and its random draws
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x[cut], whole.states))
    saved = [(leaf.tobytes(), leaf.dtype, leaf.shape) for leaf in leaves]
    state = jax.tree.unflatten(
        tree, [np.frombuffer(raw, dtype).reshape(shape) for raw, dtype, shape in saved]
    )
    for action in whole.actions[cut:]:
        state = env.step(state, action)
    assert_same_bits(state, jax.tree.map(lambda x: x[-1], whole.states))


def test_seeds_and_keys():
    env = environment("reacher")
    first, other = env.reset(), env.reset(jax.random.key(4))
    assert (other.obs != first.obs).any(axis=1).all()
    assert_same_bits(env.reset(jax.random.PRNGKey(3)), first)


def test_an_old_state_stays_valid_and_unchanged():
    env = environment("point_u_maze")
    ones = np.ones((NUM_ENVS, 2), np.float32)
    state = env.reset()
    kept = jax.tree.map(np.array, state)
    assert_same_bits(env.step(state, ones), env.step(state, ones))
    assert_same_bits(state, kept)


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
    assert bool(jnp.isfinite(after.obs).all()) and 0.4 < after.obs[2, 2] < 0.95
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
    actions = (ones, jnp.asarray(ones), bridge.to_jax(torch.from_numpy(ones)), half)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for action in actions:
        for given in (state, env.reset(), jax.tree.map(np.array, state)):
            after = env.step(given, action)
        assert env.step(after, action).obs.dtype == jnp.float32
    assert compiled == []


def test_functional_form_runs_under_jit_vmap_and_scan():
    env = hurried(envs.make("reacher", num_envs=NUM_ENVS, seed=3, engine="jax"))
    single = env.functional
    actions = np.random.default_rng(5).uniform(-1, 1, (50, NUM_ENVS, 2)).astype(np.float32)

    def unroll(state, actions):
        return jax.lax.scan(lambda s, a: (single.step(s, a), s.obs), state, actions)

    keys = jax.random.split(jax.random.PRNGKey(3), NUM_ENVS)
    last, seen = quick(jax.vmap(unroll, in_axes=(0, 1), out_axes=(0, 1)))(
        quick(jax.vmap(single.reset))(keys), actions
    )
    states = rollout(env, actions).states
    np.testing.assert_allclose(seen, states.obs[:50], atol=1e-4)
    np.testing.assert_allclose(last.obs, states.obs[50], atol=1e-4)


def test_the_c_engine_says_that_it_cannot_be_under_jit():
    env = environment("reacher")
    with pytest.raises(TypeError, match=r"cannot be under jit, vmap or scan; make .* engine='jax'"):
        jax.jit(jax.vmap(env.functional.step))(env.reset(), jnp.zeros((NUM_ENVS, 2)))


def test_auto_takes_the_c_engine_on_a_cpu_and_absent_engines_get_a_sentence(monkeypatch):
    assert engines.pick_engine("auto") == ("c" if jax.default_backend() == "cpu" else "warp")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert engines.pick_engine("auto") == "jax"
    with pytest.raises(ImportError, match=r"pip install 'deepres\[warp\]'"):
        envs.make("reacher", engine="warp")
    with pytest.raises(ImportError, match=r"engine='c' needs mujoco 4"):
        envs.make("reacher", engine="c")


def test_goals_of_ones_own():
    def ahead(key):
        return jnp.stack([jax.random.uniform(key, minval=2.0, maxval=3.0), jnp.float32(0)])

    env = envs.make("ant", num_envs=NUM_ENVS, episode_length=2, goal_sampler=ahead)
    first = env.reset()
    assert ((first.goal[:, 0] >= 2) & (first.goal[:, 0] <= 3) & (first.goal[:, 1] == 0)).all()
    np.testing.assert_array_equal(first.obs[:, env.state_dim :], first.goal)
    after = env.step(env.step(first, np.zeros((NUM_ENVS, 8))), np.zeros((NUM_ENVS, 8)))
    assert after.done.all() and (after.goal[:, 0] != first.goal[:, 0]).all() and (after.goal[:, 1] == 0).all()
    for name, options in (("arm_grasp", {}), ("humanoid", {"parity": True})):
        with pytest.raises(
            ValueError, match=r"goal_sampler does not apply to .*, whose goal is part of what"
        ):
            envs.make(name, goal_sampler=lambda key: jnp.zeros(3), **options)
    for name, options, sentence in (
        ("ant", {"goal_sampler": 5}, "goal_sampler must be a function key -> goal, or where it is, got 5"),
        ("ant", {"goal_distance": "far"}, "ant cannot be made with goal_distance='far': "),
        ("ant_maze", {"layout": 5}, "ant_maze cannot be made with layout=5: "),
    ):
        with pytest.raises(ValueError, match=sentence):
            envs.make(name, 2, **options)
    with pytest.raises(ValueError, match=r"action must have shape \[2, 2\].* got \[1, 2\]"):
        two = envs.make("point_u_maze", 2, engine="c")
        two.step(two.reset(), [[0.0] * 2])
    with pytest.raises(ValueError, match=r"goal_sampler must return a goal \[2\], got \[3\]"):
        envs.make("ant", goal_sampler=lambda key: jnp.zeros(3))


def test_gymnasium_sees_the_same_episodes():
    from gymnasium.vector import AutoresetMode
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    env = envs.make("ant", num_envs=NUM_ENVS, seed=3, episode_length=60)
    gym = envs.gymnasium_env(env)
    assert gym.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert gym.observation_space.shape == (NUM_ENVS, 31) and gym.action_space.shape == (NUM_ENVS, 8)
    wrapped = RecordEpisodeStatistics(gym)
    obs, infos = wrapped.reset(seed=7)
    state = env.reset(jax.random.PRNGKey(7))
    wrapped.action_space.seed(0)
    ended = np.zeros(NUM_ENVS, bool)
    for _ in range(70):
        np.testing.assert_array_equal(obs, state.obs)
        assert obs in gym.observation_space and infos["traj_id"].tolist() == state.traj_id.tolist()
        actions = wrapped.action_space.sample()
        obs, reward, terminated, truncated, infos = wrapped.step(actions)
        state = env.step(state, actions)
        np.testing.assert_array_equal(reward, state.reward)
        np.testing.assert_array_equal(terminated | truncated, state.done)
        np.testing.assert_array_equal(truncated, state.truncation)
        np.testing.assert_array_equal(infos["distance"], state.distance)
        ended |= np.asarray(state.done)
        if np.any(state.done):
            assert infos["_final_obs"].tolist() == state.done.tolist()
            for i in np.flatnonzero(state.done):
                np.testing.assert_array_equal(infos["final_obs"][i], state.terminal_obs[i])
            assert (infos["episode"]["l"][np.asarray(state.done)] > 0).all()
    assert ended.all()
    again, _ = gym.reset(seed=7)
    np.testing.assert_array_equal(again, env.reset(jax.random.PRNGKey(7)).obs)
    assert (gym.reset()[0] != again).any() and gym.reset()[0].dtype == np.float32
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        envs.gymnasium_env(env).step(actions)


def test_tasks_are_listed_and_benched_by_name(capsys):
    rows = listing.rows()
    assert [row.name for row in rows] == NAMES and {len(row.cells()) for row in rows} == {
        len(listing.COLUMNS)
    }
    assert bench.main(["--only", "sizes", "reacher", "arm_grasp"]) == 0
    table = capsys.readouterr().out
    assert "23 7 5" in table and "10 3 2" in table and "NO" not in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"engine": "gpu"}, "engine must be one of auto, c, jax, warp, got 'gpu'"),
        ({"name": "antt"}, "env must be one of ant, ant_ball, .* another of the [0-9]+ .*, got 'antt'"),
        ({"name": "mars"}, "env must be one of ant, .*point_u_maze.*, got 'mars'.*deepres.envs.register"),
        ({"engine": "c", "impl": "jax"}, "pass engine= alone, got engine='c' and its old name impl='jax'"),
        ({"num_envs": 0}, "num_envs must be a whole number from 1 to 2147483647, got 0"),
        ({"num_envs": 2.5}, "num_envs must be a whole number from 1 to 2147483647, got 2.5"),
        ({"seed": -1}, f"seed must be a whole number from 0 to {2**64 - 1}, got -1"),
        ({"episode_length": 0}, "episode_length must be a whole number from 1 to 2147483647, got 0"),
        ({"episode_length": True}, "episode_length must be a whole number from 1 to 2147483647, got True"),
        ({"auto_reset": "never"}, "auto_reset must be one of fresh, first, got 'never'"),
        ({"name": "ant", "goal_distance": -2}, "goal_distance must be a number of metres > 0, got -2"),
        ({"gravity": 3}, "reacher has no option 'gravity'"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.make(**{"name": "reacher", **arguments})


def test_the_old_word_for_engine_is_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="impl= is called engine= now"):
        assert envs.make("reacher", num_envs=2, impl="jax").engine == "jax"


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
    with pytest.raises(ValueError, match=r"key must be one JAX key.*got 7; pass seed=7"):
        env.reset(7)
    with pytest.raises(ValueError, match="reset takes a key or a seed, got both"):
        env.reset(jax.random.PRNGKey(0), seed=0)
    by_key = env.reset(jax.random.PRNGKey(7))
    assert (np.asarray(env.reset(seed=7).obs) == np.asarray(by_key.obs)).all()
