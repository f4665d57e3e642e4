"""Removes exactly the k lowest of many numbers, by bisection on their bits; sharded arrays stay in place."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lthjax.prune._placing import placed


@jax.jit
def absolute(value: jax.Array) -> jax.Array:
    """Absolute values; those of signed integers are unsigned, because int8 has no 128."""
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.signedinteger):
        return jnp.abs(value)
    unsigned = jax.lax.bitcast_convert_type(value, jnp.dtype(f"u{value.dtype}"))
    return jnp.where(value < 0, 0 - unsigned, unsigned)


def _common(dtypes: Sequence[Any]) -> Any:
    """The dtype in which leaves of different dtypes are ranked together."""
    common = jnp.result_type(*dtypes)
    # Signed and unsigned integers, or integers and floats, may have no common dtype that is wide enough.
    alike = any(
        all(jnp.issubdtype(d, kind) for d in dtypes) for kind in (jnp.unsignedinteger, jnp.signedinteger)
    )
    return common if alike or len({*dtypes}) == 1 else jnp.promote_types(common, jnp.float32)


def bits_of(value: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """(bits of a float, its sign bit, width of its mantissa), for float32 and float64."""
    wide = value.dtype.itemsize == 8
    unsigned = jnp.uint64 if wide else jnp.uint32
    bits = jax.lax.bitcast_convert_type(value, unsigned)
    return bits, jnp.array(1 << (63 if wide else 31), unsigned), 52 if wide else 23


@jax.jit
def order(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the same order as the scores; -0 equals 0, NaN is highest."""
    scores = jnp.asarray(scores)
    width = 64 if scores.dtype.itemsize == 8 else 32
    unsigned = jnp.uint64 if width == 64 else jnp.uint32
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger) or scores.dtype == bool:
        return scores.astype(unsigned)
    if jnp.issubdtype(scores.dtype, jnp.integer):
        signed = scores.astype(jnp.int64 if width == 64 else jnp.int32)
        bits = jax.lax.bitcast_convert_type(signed, unsigned)
        return bits ^ jnp.array(1 << (width - 1), unsigned)
    # On the bits: compiled programs flush subnormal numbers to 0.
    bits, sign, _ = bits_of(scores.astype(jnp.float64 if width == 64 else jnp.float32))
    bits = jnp.where(bits == sign, 0, bits)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where(jnp.isnan(scores), ~jnp.zeros_like(bits), ordered)


def remove_lowest(
    values: Sequence[Any], kept: Sequence[Any], removed: int | jax.Array, sizes: bool = False
) -> list[jax.Array]:
    """`kept` with exactly `removed` of its True entries set to False: those with the lowest values of all.

    Args:
        values: arrays of real numbers.
        kept: their masks, bool of the same shapes.
        removed: number of entries to remove, at most the number that is True; may be traced.
        sizes: whether the values' absolute values count.
    """
    total = sum(m.size for m in kept)
    if total >= 2**31 // 10:
        raise ValueError(
            f"mask: {total:,} weights are ranked together; counts are exact below {2**31 // 10:,}. Prune "
            "layer by layer, or split the leaf."
        )
    return _remove_lowest(list(values), list(kept), removed, sizes)


@partial(jax.jit, static_argnums=3)
def _remove_lowest(
    values: list[jax.Array], kept: list[jax.Array], removed: int | jax.Array, sizes: bool
) -> list[jax.Array]:
    """Bisection over the key's bits finds the largest key to remove; ties at that key go by lowest index.

    It reads the keys once per bit and does not sort; nothing is moved between leaves or devices but counts.
    """
    values = [absolute(v) if sizes else jnp.asarray(v) for v in values]
    common = _common([v.dtype for v in values])
    keys = [order(v.astype(common)) for v in values]

    def below(limit: jax.Array) -> jax.Array:
        return _counted(m & (k < limit) for k, m in zip(keys, kept, strict=True))

    def narrow(i: jax.Array, threshold: jax.Array) -> jax.Array:
        bit = jnp.array(1, threshold.dtype) << (width - 1 - i).astype(threshold.dtype)
        return jnp.where(below(threshold | bit) < removed, threshold | bit, threshold)

    width = keys[0].dtype.itemsize * 8
    threshold = jax.lax.fori_loop(0, width, narrow, jnp.zeros((), keys[0].dtype))
    quota = removed - below(threshold)
    equal = [m & (k == threshold) for k, m in zip(keys, kept, strict=True)]
    before = _first(equal, quota)
    return [
        m & ~((k < threshold) | (e & (place < before)))
        for k, m, e, place in zip(keys, kept, equal, _places(kept), strict=True)
    ]


def _first(equal: list[jax.Array], quota: jax.Array) -> jax.Array:
    """The place before which lie exactly `quota` entries that are True, int32 of shape ()."""
    top = sum(e.size for e in equal).bit_length()

    def more(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0] >= 0

    def narrow(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bit, found = carry
        # That 0 depends on the loop, or the compiler makes the places before it, and holds them in memory.
        candidate = found | (jnp.int32(1) << bit)
        before = _counted(
            e & (place < candidate)
            for e, place in zip(equal, _places(equal, jnp.minimum(bit, 0)), strict=True)
        )
        return bit - 1, jnp.where(before <= quota, candidate, found)

    # Few numbers are equal: where all of them go, there is nothing to look for.
    whole = quota >= _counted(equal)
    start = (jnp.where(whole, -1, jnp.int32(top - 1)), jnp.where(whole, jnp.int32(2**top - 1), 0))
    return jax.lax.while_loop(more, narrow, start)[1]


def _counted(flags: Any) -> jax.Array:
    """The number of True entries in all arrays, int32 of shape ()."""
    return sum((of.sum(dtype=jnp.int32) for of in flags), start=jnp.zeros((), jnp.int32))


def _places(arrays: Sequence[jax.Array], zero: int | jax.Array = 0) -> list[jax.Array]:
    """The place of every entry, row by row and array by array, int32 of the arrays' shapes."""
    places, start = [], 0
    for array in arrays:
        place, step = jnp.full(array.shape, start, jnp.int32) + zero, 1
        for axis in reversed(range(array.ndim)):
            place += step * (jax.lax.broadcasted_iota(jnp.int32, array.shape, axis) + zero)
            step *= array.shape[axis]
        places.append(placed(place, array))
        start += array.size
    return places
