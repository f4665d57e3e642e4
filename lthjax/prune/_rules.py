"""Masks of a given density without training: random masks by rule, and from scores at initialisation."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from lthjax.prune import _scores
from lthjax.prune._masks import apply as masked_params
from lthjax.prune._masks import ones, paths, totals
from lthjax.prune._names import is_float
from lthjax.prune._rates import Number, check_density, count, warn_of_nothing
from lthjax.prune._selection import count_bad, random_scores, refuse, remove_counted, to_density

PyTree = Any
Prunable = str | Callable[[str, jax.Array], bool] | None


def uniform(key: jax.Array, params: PyTree, density: Number, *, prunable: Prunable = None) -> PyTree:
    """A random mask with the same density in every layer.

    Args:
        key: a PRNG key.
        params: a pytree of arrays; only its shapes are used.
        density: share of the weights to keep, in [0, 1]; floor(density * n + 1/2) of a layer's n.
        prunable: as for `prune.ones`.

    Returns:
        The mask.
    """
    mask = ones(params, prunable)
    share = check_density(density)
    return _random(key, mask, share, [int(count(share, n)) for n in _sizes(mask)])


def erk(key: jax.Array, params: PyTree, density: Number, *, prunable: Prunable = None) -> PyTree:
    """A random mask whose layers have densities proportional to (sum of dimensions) / (their product).

        >>> params = {"a": jnp.zeros((10, 10)), "b": jnp.zeros((100, 100))}
        >>> mask = erk(jax.random.key(0), params, 0.1)
        >>> int(mask["a"].sum()), int(mask["b"].sum())
        (92, 918)

    Args:
        key: as for `uniform`.
        params: as for `uniform`.
        density: share of the weights to keep, exactly floor(density * n + 1/2) of all n. A layer whose
            share exceeds its size stays dense, and the others share the rest.
        prunable: as for `uniform`.

    Returns:
        The mask.

    Source: Evci et al. 2020, RigL (arXiv 1911.11134), section 3: Erdos-Renyi kernel, after Mocanu et
    al. 2018 (arXiv 1707.04780).
    """
    mask = ones(params, prunable)
    shapes = [m.shape for m in jax.tree.leaves(mask) if jnp.ndim(m)]
    # A leaf without weights has nothing to keep, whatever its ratio.
    ratios = [sum(shape) / max(math.prod(shape), 1) for shape in shapes]
    return _random(key, mask, check_density(density), _shares(ratios, _sizes(mask), density))


def smart_ratio(
    key: jax.Array,
    params: PyTree,
    density: Number,
    *,
    prunable: Prunable = None,
    order: Sequence[str] | None = None,
) -> PyTree:
    """A random mask whose densities fall with depth: layer l of L in proportion to m**2 + m, m = L-l+1.

    The last layer keeps 0.3 of its weights, or more if the others are full. If that is more than the total
    to keep, every layer gets the same density.

        >>> params = {"head": jnp.zeros((8, 5)), "layer2": jnp.zeros((8, 8)), "layer10": jnp.zeros((8, 8))}
        >>> mask = smart_ratio(jax.random.key(0), params, 0.5, order=["layer2", "layer10", "head"])
        >>> int(mask["layer2"].sum()), int(mask["layer10"].sum()), int(mask["head"].sum())
        (48, 24, 12)

    Args:
        key: as for `erk`.
        params: as for `erk`.
        density: as for `erk`.
        prunable: as for `erk`.
        order: the paths of all prunable leaves from the input to the output (`prune.paths`); by default in
            the order of the leaves, which in dictionaries is that of sorted keys ("conv10" before "conv9").

    Returns:
        The mask.

    Raises:
        ValueError: `order` does not name every prunable leaf once.

    Source: Su et al. 2020 (arXiv 2009.11094), section 4.
    """
    mask = ones(params, prunable)
    names = [path for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True) if jnp.ndim(m)]
    order = names if order is None else list(order)
    if sorted(order) != sorted(names):
        wrong = sorted(set(order) ^ set(names)) or sorted({one for one in order if order.count(one) > 1})
        raise ValueError(f"order: it must name every prunable leaf once; see {wrong[0]!r}.")
    size_of = dict(zip(names, _sizes(mask), strict=True))
    sizes = [size_of[name] for name in order]
    depth = len(sizes)
    share = check_density(density)
    kept = int(count(share, sum(sizes)))
    last = int(count(0.3, sizes[-1])) if sizes else 0
    if depth < 2 or last >= kept:
        return uniform(key, params, density, prunable=prunable)
    last = max(last, kept - sum(sizes[:-1]))
    ratios: list[float] = [(depth - i) ** 2 + (depth - i) for i in range(depth - 1)]
    of_layer = dict(zip(order, _shares(ratios, sizes, density, fixed=[last]), strict=True))
    return _random(key, mask, share, [of_layer[name] for name in names])


def snip(
    loss: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    batch: Any,
    density: Number,
    *,
    prunable: Prunable = None,
) -> PyTree:
    """A mask that keeps the weights with the highest |g * w|, over all layers together.

    Args:
        loss: (parameters, batch) -> mean loss, shape ().
        params: initial weights.
        batch: the second argument of the loss.
        density: share of the weights to keep, exactly floor(density * n + 1/2) of all n.
        prunable: as for `prune.ones`.

    Returns:
        The mask.

    Source: Lee et al. 2019 (arXiv 1810.02340), algorithm 1.
    """
    mask = _graded(params, prunable)
    scores = _scores.saliency(lambda p: loss(p, batch), params)
    return to_density(scores, mask, density, scope="global")


def grasp(
    loss: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    batch: Any,
    density: Number,
    *,
    prunable: Prunable = None,
) -> PyTree:
    """A mask that prunes the weights whose removal reduces the gradient's norm least.

    The gradient is that of the prunable weights.

    Args:
        loss: as for `snip`; the paper's code divides its logits by a temperature of 200.
        params: as for `snip`.
        batch: as for `snip`.
        density: as for `snip`.
        prunable: as for `snip`.

    Returns:
        The mask.

    Source: Wang et al. 2020 (arXiv 2002.07376), algorithm 1.
    """
    mask = _graded(params, prunable)
    scores = _scores.gradient_flow(lambda p: loss(p, batch), params, mask)
    return to_density(scores, mask, density, scope="global")


def synflow(
    apply: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    shape: tuple[int, ...],
    density: Number,
    *,
    rounds: int = 100,
    prunable: Prunable = None,
) -> PyTree:
    """A mask that conserves synaptic flow, found without data in rounds of exponentially falling density.

    Args:
        apply: (parameters, input) -> output.
        params: initial weights.
        shape: of the input, batch axis included, for example (1, 28, 28, 1).
        density: share of the weights to keep, exactly floor(density * n + 1/2) of all n.
        rounds: number of rounds; after round i the density is density ** (i / rounds).
        prunable: as for `prune.ones`.

    Returns:
        The mask.

    Raises:
        ValueError: `rounds` is less than 1.

    Source: Tanaka et al. 2020 (arXiv 2006.05467), algorithm 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is not allowed; it must be 1 or more, 100 in the paper.")
    mask = _graded(params, prunable)
    total = totals(mask)[1]
    written = check_density(density)
    if written < 1:
        warn_of_nothing(mask)
    before_last = [float(written) ** (i / rounds) for i in range(1, rounds)]
    targets = jnp.array([count(share, total) for share in [*before_last, written]], jnp.int32)

    none = jnp.int32(0), jnp.int32(0)

    def one(i: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        mask, before = carry
        scores = _scores.synaptic_flow(apply, masked_params(params, mask), shape)
        bad = jax.tree.map(lambda s, m: count_bad(s, m) if jnp.ndim(m) else none, scores, mask)
        # The flow is largest in the first round, so an overflow happens there first.
        bad = jax.tree.map(lambda now, first: jnp.where(i == 0, now, first), bad, before)
        return remove_counted(scores, mask, [totals(mask)[0] - targets[i]], scope="global"), bad

    nothing = jax.tree.map(lambda _: none, mask)
    mask, bad = jax.lax.fori_loop(0, rounds, one, (mask, nothing))
    counts = jax.tree.leaves(bad)
    if not any(isinstance(n, jax.core.Tracer) for n in counts):
        for path, n, left in zip(paths(mask), counts[::2], counts[1::2], strict=True):
            if n:
                refuse(path, int(n), int(left))
    return mask


def _graded(params: PyTree, prunable: Prunable) -> PyTree:
    """The mask that keeps everything; raises for a prunable leaf that has no gradient."""
    mask = ones(params, prunable)
    for path, leaf, m in zip(paths(params), jax.tree.leaves(params), jax.tree.leaves(mask), strict=True):
        if jnp.ndim(m) and not is_float(leaf):
            raise ValueError(
                f"prunable: leaf {path!r} is {leaf.dtype} and has no gradient; leave it out, or convert it."
            )
    return mask


def _sizes(mask: PyTree) -> list[int]:
    return [m.size for m in jax.tree.leaves(mask) if jnp.ndim(m)]


def _random(key: jax.Array, mask: PyTree, density: float | Fraction, kept: list[int]) -> PyTree:
    """A random mask with a given number of survivors in every prunable leaf, which give that density."""
    of_leaf = iter(kept)
    going = [m.size - next(of_leaf) if jnp.ndim(m) else 0 for m in jax.tree.leaves(mask)]
    if density < 1:
        warn_of_nothing(mask)
    return remove_counted(random_scores(key, mask), mask, going)


def _shares(
    ratios: list[float], sizes: list[int], density: Number, fixed: list[int] | None = None
) -> list[int]:
    """The number of weights that every layer keeps, in total exactly floor(density * n + 1/2) of n.

    Args:
        ratios: relative densities of the layers that are not `fixed`.
        sizes: the layers' weights, those of the `fixed` ones last.
        density: of all layers together.
        fixed: numbers that the last layers keep, whatever the density.
    """
    last = fixed or []
    left = int(count(check_density(density), sum(sizes))) - sum(last)
    sizes = sizes[: len(ratios)]
    dense: set[int] = set()
    while True:
        free = [i for i, n in enumerate(sizes) if n and i not in dense]
        rest = left - sum(sizes[i] for i in dense)
        scale = rest / sum(ratios[i] * sizes[i] for i in free) if free else 0.0
        over = {i for i in free if scale * ratios[i] > 1}
        if not over:
            break
        dense |= over
    exact = [float(n) if i in dense else scale * ratios[i] * n for i, n in enumerate(sizes)]
    kept = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: kept[i] - exact[i])
    for i in [i for i in by_remainder if kept[i] < sizes[i]][: left - sum(kept)]:
        kept[i] += 1
    return kept + last
