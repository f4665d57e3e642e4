"""Masks, exact selection of k weights, and the optimiser that keeps them. Public through `lthjax.prune`."""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from numbers import Real
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lthjax.prune._lowest import absolute, bits_of, order, remove_lowest
from lthjax.prune._names import path_of, prunable_by_default
from lthjax.prune._placing import all_true, gathered, placed

PyTree = Any
Scope = Literal["layer", "global", "group"]
Number = float | Fraction | Decimal | np.generic | np.ndarray | jax.Array
"""A real number of any kind; an array must have shape ()."""
Rate = Number | Mapping[str, Number] | Iterable[tuple[str, Number]]


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def ones(params: PyTree, prunable: str | Callable[[str, jax.Array], bool] | None = None) -> PyTree:
    """The mask that keeps everything.

    Args:
        params: any pytree of arrays.
        prunable: which leaves may be pruned: a regex searched in the path, or a predicate on
            (path, leaf). By default the weights, judged by name, dtype and shape: floats of two or more
            dimensions, except biases, embeddings, and scales, shifts or statistics of normalisation
            layers. Names are those of Flax, Haiku and Equinox, of the leaf or its parent; an unknown
            name needs two or more axes longer than 1. `prune.table` lists the leaves that are left
            out.

    Returns:
        The mask: bool of the leaf's shape and sharding if prunable, else the 0-d bool True.

    Raises:
        ValueError: a leaf is no array; or `prunable` is a regex that matches nothing, or matches PRNG keys
            or a leaf without dimensions.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = paths(params)
    for path, (_, leaf) in zip(names, leaves, strict=True):
        check_leaf(path, leaf)
    if prunable is None:
        keep = prunable_by_default(params)
    elif isinstance(prunable, str):
        keep = [re.search(prunable, path) is not None for path in names]
        if not any(keep):
            raise ValueError(f"prunable: the regex {prunable!r} matches none of the paths {_some(names)}.")
    else:
        keep = [bool(prunable(path, leaf)) for path, (_, leaf) in zip(names, leaves, strict=True)]
    for path, k, (_, leaf) in zip(names, keep, leaves, strict=True):
        if k and (is_key(leaf) or not jnp.ndim(leaf)):
            what = "holds PRNG keys" if is_key(leaf) else "has no dimensions"
            raise ValueError(f"prunable: leaf {path!r} {what}, so it cannot be pruned; leave it out.")
    masks = [all_true(leaf) if k else jnp.ones((), bool) for k, (_, leaf) in zip(keep, leaves, strict=True)]
    return jax.tree.unflatten(treedef, masks)


def apply(params: PyTree, mask: PyTree) -> PyTree:
    """The parameters with pruned weights set to exactly 0 (never -0, even where they are NaN).

    Args:
        params: a pytree of arrays.
        mask: its mask, in any containers with the same leaf paths.

    Returns:
        The parameters, in their own containers.
    """
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), matched(params, mask), params)


def check(params: PyTree, mask: PyTree) -> None:
    """Raises if a pruned weight is not exactly 0: one line in a training loop, outside `jit`.

    It finds what comes after `prune.masked` and adds to its updates (weight decay, noise, an average of
    weights), a state or parameters of another mask, and a loop that does not use the optimiser.

    Args:
        params: a pytree of arrays; NaN counts as not 0.
        mask: its mask.

    Raises:
        ValueError: a pruned weight is not 0 (the sentence names the first such leaf and their number), the
            trees do not match, or values are traced.
    """
    mask = matched(params, mask)
    names, kept = paths(params), jax.tree.leaves(mask)
    leaves = [
        (name, p, m) for name, p, m in zip(names, jax.tree.leaves(params), kept, strict=True) if jnp.ndim(m)
    ]
    if any(isinstance(x, jax.core.Tracer) for _, *pair in leaves for x in pair):
        raise ValueError("params: they are traced, and prune.check looks at values; call it outside jit.")
    wrong = jax.device_get([_alive_where_pruned(p, m) for _, p, m in leaves])
    for (name, _, _), bad in zip(leaves, wrong, strict=True):
        if bad:
            raise ValueError(
                f"params: leaf {name!r} has {int(bad):,} pruned weights that are not 0, of "
                f"{int(sum(wrong)):,} in all leaves; put prune.masked around the whole chain of "
                "transformations, and start from prune.apply(params, mask)."
            )


@jax.jit
def _alive_where_pruned(value: jax.Array, mask: jax.Array) -> jax.Array:
    return (~mask & (value != 0)).sum(dtype=jnp.int32)


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
            from a regex on the path to a number. The first match wins. A leaf without a match is not
            pruned; a regex that matches nothing prunable gives a warning. With scope "global" it must
            be one number, with scope "group" a mapping. A number is a Python number, Fraction or
            Decimal, a numpy scalar, or an array of shape () that is not traced.
        scope: "layer" removes the share in every leaf; "global" removes it over all leaves together,
            without any normalisation between layers; "group" removes it over all leaves together whose
            first match is the same regex.
        granularity: the unit of removal. "weight"; "unit-l1" or "unit-l2": all weights of an output
            unit or filter (the last axis), ranked by the sum or the Euclidean norm of its survivors;
            the rate then counts units; "N:M", for example "2:4": of every M consecutive weights along
            the input axis (the last but one) the N highest stay; the rate must be 1 - N/M and the
            scope "layer".

    Returns:
        The new mask, which removes exactly floor(rate * n + 1/2) of n survivors. The rate is taken as
        the decimal that was written, a Fraction exactly; ties go by lowest index first. The containers
        and the shardings are those of the parameters. (With units and patterns, leaves on a mesh with
        Explicit axes are gathered meanwhile.)

    Raises:
        ValueError: as for `by_score`; for example, weights that are NaN or infinite cannot be ranked.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2 (layer) and appendix (global); units:
    Li et al. 2017 (arXiv 1608.08710); N:M: Mishra et al. 2021 (arXiv 2104.08378).
    """
    return _prune(params, mask, rate, scope, granularity, sizes=True)


def by_score(
    scores: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the survivors with the lowest scores; otherwise as `magnitude`.

    Args:
        scores: a pytree of the mask's treedef, real numbers of the leaves' shapes. Scores of survivors
            must be finite. Under `jit` and `vmap` this cannot be checked: there NaN counts as highest.
            With scope "global" leaves of different dtypes are promoted to one.
        mask: as for `magnitude`.
        rate: as for `magnitude`.
        scope: as for `magnitude`.
        granularity: as for `magnitude`. A unit's score is the sum of its survivors' scores, for
            "unit-l2" the sum of their squares with their signs, in float32 or wider; squares may exceed
            the range of their dtype.

    Raises:
        ValueError: a rate outside [0, 1], a mapping of rates with scope "global" or none with "group", an
            unknown scope
            or granularity, scores that do not match the mask, or non-finite scores of survivors in a
            leaf that is to be pruned.
    """
    return _prune(scores, mask, rate, scope, granularity, sizes=False)


def _prune(scores: PyTree, mask: PyTree, rate: Rate, scope: Scope, granularity: str, sizes: bool) -> PyTree:
    """As `by_score`, by the scores' absolute values if `sizes`."""
    mask = matched(scores, mask)
    if scope == "global" and not _is_number(rate):
        raise ValueError("rate: with scope 'global' it is one number for all layers.")
    if scope == "group" and _is_number(rate):
        raise ValueError("rate: with scope 'group' it is a mapping from regexes to numbers, a group each.")
    if not _is_number(rate):
        rate = _rules(rate)
    rates = rates_of(rate, paths(mask))
    if isinstance(rate, list):
        _warn_of_idle(rate, mask)
    pattern = _pattern(granularity)
    if pattern is None:
        groups = groups_of(rate, paths(mask)) if isinstance(rate, list) and scope == "group" else ()
        if groups and isinstance(rate, list):
            rates = [_exact(number, f"rate of {rule!r}") for rule, number in rate]
        alive = survivors(mask, scope, granularity, groups)
        going = [count(r, left) for r, (left, _) in zip(rates, alive, strict=False)]
        return _remove(scores, mask, going, scope, granularity, groups, sizes)
    kept, group = pattern
    if scope != "layer":
        raise ValueError(f"scope: with granularity {granularity!r} it is 'layer', not {scope!r}.")
    for r in rates:
        if r and not math.isclose(r, 1 - kept / group):
            raise ValueError(f"rate: with granularity {granularity!r} it is {1 - kept / group:g}, not {r!r}.")
    check_finite(scores, mask, list(rates))
    leaves, treedef = jax.tree.flatten(mask)
    pruned = [
        _prune_pattern(path, absolute(v) if sizes else v, m, kept, group) if jnp.ndim(m) and r else m
        for path, v, m, r in zip(paths(mask), jax.tree.leaves(scores), leaves, rates, strict=True)
    ]
    return jax.tree.unflatten(treedef, pruned)


def to_density(
    scores: PyTree, mask: PyTree, density: Number, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the survivors with the lowest scores until a density is reached.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        density: share of all prunable weights (units) to keep, in [0, 1]: floor(density * n + 1/2) of n,
            per layer or over all layers. If no more than that survive, nothing is pruned.
        scope: "layer" or "global".
        granularity: "weight", "unit-l1" or "unit-l2".

    Returns:
        The new mask.

    Raises:
        ValueError: as for `by_score`.
    """
    mask = matched(scores, mask)
    if scope == "group":
        raise ValueError("scope: 'group' has its groups from a mapping of rates; use by_score.")
    if _pattern(granularity) is not None:
        raise ValueError(f"granularity: {granularity!r} has a density of its own; use by_score.")
    density = check_density(density)
    going = [
        jnp.maximum(left - count(density, size), 0) for left, size in survivors(mask, scope, granularity)
    ]
    return remove_counted(scores, mask, going, scope=scope, granularity=granularity)


def survivors(
    mask: PyTree, scope: Scope = "layer", granularity: str = "weight", groups: Sequence[int] = ()
) -> list[tuple[jax.Array, int]]:
    """(prunable weights left, prunable weights) per leaf, over all leaves, or per group of leaves.

    Args:
        mask: the mask; (0, 0) for a leaf that may not be pruned.
        scope: "layer", "global" or "group".
        granularity: "weight"; or of units: then a unit counts as left if any of its weights is.
        groups: with scope "group", every leaf's group, from 0, or -1.
    """
    if scope not in ("layer", "global", "group"):
        raise ValueError(f"scope: {scope!r} is not known; it is 'layer', 'global' or 'group'.")
    leaves = jax.tree.leaves(mask)
    if granularity != "weight":
        leaves = [_alive(m) if jnp.ndim(m) else m for m in leaves]
    counted = [
        (m.sum(dtype=jnp.int32), m.size) if jnp.ndim(m) else (jnp.zeros((), jnp.int32), 0) for m in leaves
    ]
    if scope == "layer":
        return counted
    whole = [[*range(len(counted))]] if scope == "global" else _members(groups)
    return [
        (sum((counted[i][0] for i in of), start=jnp.zeros((), jnp.int32)), sum(counted[i][1] for i in of))
        for of in whole
    ]


def _members(groups: Sequence[int]) -> list[list[int]]:
    """The leaves of every group."""
    return [
        [i for i, own in enumerate(groups) if own == group] for group in range(max(groups, default=-1) + 1)
    ]


def remove_counted(
    scores: PyTree,
    mask: PyTree,
    going: Sequence[int | jax.Array],
    *,
    scope: Scope = "layer",
    granularity: str = "weight",
    groups: Sequence[int] = (),
) -> PyTree:
    """Prunes an exact number of survivors, those with the lowest scores.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        going: number of weights (units) to remove from every leaf, with scope "group" from every group or,
            with scope "global", one number; at most the number of survivors; may be traced, so that one
            program serves any counts.
        scope: as for `by_score`.
        granularity: as for `by_score`, but not "N:M".
        groups: as for `survivors`; leaves of group -1 are not pruned.

    Returns:
        The new mask.

    Raises:
        ValueError: scores that do not match the mask, or are not finite, as for `by_score`.
    """
    return _remove(scores, mask, going, scope, granularity, groups, sizes=False)


def _remove(
    scores: PyTree,
    mask: PyTree,
    going: Sequence[int | jax.Array],
    scope: Scope,
    granularity: str,
    groups: Sequence[int],
    sizes: bool,
) -> PyTree:
    """As `remove_counted`, by the scores' absolute values if `sizes`."""
    mask = matched(scores, mask)
    check_finite(scores, mask, going_of(going, len(jax.tree.leaves(mask)), scope, groups))
    whole, treedef = jax.tree.flatten(mask)
    prunable = [i for i, m in enumerate(whole) if jnp.ndim(m)]
    values, masks = dict(enumerate(jax.tree.leaves(scores))), {i: whole[i] for i in prunable}
    if granularity != "weight" and prunable:
        values, masks = _units(values, masks, granularity, sizes)
        sizes = False
    if scope == "layer":
        together = [([i], going[i]) for i in prunable]
    else:
        members = [prunable] if scope == "global" else _members(groups)
        together = [([i for i in of if i in masks], n) for of, n in zip(members, going, strict=True)]
    for of, removed in together:
        if of:
            parts = remove_lowest([values[i] for i in of], [masks[i] for i in of], removed, sizes)
            for i, kept in zip(of, parts, strict=True):
                # Broadcasting along the last axis applies a unit's mask to its weights.
                own = placed(jnp.broadcast_to(kept, whole[i].shape), whole[i])
                whole[i] = placed(whole[i] & own, whole[i])
    return jax.tree.unflatten(treedef, whole)


def going_of(going: Sequence[Any], leaves: int, scope: Scope, groups: Sequence[int]) -> list[Any]:
    """What `remove_counted` removes from the layer, all layers or the group that each leaf belongs to."""
    if scope == "group":
        return [going[group] if group >= 0 else 0 for group in groups]
    return list(going) if scope == "layer" else [going[0]] * leaves


def _units(
    values: dict[int, jax.Array], masks: dict[int, jax.Array], granularity: str, sizes: bool
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """Scores and mask of output units [1, ..., 1, units]: uint32 ranks over all leaves, and bool."""
    values = {i: gathered(absolute(values[i]) if sizes else values[i]) for i in masks}
    masks = {i: gathered(m) for i, m in masks.items()}
    scored = [_unit_score(values[i], m, granularity == "unit-l2") for i, m in masks.items()]
    ends = np.cumsum([high.size for high, _ in scored])[:-1].tolist()
    ranks = jnp.split(_ranks(*(jnp.concatenate(part) for part in zip(*scored, strict=True))), ends)
    alive = {i: _alive(m) for i, m in masks.items()}
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
    return jnp.sign(digits) * high.astype(digits.dtype), digits


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


def _alive(mask: jax.Array) -> jax.Array:
    return mask.any(axis=tuple(range(mask.ndim - 1)), keepdims=True)


def _pattern(granularity: str) -> tuple[int, int] | None:
    """(N, M) for "N:M", None for "weight" and for units."""
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
    """Keeps the `kept` highest of every `group` consecutive weights along the last axis but one."""
    if mask.shape[-2] % group:
        raise ValueError(
            f"granularity: leaf {path!r} has {mask.shape[-2]} inputs, not a multiple of {group}; leave it "
            "out by a mapping of rates."
        )

    survivors, scores = _grouped(gathered(mask), group), gathered(scores)
    # Pruned weights rank below all others; ties go by lowest index first.
    ranked = jnp.lexsort((_grouped(order(scores), group), survivors), axis=-1)
    place = jnp.argsort(ranked, axis=-1)
    return placed(_ungrouped(survivors & (place >= group - kept)), mask)


def _grouped(array: jax.Array, group: int) -> jax.Array:
    """[..., inputs, outputs] -> [..., outputs, inputs / group, group]."""
    last = jnp.moveaxis(array, -2, -1)
    return last.reshape(*last.shape[:-1], -1, group)


def _ungrouped(array: jax.Array) -> jax.Array:
    """The inverse of `_grouped`."""
    return jnp.moveaxis(array.reshape(*array.shape[:-2], -1), -1, -2)


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
    """Random scores, which choose survivors at random: uint32 of the shapes of a tree's leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        placed(jax.random.bits(k, jnp.shape(leaf), jnp.uint32), leaf)
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, drawn)


def shuffle(key: jax.Array, mask: PyTree, granularity: str = "weight") -> PyTree:
    """A random mask with the same number of survivors in every layer as the given mask.

    Args:
        key: a PRNG key.
        mask: a mask; each of its leaves is permuted within itself.
        granularity: as for `by_score`: whole units are permuted, or the weights of each N:M group.
    """
    pattern = _pattern(granularity)

    def permuted(key: jax.Array, m: jax.Array) -> jax.Array:
        if granularity == "weight":
            return jax.random.permutation(key, m.ravel()).reshape(m.shape)
        if pattern is None:
            return jax.random.permutation(key, m, axis=m.ndim - 1)
        if m.shape[-2] % pattern[1]:
            return m  # not pruned by this pattern
        return _ungrouped(jax.random.permutation(key, _grouped(m, pattern[1]), axis=-1, independent=True))

    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        placed(permuted(k, gathered(m)), m) if jnp.ndim(m) else m for k, m in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


def density(mask: PyTree) -> jax.Array:
    """Weights left / prunable weights, float32, shape (); 1 if nothing is prunable."""
    left, total = totals(mask)
    return left / max(total, 1) if total else jnp.float32(1)


def totals(mask: PyTree) -> tuple[jax.Array, int]:
    """(prunable weights left, int32 of shape (); prunable weights, int)."""
    return survivors(mask, "global")[0]


def check_density(density: Number) -> float | Fraction:
    """The density as a number that `count` takes exactly as written; raises if it is no share in [0, 1]."""
    return _exact(density, "density")


def rounded_share(rate: Number, n: int | jax.Array) -> int | jax.Array:
    """floor(rate * n + 1/2), exactly, with the rate taken as the decimal that was written.

    How many of n survivors a rate removes, or of n weights a density keeps. `prune.count` is its former name.

    Args:
        rate: in [0, 1]; 0.15 means 15/100, not the nearest binary number. This holds for a Python number, a
            Decimal, a numpy scalar or an array of shape (); the last two mean the shortest decimal that
            identifies them in their dtype. A Fraction is taken exactly.
        n: number of survivors, 0 <= n < 2**31 / 10; may be traced.

    Returns:
        An integer of n's kind. (float32 arithmetic gets 0.15 * 190 wrong; this does not.)

    Raises:
        ValueError: the rate is outside [0, 1], or not a number known at tracing.
    """
    written = _written(rate, "rate")
    if written == 1:
        return n
    # A fraction p/q without a finite decimal is rounded up after so many digits that no integer lies between
    # rate * n + 1/2 and the computed value: the distance to an integer is at least 1/(2 q), or 0.
    places = len(str(2 * written.denominator)) + 10
    digits = str(-(-written.numerator * 10**places // written.denominator)).zfill(places)
    first, *rest = list(digits.rstrip("0") or "0")
    # Schoolbook division by 10 from the last decimal digit up, so that no product exceeds 10 n:
    # floor((a + y) / 10) = floor((a + floor(y)) / 10) for integer a.
    carry: Any = 0
    for digit in reversed(rest):
        carry = (int(digit) * n + carry) // 10
    return (int(first) * n + carry + 5) // 10


count = rounded_share


def matched(
    tree: PyTree, mask: PyTree, name: str = "mask", *, of: str = "parameters", shapes: bool = True
) -> PyTree:
    """The mask in the containers of a tree; leaves are matched by their paths.

    Args:
        tree: parameters, scores, or another mask. Where `optax.masked` left a `MaskedNode`, the mask may
            have leaves.
        mask: their mask, or another tree with the same leaves. `a/kernel/value` and `a/kernel` are the same
            path, as NNX boxes a leaf in a Variable.
        name: name of the mask in errors.
        of: name of the tree in errors.
        shapes: whether the shapes are compared, too.

    Raises:
        ValueError: a leaf has no counterpart in the other tree, or their shapes differ.
    """
    forms: list[Any] = [jax.tree.structure(tree), jax.tree.structure(mask)]
    if forms[0] != forms[1]:
        mask = _by_path(tree, mask, name, of)
    for path, leaf, m in zip(paths(tree), jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        if shapes and jnp.ndim(m) and jnp.shape(m) != jnp.shape(leaf):
            raise ValueError(
                f"{name}: leaf {path!r} has shape {jnp.shape(m)}; it must be {jnp.shape(leaf)} or ()."
            )
    return jax.tree.map(placed, mask, tree)


def _by_path(tree: PyTree, mask: PyTree, name: str, of: str) -> PyTree:
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_left_out)[0]
    names = [unboxed(path_of(keys)) for keys, leaf in flat if not _left_out(leaf)]
    gaps = [path_of(keys) for keys, leaf in flat if _left_out(leaf)]
    known = dict(zip(map(unboxed, paths(mask)), jax.tree.leaves(mask), strict=True))
    ours, theirs = set(names), set(known)
    if len(ours) < len(names) or len(theirs) < len(jax.tree.leaves(mask)):
        raise ValueError(
            f"{name}: its containers are not the {of}' and two leaves have one path; rename one."
        )
    extra = [p for p in known if p not in ours and not any(_within(p, gap) for gap in gaps)]
    hint = ", as mask = prune.ones(params) does" if name == "mask" else ""
    for here, there, lost in ((of, name, [p for p in names if p not in known]),
                              (name, of, extra)):  # fmt: skip
        if lost:
            raise ValueError(
                f"{name}: its tree is not that of the {of}: leaf {lost[0]!r} is in the {here} and "
                f"not in the {there}; give the two the same leaves{hint}."
            )
    return jax.tree.unflatten(jax.tree.structure(tree), [known[path] for path in names])


def _within(path: str, root: str) -> bool:
    return not root or f"{path}/".startswith(f"{root}/")


def _left_out(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def unboxed(path: str) -> str:
    """The path without the `value` in which NNX boxes a leaf."""
    return path.removesuffix("/value")


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds PRNG keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def check_leaf(path: str, leaf: Any, name: str = "params") -> None:
    """Raises if a leaf of the tree of that name is neither an array nor a number."""
    if not (hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex))):
        raise ValueError(
            f"{name}: leaf {path!r} is a {type(leaf).__name__}, no array; split off what is none, for "
            "example with equinox.partition(model, equinox.is_array)."
        )


def rates_of(rate: Rate, names: list[str]) -> list[float | Fraction]:
    """The rate for every path; 0 if no regex matches.

    Args:
        rate: as for `magnitude`.
        names: paths.

    Returns:
        Floats; a Fraction where no float is written like the given number.
    """
    if _is_number(rate):
        return [_exact(rate, "rate")] * len(names)
    rules = [(rule, _exact(number, f"rate of {rule!r}")) for rule, number in _rules(rate)]
    for rule, _ in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"rate: {rule!r} is not a regex: {error}.") from error
    return [next((r for rule, r in rules if re.search(rule, name)), 0.0) for name in names]


def groups_of(rate: Rate, names: list[str]) -> list[int]:
    """The number of the first regex of a mapping of rates that matches every path, or -1."""
    rules = [rule for rule, _ in _rules(rate)]
    return [next((i for i, rule in enumerate(rules) if re.search(rule, name)), -1) for name in names]


def _rules(rate: Rate) -> list[tuple[str, Number]]:
    """The (regex, number) pairs of a rate that is not a single number."""
    if isinstance(rate, str):
        raise ValueError(
            f"rate: {rate!r} is neither a number in [0, 1] nor a mapping; a string of digits is no number: "
            "give 0.2, not '0.2'."
        )
    try:
        rules = [(rule, number) for rule, number in (rate.items() if isinstance(rate, Mapping) else rate)]  # type: ignore[union-attr]
        if not all(isinstance(rule, str) for rule, _ in rules):
            raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"rate: {rate!r} is neither a number in [0, 1] nor a mapping or pairs from regexes to such ones."
        ) from error
    if not rules:
        raise ValueError(
            "rate: the mapping is empty, so it prunes nothing; give it a regex on the path, as "
            "{'kernel': 0.2}, or the rate 0.0."
        )
    return rules


def _warn_of_idle(rules: list[tuple[str, Number]], mask: PyTree) -> None:
    """Warns of regexes that match no prunable leaf: a typo, or another library's names."""
    weights = [path for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True) if jnp.ndim(m)]
    for rule, _ in rules:
        if not any(re.search(rule, path) for path in weights):
            warnings.warn(
                f"rate: {rule!r} matches no prunable leaf, so it prunes nothing; "
                f"their paths are {_some(weights) or '(none)'}.",
                stacklevel=4,
            )


def _some(names: Sequence[str]) -> str:
    """The first paths, as an example of all."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_number(value: Any) -> bool:
    """Whether the value is one number rather than pairs."""
    return isinstance(value, (Real, Decimal)) or getattr(value, "ndim", None) == 0


def _written(number: Any, name: str) -> Fraction:
    """The exact value of a share as written; raises if it is not in [0, 1].

    Args:
        number: the given number.
        name: "density", or the name of a rate.
    """
    if isinstance(number, jax.core.Tracer):
        raise ValueError(
            f"{name}: it is traced; it must be known when the program is traced, or give "
            "prune.remove_counted the counts, which may be traced."
        )
    kind = getattr(number, "dtype", None)
    real = kind is None or jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if isinstance(number, bool) or not (_is_number(number) and real):
        what = repr(number) if kind is None else f"an array of {kind}"
        raise ValueError(f"{name}: {what} is no real number; it is one in [0, 1].")
    scalar = number if kind is None else np.asarray(number)[()]
    exact = number if isinstance(number, Fraction) else Decimal(_shortest(scalar))
    finite = isinstance(exact, Fraction) or exact.is_finite()
    if not (finite and 0 <= exact <= 1):
        share = "weights kept" if name == "density" else "survivors removed"
        raise ValueError(f"{name}: {number!r} is outside [0, 1]; it is the share of {share}.")
    if isinstance(exact, Fraction):
        long = exact.denominator.bit_length() > 3300
    else:
        long = int(exact.as_tuple().exponent) < -1000
    if long:
        raise ValueError(f"{name}: it is written in more than 1,000 digits; round it.")
    return Fraction(exact)


def _shortest(scalar: Any) -> str:
    """The shortest decimal that rounds to a number in its dtype; bfloat16 prints a longer one."""
    dtype = getattr(scalar, "dtype", np.dtype(float))
    texts = () if dtype.isbuiltin == 1 else (f"{float(scalar):.{digits}g}" for digits in range(1, 10))
    return next((text for text in texts if dtype.type(float(text)) == scalar), str(scalar))


def _exact(number: Any, name: str) -> float | Fraction:
    """The number as a float if a float is written the same, else as a Fraction."""
    written = _written(number, name)
    near = float(written)
    return near if Fraction(str(near)) == written else written


def check_finite(scores: PyTree, mask: PyTree, going: Sequence[float | Fraction | jax.Array]) -> None:
    """Raises if scores of survivors are not finite, naming the leaf; traced values are not checked.

    Args:
        scores: as for `by_score`.
        mask: as for `by_score`.
        going: amount to remove from every leaf; leaves with 0 are not checked.
    """
    for path, bad, left in not_finite(scores, mask, going):
        refuse(path, bad, left)


def refuse(path: str, bad: int, left: int) -> NoReturn:
    """Raises for a leaf with `bad` of `left` survivors whose scores are not finite."""
    raise ValueError(
        f"scores: leaf {path!r} has {bad:,} that are not finite, of {left:,} weights left; NaN and infinity "
        "cannot be ranked. Look for weights or gradients that overflow."
    )


def not_finite(
    scores: PyTree, mask: PyTree, going: Sequence[float | Fraction | jax.Array]
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
