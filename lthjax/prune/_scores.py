"""Scores from gradients, before or after training. The lowest scores are pruned."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lthjax.prune._masks import apply as masked_params
from lthjax.prune._names import is_float
from lthjax.prune._range import at_exponent, widened

PyTree = Any
# Exponent range of SynFlow's scores: within float32, and far from its lower end.
_EXPONENTS = (-60, 100)
Loss = Callable[[PyTree], jax.Array]
TEMPERATURE = 200.0
"""GraSP divides logits by this temperature: Wang et al. 2020, in their code."""


def saliency(loss: Loss, params: PyTree) -> PyTree:
    """|g * w|: the first-order change of the loss when a weight is removed.

    Args:
        loss: parameters -> mean loss, shape ().
        params: the weights at which to compute; pruned weights 0.

    Source: Lee et al. 2019, SNIP (arXiv 1810.02340), at initialisation; Molchanov et al. 2017
    (arXiv 1611.06440), Taylor, on trained weights.
    """
    floats, whole = _split(params)
    gradient = jax.grad(lambda of: loss(whole(of)))(floats)
    return whole([jnp.abs(_product(g, w)) for g, w in zip(gradient, floats, strict=True)])


def gradient_flow(loss: Loss, params: PyTree, mask: PyTree) -> PyTree:
    """w * (H g), the negative of GraSP's S = -w * (H g), whose largest values are pruned.

    g is the gradient of the weights that pruning chooses among: it is 0 for pruned weights and for leaves
    that may not be pruned.

    Args:
        loss: parameters -> mean loss, shape (), of logits divided by `TEMPERATURE`.
        params: the weights at which to compute; pruned weights 0.
        mask: which weights survive.

    Source: Wang et al. 2020, GraSP (arXiv 2002.07376), equation 8.
    """
    # Reverse over reverse: functions with a custom reverse rule have no forward rule.
    floats, whole = _split(params)
    own = _split(params, mask)[0]
    at, pull = jax.vjp(jax.grad(lambda of: loss(whole(of))), floats)
    chosen = [
        g if jnp.ndim(m) else jnp.zeros_like(g) for m, g in zip(own, masked_params(at, own), strict=True)
    ]
    (curved,) = pull(chosen)
    return whole([_product(w, c) for w, c in zip(floats, curved, strict=True)])


def synaptic_flow(
    apply: Callable[[PyTree, jax.Array], jax.Array], params: PyTree, shape: tuple[int, ...]
) -> PyTree:
    """dR/d|w| * |w|, with R the sum of the outputs for an input of ones and all weights made positive.

    R is a product over layers and may exceed the range of its dtype. Then all scores are multiplied by one
    power of two, which keeps the ranks within and between layers.

    Args:
        apply: (parameters, input) -> output.
        params: the weights at which to compute; pruned weights 0.
        shape: of the input, batch axis included.

    Source: Tanaka et al. 2020, SynFlow (arXiv 2006.05467), algorithm 1.
    """
    floats, whole = _split(params)
    positive = [*map(jnp.abs, floats)]
    gradient, exponent = jax.grad(
        lambda of: widened(lambda of: apply(whole(of), jnp.ones(shape)).sum(), of), has_aux=True
    )(positive)
    exponent = jnp.clip(exponent, *_EXPONENTS)
    return whole([at_exponent(_product(g, w), exponent) for g, w in zip(gradient, positive, strict=True)])


def _split(
    params: PyTree, values: PyTree | None = None
) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
    """Leaves that have gradients, and the tree with other ones in their place; integers and PRNG keys stay.

    Args:
        params: a pytree of arrays, whose floats have gradients.
        values: the tree whose leaves are given, by default the parameters.
    """
    leaves, treedef = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def whole(floats: Sequence[Any]) -> PyTree:
        others = dict(zip(places, floats, strict=True))
        return jax.tree.unflatten(treedef, [others.get(i, leaf) for i, leaf in enumerate(leaves)])

    given = leaves if values is None else jax.tree.leaves(values)
    return [given[i] for i in places], whole


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a * b in float32 or wider: products of small numbers underflow in narrow dtypes."""
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return a.astype(wide) * b.astype(wide)
