"""Random draws for a few environments at a time: JAX's own generator, bit for bit, with its rounds written out.

JAX runs Threefry's rounds as a loop on a CPU, and each pass of a loop costs XLA several calls, however little there
is to compute. Written out, they become one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def unrolled(key: jax.Array) -> jax.Array:
    """The raw `key` (uint32 [2]) as a typed one that draws what it would, for jax.random's functions."""
    return jax.random.wrap_key_data(key, impl=_UNROLLED)


def seeded(seed: int) -> jax.Array:
    """The raw key [2] of a seed >= 0 of any size: jax.random.PRNGKey's, which repeat modulo 2^32, with the higher words
    folded in."""
    key, rest = jax.random.PRNGKey(seed % 2**32), seed >> 32
    while rest:
        key, rest = jax.random.fold_in(key, rest % 2**32), rest >> 32
    return key


def _threefry(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Threefry 2x32 (Salmon et al. 2011, 20 rounds) of `key` [2] and the numbers from 0 on, in `shape`, twice."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    low = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    a, b = jnp.broadcast_to(schedule[0], shape), low + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << turn | b >> (32 - turn))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_threefry(key, shape), axis=-1)


def _random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    if width != 32:
        return threefry_prng_impl.random_bits(key, width, shape)
    a, b = _threefry(key, shape)
    return a ^ b


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="threefry2x32, rounds written out",
    tag="fro",
)
