"""Named random streams: everything random in a study has a name and an index under one seed."""

import zlib

import jax


def stream(seed: int, name: str, *index: int) -> jax.Array:
    """The key of the random stream `name[index]` of a seed.

    Streams are independent of one another and of the order in which they are asked for, so adding
    one changes no other. The generator is fixed to threefry, whose bits are the same on every
    platform, whatever `jax_default_prng_impl` says.

    Args:
        seed: the study's seed, 0 <= seed < 2**32.
        name: what is drawn, for example "init", "split", "order".
        index: zero or more non-negative integers, for example the level.

    Returns:
        A typed PRNG key, shape ().
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))
    for i in index:
        key = jax.random.fold_in(key, i)
    return key
