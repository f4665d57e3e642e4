"""Masks for any pytree of parameters: select exactly k weights, prune, keep pruned, and count.

A mask is a pytree of the same treedef as the parameters. A leaf that may be pruned has a bool mask
of its own shape, True where the weight is kept; a leaf that may not be pruned has the 0-d mask True.
That is decided once, by `ones`, and every other function goes by it.

    from lthjax import prune

    mask = prune.ones(params)
    mask = prune.magnitude(params, mask, 0.2)          # 20 % of what is left, in every layer
    tx = prune.masked(optax.adam(1e-3), mask)          # pruned weights stay exactly 0
    params = prune.apply(initial_params, mask)         # rewind

Paths are the keys from the root to a leaf joined by "/", for example `conv1/kernel`. Every function
is pure; those that take masks work under `jit` and `vmap`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Scope = Literal["layer", "global"]
Rate = float | Mapping[str, float] | Iterable[tuple[str, float]]

__all__ = [
    "apply",
    "by_score",
    "count",
    "density",
    "magnitude",
    "masked",
    "ones",
    "paths",
    "random",
    "shuffle",
]


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
    _check(params, mask)
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def magnitude(params: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer") -> PyTree:
    """Prunes the smallest surviving weights by absolute value.

    Args:
        params: a pytree of arrays.
        mask: its mask; pruned weights stay pruned.
        rate: the share of the survivors to remove, in [0, 1]: one number, or a mapping (or pairs)
            from a regex on the path to a number. The first match wins; a leaf that none matches is
            not pruned. With scope "global" one number.
        scope: "layer" removes the share in every leaf; "global" over all leaves together, without
            any normalisation between layers.

    Returns:
        The new mask, in which exactly floor(rate * n + 1/2) of n survivors are gone, the rate taken
        as the decimal that it was written as; of equal weights the lowest index goes first.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2 (layer) and appendix (global).
    """
    return by_score(jax.tree.map(jnp.abs, params), mask, rate, scope=scope)


def by_score(scores: PyTree, mask: PyTree, rate: Rate, *, scope: Scope = "layer") -> PyTree:
    """Prunes the survivors of the lowest scores; otherwise as `magnitude`.

    Args:
        scores: a pytree of the mask's treedef, real numbers of the leaves' shapes. NaN counts as
            highest. With scope "global" leaves of different dtypes are promoted to one.
        mask, rate, scope: as for `magnitude`.

    Raises:
        ValueError: a rate outside [0, 1], a mapping of rates with scope "global", an unknown scope,
            or scores that do not fit the mask.
    """
    _check(scores, mask)
    if scope not in ("layer", "global"):
        raise ValueError(f"scope: {scope!r} is not known; it is 'layer' or 'global'.")
    leaves, treedef = jax.tree.flatten(mask)
    values = jax.tree.leaves(scores)
    if scope == "global":
        if not isinstance(rate, float | Real):
            raise ValueError("rate: with scope 'global' it is one number for all layers.")
        prunable = [i for i, m in enumerate(leaves) if jnp.ndim(m)]
        if not prunable:
            return mask
        _check_size(sum(leaves[i].size for i in prunable))
        common = jnp.result_type(*(values[i] for i in prunable))
        values = [jnp.asarray(v, common) if i in prunable else v for i, v in enumerate(values)]
        flat = jnp.concatenate([leaves[i].ravel() for i in prunable])
        keys = jnp.concatenate([_order(values[i]).ravel() for i in prunable])
        kept = _remove_lowest(keys, flat, count(float(str(rate)), flat.sum(dtype=jnp.int32)))
        ends = np.cumsum([leaves[i].size for i in prunable])[:-1].tolist()
        for i, part in zip(prunable, jnp.split(kept, ends), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
        return jax.tree.unflatten(treedef, leaves)
    rates = _rates(rate, paths(mask))
    pruned = [
        _prune_leaf(v, m, r) if jnp.ndim(m) and r else m
        for v, m, r in zip(values, leaves, rates, strict=True)
    ]
    return jax.tree.unflatten(treedef, pruned)


def random(key: jax.Array, mask: PyTree, rate: Rate, *, scope: Scope = "layer") -> PyTree:
    """Prunes survivors chosen uniformly at random; counts as in `magnitude`.

    Args:
        key: a PRNG key.
        mask, rate, scope: as for `magnitude`.
    """
    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    scores = [jax.random.bits(k, jnp.shape(m), jnp.uint32) for k, m in zip(keys, leaves, strict=True)]
    return by_score(jax.tree.unflatten(treedef, scores), mask, rate, scope=scope)


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
    prunable = [m for m in jax.tree.leaves(mask) if jnp.ndim(m)]
    left = sum((m.sum(dtype=jnp.int32) for m in prunable), start=jnp.int32(0))
    return left, sum(m.size for m in prunable)


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


def _check(tree: PyTree, mask: PyTree) -> None:
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


def _rates(rate: Rate, names: list[str]) -> list[float]:
    """The rate of every path."""
    if isinstance(rate, Real):
        return [float(str(rate))] * len(names)
    rules: list[tuple[str, float]] = list(rate.items() if isinstance(rate, Mapping) else rate)  # type: ignore[arg-type]
    for rule, _ in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"rate: {rule!r} is not a regex: {error}.") from error
    return [next((r for rule, r in rules if re.search(rule, name)), 0.0) for name in names]


def _prune_leaf(scores: jax.Array, mask: jax.Array, rate: float) -> jax.Array:
    flat = mask.ravel()
    _check_size(flat.size)
    removed = count(rate, flat.sum(dtype=jnp.int32))
    return _remove_lowest(_order(scores).ravel(), flat, removed).reshape(mask.shape)


def _check_size(size: int) -> None:
    if size >= 2**31 // 10:
        raise ValueError(
            f"mask: {size:,} weights are ranked together; counts are exact below {2**31 // 10:,}. Prune "
            "layer by layer, or split the leaf."
        )


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
    scores = scores.astype(jnp.float64 if width == 64 else jnp.float32)
    scores = jnp.where(scores == 0, 0, scores)
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    top = jnp.array(1 << (width - 1), unsigned)
    ordered = jnp.where(bits >= top, ~bits, bits | top)
    return jnp.where(jnp.isnan(scores), ~jnp.zeros_like(bits), ordered)


def _remove_lowest(keys: jax.Array, kept: jax.Array, removed: int | jax.Array) -> jax.Array:
    """`kept` without exactly `removed` of its True entries: those of the lowest keys.

    Bisection on the key's bits finds the key of the last one to go; of those equal to it the lowest
    indices go. It reads the keys once a bit and sorts nothing.

    Args:
        keys: unsigned integers [n].
        kept: bool [n].
        removed: how many to remove, at most kept.sum(); may be traced.
    """
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
