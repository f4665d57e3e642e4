"""Evaluates functions beyond the range of their dtype: every array is a mantissa times a power of two.

A function is traced to its primitive operations. Each operation runs on arrays whose largest element is near
1, with one exponent per array. Multiplication by a power of two is exact, so the digits are the same wherever
the function itself stays in range. Differentiation treats exponents as constants.

An attention mask puts the dtype's lowest number or -inf beside logits near 1. Such elements do not set the
exponent, because the logits would then be 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from lthjax.prune._units import power_of_two

PyTree = Any

_PRODUCTS = {"conv_general_dilated", "dot_general", "mul"}
_SUMS = {"add", "add_any", "concatenate", "max", "min", "pad", "select_n", "stack", "sub"}
_COMPARED = {"eq", "ge", "gt", "le", "lt", "ne"}
# Primitives that scale with their first operand; further operands are indices.
_ALIKE = {
    "abs",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "cummax",
    "cumsum",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "neg",
    "reduce_max",
    "reduce_min",
    "reduce_precision",
    "reduce_sum",
    "reduce_window_max",
    "reduce_window_sum",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "transpose",
}
_CALLS = {"checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"}
# Exponent of an array of zeros: below all others, so that it never sets a common exponent.
_NOTHING = -(2**20)


class Wide(NamedTuple):
    """The number array * 2**exponent.

    Attributes:
        array: of any shape.
        exponent: int32, shape (); 0 if the array's dtype is not floating.
    """

    array: jax.Array
    exponent: jax.Array | int


def widened(function: Callable[[PyTree], jax.Array], params: PyTree) -> Wide:
    """The value of a function of a pytree whose intermediate numbers may leave the range of their dtype.

    Loops of fixed length (`scan`) carry exponents from step to step. Other loops, and operations without a
    fixed scaling (for example `exp`), run on the plain numbers and must stay in range.

    Args:
        function: pytree -> array.
        params: a pytree of arrays.
    """
    traced = jax.make_jaxpr(function)(params)
    arguments = [_normal(leaf, 0) for leaf in jax.tree.leaves(params)]
    (value,) = _evaluate(traced.jaxpr, [_normal(c, 0) for c in traced.consts], arguments)
    return value


def _evaluate(jaxpr: Any, consts: Sequence[Wide], arguments: Sequence[Wide]) -> list[Wide]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Wide:
        return _written(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _apply(eqn, [read(atom) for atom in eqn.invars]), strict=True)
    return [read(out) for out in jaxpr.outvars]


def _written(value: Any) -> Wide:
    """The value of a literal, which carries its own dtype."""
    array = jnp.asarray(value)
    return Wide(array, _NOTHING if _floating(array) and array.ndim == 0 and value == 0 else 0)


def _apply(eqn: Any, operands: list[Wide]) -> list[Wide]:
    """Applies one operation."""
    name = eqn.primitive.name
    exponents = [operand.exponent for operand in operands]
    if name in _CALLS:
        called = eqn.params["jaxpr"]
        consts = [_normal(c, 0) for c in getattr(called, "consts", ())]
        return _evaluate(getattr(called, "jaxpr", called), consts, operands)
    if name == "scan":
        return _scan(eqn, operands)
    if name in _PRODUCTS:
        return _bind(eqn, operands, exponents[0] + exponents[1])
    if name == "div":
        return _bind(eqn, operands, exponents[0] - exponents[1])
    if name in _ALIKE and _floating(operands[0].array) == _floating(eqn.outvars[0].aval):
        return [Wide(out, exponents[0]) for out in _call(eqn, operands)]
    if name in _COMPARED:
        common = _highest(exponents)
        return [Wide(out, 0) for out in _call(eqn, [_shift(operand, common) for operand in operands])]
    if name in _SUMS:
        choice, terms = (operands[:1], operands[1:]) if name == "select_n" else ([], operands)
        common = _highest([term.exponent for term in terms])
        shifted = [_shift(term, common) for term in terms]
        made = _call(eqn, [*choice, *shifted])
        # A difference, or the maximum of a negative number and 0, may be far below its operands.
        return [_normal(out, common) if name in ("max", "min", "sub") else Wide(out, common) for out in made]
    degrees = _opaque(eqn)
    if degrees is None:
        return _bind(eqn, [Wide(_plain(operand), 0) for operand in operands], 0)
    sums = [sum((n * e for n, e in zip(of, exponents, strict=True) if n), start=0) for of in degrees]
    return [_normal(out, e) for out, e in zip(_call(eqn, operands), sums, strict=True)]


def _scan(eqn: Any, operands: Sequence[Wide]) -> list[Wide]:
    """A loop of fixed length; what it carries has an exponent of its own in every step."""
    body, fixed = eqn.params["jaxpr"], eqn.params["num_consts"]
    first = fixed + eqn.params["num_carry"]
    consts = [_normal(c, 0) for c in body.consts]

    def step(carry: list[Wide], arrays: list[jax.Array]) -> tuple[list[Wide], list[Wide]]:
        slices = [_normal(array, of.exponent) for array, of in zip(arrays, operands[first:], strict=True)]
        made = _evaluate(body.jaxpr, consts, [*operands[:fixed], *carry, *slices])
        made = [_counted(_normal(*one)) for one in made]
        return made[: first - fixed], made[first - fixed :]

    carry, stacked = jax.lax.scan(
        step,
        [*map(_counted, operands[fixed:first])],
        [operand.array for operand in operands[first:]],
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
    )
    return [*carry, *map(_in_common, stacked)]


def _counted(number: Wide) -> Wide:
    """The number with its exponent as an array, whose type a loop keeps."""
    return Wide(number.array, jnp.asarray(number.exponent, jnp.int32))


def _in_common(stacked: Wide) -> Wide:
    """Arrays [n, ...] with an exponent each, int32 [n], as one number; far below the largest they are 0."""
    if not _floating(stacked.array):
        return Wide(stacked.array, 0)
    common = jnp.max(stacked.exponent, initial=_NOTHING)
    return _normal(jax.vmap(lambda one: _lowered(one, common).array)(stacked), common)


def _call(eqn: Any, operands: Sequence[Wide]) -> list[jax.Array]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # A pair up to jax 0.9.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    made = eqn.primitive.bind(*functions, *(operand.array for operand in operands), **params)
    return made if eqn.primitive.multiple_results else [made]


def _bind(eqn: Any, operands: Sequence[Wide], exponent: jax.Array | int) -> list[Wide]:
    return [_normal(out, exponent) for out in _call(eqn, operands)]


def _floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _normal(array: Any, exponent: jax.Array | int) -> Wide:
    """The same number, with a mantissa array whose largest magnitude is in [1, 2), but for `_masking`."""
    array = jnp.asarray(array)
    return _scaled(array, exponent) if _floating(array) and array.size else Wide(array, 0)


@jax.jit
def _scaled(array: jax.Array, exponent: jax.Array | int) -> Wide:
    masking = array <= _masking(array.dtype)
    largest = jax.lax.stop_gradient(jnp.where(masking, 0, jnp.abs(array)).max())
    bits = jax.lax.bitcast_convert_type(largest.astype(jnp.float32), jnp.int32)
    # The exponent's bits; non-finite values stay non-finite and show in the result.
    power = jnp.minimum(bits & 0x7F800000, 253 << 23)
    # Zeros beside such elements are a mask that is added to logits: it stays as it is.
    power = jnp.where((largest == 0) & masking.any(), 127 << 23, power)
    inverse = jax.lax.bitcast_convert_type((254 << 23) - power, jnp.float32)
    exponent = jnp.where((largest == 0) & ~masking.any(), _NOTHING, exponent + (power >> 23) - 127)
    scaled = _times(array, inverse)
    # Finite ones stay finite: where a whole row is masked, its maximum is subtracted from it.
    finite = masking & jnp.isfinite(array)
    return Wide(jnp.where(finite, jnp.maximum(scaled, jnp.finfo(array.dtype).min), scaled), exponent)


def _masking(dtype: Any) -> float:
    """The number at or below which an element is one of a mask: -2**100, in float16 -2**14."""
    return -(2.0 ** min(100, int(jnp.finfo(dtype).maxexp) - 2))


def _times(array: jax.Array, factor: jax.Array) -> jax.Array:
    """An array times a float32 that may exceed the range of the array's dtype."""
    wide = jnp.promote_types(array.dtype, jnp.float32)
    return (array.astype(wide) * factor.astype(wide)).astype(array.dtype)


def _shift(number: Wide, exponent: jax.Array | int) -> Wide:
    """The same number with a higher exponent."""
    return _lowered(number, exponent) if _floating(number.array) else number


@jax.jit
def _lowered(number: Wide, exponent: jax.Array | int) -> Wide:
    by = jnp.maximum(number.exponent - exponent + 127, 0)
    return Wide(_times(number.array, jax.lax.bitcast_convert_type(by << 23, jnp.float32)), exponent)


def _plain(number: Wide) -> jax.Array:
    """The number as a plain array: infinite if it is out of range."""
    return at_exponent(number.array, number.exponent) if _floating(number.array) else number.array


def at_exponent(array: jax.Array, exponent: jax.Array | int) -> jax.Array:
    """array * 2**exponent, in steps that stay in range."""
    for _ in range(3):
        by = jnp.clip(jnp.asarray(exponent, jnp.int32), -100, 100)
        array = _times(array, power_of_two(by, jnp.dtype(jnp.float32)))
        exponent = exponent - by
    return array


def _highest(exponents: Sequence[jax.Array | int]) -> jax.Array:
    highest = jnp.asarray(exponents[0], jnp.int32)
    for exponent in exponents[1:]:
        highest = jnp.maximum(highest, exponent)
    return highest


class _Mixed(Exception):
    """An operation without a fixed scaling of its result with its operands."""


def _opaque(eqn: Any) -> list[tuple[int, ...]] | None:
    """The degree of every output in every operand, for functions with their own gradient and for branches.

    Such functions are called unchanged on mantissas. None if there is no such degree.
    """
    name, count = eqn.primitive.name, len(eqn.invars)
    if name not in ("cond", "custom_jvp_call", "custom_vjp_call", "optimization_barrier"):
        return None
    unit = [_unit(atom, i, count) for i, atom in enumerate(eqn.invars)]
    try:
        found = _degrees_of(eqn, unit, (0,) * count)
    except _Mixed:
        return None
    return [of or (0,) * count for of in found]


def _unit(atom: Any, i: int, count: int) -> tuple[int, ...] | None:
    if isinstance(atom, Literal):
        return None if jnp.ndim(atom.val) == 0 and atom.val == 0 else (0,) * count
    return tuple(int(i == j) for j in range(count)) if _floating(atom.aval) else (0,) * count


def _degrees(jaxpr: Any, given: Sequence[Any], none: tuple[int, ...]) -> list[Any]:
    """The degrees of a jaxpr's outputs; None stands for 0, which has any degree."""
    known = dict.fromkeys(jaxpr.constvars, none) | dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return None if jnp.ndim(atom.val) == 0 and atom.val == 0 else none
        return known[atom]

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _degrees_of(eqn, [read(a) for a in eqn.invars], none), strict=True)
    return [read(out) for out in jaxpr.outvars]


def _degrees_of(eqn: Any, given: list[Any], none: tuple[int, ...]) -> list[Any]:
    name = eqn.primitive.name
    if name in _CALLS or name in ("custom_jvp_call", "custom_vjp_call"):
        called = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        return _degrees(getattr(called, "jaxpr", called), given, none)
    if name == "cond":
        found = [_degrees(branch.jaxpr, given[1:], none) for branch in eqn.params["branches"]]
        return [_same(of) for of in zip(*found, strict=True)]
    if name == "optimization_barrier":
        return given
    if name in _PRODUCTS:
        return [None if None in given else tuple(map(sum, zip(*given, strict=True)))]
    if name in _ALIKE:
        return [given[0]] * len(eqn.outvars)
    if name in _SUMS:
        return [_same(given[1:] if name == "select_n" else given)]
    if name in _COMPARED:
        _same(given)
        return [none]
    if any(of not in (None, none) for of in given):
        raise _Mixed
    return [none] * len(eqn.outvars)


def _same(given: Sequence[Any]) -> Any:
    """The common degree of all entries that are not zero."""
    distinct = {of for of in given if of is not None}
    if len(distinct) > 1:
        raise _Mixed
    return distinct.pop() if distinct else None
