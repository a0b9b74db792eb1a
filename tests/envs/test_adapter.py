"""The environments as gymnasium's: what a second reset begins, and what the adapter says it cannot do."""

from __future__ import annotations

import numpy as np
import pytest

from deepres import envs

N, LENGTH = 4, 5


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
