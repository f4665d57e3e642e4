"""Masks, exact selection of k weights, and the optimiser that keeps them. Public through `lthjax.prune`."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from numbers import Real
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Scope = Literal["layer", "global"]
Rate = float | Mapping[str, float] | Iterable[tuple[str, float]]


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [_path(p) for p, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def ones(params: PyTree, prunable: str | Callable[[str, jax.Array], bool] | None = None) -> PyTree:
    """The mask that keeps everything.

    Args:
        params: any pytree of arrays.
        prunable: which leaves may be pruned: a regex searched in the path, or a predicate on
            (path, leaf). By default the leaves of two or more dimensions: weights, not biases and
            not the scales of normalisation layers.

    Returns:
        The mask: bool of the leaf's shape where prunable, else the 0-d bool True.

    Raises:
        ValueError: `prunable` is a regex that matches no leaf.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    if prunable is None:
        keep = [jnp.ndim(leaf) >= 2 for _, leaf in leaves]
    elif isinstance(prunable, str):
        keep = [re.search(prunable, _path(p)) is not None for p, _ in leaves]
        if not any(keep):
            raise ValueError(f"prunable: the regex {prunable!r} matches none of the paths {paths(params)}.")
    else:
        keep = [bool(prunable(_path(p), leaf)) for p, leaf in leaves]
    masks = [jnp.ones(jnp.shape(leaf) if k else (), bool) for (_, leaf), k in zip(leaves, keep, strict=True)]
    return jax.tree.unflatten(treedef, masks)


def apply(params: PyTree, mask: PyTree) -> PyTree:
    """The parameters with pruned weights set to exactly 0 (never -0, even where they are NaN).

    Args:
        params: a pytree of arrays.
        mask: its mask.
    """
    check(params, mask)
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def magnitude(
    params: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the smallest surviving weights by absolute value.

        >>> mask = magnitude({"w": jnp.array([[3.0, -1.0, 2.0, -4.0]])}, ones({"w": jnp.zeros((1, 4))}), 0.5)
        >>> mask["w"].tolist()
        [[True, False, False, True]]

    Args:
        params: a pytree of arrays.
        mask: its mask; pruned weights stay pruned.
        rate: the share of the survivors to remove, in [0, 1]: one number, or a mapping (or pairs)
            from a regex on the path to a number. The first match wins; a leaf that none matches is
            not pruned. With scope "global" one number.
        scope: "layer" removes the share in every leaf; "global" over all leaves together, without
            any normalisation between layers.
        granularity: what is removed at a time. "weight"; "unit-l1" or "unit-l2": all weights of an
            output unit or filter (the last axis), by the sum or the Euclidean norm of its
            survivors, the rate then being of units; "N:M", for example "2:4": of every M
            consecutive weights along the input axis (the last but one) the N highest stay, for
            which the rate has to be 1 - N/M and the scope "layer".

    Returns:
        The new mask, in which exactly floor(rate * n + 1/2) of n survivors are gone, the rate taken
        as the decimal that it was written as; of equal weights the lowest index goes first.

    Raises:
        ValueError: as `by_score`; so weights that are NaN or infinite cannot be ranked.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2 (layer) and appendix (global); units:
    Li et al. 2017 (arXiv 1608.08710); N:M: Mishra et al. 2021 (arXiv 2104.08378).
    """
    check(params, mask)
    sizes = jax.tree.map(lambda m, p: _absolute(p) if jnp.ndim(m) else p, mask, params)
    return by_score(sizes, mask, rate, scope=scope, granularity=granularity)


def by_score(
    scores: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the survivors of the lowest scores; otherwise as `magnitude`.

    Args:
        scores: a pytree of the mask's treedef, real numbers of the leaves' shapes. Those of survivors
            are finite. Under `jit` and `vmap` that cannot be seen: there NaN counts as highest. With
            scope "global" leaves of different dtypes are promoted to one.
        mask: as for `magnitude`.
        rate: as for `magnitude`.
        scope: as for `magnitude`.
        granularity: as for `magnitude`. A unit's score is the sum of its survivors' scores, for
            "unit-l2" of their squares with their signs, in float32 or wider; a square may be beyond
            the range of its dtype.

    Raises:
        ValueError: a rate outside [0, 1], a mapping of rates with scope "global", an unknown scope
            or granularity, scores that do not fit the mask, or of survivors in a leaf that is to be
            pruned some that are not finite.
    """
    check(scores, mask)
    if scope == "global" and not isinstance(rate, Real):
        raise ValueError("rate: with scope 'global' it is one number for all layers.")
    rates = rates_of(rate, paths(mask))
    pattern = _pattern(granularity)
    if pattern is None:
        alive = survivors(mask, scope, granularity)
        going = [count(r, left) for r, (left, _) in zip(rates, alive, strict=False)]
        return remove_counted(scores, mask, going, scope=scope, granularity=granularity)
    kept, group = pattern
    if scope != "layer":
        raise ValueError(f"scope: with granularity {granularity!r} it is 'layer', not {scope!r}.")
    for r in rates:
        if r and not math.isclose(r, 1 - kept / group):
            raise ValueError(f"rate: with granularity {granularity!r} it is {1 - kept / group:g}, not {r!r}.")
    check_finite(scores, mask, list(rates))
    leaves, treedef = jax.tree.flatten(mask)
    pruned = [
        _prune_pattern(path, v, m, kept, group) if jnp.ndim(m) and r else m
        for path, v, m, r in zip(paths(mask), jax.tree.leaves(scores), leaves, rates, strict=True)
    ]
    return jax.tree.unflatten(treedef, pruned)


def to_density(
    scores: PyTree, mask: PyTree, density: float, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the survivors of the lowest scores until a density is reached.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        density: what is left of all prunable weights (units), in [0, 1]: floor(density * n + 1/2) of n, of
            every layer or of all together. Where no more than that survive, nothing goes.
        scope: as for `by_score`.
        granularity: "weight", "unit-l1" or "unit-l2".

    Returns:
        The new mask.

    Raises:
        ValueError: as `by_score`.
    """
    check(scores, mask)
    if _pattern(granularity) is not None:
        raise ValueError(f"granularity: {granularity!r} has a density of its own; use by_score.")
    check_density(density)
    going = [
        jnp.maximum(left - count(float(str(density)), size), 0)
        for left, size in survivors(mask, scope, granularity)
    ]
    return remove_counted(scores, mask, going, scope=scope, granularity=granularity)


def survivors(
    mask: PyTree, scope: Scope = "layer", granularity: str = "weight"
) -> list[tuple[jax.Array, int]]:
    """(prunable weights left, prunable weights) of every leaf, or, with scope "global", of all as one.

    Args:
        mask: the mask; (0, 0) for a leaf that may not be pruned.
        scope: "layer" or "global".
        granularity: "weight", or of a unit: then units with any weight left.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"scope: {scope!r} is not known; it is 'layer' or 'global'.")
    leaves = jax.tree.leaves(mask)
    if granularity != "weight":
        leaves = [_alive(m) if jnp.ndim(m) else m for m in leaves]
    counted = [
        (m.sum(dtype=jnp.int32), m.size) if jnp.ndim(m) else (jnp.zeros((), jnp.int32), 0) for m in leaves
    ]
    if scope == "layer":
        return counted
    left = sum((left for left, _ in counted), start=jnp.zeros((), jnp.int32))
    return [(left, sum(size for _, size in counted))]


def remove_counted(
    scores: PyTree,
    mask: PyTree,
    going: Sequence[int | jax.Array],
    *,
    scope: Scope = "layer",
    granularity: str = "weight",
) -> PyTree:
    """Prunes exactly so many survivors, those of the lowest scores.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        going: how many weights (units) go of every leaf, or, with scope "global", one number; at most
            as many as survive; may be traced, so that one program serves any counts.
        scope: as for `by_score`.
        granularity: as for `by_score`, but not "N:M".

    Returns:
        The new mask.

    Raises:
        ValueError: scores that do not fit the mask, or are not finite, as for `by_score`.
    """
    check(scores, mask)
    check_finite(scores, mask, going if scope == "layer" else [going[0]] * len(jax.tree.leaves(mask)))
    whole, treedef = jax.tree.flatten(mask)
    prunable = [i for i, m in enumerate(whole) if jnp.ndim(m)]
    values, masks = dict(enumerate(jax.tree.leaves(scores))), {i: whole[i] for i in prunable}
    if granularity != "weight" and prunable:
        values, masks = _units(values, masks, granularity)
    if scope == "global" and prunable:
        common = _common([jnp.asarray(values[i]).dtype for i in prunable])
        keys = jnp.concatenate([_order(jnp.asarray(values[i], common)).ravel() for i in prunable])
        flat = jnp.concatenate([masks[i].ravel() for i in prunable])
        kept = _remove_lowest(keys, flat, going[0])
        ends = np.cumsum([masks[i].size for i in prunable])[:-1].tolist()
        parts = dict(zip(prunable, jnp.split(kept, ends), strict=True))
    else:
        parts = {i: _remove_lowest(_order(values[i]).ravel(), masks[i].ravel(), going[i]) for i in prunable}
    for i in prunable:
        # A unit's mask is spread over its weights by broadcasting along the last axis.
        whole[i] = whole[i] & parts[i].reshape(masks[i].shape)
    return jax.tree.unflatten(treedef, whole)


def _units(
    values: dict[int, jax.Array], masks: dict[int, jax.Array], granularity: str
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """Scores and mask of output units [1, ..., 1, units]: uint32, ranks in all leaves together, and bool."""
    scored = [_unit_score(values[i], m, granularity == "unit-l2") for i, m in masks.items()]
    ends = np.cumsum([high.size for high, _ in scored])[:-1].tolist()
    ranks = jnp.split(_ranks(*(jnp.concatenate(part) for part in zip(*scored, strict=True))), ends)
    alive = {i: _alive(m) for i, m in masks.items()}
    return {i: r.reshape(alive[i].shape) for i, r in zip(masks, ranks, strict=True)}, alive


@partial(jax.jit, static_argnums=2)
def _unit_score(value: jax.Array, mask: jax.Array, squared: bool) -> tuple[jax.Array, jax.Array]:
    """The sum of every unit's scores or signed squares, as two keys: signed integers [units], high and low.

    Every unit is added up in units of its own largest power of two: a square may be beyond the range of
    its dtype, and a norm of the square would make unequal sums equal.
    """
    value = _widened(jnp.where(mask, value, 0))
    axes = tuple(range(value.ndim - 1))
    digits, exponent = _split(value)
    top = jnp.where(digits != 0, exponent, -(2**14)).max(axis=axes, keepdims=True, initial=-(2**14))
    # Terms below 2**-126 of the unit's largest count as nothing; they are far below its last digit.
    scaled = digits.astype(value.dtype) * power_of_two(jnp.maximum(exponent - top, -126), value.dtype)
    total = (scaled * jnp.abs(scaled) if squared else scaled).sum(axis=axes)
    digits, exponent = _split(total.astype(jax.dtypes.canonicalize_dtype(jnp.float64)))
    # Offset, so that all that are positive come after 0, and of two negative ones the larger before.
    high = exponent + (2 if squared else 1) * top.ravel() + 2**16
    return jnp.sign(digits) * high.astype(digits.dtype), digits


def _widened(value: jax.Array) -> jax.Array:
    """In float32, or in float64 where JAX has it on and float32 has too few digits."""
    whole = not jnp.issubdtype(value.dtype, jnp.floating)
    wide = value.dtype.itemsize > (2 if whole else 4)
    return value.astype(jax.dtypes.canonicalize_dtype(jnp.float64) if wide else jnp.float32)


def _split(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(digits, exponent) with value = digits * 2**exponent: signed integers of the float's width.

    From the bits, as compiled programs take numbers below the normal range for 0.
    """
    bits, sign, mantissa = _bits(value)
    magnitude = bits & ~sign
    biased = magnitude >> mantissa
    digits = (magnitude & ((1 << mantissa) - 1)) | jnp.where(biased > 0, jnp.ones_like(bits) << mantissa, 0)
    signed = jnp.int64 if value.dtype.itemsize == 8 else jnp.int32
    digits = digits.astype(signed) * jnp.where((bits & sign) != 0, -1, 1).astype(signed)
    offset = jnp.finfo(value.dtype).maxexp - 1 + mantissa
    return digits, jnp.maximum(biased.astype(jnp.int32), 1) - int(offset)


def power_of_two(exponent: jax.Array, floats: Any) -> jax.Array:
    """2**exponent, exactly, of a dtype that is float32 or float64; int32, within the normal range."""
    unsigned, mantissa = (jnp.uint64, 52) if floats.itemsize == 8 else (jnp.uint32, 23)
    biased = exponent + (int(jnp.finfo(floats).maxexp) - 1)
    return jax.lax.bitcast_convert_type(biased.astype(unsigned) << mantissa, floats)


@jax.jit
def _ranks(high: jax.Array, low: jax.Array) -> jax.Array:
    """Ranks by two keys, the same for the same, uint32 [n]. Units are few enough to be sorted."""
    order = jnp.lexsort((low, high))
    step = [
        jnp.concatenate([k[order][:1] != k[order][:1], k[order][1:] != k[order][:-1]]) for k in (high, low)
    ]
    return jnp.zeros(high.shape, jnp.uint32).at[order].set(jnp.cumsum(step[0] | step[1], dtype=jnp.uint32))


def _alive(mask: jax.Array) -> jax.Array:
    return mask.any(axis=tuple(range(mask.ndim - 1)), keepdims=True)


def _pattern(granularity: str) -> tuple[int, int] | None:
    """(N, M) of "N:M", None of "weight" and of units."""
    if granularity in ("weight", "unit-l1", "unit-l2"):
        return None
    match = re.fullmatch(r"(\d+):(\d+)", granularity)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(
            f"granularity: {granularity!r} is not known; it is 'weight', 'unit-l1', 'unit-l2' or 'N:M' "
            "with 0 < N < M, for example '2:4'."
        )
    return int(match[1]), int(match[2])


def _prune_pattern(path: str, scores: jax.Array, mask: jax.Array, kept: int, group: int) -> jax.Array:
    """Of every `group` consecutive weights along the last axis but one, the `kept` highest."""
    if mask.shape[-2] % group:
        raise ValueError(
            f"granularity: leaf {path!r} has {mask.shape[-2]} inputs, not a multiple of {group}; leave it "
            "out by a mapping of rates."
        )

    def groups(array: jax.Array) -> jax.Array:
        last = jnp.moveaxis(array, -2, -1)
        return last.reshape(*last.shape[:-1], -1, group)

    survivors = groups(mask)
    # Pruned weights rank below all others; of equal ones the lowest index ranks lowest.
    ranked = jnp.lexsort((groups(_order(scores)), survivors), axis=-1)
    place = jnp.argsort(ranked, axis=-1)
    stays = survivors & (place >= group - kept)
    back = stays.reshape(*stays.shape[:-2], -1)
    return jnp.moveaxis(back, -1, -2)


def random(key: jax.Array, mask: PyTree, rate: Rate, *, scope: Scope = "layer") -> PyTree:
    """Prunes survivors chosen uniformly at random; counts as in `magnitude`.

    Args:
        key: a PRNG key.
        mask: as for `magnitude`.
        rate: as for `magnitude`.
        scope: as for `magnitude`.
    """
    return by_score(random_scores(key, mask), mask, rate, scope=scope)


def random_scores(key: jax.Array, tree: PyTree) -> PyTree:
    """Scores by which survivors are chosen at random: uint32 of the shapes of a tree's leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [jax.random.bits(k, jnp.shape(leaf), jnp.uint32) for k, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(treedef, drawn)


def shuffle(key: jax.Array, mask: PyTree) -> PyTree:
    """A random mask with the given mask's own number of survivors in every layer.

    Args:
        key: a PRNG key.
        mask: a mask; its leaves are permuted, each within itself.
    """
    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(k, m.ravel()).reshape(m.shape) if jnp.ndim(m) else m
        for k, m in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


def masked(optimiser: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformationExtraArgs:
    """An optimiser under which pruned weights are exactly 0 after every step.

    The gradient and the parameters are masked before the optimiser sees them, so that neither
    momentum nor weight decay brings a weight back, and the update is what takes a pruned weight to
    0 from any finite value. Moments that start at 0 stay exactly 0 for pruned weights, if the state
    comes from this transformation's own `init` or one of the same mask, and the optimiser adds no
    noise of its own. (`optax.masked` is another thing: it leaves out whole leaves.)

    Args:
        optimiser: any optax gradient transformation.
        mask: the mask; may be traced.

    Returns:
        A gradient transformation whose `update` needs the parameters and hands on any further
        arguments.
    """
    optimiser = optax.with_extra_args_support(optimiser)

    def init(params: PyTree) -> Any:
        return optimiser.init(apply(params, mask))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("params: prune.masked needs them: update(gradients, state, params).")
        inner, state = optimiser.update(apply(updates, mask), state, apply(params, mask), **extra)
        exact = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), mask, inner, params)
        return exact, state

    return optax.GradientTransformationExtraArgs(init, update)


def density(mask: PyTree) -> jax.Array:
    """Weights left / weights prunable, float32, shape (); 1 where nothing is prunable."""
    left, total = totals(mask)
    return left / max(total, 1) if total else jnp.float32(1)


def totals(mask: PyTree) -> tuple[jax.Array, int]:
    """(prunable weights left, int32 of shape (); prunable weights, int)."""
    return survivors(mask, "global")[0]


def check_density(density: float) -> None:
    """Raises for what is no share of weights kept."""
    if not (isinstance(density, Real) and 0 <= density <= 1):
        raise ValueError(f"density: {density!r} is outside [0, 1]; it is the share of weights kept.")


def count(rate: float, n: int | jax.Array) -> int | jax.Array:
    """floor(rate * n + 1/2), exactly, with the rate taken as the decimal that it was written as.

    Args:
        rate: in [0, 1]; 0.15 means 15/100, not the nearest binary number.
        n: how many survive, 0 <= n < 2**31 / 10; may be traced.

    Returns:
        An integer of n's kind. (float32 arithmetic gets 0.15 * 190 wrong; this does not.)

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    decimal = Decimal(str(rate)) if math.isfinite(rate) else Decimal(2)
    if not 0 <= decimal <= 1:
        raise ValueError(f"rate: {rate!r} is outside [0, 1]; it is the share of survivors removed.")
    if decimal == 1:
        return n
    # Schoolbook division by 10 from the last decimal digit up, so that no product exceeds 10 n:
    # floor((a + y) / 10) = floor((a + floor(y)) / 10) for integer a.
    first, *rest = list(f"{decimal:f}".partition(".")[2] or "0")
    carry: Any = 0
    for digit in reversed(rest):
        carry = (int(digit) * n + carry) // 10
    return (int(first) * n + carry + 5) // 10


def _path(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def check(tree: PyTree, mask: PyTree) -> None:
    """Raises where a leaf and its mask do not fit, naming the leaf."""
    forms: list[Any] = [jax.tree.structure(tree), jax.tree.structure(mask)]
    if forms[0] != forms[1]:
        raise ValueError(
            "mask: its tree is not that of the parameters "
            f"({paths(mask)} against {paths(tree)}); make it with prune.ones(params)."
        )
    for path, leaf, m in zip(paths(tree), jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        if jnp.ndim(m) and jnp.shape(m) != jnp.shape(leaf):
            raise ValueError(
                f"mask: leaf {path!r} has shape {jnp.shape(m)}; it must be {jnp.shape(leaf)} or ()."
            )


def rates_of(rate: Rate, names: list[str]) -> list[float]:
    """The rate of every path; 0 where no regex matches. `rate` as for `magnitude`."""
    if isinstance(rate, Real):
        return [float(str(rate))] * len(names)
    rules: list[tuple[str, float]] = list(rate.items() if isinstance(rate, Mapping) else rate)  # type: ignore[arg-type]
    for rule, _ in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"rate: {rule!r} is not a regex: {error}.") from error
    return [next((r for rule, r in rules if re.search(rule, name)), 0.0) for name in names]


def check_finite(scores: PyTree, mask: PyTree, going: Sequence[float | jax.Array]) -> None:
    """Raises where survivors have scores that are not finite, naming the leaf; traced values pass.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        going: of every leaf how much goes; one of which nothing goes is not looked at.
    """
    for path, bad, left in not_finite(scores, mask, going):
        refuse(path, bad, left)


def refuse(path: str, bad: int, left: int) -> NoReturn:
    """Raises for a leaf of which so many survivors have scores that are not finite."""
    raise ValueError(
        f"scores: leaf {path!r} has {bad:,} that are not finite, of {left:,} weights left; NaN and infinity "
        "cannot be ranked. Look for weights or gradients that overflow."
    )


def not_finite(
    scores: PyTree, mask: PyTree, going: Sequence[float | jax.Array]
) -> list[tuple[str, int, int]]:
    """(path, survivors whose score is not finite, survivors) of the leaves that have any.

    Args:
        scores, mask, going: as for `check_finite`.
    """
    leaves = list(zip(paths(mask), jax.tree.leaves(mask), jax.tree.leaves(scores), going, strict=True))
    if any(isinstance(x, jax.core.Tracer) for _, *values in leaves for x in values):
        return []
    looked_at = [
        (path, count_bad(score, m))
        for path, m, score, n in leaves
        if jnp.ndim(m) and n and jnp.issubdtype(jnp.asarray(score).dtype, jnp.inexact)
    ]
    return [(path, int(bad), int(left)) for path, (bad, left) in jax.device_get(looked_at) if bad]


@jax.jit
def count_bad(score: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(survivors whose score is not finite, survivors) of one leaf, int32 of shape ()."""
    return (mask & ~jnp.isfinite(score)).sum(dtype=jnp.int32), mask.sum(dtype=jnp.int32)


@jax.jit
def _absolute(value: jax.Array) -> jax.Array:
    """Absolute values; those of signed integers are unsigned, as -128 has no opposite in int8."""
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.signedinteger):
        return jnp.abs(value)
    unsigned = jax.lax.bitcast_convert_type(value, jnp.dtype(f"u{value.dtype}"))
    return jnp.where(value < 0, 0 - unsigned, unsigned)


def _common(dtypes: Sequence[Any]) -> Any:
    """The dtype in which leaves of several dtypes are ranked together."""
    common = jnp.result_type(*dtypes)
    # Whole numbers of both signs, and mixed ones, may have no common dtype that is wide enough.
    alike = any(
        all(jnp.issubdtype(d, kind) for d in dtypes) for kind in (jnp.unsignedinteger, jnp.signedinteger)
    )
    return common if alike or len({*dtypes}) == 1 else jnp.promote_types(common, jnp.float32)


def _bits(value: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """(a float's bits, the bit of its sign, width of its mantissa), for float32 and float64."""
    wide = value.dtype.itemsize == 8
    unsigned = jnp.uint64 if wide else jnp.uint32
    bits = jax.lax.bitcast_convert_type(value, unsigned)
    return bits, jnp.array(1 << (63 if wide else 31), unsigned), 52 if wide else 23


@jax.jit
def _order(scores: jax.Array) -> jax.Array:
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
    # On the bits: compiled programs take numbers below the normal range for 0.
    bits, sign, _ = _bits(scores.astype(jnp.float64 if width == 64 else jnp.float32))
    bits = jnp.where(bits == sign, 0, bits)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where(jnp.isnan(scores), ~jnp.zeros_like(bits), ordered)


@jax.jit
def _remove_lowest(keys: jax.Array, kept: jax.Array, removed: int | jax.Array) -> jax.Array:
    """`kept` without exactly `removed` of its True entries: those of the lowest keys.

    Bisection on the key's bits finds the key of the last one to go; of those equal to it the lowest
    indices go. It reads the keys once a bit and sorts nothing.

    Args:
        keys: unsigned integers [n].
        kept: bool [n].
        removed: how many to remove, at most kept.sum(); may be traced.
    """
    if kept.size >= 2**31 // 10:
        raise ValueError(
            f"mask: {kept.size:,} weights are ranked together; counts are exact below {2**31 // 10:,}. Prune "
            "layer by layer, or split the leaf."
        )
    width = keys.dtype.itemsize * 8

    def narrow(i: jax.Array, threshold: jax.Array) -> jax.Array:
        bit = jnp.array(1, keys.dtype) << (width - 1 - i).astype(keys.dtype)
        candidate = threshold | bit
        below = (kept & (keys < candidate)).sum(dtype=jnp.int32)
        return jnp.where(below < removed, candidate, threshold)

    threshold = jax.lax.fori_loop(0, width, narrow, jnp.zeros((), keys.dtype))
    below = kept & (keys < threshold)
    equal = kept & (keys == threshold)
    quota = removed - below.sum(dtype=jnp.int32)
    goes = below | (equal & (jnp.cumsum(equal, dtype=jnp.int32) <= quota))
    return kept & ~goes
