"""Environments of one's own: a MuJoCo model, physics in JAX, and goal environments of gymnasium's, all by a name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import deepres
from deepres import envs
from deepres.config import Config
from deepres.envs import listing
from deepres.envs.engines import at_rest
from deepres.report import video
from deepres.report.paths import plot_paths
from deepres.training.environments import open_for
from helpers.own_environments import Ball, Disc, Flat, Reach

N = 3


pytestmark = pytest.mark.usefixtures("forgotten")


def pushed(env, steps, push=1.0):
    states = [env.reset()]
    for _ in range(steps):
        states.append(env.step(states[-1], np.full((env.num_envs, env.action_dim), push, np.float32)))
    return states


# --- a MuJoCo model ---


def test_a_task_of_ones_own_is_stepped_by_every_engine_and_has_its_variants():
    envs.register("ball", Ball)
    envs.register("near_ball", "helpers.own_environments:Ball", far=0.5)
    ends = {}
    for engine in ("c", "jax"):
        env = envs.make("ball", N, seed=1, episode_length=4, engine=engine)
        states = pushed(env, 5)
        assert env.engine == engine and [int(s.traj_id[0]) for s in states] == [0, 0, 0, 0, 1, 1]
        np.testing.assert_allclose(states[1].reward, -states[1].distance)
        ends[engine] = states[3].obs
    np.testing.assert_allclose(ends["c"], ends["jax"], atol=1e-5)
    near = envs.make("near_ball", 64).reset()
    assert 0.3 < abs(near.goal).max() <= 0.5
    assert envs.make_task("near_ball", far=1.5).far == 1.5
    with pytest.raises(ValueError, match="ball has no option 'colour', its options: far"):
        envs.make("ball", colour="red")


def test_a_model_without_a_floor_and_with_a_sky_of_its_own_is_filmed():
    envs.register("ball", Ball)
    env = envs.make("ball", N, engine="c")
    frame = video.snapshot(env, env.reset())
    assert frame.goal.shape == (3,)
    try:
        (picture,) = video.pictures(env.task, [frame], 64, 48)
        assert picture.shape == (48, 64, 3) and picture.std() > 0
    except RuntimeError as error:
        assert "pictures need an OpenGL context" in str(error)
    assert [geom.material for geom in video._dressed(env.task.scene(), 5.0, 64, 48).geoms] == [""]


# --- physics of one's own ---


def test_a_functional_task_gets_time_limit_trajectories_and_auto_reset(tmp_path):
    envs.register("disc", Disc, edge=1.5)
    env = envs.make("disc", N, seed=2, episode_length=6)
    states = pushed(env, 20)
    assert (
        env.engine == "jax" and env._step._cache_size() == 1
    )  # a Python number in sim costs no second compile
    ended = np.stack([s.done for s in states])
    by_time = np.stack([s.truncation for s in states])
    assert (ended & ~by_time).any() and by_time.any()
    for before, after in pairwise(states):
        at_end, anew = np.asarray(after.terminal_obs), np.asarray(after.done)
        np.testing.assert_array_equal((at_end[:, 0] > 1.5), np.asarray(after.done & ~after.truncation))
        np.testing.assert_array_equal(after.traj_id, before.traj_id + after.done)
        assert (np.asarray(after.physics["clock"])[anew] == 0).all()
        np.testing.assert_array_equal(np.asarray(after.obs)[~anew], at_end[~anew])
    # The functions alone, and the same goals again under "first".
    single = env.functional
    alone = jax.jit(single.step)(single.reset(jax.random.PRNGKey(0)), jnp.full(2, 9.0))
    np.testing.assert_allclose(alone.obs[2:4], [1, 1])  # actions are clipped to [-1, 1]
    again = pushed(envs.make("disc", N, episode_length=2, auto_reset="first"), 2)
    np.testing.assert_array_equal(again[2].obs, again[0].obs)
    # Its paths can be drawn; a video cannot.
    walks = [np.stack([s.obs[0, :2] for s in states[:5]])]
    assert plot_paths(env, walks, [states[0].goal[0]], tmp_path / "paths.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="a video needs a MuJoCo model, which disc does not have"):
        video.snapshot(env, states[0])


def test_a_task_that_advances_itself_may_still_have_a_model_for_pictures():
    class Drifting(Ball):
        def advance(self, sim, action):
            return replace(sim, qpos=sim.qpos + action)

    envs.register("drifting", Drifting)
    env = envs.make("drifting", N)
    states = pushed(env, 2, push=0.5)
    assert env.engine == "jax" and video.snapshot(env, states[2]).qpos.tolist() == [1, 1]


def slow(self):
    spec = Ball.spec(self)
    spec.actuators[0].dyntype, spec.actuators[0].dynprm[0] = mujoco.mjtDyn.mjDYN_FILTER, 0.1
    return spec


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dt": 0.055}, "dt must be a whole number of the model's timesteps of 0.01 s, got 0.055 s"),
        ({"start": lambda self, key: (at_rest(*jnp.zeros((2, 1))), jnp.zeros(2))}, r"have qpos \[2\].* got \[1\]"),
        ({"start": lambda self, key: (jnp.zeros(2), jnp.zeros(2))}, r"Odd.start must return at_rest\(qpos, qvel\)"),
        ({"control": lambda self, action: action[:1]}, r"control must return \[2\], the model's controls, got \[1\]"),
        ({"spec": slow}, "the model of Odd must have no actuators or plugins with a state.* got 1 activations"),
    ],
)  # fmt: skip
def test_a_task_that_does_not_fit_its_model_gets_a_sentence(changed, sentence):
    envs.register("odd", type("Odd", (Ball,), changed))
    with pytest.raises(ValueError, match=sentence):
        envs.make("odd", N)


@pytest.mark.parametrize("engine", ["c", "warp"])
def test_an_engine_does_not_apply_to_physics_of_ones_own(engine):
    envs.register("disc", Disc)
    with pytest.raises(ValueError, match=f"engine='{engine}' does not apply to disc.*pass engine='jax'"):
        envs.make("disc", engine=engine)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"observe": lambda self, sim: sim["x"]}, r"observe must return float32\[4\] \(state_dim\), got float32\[2\]"),
        ({"start": lambda self, key: (Disc.start(self, key)[0], jnp.zeros(3))}, r"start must return a goal \[2\]"),
        ({"advance": lambda self, sim, action: sim["x"]}, r"advance must return what start does, .*clock: int32\[\]"),
        ({"goal_slice": slice(2)}, r"goal_slice must be slice\(start, stop\) of the state's 4.*, got slice\(None, 2"),
        ({"goal_slice": slice(2, 6)}, r"of the state's 4 numbers, got slice\(2, 6"),
        ({"goal_slice": (0, 2)}, r"of the state's 4 numbers, got \(0, 2\)"),
        ({"terminated": lambda self, state: state > 0}, r"Odd.terminated must return one number, got shape \[4\]"),
        ({"reward": lambda self, *_: jnp.zeros(2)}, r"Odd.reward must return one number, got shape \[2\]"),
        ({"goal_after": lambda self, state, goal: goal[:1]}, r"Odd.goal_after must return \[2\], got shape \[1\]"),
        ({"start": lambda self, key: ({**Disc.start(self, key)[0], "h": jnp.zeros(2, jnp.bfloat16)}, jnp.zeros(2)),
          "advance": lambda self, sim, action: sim}, "NumPy's own types, to be saved, got bfloat16; take float32"),
    ],
)  # fmt: skip
def test_functions_that_do_not_fit_their_figures_get_a_sentence(changed, sentence):
    envs.register("odd", type("Odd", (Disc,), changed))
    with pytest.raises(ValueError, match=sentence):
        envs.make("odd")


def test_functions_may_return_what_python_has_and_draw_whatever_jax_can():
    class Plain(Disc):
        def start(self, key):
            places = jax.random.poisson(key, 2.0, (2,)) + jax.random.uniform(key, (2,), jnp.bfloat16)
            return {**Disc.start(self, key)[0], "v": jnp.zeros(2)}, places.astype(jnp.float32)

        def terminated(self, state):
            return False

        def success(self, state, goal):
            return True

        def reward(self, before, action, after, goal):
            return -1

    envs.register("plain", Plain)
    env = envs.make("plain", N, episode_length=3)
    states = pushed(env, 4)
    assert [bool(s.done[0]) for s in states] == [bool(s.truncation[0]) for s in states] == [0, 0, 0, 1, 0]
    assert states[1].truncation.dtype == bool and states[1].success.tolist() == [1.0] * N
    assert states[1].reward.tolist() == [-1.0] * N
    key = jax.random.key_data(jax.random.split(jax.random.PRNGKey(3)))[1]
    single = env.functional.reset(jax.random.PRNGKey(3))
    np.testing.assert_array_equal(single.goal, Plain().start(jax.random.wrap_key_data(key))[1])


def test_a_class_that_is_defined_anew_is_what_its_name_then_stands_for():
    options = Config("crl", env="again").env
    opened = []
    for edge in (1.0, 2.0):
        again = {"__init__": lambda self, edge=edge: setattr(self, "edge", edge), "__qualname__": "Again"}
        envs.register("again", type("Again", (Disc,), again))
        opened.append(open_for(options, 2, seed=0, device=torch.device("cpu")))
        assert open_for(options, 2, seed=0, device=torch.device("cpu")) is opened[-1]
    assert [one.env.task.edge for one in opened] == [1.0, 2.0]


# --- gymnasium ---


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_goal_environment_of_gymnasiums_has_the_same_episodes(vectorization):
    envs.register("reach", gymnasium=Reach, edge=0.7, vectorization=vectorization)
    env = envs.make("reach", N, seed=1, episode_length=5)
    sizes = (env.state_dim, env.goal_dim, env.action_dim, env.goal_slice, env.threshold, env.dt)
    assert sizes == (3, 2, 2, slice(1, 3), 0.5, 0.05)
    states = pushed(env, 12)
    own = Reach()
    observed, _ = own.reset(seed=env._seeds(1)[0])
    np.testing.assert_allclose(states[0].obs[0, 3:], observed["desired_goal"], rtol=1e-6)
    # Actions are stretched over the Box's bounds: full speed is 0.2 and 0.1 a step.
    np.testing.assert_allclose(states[1].obs[:, :3], [[1, 0.2, 0.1]] * N, rtol=1e-6)
    np.testing.assert_allclose(states[4].terminal_obs[:, :3], [[4, 0.8, 0.4]] * N, rtol=1e-6)
    assert states[4].done.all() and not states[4].truncation.any()  # past the edge
    assert (states[4].obs[:, :3] == 0).all() and (states[4].obs[:, 3:] != states[3].obs[:, 3:]).all()
    assert [int(s.traj_id[0]) for s in states] == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    off = np.linalg.norm(states[3].obs[:, 1:3] - states[3].obs[:, 3:], axis=1)
    np.testing.assert_allclose(states[3].distance, off, rtol=1e-6)
    np.testing.assert_array_equal(states[3].success, off < 0.5)
    slow = pushed(env, 5, push=-0.9)
    assert slow[5].done.all() and slow[5].truncation.all()  # by the time limit
    anew = env.begin_anew(slow[5], np.array([1]), np.array([7]), seed=4)
    assert anew.traj_id.tolist() == [1, 7, 1] and (anew.obs[1] != slow[5].obs[1]).any() and not anew.done[1]
    np.testing.assert_array_equal(anew.obs[[0, 2]], slow[5].obs[[0, 2]])
    np.testing.assert_array_equal(env.reset().obs, states[0].obs)
    assert (env.reset(9).obs != states[0].obs).any()
    with pytest.raises(ValueError, match="goes on from its newest state alone"):
        env.step(states[0], np.zeros((N, 2)))
    env.close()


def test_a_plain_box_says_where_its_goal_is():
    where = {"goal_slice": slice(1, 3), "goal": lambda env: env.target, "threshold": 0.2}
    envs.register("flat", gymnasium=lambda: Flat(), **where)
    env = envs.make("flat", N, episode_length=3)
    states = pushed(env, 4)
    assert (env.state_dim, env.goal_dim, env.goal_slice, env.dt) == (3, 2, slice(1, 3), 1.0)
    assert (states[0].goal >= 1).all() and (states[0].goal != states[3].goal).all()
    assert states[3].truncation.all() and (states[3].terminal_obs[:, 1:3] == 3).all()


def test_gymnasiums_ids_are_made_by_gymnasium():
    gymnasium.register("deepres-test/Reach-v0", entry_point=Reach, max_episode_steps=2)
    envs.register("by_id", gymnasium="deepres-test/Reach-v0", edge=0.1)
    assert pushed(envs.make("by_id", 1), 1)[1].done.all()
    envs.register("no_id", gymnasium="deepres-test/None-v0")
    with pytest.raises(ValueError, match="no_id: gymnasium cannot make 'deepres-test/None-v0'"):
        envs.make("no_id")


def with_spaces(**spaces):
    return lambda: type("Odd", (Flat,), spaces)()


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (Flat, {}, "observes a plain Box: pass goal_slice=.* and goal="),
        (Flat, {"goal_slice": slice(1, 3), "goal": lambda env: 0}, "needs threshold=.*no distance_threshold"),
        (Flat, {"goal_slice": slice(5, 9), "goal": lambda env: 0}, "goal_slice must be a range of the 3 numbers"),
        (Reach, {"goal_slice": slice(0, 2)}, "observes its goals itself; leave goal_slice= and goal= out"),
        (Reach, {"vectorization": "threads"}, "vectorization must be sync or async, got 'threads'"),
        (with_spaces(action_space=Discrete(3)), {"goal_slice": slice(0, 2), "goal": lambda env: 0}, "finite bounds"),
        (with_spaces(observation_space=Box(0, 1, (2, 2))), {}, "must observe a Dict of .* or a Box of one axis"),
    ],
)  # fmt: skip
def test_what_gymnasium_has_and_this_cannot_use_gets_a_sentence(make, options, sentence):
    envs.register("odd", gymnasium=make, **options)
    with pytest.raises(ValueError, match=sentence):
        envs.make("odd", 1)


@pytest.mark.parametrize(
    "option", [{"auto_reset": "first"}, {"engine": "c"}, {"parity": True}, {"goal_sampler": abs}]
)
def test_options_of_the_other_kinds_do_not_apply_to_gymnasiums(option):
    envs.register("reach", gymnasium=Reach)
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* does not apply to reach, which gymnasium"):
        envs.make("reach", **option)


def test_gymnasiums_environments_need_no_jax():
    code = (
        "import sys; sys.modules['jax'] = sys.modules['mujoco'] = None\n"
        "import gymnasium, numpy as np\n"
        "from gymnasium.spaces import Box\n"
        "class Still(gymnasium.Env):\n"
        "    observation_space, action_space = Box(-1, 1, (2,)), Box(-1, 1, (1,))\n"
        "    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}\n"
        "    def step(self, action): return np.zeros(2, np.float32), 0.0, False, False, {}\n"
        "from deepres import envs\n"
        "envs.register('still', gymnasium=Still, goal_slice=slice(0, 1), goal=lambda env: 1.0, threshold=0.1)\n"
        "from deepres.data.environments import open_environments\n"
        "import torch\n"
        "some = open_environments('still', 2)\n"
        "print(some.step(some.reset(), torch.zeros(2, 1)).obs.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]"


# --- names ---


def test_names_of_ones_own_are_listed_and_marked(monkeypatch):
    envs.register("disc", Disc)
    envs.register("reach", gymnasium=Reach)
    assert {"disc", "reach"} < set(envs.names())
    monkeypatch.setattr(listing, "names", lambda: ["ant", "disc", "reach"])
    rows = listing.rows()
    assert [row.cells()[-1] for row in rows] == ["", "own", "own, gymnasium"]
    assert rows[1].cells()[:5] == ("disc", "4", "2", "2", "0.3")
    with pytest.raises(ValueError, match=r"env must be one of disc.*got 'dics'"):
        envs.make("dics")


def test_a_name_is_given_once_but_a_module_may_be_imported_again():
    envs.register("disc", Disc)
    envs.register("disc", Disc)
    envs.register("disc", type("Disc", (Disc,), {"__module__": Disc.__module__, "__qualname__": "Disc"}))
    for name, what in (("disc", Ball), ("ant", Disc), ("ant_u_maze_gen_2f", Disc)):
        with pytest.raises(ValueError, match=f"the name '{name}' is taken by another environment"):
            envs.register(name, what)
    with pytest.raises(ValueError, match="taken"):
        envs.register("disc", Disc, edge=9.0)
    for grid in (np.zeros(2), np.zeros(2)):
        envs.register("grid", Disc, edge=grid)
    envs.register("made", gymnasium=lambda: Reach())
    with pytest.raises(ValueError, match="taken"):
        envs.register("made", gymnasium=lambda: Reach(3.0))
    assert envs.make("disc", np.int64(2), seed=np.uint8(3)).num_envs == 2


class NoSizes(envs.FunctionalTask):
    dt = 0.1
    start = advance = observe = None


class NoStart(envs.Task):
    state_dim, goal_slice, dt, threshold = 1, slice(0, 1), 0.1, 0.1


class Late(Disc):
    """Sets what it lacks as it is made, but not all of it."""

    def __init__(self):
        self.threshold = 0.1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a b", Disc), "a name must be letters, digits, '_', '-' or '.', got 'a b'"),
        (("mine",), "wants a Task or FunctionalTask class, or gymnasium="),
        (("mine", 3), "mine must be a class derived from deepres.envs.Task .* got 3"),
        (("mine", Disc()), "mine must be a class derived from"),
        (("mine", Reach), "mine must be a class derived from.*pass an environment of gymnasium's as gymnasium="),
        (("mine", "Disc"), "a task to be imported is named 'module:Class', got 'Disc'"),
        (("mine", NoSizes), "mine: NoSizes lacks action_dim, goal_slice, state_dim, threshold; see deepres.envs.Funct"),
        (("mine", NoStart), "mine: NoStart lacks observe, spec, start; see deepres.envs.Task"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_gets_a_sentence(arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        envs.register(*arguments)


def test_what_is_found_out_later_gets_a_sentence():
    envs.register("absent", "helpers.own_environments:Absent")
    with pytest.raises(ValueError, match=r"helpers.own_environments has no Absent"):
        envs.make("absent")
    del Disc.threshold
    try:
        envs.register("late", type("Late", (Disc,), {"__init__": lambda self: None}))
        with pytest.raises(TypeError, match="late: Late lacks threshold"):
            envs.make("late")
        envs.register("set", Late)
        assert envs.make_task("set").threshold == 0.1
    finally:
        Disc.threshold = 0.3
    with pytest.raises(TypeError, match="gymnasium must be an id such as 'FetchReach-v4' or a function"):
        envs.register("mine", gymnasium=3)


def test_a_task_itself_is_told_to_be_registered_by_a_name():
    sentence = r"env must be the name of a task, got .*; register one of your own first"
    with pytest.raises(TypeError, match=sentence):
        envs.make(Ball)
    with pytest.raises(ValueError, match=sentence):
        deepres.Config(env=Ball)
