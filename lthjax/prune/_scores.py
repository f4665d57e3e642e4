"""Scores from gradients, before or after training. The lowest are pruned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Loss = Callable[[PyTree], jax.Array]


def saliency(loss: Loss, params: PyTree) -> PyTree:
    """|g * w|: how much the loss changes, to first order, when a weight is removed.

    Args:
        loss: parameters -> mean loss, shape ().
        params: where; pruned weights 0.

    Source: Lee et al. 2019, SNIP (arXiv 1810.02340), at initialisation; Molchanov et al. 2017
    (arXiv 1611.06440), Taylor, on trained weights.
    """
    return jax.tree.map(lambda g, w: jnp.abs(g * w), jax.grad(loss)(params), params)


def gradient_flow(loss: Loss, params: PyTree) -> PyTree:
    """w * (H g), the opposite of GraSP's S = -w * (H g), of which the largest are pruned.

    Args:
        loss: parameters -> mean loss, shape ().
        params: where; pruned weights 0.

    Source: Wang et al. 2020, GraSP (arXiv 2002.07376), equation 8.
    """
    gradient = jax.grad(loss)
    # Reverse over reverse: functions with a reverse rule of their own have no forward one.
    at, pull = jax.vjp(gradient, params)
    (curved,) = pull(at)
    return jax.tree.map(jnp.multiply, params, curved)


def synaptic_flow(
    apply: Callable[[PyTree, jax.Array], jax.Array], params: PyTree, shape: tuple[int, ...]
) -> PyTree:
    """dR/d|w| * |w|, with R the sum of the outputs for an input of ones and all weights made positive.

    Args:
        apply: (parameters, input) -> output.
        params: where; pruned weights 0.
        shape: of the input, batch axis included.

    Source: Tanaka et al. 2020, SynFlow (arXiv 2006.05467), algorithm 1.
    """
    positive = jax.tree.map(jnp.abs, params)
    gradient = jax.grad(lambda p: apply(p, jnp.ones(shape)).sum())(positive)
    return jax.tree.map(jnp.multiply, gradient, positive)
