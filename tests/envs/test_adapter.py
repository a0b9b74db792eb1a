"""The environments as gymnasium's: what a second reset begins, and what the adapter says it cannot do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from deepres import envs

N, LENGTH = 4, 5
UNBOUNDED = "A Box observation space (minimum|maximum) value is"  # true: velocities have no bounds


@pytest.fixture(scope="module")
def env():
    return envs.gymnasium_env(envs.make("point_u_maze", num_envs=N, episode_length=LENGTH))


def starts(env, first: np.ndarray, episodes: int) -> list[np.ndarray]:
    """The first observations of each environment's episodes."""
    seen = [first]
    for step in range(LENGTH * episodes):
        obs, *_ = env.step(np.zeros((N, 2), np.float32))
        if (step + 1) % LENGTH == 0:
            seen.append(obs)
    return seen


def test_every_reset_begins_episodes_that_nobody_has_had(env):
    rows = []
    for k in range(4):
        first = env.reset(seed=1)[0] if k == 0 else env.reset()[0]
        rows += [tuple(row) for obs in starts(env, first, 3) for row in obs]
    assert len(set(rows)) == len(rows) == 4 * 4 * N


def test_a_seed_decides_all_that_follows_and_every_bit_of_it_counts(env):
    once, again = ([env.reset(seed=5)[0], env.reset()[0], env.reset()[0]] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    first = {seed: env.reset(seed=seed)[0].tobytes() for seed in (5, 5 + 2**32, 5 + 2**33, 2**80)}
    assert len(set(first.values())) == 4 and first[5] == once[0].tobytes()


def test_who_asks_for_pictures_is_told_where_they_are(env):
    with pytest.raises(NotImplementedError, match=r"deepres.report.video.render_rollout"):
        env.render()


KINDS = ["ant", "ant_ball", "ant_push", "arm_binpick_easy", "arm_grasp", "arm_push_easy", "arm_reach", "half_cheetah",
         "humanoid", "point_u_maze", "pusher_easy", "reacher"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parity"),
    [*((name, False) for name in KINDS), ("point_u_maze_whole_goal", False), ("humanoid_u_maze", True)],
)
def test_gymnasiums_checker_passes_on_a_task_of_every_kind(name, parity):
    """And what it does not look at: where an episode ends, and what follows."""
    made = envs.make(name, num_envs=1, episode_length=2, parity=parity, engine="c")
    env = envs.gymnasium_env(made, single=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", f".*{UNBOUNDED}")
        check_env(env, skip_render_check=True)
    first, _ = env.reset(seed=3)
    action = np.ones(env.action_space.shape, np.float32)
    seen = [env.step(action), env.step(action)]
    assert [one[2:4] for one in seen] == [(False, False), (False, True)]
    state, goal = slice(made.state_dim), slice(made.state_dim, None)
    own = made.task.goal_after(seen[1][0][state], first[goal])
    np.testing.assert_allclose(seen[1][0][goal], own, rtol=1e-6)  # what it reached, of its own goal
    assert seen[1][4]["distance"] > 0 and (seen[1][0] != seen[0][0]).any()
    with pytest.raises(RuntimeError, match=r"step needs an episode under way; call reset\(\) first"):
        env.step(action)
    second = env.reset()[0]
    assert (second != first).any() and (env.reset(seed=3)[0] == first).all()
    assert (env.reset()[0] == second).all()


def test_one_environment_is_asked_of_one(env):
    with pytest.raises(ValueError, match="single=True is for one environment, got num_envs=4; make it with"):
        envs.gymnasium_env(env.env, single=True)
    with pytest.raises(
        ValueError, match="auto_reset='first' asks for the same one; make the environment with"
    ):
        envs.gymnasium_env(envs.make("point_u_maze", 1, auto_reset="first"), single=True)
