"""Prunable leaves of a mask, of weights or of scores, by path: the common layout of all measures.

In Python:

    from lthjax.measures import layers

    kept = layers.by_layer(mask, mask)          # {"fc1/kernel": bool [784, 300], ...}
    layers.as_mask(kept, mask)                  # the mask again
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import prune
from lthjax.prune._units import fits, grouped, pattern_of, ungrouped

PyTree = Any
Layers = dict[str, np.ndarray]
"""Path of a prunable leaf, keys joined by "/" -> its array."""


def by_layer(tree: PyTree, mask: PyTree) -> Layers:
    """The prunable leaves of a pytree, in the tree's order and with their own shapes.

    Args:
        tree: weights, scores, or the mask itself.
        mask: a mask of the same tree; a leaf that may not be pruned is 0-d in the mask.
    """
    leaves = zip(prune.paths(mask), jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True)
    return {path: np.asarray(leaf) for path, m, leaf in leaves if np.ndim(m)}


def as_mask(layers: Layers, like: PyTree) -> PyTree:
    """The mask with these prunable leaves, flat or not: the inverse of `by_layer(mask, mask)`.

    Args:
        layers: bool arrays, one for every prunable leaf.
        like: any mask of the network; gives the shapes, and the leaves that may not be pruned.
    """
    leaves, treedef = jax.tree.flatten(like)
    made = [
        layers[path].reshape(np.shape(m)) if np.ndim(m) else np.asarray(m)
        for path, m in zip(prune.paths(like), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, made)


def flat(layers: Layers) -> Layers:
    """The same with every leaf flattened: [n]."""
    return {path: leaf.ravel() for path, leaf in layers.items()}


def by_number(layers: Layers) -> Layers:
    """The same, sorted by path; numbers in a path sort by value: `conv2` before `conv10`."""

    def place(path: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]

    return {path: layers[path] for path in sorted(layers, key=place)}


def patterned(mask: np.ndarray, granularity: str) -> bool:
    """Whether every group of a layer's mask has N of M weights; False of other granularities than "N:M"."""
    pattern, leaf = pattern_of(granularity), jnp.asarray(mask)
    if pattern is None or not fits(leaf, pattern[1]):
        return False
    return bool((grouped(leaf, pattern[1]).sum(-1) == pattern[0]).all())


def shuffled(
    generator: np.random.Generator, *of: Sequence[np.ndarray], granularity: str = "weight"
) -> tuple[list[np.ndarray], ...]:
    """Shuffles each array within itself; several lists of the same shapes are shuffled in the same way.

    Args:
        generator: draws one order per array.
        *of: lists of arrays, for example the kernels of a mask and their magnitudes.
        granularity: as for `prune.shuffle`: single weights are shuffled; whole units, the last axis; or the
            weights of each N:M group, along the last axis but one.
    """
    orders = [_order(generator, one.shape, granularity) for one in of[0]]
    return tuple(
        [one.ravel()[order].reshape(one.shape) for one, order in zip(arrays, orders, strict=True)]
        for arrays in of
    )


def _order(generator: np.random.Generator, shape: tuple[int, ...], granularity: str) -> np.ndarray:
    """For every place of a shuffled array, flat, the old one: int [n]."""
    size, pattern = math.prod(shape), pattern_of(granularity)
    if granularity == "weight":
        return generator.permutation(size)
    if pattern is None:
        return np.arange(size).reshape(shape)[..., generator.permutation(shape[-1])].ravel()
    places = jnp.arange(size).reshape(shape)
    if fits(places, pattern[1]):  # else it is not pruned by this pattern
        groups = generator.permuted(np.asarray(grouped(places, pattern[1])), axis=-1)
        places = ungrouped(jnp.asarray(groups))
    return np.asarray(places).ravel()
