"""Decides which leaves may be pruned by default, from a leaf's name, dtype and shape."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Keys = tuple[Any, ...]

# Names of leaves. Linen and NNX have kernel, bias, scale, embedding, negative_slope; Haiku w, b, scale,
# offset, embeddings; Equinox weight and bias everywhere, so there the module's class decides.
_WEIGHTS = frozenset({"kernel", "kernels", "w", "weight", "weights"})
_VECTORS = frozenset(
    {"bias", "biases", "scale", "scales", "offset", "offsets", "shift", "gain"}
    | {"gamma", "beta", "slope", "mean", "var"}
)
_NORMS = frozenset({"norms", "ln", "bn", "gn", "ema"})
_EMBEDDINGS = frozenset({"emb", "embs", "wte", "wpe"})
# Collections of Linen, and the NNX names for them, that hold no parameters.
_COLLECTIONS = frozenset({"batch_stats", "cache", "intermediates"})


def path_of(keys: Keys) -> str:
    """The keys from the root to a leaf joined by "/"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def prunable_by_default(params: PyTree) -> list[bool]:
    """Whether each leaf is a prunable weight, in the order of `jax.tree.leaves`.

    Floats of two or more dimensions are prunable, except biases, embeddings, and scales, shifts and
    statistics of normalisation layers. The names of the leaf and of its parent identify these. With an
    unknown name, a leaf with fewer than two axes longer than 1 counts as a vector.

    Args:
        params: any pytree of arrays.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    parts = [_parts(keys) for keys, _ in leaves]
    with_weights = {names[:-1] for names in map(tuple, parts) if _first(names) == "w"}
    return [
        is_float(leaf)
        and jnp.ndim(leaf) >= 2
        and _is_weight(names, _owner(params, keys), jnp.shape(leaf), tuple(names[:-1]) in with_weights)
        for (keys, leaf), names in zip(leaves, parts, strict=True)
    ]


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds real or complex floats, not integers, booleans or PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    return jnp.issubdtype(jnp.result_type(leaf) if dtype is None else dtype, jnp.inexact)


def _is_weight(parts: Sequence[str], owner: str, shape: tuple[int, ...], beside_w: bool) -> bool:
    named = [part for part in parts if re.match("[A-Za-z_]", part)]
    if not _COLLECTIONS.isdisjoint(named):
        return False
    last, holder = (_words(part) for part in (["", "", *named])[:-3:-1])
    if not _VECTORS.isdisjoint(last):
        return False
    if "kernel" in last or "kernels" in last:
        return True
    if owner:
        return not (_is_norm(_words(owner)) or _is_embedding(_words(owner)))
    if _is_norm(last + holder) or _is_embedding(last + holder):
        return False
    if last[:1] == ["b"] and (beside_w or "bias" in holder):
        return False
    return not _WEIGHTS.isdisjoint(last) or sum(n != 1 for n in shape) > 1


def _parts(keys: Keys) -> list[str]:
    """The path's parts, without the `value` in which NNX and Linen's metadata box a leaf.

    In the names of a PyTorch state dict, such as `patch_embed.proj.weight`, dots separate the parts.
    """
    return re.split(r"[/.]", path_of(keys).removesuffix("/value"))


def _words(name: str) -> list[str]:
    """`LayerNorm_0` -> ["layer", "norm"]."""
    return [word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _first(parts: Sequence[str]) -> str:
    return next(iter(_words(parts[-1])), "")


def _is_norm(words: Sequence[str]) -> bool:
    return any(word.endswith("norm") or word in _NORMS for word in words)


def _is_embedding(words: Sequence[str]) -> bool:
    return any("embed" in word or word in _EMBEDDINGS for word in words)


def _owner(tree: PyTree, keys: Keys) -> str:
    """The class of the Equinox module that holds the leaf as a field, "" if there is none."""
    node = tree
    for key in keys[:-1]:
        try:
            if isinstance(key, jax.tree_util.GetAttrKey):
                node = getattr(node, key.name)
            elif isinstance(key, jax.tree_util.DictKey):
                node = node[key.key]
            else:
                node = node[key.idx]
        except (AttributeError, IndexError, KeyError, TypeError):
            return ""
    return type(node).__name__ if type(node).__module__.startswith("equinox.") else ""
