"""Removes exactly the k lowest of many numbers, by a search on their bits; sharded arrays stay in place."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    if len({*dtypes}) > 1:
        dtypes = [*map(_promoted, dtypes)]
    common = jnp.result_type(*dtypes)
    # Signed and unsigned integers, or integers and floats, may have no common dtype that is wide enough.
    alike = any(
        all(jnp.issubdtype(d, kind) for d in dtypes) for kind in (jnp.unsignedinteger, jnp.signedinteger)
    )
    return common if alike or len({*dtypes}) == 1 else jnp.promote_types(common, jnp.float32)


def _promoted(dtype: Any) -> Any:
    """The dtype, or a wider one for those of a byte or less that JAX does not promote beside others."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8:
        return jnp.dtype(jnp.float32)
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8:
        return jnp.dtype(jnp.uint8 if jnp.issubdtype(dtype, jnp.unsignedinteger) else jnp.int8)
    return dtype


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

    It searches the bound below which exactly `removed` entries lie, two bits in every pass over the values:
    first a key, then, where more entries than one have it, a place, so that of equal values the first go.
    Nothing is sorted, and nothing is moved between leaves or devices but counts. Traced, it is part of the
    program; else a pass is compiled once for all leaves of a shape.

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
    # Inside a traced function an operation on known arrays is traced, too.
    traced = any(isinstance(x, jax.core.Tracer) for x in (*values, *kept, removed, jnp.zeros(())))
    values, kept = [*map(jnp.asarray, values)], [*map(jnp.asarray, kept)]
    common = _common([jax.eval_shape(absolute, v).dtype if sizes else v.dtype for v in values])
    starts = np.cumsum([0, *(m.size for m in kept)], dtype=np.int32)
    leaves = [*zip(values, kept, starts, strict=False)]
    kind = jax.eval_shape(lambda v: order(v.astype(common)), values[0]).dtype

    def by_key(keys: Any, now: Any) -> list[jax.Array]:
        return [_counted(*leaf, keys, None, now, common, sizes) for leaf in leaves]

    def by_place(places: Any, now: Any) -> list[jax.Array]:
        return [_counted(*leaf, key, places, now, common, sizes) for leaf in leaves]

    # In `shard_map` the number varies over the axes of the mesh that the values vary over.
    zeros = [jnp.zeros_like(x, jnp.int32, shape=()) for x in (*values, *kept)] if traced else []
    most = sum(zeros, removed) if traced else np.asarray(removed)
    key, below = _highest(by_key, most, 0, 8 * kind.itemsize, kind, traced)
    place = None
    if traced or below < most:
        place, _ = _highest(by_place, most, below, total.bit_length(), np.dtype(np.int32), traced)
    return [_above(*leaf, key, place, common, sizes) for leaf in leaves]


def _highest(
    counted: Callable[[Any, Any], list[jax.Array]],
    most: Any,
    count: Any,
    bits: int,
    dtype: np.dtype,
    traced: bool,
) -> tuple[Any, Any]:
    """(the highest bound below which at most so many entries lie, their number), of shape ().

    Args:
        counted: (three bounds [3], number of the pass) -> entries below each, an int32 [3] for every leaf.
        most: the highest number of entries; once it is met, lower bits stay 0.
        count: the number of entries below the bound 0.
        bits: of the bound; rounded up to an even number.
        dtype: of the bound, an integer.
        traced: whether a compiled loop makes the passes; else the results are numpy's.
    """
    xp, passes = jnp if traced else np, (bits + 1) // 2

    def unfinished(state: tuple[Any, Any, Any]) -> Any:
        return (state[0] < passes) & (state[2] < most)

    def narrow(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        i, found, count = state
        shift = (2 * (passes - 1 - i)).astype(dtype)
        bounds = found | (xp.array([1, 2, 3], dtype) << shift)
        counts = sum(map(xp.asarray, counted(bounds, i)))
        fits = counts <= most
        return i + 1, xp.where(fits, bounds, found).max(), xp.where(fits, counts, count).max()

    state = xp.zeros((), np.int32), xp.zeros_like(most, dtype), count + xp.zeros_like(most, np.int32)
    if traced:
        state = jax.lax.while_loop(unfinished, narrow, state)
    else:
        while unfinished(state):
            state = narrow(state)
    return state[1:]


@partial(jax.jit, static_argnums=(6, 7))
def _counted(
    value: jax.Array,
    kept: jax.Array,
    start: jax.Array,
    keys: jax.Array,
    places: jax.Array | None,
    now: jax.Array,
    common: np.dtype,
    sizes: bool,
) -> jax.Array:
    """How many kept entries lie below three bounds, int32 [3]: keys [3], or with one key [] places [3]."""
    # What is made of the value is bound to the pass: else it is made before the loop, and kept in memory.
    value, zero, _ = jax.lax.optimization_barrier((value, jnp.zeros((), jnp.int32), now))
    bounds = [(key, None) for key in keys] if places is None else [(keys, place) for place in places]
    key, place = _key(value, common, sizes), None if places is None else _place(kept, start, zero)
    return jnp.stack(count_all([kept & _below(key, place, *bound) for bound in bounds]))


@partial(jax.jit, static_argnums=(5, 6))
def _above(
    value: jax.Array,
    kept: jax.Array,
    start: jax.Array,
    key: jax.Array,
    place: jax.Array | None,
    common: np.dtype,
    sizes: bool,
) -> jax.Array:
    """Which kept entries do not lie below a bound."""
    own = None if place is None else _place(kept, start, 0)
    return kept & ~_below(_key(value, common, sizes), own, key, place)


def _key(value: jax.Array, common: np.dtype, sizes: bool) -> jax.Array:
    return order((absolute(value) if sizes else value).astype(common))


def _below(key: jax.Array, place: jax.Array | None, key_bound: Any, place_bound: Any) -> jax.Array:
    """Which entries have a lower key than the bound's, or the same one and a lower place."""
    lower = key < key_bound
    return lower if place is None else lower | ((key == key_bound) & (place < place_bound))


def _place(array: jax.Array, start: jax.Array, zero: int | jax.Array) -> jax.Array:
    """The place of every entry, row by row from a start, int32 of the array's shape."""
    place, step = jnp.broadcast_to(start + zero, array.shape), 1
    for axis in reversed(range(array.ndim)):
        place += step * (jax.lax.broadcasted_iota(jnp.int32, array.shape, axis) + zero)
        step *= array.shape[axis]
    return placed(place, array)


def count_all(flags: Sequence[jax.Array]) -> list[jax.Array]:
    """The number of True entries of two or more bool arrays of one shape, int32 of shape () each.

    They are counted in one reduction: of a reduction to a single number XLA:CPU writes the terms to memory
    first, 4 bytes each.
    """
    terms = tuple(flag.astype(jnp.int32) for flag in flags)
    zeros = (jnp.zeros((), jnp.int32),) * len(terms)
    return list(jax.lax.reduce(terms, zeros, partial(jax.tree.map, jnp.add), tuple(range(terms[0].ndim))))
