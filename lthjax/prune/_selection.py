"""Exact selection: which k survivors of a mask go, by their scores, by size or by lot."""

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from lthjax.prune._lowest import absolute, count_all, remove_lowest
from lthjax.prune._masks import Scope, check_bool, check_counted, matched, members_of, paths, survivors
from lthjax.prune._placing import gathered, placed
from lthjax.prune._rates import (
    Number,
    Rate,
    check_density,
    count,
    exact_share,
    groups_of,
    is_number,
    pairs_of,
    rates_of,
    warn_of_idle,
    warn_of_nothing,
)
from lthjax.prune._units import check_units, fits, grouped, pattern_of, prune_pattern, ungrouped, units_of

PyTree = Any
# What `remove_counted` takes a number for, by scope.
_COUNTED = {
    "layer": "every leaf of the mask, 0 where it may not be pruned",
    "global": "all leaves together",
    "group": "every group, and groups one for every leaf of the mask",
}


def magnitude(
    params: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer", granularity: str = "weight"
) -> PyTree:
    """Prunes the smallest surviving weights by absolute value.

        >>> from lthjax import prune
        >>> params = {"w": jnp.array([[3.0, -1.0, 2.0, -4.0]])}
        >>> prune.magnitude(params, prune.ones(params), 0.5)["w"].tolist()
        [[True, False, False, True]]

    Args:
        params: a pytree of arrays.
        mask: its mask; pruned weights stay pruned.
        rate: the share of the survivors to remove, in [0, 1]: one number, or a mapping (or pairs)
            from a regex on the path to a number. The first match wins. A leaf without a match is not
            pruned; a regex that matches nothing prunable gives a warning, and so does a number where
            nothing is prunable. With scope "global" it must be one number, with scope "group" a mapping. A
            number is a Python number, Fraction or Decimal, a numpy scalar, or an array of shape () that is
            not traced.
        scope: "layer" removes the share in every leaf; "global" removes it over all leaves together,
            without any normalisation between layers; "group" removes it over all leaves together whose
            first match is the same regex.
        granularity: the unit of removal. "weight"; "unit-l1" or "unit-l2": all weights of an output
            unit or filter (the last axis), ranked by the sum or the Euclidean norm of its survivors;
            the rate then counts units; "N:M", for example "2:4": of every M consecutive weights along
            the input axis (the last but one) the N highest stay; the rate must be 1 - N/M and the
            scope "layer". Axes are those of Flax and Haiku, [..., inputs, outputs]; Equinox and PyTorch
            hold [outputs, inputs, ...]: transpose their weights first.

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
            With scope "global" leaves of different dtypes are promoted to one. NumPy's float64 is ranked in
            float32, where scores that differ by less are ties, unless JAX_ENABLE_X64 is set.
        mask: as for `magnitude`.
        rate: as for `magnitude`.
        scope: as for `magnitude`.
        granularity: as for `magnitude`. A unit's score is the sum of its survivors' scores, for
            "unit-l2" the sum of their squares with their signs, in float32 or wider; squares may exceed
            the range of their dtype.

    Raises:
        ValueError: a rate outside [0, 1], a mapping of rates with scope "global" or none with "group", an
            unknown scope or granularity, scores that do not match the mask, or non-finite scores
            of survivors in a leaf that is to be pruned.
    """
    return _prune(scores, mask, rate, scope, granularity, sizes=False)


def _prune(scores: PyTree, mask: PyTree, rate: Rate, scope: Scope, granularity: str, sizes: bool) -> PyTree:
    """As `by_score`, by the scores' absolute values if `sizes`."""
    mask = matched(scores, mask, of="parameters" if sizes else "scores")
    if not jax.tree.leaves(mask):
        return mask
    check_bool(mask)
    if scope == "global" and not is_number(rate):
        raise ValueError("rate: with scope 'global' it is one number for all layers.")
    if scope == "group" and is_number(rate):
        raise ValueError("rate: with scope 'group' it is a mapping from regexes to numbers, a group each.")
    if not is_number(rate):
        rate = pairs_of(rate)
    rates = rates_of(rate, paths(mask))
    if isinstance(rate, list):
        warn_of_idle(rate, mask)
    elif rates[0]:
        warn_of_nothing(mask)
    pattern = pattern_of(granularity)
    if pattern is None:
        groups = groups_of(rate, paths(mask)) if isinstance(rate, list) and scope == "group" else ()
        if groups and isinstance(rate, list):
            rates = [exact_share(number, f"rate of {rule!r}") for rule, number in rate]
        alive = _known([left for left, _ in survivors(mask, scope, granularity, groups)])
        going = [count(r, left) for r, left in zip(rates, alive, strict=False)]
        return _remove(scores, mask, going, scope, granularity, groups, sizes)
    kept, group = pattern
    if scope != "layer":
        raise ValueError(f"scope: with granularity {granularity!r} it is 'layer', not {scope!r}.")
    for r in rates:
        if r and not math.isclose(r, 1 - kept / group):
            raise ValueError(f"rate: with granularity {granularity!r} it is {1 - kept / group:g}, not {r!r}.")
    _check_rankable(scores, mask, sizes)
    check_finite(scores, mask, list(rates))
    leaves, treedef = jax.tree.flatten(mask)
    pruned = [
        prune_pattern(path, absolute(v) if sizes else v, m, kept, group) if jnp.ndim(m) and r else m
        for path, v, m, r in zip(paths(mask), jax.tree.leaves(scores), leaves, rates, strict=True)
    ]
    return jax.tree.unflatten(treedef, pruned)


def _check_rankable(scores: PyTree, mask: PyTree, sizes: bool) -> None:
    """Checks that scores have an order, and that JAX ranks the very numbers.

    Args:
        scores, mask, sizes: as for `_prune`.

    Raises:
        ValueError: names the leaf.
    """
    for path, score, m in zip(paths(mask), jax.tree.leaves(scores), jax.tree.leaves(mask), strict=True):
        if not jnp.ndim(m):
            continue
        dtype = getattr(score, "dtype", None)
        if not sizes and jnp.iscomplexobj(score):
            raise ValueError(f"scores: leaf {path!r} is complex and has no order; give real scores.")
        if not isinstance(score, np.ndarray):
            continue
        if dtype is None or dtype.kind in "OSUMm" or not dtype.isnative:
            raise ValueError(
                f"scores: leaf {path!r} is of dtype {score.dtype!r}, which JAX does not take; convert it, "
                "for example by .astype('float32')."
            )
        if dtype.kind in "iu" and dtype.itemsize == 8 and not jax.config.read("jax_enable_x64"):
            narrow = np.iinfo(f"{dtype.kind}4")
            if score.size and not (narrow.min <= score.min() and score.max() <= narrow.max):
                raise ValueError(
                    f"scores: leaf {path!r} is of dtype {dtype} with values that JAX would cut to 32 "
                    "bits; give them as float32, or set JAX_ENABLE_X64=1."
                )


def _known(counts: list[jax.Array]) -> list[Any]:
    """Counts as ints where they are not traced, so that arithmetic with them is not compiled."""
    if any(isinstance(n, jax.core.Tracer) for n in counts):
        return counts
    return [int(n) for n in jax.device_get(counts)]


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
    mask = matched(scores, mask, of="scores")
    if scope == "group":
        raise ValueError("scope: 'group' has its groups from a mapping of rates; use by_score.")
    check_units(granularity)
    density = check_density(density)
    if density < 1:
        warn_of_nothing(mask)
    going = [
        jnp.maximum(left - count(density, size), 0) for left, size in survivors(mask, scope, granularity)
    ]
    return remove_counted(scores, mask, going, scope=scope, granularity=granularity)


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
            with scope "global", one number; whole numbers from 0 to that of the survivors; may be traced, so
            that one program serves any counts, and is then not checked.
        scope: as for `by_score`.
        granularity: as for `by_score`, but not "N:M".
        groups: as for `survivors`; leaves of group -1 are not pruned.

    Returns:
        The new mask.

    Raises:
        ValueError: scores that do not match the mask, have no order or are not finite, as for `by_score`; an
            unknown scope or granularity; too few or too many numbers, or one that is not allowed.
    """
    mask = matched(scores, mask, of="scores")
    check_counted(mask, scope, granularity)
    leaves = len(jax.tree.leaves(mask))
    wanted = {"layer": leaves, "global": 1, "group": max(groups, default=-1) + 1}[scope]
    if len(going) != wanted or (scope == "group" and len(groups) != leaves):
        raise ValueError(
            f"going: its length is {len(going)}; with scope {scope!r} it must be {wanted}, one for "
            f"{_COUNTED[scope]}."
        )
    _check_going(going, mask, scope, granularity, groups)
    return _remove(scores, mask, going, scope, granularity, groups, sizes=False)


def _check_going(
    going: Sequence[int | jax.Array], mask: PyTree, scope: Scope, granularity: str, groups: Sequence[int]
) -> None:
    """Raises if a number to remove is not whole, or not from 0 to the number of survivors, unless traced."""
    # Inside a traced function an operation on known arrays is traced, too.
    if any(isinstance(n, jax.core.Tracer) for n in (*going, *jax.tree.leaves(mask), jnp.zeros(()))):
        return
    alive = _known([left for left, _ in survivors(mask, scope, granularity, groups)])
    names = {"layer": [f"leaf {path!r}" for path in paths(mask)], "global": ["all leaves"]}.get(
        scope, [f"group {i}" for i in range(len(alive))]
    )
    for n, left, name in zip(jax.device_get([*going]), alive, names, strict=True):
        try:
            allowed = 0 <= operator.index(n) <= left
        except TypeError:
            allowed = False
        if not allowed:
            raise ValueError(
                f"going: {n} for {name} is not allowed; it must be a whole number from 0 to {left:,}, the "
                "number left there."
            )


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
    mask = matched(scores, mask, of="parameters" if sizes else "scores")
    _check_rankable(scores, mask, sizes)
    check_finite(scores, mask, going_of(going, len(jax.tree.leaves(mask)), scope, groups))
    whole, treedef = jax.tree.flatten(mask)
    prunable = [i for i, m in enumerate(whole) if jnp.ndim(m)]
    values, masks = dict(enumerate(jax.tree.leaves(scores))), {i: whole[i] for i in prunable}
    if granularity != "weight" and prunable:
        values, masks = units_of(values, masks, granularity, sizes)
        sizes = False
    if scope == "layer":
        together = [([i], going[i]) for i in prunable]
    else:
        members = [prunable] if scope == "global" else members_of(groups)
        together = [([i for i in of if i in masks], n) for of, n in zip(members, going, strict=True)]
    for of, removed in together:
        if of:
            parts = remove_lowest([values[i] for i in of], [masks[i] for i in of], removed, sizes)
            for i, kept in zip(of, parts, strict=True):
                if granularity != "weight":
                    # Broadcasting along the last axis applies a unit's mask to its weights.
                    kept = whole[i] & placed(jnp.broadcast_to(kept, whole[i].shape), whole[i])
                whole[i] = placed(kept, whole[i])
    return jax.tree.unflatten(treedef, whole)


def going_of(going: Sequence[Any], leaves: int, scope: Scope, groups: Sequence[int]) -> list[Any]:
    """What `remove_counted` removes from the layer, all layers or the group that each leaf belongs to."""
    if scope == "group":
        return [going[group] if group >= 0 else 0 for group in groups]
    return list(going) if scope == "layer" else [going[0]] * leaves


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
    pattern = pattern_of(granularity)

    def permuted(key: jax.Array, m: jax.Array) -> jax.Array:
        if granularity == "weight":
            return jax.random.permutation(key, m.ravel()).reshape(m.shape)
        if pattern is None:
            return jax.random.permutation(key, m, axis=m.ndim - 1)
        if not fits(m, pattern[1]):
            return m  # not pruned by this pattern
        return ungrouped(jax.random.permutation(key, grouped(m, pattern[1]), axis=-1, independent=True))

    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        placed(permuted(k, gathered(m)), m) if jnp.ndim(m) else m for k, m in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


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
    bad, left = count_all([mask & ~jnp.isfinite(score), mask])
    return bad, left
