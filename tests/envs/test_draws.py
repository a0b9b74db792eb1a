"""Draws with the rounds written out: JAX's own, bit for bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from deepres import envs
from deepres.envs.draws import seeded, unrolled

random = jax.random
DRAWS = {
    "uniform": lambda key, shape: random.uniform(key, shape, minval=-2.0),
    "normal": lambda key, shape: random.normal(key, shape),
    "randint": lambda key, shape: random.randint(key, shape, 0, 45),
    "bernoulli": lambda key, shape: random.bernoulli(key, 0.3, shape),
    "choice": lambda key, shape: random.choice(key, 9, shape, p=np.full(9, 1 / 9)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("shape", [(), (1,), (15,), (3, 4)], ids=str)
def test_draws_are_jaxs_own(draw, shape):
    for seed in (0, 1, 2**32 - 1):
        key = random.PRNGKey(seed)
        np.testing.assert_array_equal(draw(unrolled(key), shape), draw(key, shape))


def test_keys_are_jaxs_own():
    key = random.PRNGKey(7)
    for how in (lambda k: random.split(k, (2, 3)), lambda k: random.fold_in(k, 5)):
        np.testing.assert_array_equal(random.key_data(how(unrolled(key))), how(key))


def test_seeds_are_jaxs_own_and_go_on_beyond_them():
    for seed in (0, 7, 2**31 - 1, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(seeded(seed), random.PRNGKey(seed))
    np.testing.assert_array_equal(seeded(7 + (5 << 32)), random.fold_in(random.PRNGKey(7), 5))
    others = [0, 7, 2**32, 7 + 2**32, 2**33, 7 + 2**62, 2**63 - 1, 2**80]
    assert len({np.asarray(seeded(seed)).tobytes() for seed in others}) == len(others)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_draws_of_other_widths_are_jaxs_own(dtype):
    key = random.PRNGKey(0)
    np.testing.assert_array_equal(random.bits(unrolled(key), (7,), dtype), random.bits(key, (7,), dtype))


def test_episodes_begin_as_with_jaxs_own_draws():
    env = envs.make("ant", 3, seed=5, engine="c")
    keys = random.split(random.PRNGKey(5), 3)
    later, now = jax.vmap(random.split, out_axes=1)(keys)
    physics, goal = jax.vmap(env.task.start)(now)
    state = env.reset()
    np.testing.assert_array_equal(state.key, later)
    np.testing.assert_allclose(state.physics.qpos, physics.qpos, atol=1e-6)
    np.testing.assert_allclose(state.goal, goal, atol=1e-5)
