"""Masks as trees: which leaves they have, how much they keep, and how they meet the parameters."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lthjax.prune._lowest import count_all, order
from lthjax.prune._names import path_of, prunable_by_default
from lthjax.prune._placing import all_true, placed
from lthjax.prune._units import any_alive, check_units

PyTree = Any
Scope = Literal["layer", "global", "group"]
# An int32 counts fewer.
_MOST = 2**31
# The names of trees that are masks, in `matched`.
_MASKS = ("mask", "b")


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
        ValueError: a leaf is no array; or `prunable` is no regex, matches nothing, or matches PRNG keys or a
            leaf without dimensions.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = paths(params)
    for path, (_, leaf) in zip(names, leaves, strict=True):
        check_leaf(path, leaf)
    if prunable is None:
        keep = prunable_by_default(params)
    elif isinstance(prunable, str):
        try:
            keep = [re.search(prunable, path) is not None for path in names]
        except re.error as error:
            raise ValueError(f"prunable: {prunable!r} is not a regex: {error}.") from error
        if not any(keep):
            raise ValueError(f"prunable: the regex {prunable!r} matches none of the paths {some(names)}.")
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

    Raises:
        ValueError: the trees do not match, or a leaf of the mask is of floats, as weights in its place, or
            False without dimensions, as in masks of optax; traced ones of those are not looked at.
    """
    mask = matched(params, mask)
    check_bool(mask, integers=True)
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def check(params: PyTree, mask: PyTree) -> None:
    """Raises if a pruned weight is not exactly 0: one line in a training loop, outside `jit`.

    It finds what comes after `prune.masked` and adds to its updates (weight decay, noise, an average of
    weights), a state or parameters of another mask, and a loop that does not use the optimiser.

    Args:
        params: a pytree of arrays; NaN counts as not 0.
        mask: its mask.

    Raises:
        ValueError: a pruned weight is not 0 (the sentence names the first such leaf and their number), the
            trees do not match, a leaf of the mask is not bool, or False without dimensions, or values are
            traced.
    """
    check_bool(mask)
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
    parts = (value.real, value.imag) if jnp.iscomplexobj(value) else (value,)
    # On the bits: compiled programs flush subnormal numbers to 0.
    alive = [order(part) != order(jnp.zeros((), part.dtype)) for part in parts]
    return (~mask & (alive[0] | alive[-1])).sum(dtype=jnp.int32)


def survivors(
    mask: PyTree, scope: Scope = "layer", granularity: str = "weight", groups: Sequence[int] = ()
) -> list[tuple[jax.Array, int]]:
    """(prunable weights left, prunable weights) per leaf, over all leaves, or per group of leaves.

    Args:
        mask: the mask; (0, 0) for a leaf that may not be pruned.
        scope: "layer", "global" or "group".
        granularity: "weight"; or of units: then a unit counts as left if any of its weights is.
        groups: with scope "group", every leaf's group, from 0, or -1.

    Raises:
        ValueError: the scope or the granularity is unknown, a leaf of the mask is not bool (2 or 255 would be
            miscounted), or 2**31 weights or more would be counted together.
    """
    check_counted(mask, scope, granularity)
    leaves = jax.tree.leaves(mask)
    if granularity != "weight":
        leaves = [any_alive(m) if jnp.ndim(m) else m for m in leaves]
    counted = [
        (_left_and_gone(m)[0], m.size) if jnp.ndim(m) else (jnp.zeros((), jnp.int32), 0) for m in leaves
    ]
    if scope != "layer":
        whole = [[*range(len(counted))]] if scope == "global" else members_of(groups)
        counted = [
            (sum((counted[i][0] for i in of), start=jnp.zeros((), jnp.int32)), sum(counted[i][1] for i in of))
            for of in whole
        ]
    for _, total in counted:
        if total >= _MOST:
            raise ValueError(
                f"mask: {total:,} weights are counted together; counts are exact below {_MOST:,}. Count leaf "
                "by leaf, or split the leaf."
            )
    return counted


def check_counted(mask: PyTree, scope: str, granularity: str) -> None:
    """Raises for a scope or granularity without counts, or as `check_bool`."""
    if scope not in ("layer", "global", "group"):
        raise ValueError(f"scope: {scope!r} is not known; it is 'layer', 'global' or 'group'.")
    check_units(granularity)
    check_bool(mask)


def check_bool(mask: PyTree, name: str = "mask", *, integers: bool = False) -> None:
    """Raises if a leaf of the mask of that name is not bool, or as `check_whole`.

    Args:
        mask: the mask.
        name: its name in errors.
        integers: whether they pass, too, for what does not count them.
    """
    check_whole(mask, name)
    for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True):
        if jnp.ndim(m) and m.dtype != bool and not (integers and jnp.issubdtype(m.dtype, jnp.integer)):
            raise ValueError(f"{name}: leaf {path!r} is of dtype {m.dtype}; it must be bool: give leaf != 0.")


def check_whole(mask: PyTree, name: str = "mask") -> None:
    """Raises if a leaf without dimensions, which keeps its leaf whole, is not True; skips traced ones."""
    found = [
        (path, m)
        for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True)
        if not jnp.ndim(m) and _is_here(m)
    ]
    values = jax.device_get([m for _, m in found])
    for (path, _), m in zip(found, map(np.asarray, values), strict=True):
        if m.dtype != bool or not m:
            raise ValueError(
                f"{name}: leaf {path!r} is {m}; it must be bool, or the 0-d True, as in prune.ones(params)."
            )


def _is_here(array: Any) -> bool:
    """Whether this process can look at an array's values."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


@jax.jit
def _left_and_gone(mask: jax.Array) -> list[jax.Array]:
    """The numbers of True and of False entries, int32 of shape () each."""
    return count_all([mask, ~mask])


def members_of(groups: Sequence[int]) -> list[list[int]]:
    """The leaves of every group."""
    return [
        [i for i, own in enumerate(groups) if own == group] for group in range(max(groups, default=-1) + 1)
    ]


def density(mask: PyTree) -> jax.Array:
    """Weights left / prunable weights, float32, shape (); 1 if nothing is prunable."""
    check_bool(mask)
    total = sum(m.size for m in jax.tree.leaves(mask) if jnp.ndim(m))
    if total < _MOST:
        return totals(mask)[0] / total if total else jnp.float32(1)
    left = (left.astype(jnp.float32) for left, _ in survivors(mask))
    return sum(left, start=jnp.float32(0)) / float(total)


def totals(mask: PyTree) -> tuple[jax.Array, int]:
    """(prunable weights left, int32 of shape (); prunable weights, int).

    Raises:
        ValueError: as for `survivors` of scope "global".
    """
    return survivors(mask, "global")[0]


def matched(
    tree: PyTree,
    mask: PyTree,
    name: str = "mask",
    *,
    of: str = "parameters",
    shapes: bool = True,
    place: bool = True,
) -> PyTree:
    """The mask in the containers of a tree; leaves are matched by their paths.

    Args:
        tree: parameters, scores, or another mask. Where `optax.masked` left a `MaskedNode`, the mask may
            have leaves.
        mask: their mask, or another tree with the same leaves. `a/kernel/value` and `a/kernel` are the same
            path, as NNX boxes a leaf in a Variable.
        name: name of the mask in errors. Only a tree called "mask", or "b" as in `overlap`, may have () for a
            leaf of any shape, or a `MaskedNode` for leaves, which it then keeps whole, as `prune.mask_of`
            gives it of an optimiser within `optax.masked`.
        of: name of the tree in errors, which blame the mask, but of "scores" and their mask the scores.
        shapes: whether the shapes are compared, too.
        place: whether its arrays are put on the devices of the tree's, which may cut 64 bits to 32.

    Raises:
        ValueError: a leaf has no counterpart in the other tree, or their shapes differ.
    """
    forms: list[Any] = [jax.tree.structure(tree), jax.tree.structure(mask)]
    if forms[0] != forms[1]:
        mask = _by_path(tree, mask, name, of)
    for path, leaf, m in zip(paths(tree), jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        whole = name in _MASKS and not jnp.ndim(m)
        if shapes and not whole and jnp.shape(m) != jnp.shape(leaf):
            blamed, shape, allowed = name, jnp.shape(m), f"{jnp.shape(leaf)}"
            if of == "scores":
                blamed, shape, allowed = of, jnp.shape(leaf), f"{jnp.shape(m)}, as in the {name}"
            elif name in _MASKS and jnp.ndim(leaf):
                allowed += " or ()"
            raise ValueError(f"{blamed}: leaf {path!r} has shape {shape}; it must be {allowed}.")
    return jax.tree.map(placed, mask, tree) if place else mask


def _by_path(tree: PyTree, mask: PyTree, name: str, of: str) -> PyTree:
    blamed, other = (of, name) if of == "scores" else (name, of)
    names, gaps = [*map(unboxed, paths(tree))], _gaps(tree)
    known = dict(zip(map(unboxed, paths(mask)), jax.tree.leaves(mask), strict=True))
    ours, theirs = set(names), set(known)
    if len(ours) < len(names) or len(theirs) < len(jax.tree.leaves(mask)):
        raise ValueError(
            f"{blamed}: its containers are not those of {_the(other)}, and two leaves have one path; "
            "rename one."
        )
    extra = [p for p in known if p not in ours and not any(_within(p, gap) for gap in gaps)]
    whole = _gaps(mask) if name in _MASKS else []
    known |= {
        p: jnp.ones((), bool) for p in names if p not in known and any(_within(p, gap) for gap in whole)
    }
    hint = ", as mask = prune.ones(params) does" if blamed == "mask" else ""
    for here, there, lost in ((of, name, [p for p in names if p not in known]),
                              (name, of, extra)):  # fmt: skip
        if lost:
            raise ValueError(
                f"{blamed}: its tree is not that of {_the(other)}: leaf {lost[0]!r} is in {_the(here)} and "
                f"not in {_the(there)}; give the two the same leaves{hint}."
            )
    return jax.tree.unflatten(jax.tree.structure(tree), [known[path] for path in names])


def _the(name: str) -> str:
    """The name in a sentence; the masks of `overlap` are called a and b."""
    return name if len(name) == 1 else f"the {name}"


def covers(tree: PyTree, mask: PyTree) -> bool:
    """Whether a tree has the leaves of the mask, but for those that optax left out of it, and no others."""
    own, gaps = {*map(unboxed, paths(tree))}, _gaps(tree)
    names = {*map(unboxed, paths(mask))}
    return own <= names and all(any(_within(name, gap) for gap in gaps) for name in names - own)


def _gaps(tree: PyTree) -> list[str]:
    """Where optax left out leaves of a tree."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_left_out)[0]
    return [unboxed(path_of(keys)) for keys, leaf in flat if _left_out(leaf)]


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


def some(names: Sequence[str]) -> str:
    """The first paths, as an example of all."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
