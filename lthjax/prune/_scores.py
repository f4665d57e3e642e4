"""Scores from gradients, before or after training. The lowest scores are pruned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lthjax.prune._masks import apply as masked_params
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
    return jax.tree.map(lambda g, w: jnp.abs(_product(g, w)), jax.grad(loss)(params), params)


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
    at, pull = jax.vjp(jax.grad(loss), params)
    chosen = jax.tree.map(lambda m, g: g if jnp.ndim(m) else jnp.zeros_like(g), mask, masked_params(at, mask))
    (curved,) = pull(chosen)
    return jax.tree.map(_product, params, curved)


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
    positive = jax.tree.map(jnp.abs, params)
    gradient, exponent = jax.grad(
        lambda p: widened(lambda p: apply(p, jnp.ones(shape)).sum(), p), has_aux=True
    )(positive)
    return jax.tree.map(
        lambda g, w: at_exponent(_product(g, w), jnp.clip(exponent, *_EXPONENTS)), gradient, positive
    )


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a * b in float32 or wider: products of small numbers underflow in narrow dtypes."""
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return a.astype(wide) * b.astype(wide)
