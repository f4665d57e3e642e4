"""Granularities beyond single weights: output units, and N of every M weights."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lthjax.prune._lowest import absolute, bits_of, order
from lthjax.prune._placing import gathered, placed


def pattern_of(granularity: str) -> tuple[int, int] | None:
    """(N, M) for "N:M", None for "weight" and for units."""
    if granularity in ("weight", "unit-l1", "unit-l2"):
        return None
    match = re.fullmatch(r"(\d+):(\d+)", str(granularity))
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(
            f"granularity: {granularity!r} is not known; it is 'weight', 'unit-l1', 'unit-l2' or 'N:M' "
            "with 0 < N < M, for example '2:4'."
        )
    return int(match[1]), int(match[2])


def check_units(granularity: str) -> None:
    """Raises if the granularity is not that of weights or units, which can be counted."""
    if pattern_of(granularity) is not None:
        raise ValueError(
            f"granularity: {granularity!r} has a density of its own; it is 'weight', 'unit-l1' or 'unit-l2' "
            "here, and prune.by_score takes patterns."
        )


def units_of(
    values: dict[int, jax.Array], masks: dict[int, jax.Array], granularity: str, sizes: bool
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """Scores and mask of output units [1, ..., 1, units]: uint32 ranks over all leaves, and bool."""
    values = {i: gathered(absolute(values[i]) if sizes else values[i]) for i in masks}
    masks = {i: gathered(m) for i, m in masks.items()}
    scored = [_unit_score(values[i], m, granularity == "unit-l2") for i, m in masks.items()]
    ends = np.cumsum([high.size for high, _ in scored])[:-1].tolist()
    ranks = jnp.split(_ranks(*(jnp.concatenate(part) for part in zip(*scored, strict=True))), ends)
    alive = {i: any_alive(m) for i, m in masks.items()}
    return {i: r.reshape(alive[i].shape) for i, r in zip(masks, ranks, strict=True)}, alive


@partial(jax.jit, static_argnums=2)
def _unit_score(value: jax.Array, mask: jax.Array, squared: bool) -> tuple[jax.Array, jax.Array]:
    """The sum of every unit's scores or signed squares, as two keys: signed integers [units], high and low.

    Every unit is scaled by its own largest power of two before the sum: a square may exceed the range of its
    dtype, and the root of the sum would make unequal sums equal.
    """
    value = _widened(jnp.where(mask, value, 0))
    axes = tuple(range(value.ndim - 1))
    digits, exponent = _split(value)
    top = jnp.where(digits != 0, exponent, -(2**14)).max(axis=axes, keepdims=True, initial=-(2**14))
    # Terms below 2**-126 of the unit's largest count as 0; they are far below its last digit.
    scaled = digits.astype(value.dtype) * power_of_two(jnp.maximum(exponent - top, -126), value.dtype)
    total = (scaled * jnp.abs(scaled) if squared else scaled).sum(axis=axes)
    digits, exponent = _split(total.astype(jax.dtypes.canonicalize_dtype(jnp.float64)))
    # Offset, so that positive sums sort after 0, and of two negative sums the larger magnitude sorts first.
    high = exponent + (2 if squared else 1) * top.ravel() + 2**16
    high = jnp.sign(digits) * high.astype(digits.dtype)
    # A unit with NaN counts as highest, whatever the NaN's sign.
    bad = jnp.isnan(value).any(axis=axes)
    return jnp.where(bad, jnp.iinfo(high.dtype).max, high), jnp.where(bad, 0, digits)


def _widened(value: jax.Array) -> jax.Array:
    """The value in float32, or in float64 if JAX has it enabled and float32 has too few digits."""
    whole = not jnp.issubdtype(value.dtype, jnp.floating)
    wide = value.dtype.itemsize > (2 if whole else 4)
    return value.astype(jax.dtypes.canonicalize_dtype(jnp.float64) if wide else jnp.float32)


def _split(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(digits, exponent) with value = digits * 2**exponent: signed integers of the float's width.

    It reads the bits, because compiled programs flush subnormal numbers to 0.
    """
    bits, sign, mantissa = bits_of(value)
    magnitude = bits & ~sign
    biased = magnitude >> mantissa
    digits = (magnitude & ((1 << mantissa) - 1)) | jnp.where(biased > 0, jnp.ones_like(bits) << mantissa, 0)
    signed = jnp.int64 if value.dtype.itemsize == 8 else jnp.int32
    digits = digits.astype(signed) * jnp.where((bits & sign) != 0, -1, 1).astype(signed)
    offset = jnp.finfo(value.dtype).maxexp - 1 + mantissa
    return digits, jnp.maximum(biased.astype(jnp.int32), 1) - int(offset)


def power_of_two(exponent: jax.Array, floats: Any) -> jax.Array:
    """2**exponent, exactly, in dtype float32 or float64; exponent int32, within the normal range."""
    unsigned, mantissa = (jnp.uint64, 52) if floats.itemsize == 8 else (jnp.uint32, 23)
    biased = exponent + (int(jnp.finfo(floats).maxexp) - 1)
    return jax.lax.bitcast_convert_type(biased.astype(unsigned) << mantissa, floats)


@jax.jit
def _ranks(high: jax.Array, low: jax.Array) -> jax.Array:
    """Ranks by two keys, equal for equal keys, uint32 [n]. It sorts, as there are few units."""
    order = jnp.lexsort((low, high))
    step = [
        jnp.concatenate([k[order][:1] != k[order][:1], k[order][1:] != k[order][:-1]]) for k in (high, low)
    ]
    return jnp.zeros(high.shape, jnp.uint32).at[order].set(jnp.cumsum(step[0] | step[1], dtype=jnp.uint32))


def any_alive(mask: jax.Array) -> jax.Array:
    return mask.any(axis=tuple(range(mask.ndim - 1)), keepdims=True)


def prune_pattern(path: str, scores: jax.Array, mask: jax.Array, kept: int, group: int) -> jax.Array:
    """Keeps the `kept` highest of every `group` consecutive weights along the last axis but one."""
    if not fits(mask, group):
        inputs = (
            f"{mask.shape[-2]} inputs, not a multiple of {group}" if mask.ndim > 1 else "one axis, not two"
        )
        raise ValueError(f"granularity: leaf {path!r} has {inputs}; leave it out by a mapping of rates.")

    survivors, scores = grouped(gathered(mask), group), gathered(scores)
    # Pruned weights rank below all others; ties go by lowest index first.
    ranked = jnp.lexsort((grouped(order(scores), group), survivors), axis=-1)
    place = jnp.argsort(ranked, axis=-1)
    return placed(ungrouped(survivors & (place >= group - kept)), mask)


def fits(mask: jax.Array, group: int) -> bool:
    """Whether a leaf has whole groups of so many weights along its last axis but one."""
    return mask.ndim > 1 and mask.shape[-2] % group == 0


def grouped(array: jax.Array, group: int) -> jax.Array:
    """[..., inputs, outputs] -> [..., outputs, inputs / group, group]."""
    last = jnp.moveaxis(array, -2, -1)
    return last.reshape(*last.shape[:-1], -1, group)


def ungrouped(array: jax.Array) -> jax.Array:
    """The inverse of `grouped`."""
    return jnp.moveaxis(array.reshape(*array.shape[:-2], -1), -1, -2)
