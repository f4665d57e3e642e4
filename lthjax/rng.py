"""Named random streams: everything random in a study has a name and an index under one seed."""

import zlib

import jax
import jax.numpy as jnp


def stream(seed: int, name: str, *index: int) -> jax.Array:
    """The key of the random stream `name[index]` of a seed.

    Streams are independent of one another and of the order in which they are asked for, so adding
    one changes no other. The generator is fixed to threefry, whose bits are the same on every
    platform, and no setting of JAX changes the key. What is drawn with it depends on
    `jax_threefry_partitionable` and, where no dtype is named, on `jax_enable_x64`: draw under
    `settings.pinned`.

    Args:
        seed: the study's seed, 0 <= seed < 2**32.
        name: what is drawn, for example "init", "split", "order".
        index: zero or more non-negative integers, for example the level.

    Returns:
        A typed PRNG key, shape ().
    """
    # The key that `jax.random.key(seed)` makes, to which `jax_random_seed_offset` would be added.
    root = jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(root, zlib.crc32(name.encode()))
    for i in index:
        key = jax.random.fold_in(key, i)
    return key
