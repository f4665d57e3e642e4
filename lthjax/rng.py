"""Named random streams: every random draw in a study has a name and an index under one seed."""

import zlib

import jax
import jax.numpy as jnp


def stream(seed: int, name: str, *index: int) -> jax.Array:
    """The key of the random stream `name[index]` of a seed.

    Streams are independent of one another and of the order in which they are requested, so adding one changes
    no other. The generator is fixed to threefry, whose bits are the same on every platform, and no setting of
    JAX changes the key. Values drawn with it depend on `jax_threefry_partitionable` and, without an explicit
    dtype, on `jax_enable_x64`: draw under `settings.pinned`.

    Args:
        seed: the study's seed, 0 <= seed < 2**32.
        name: purpose of the stream, for example "init", "split", "order".
        index: zero or more non-negative integers, for example the level.

    Returns:
        A typed PRNG key, shape ().
    """
    # The key of `jax.random.key(seed)`, which would also add `jax_random_seed_offset`.
    root = jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(root, zlib.crc32(name.encode()))
    for i in index:
        key = jax.random.fold_in(key, i)
    return key
