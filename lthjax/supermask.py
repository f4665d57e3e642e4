"""Edge-popup: scores are trained, weights stay as they are, and the weights of the highest scores take part.

Source: Ramanujan et al. 2020 (arXiv 1911.13299), section 3. A layer's output is that of its weights w where
|s| is among the highest of the layer. In the backward pass the choice counts as |s| itself, so that a score's
gradient is sign(s) w ∂L/∂w', with w' the weight as it takes part.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lthjax import prune

PyTree = Any


class Scored(NamedTuple):
    """The state of `scored`.

    Attributes:
        weights: the weights, all of them; they never change.
        scores: of the weights' shapes; those of leaves that are never pruned stay 0.
        inner: the state of the optimiser that trains the scores.
    """

    weights: PyTree
    scores: PyTree
    inner: Any


def scores(key: jax.Array, params: PyTree) -> PyTree:
    """Start scores, uniform within ±1/√inputs, as in the paper's code; 0 for vectors.

    Args:
        key: a PRNG key.
        params: a pytree of arrays; the last axis of each is its outputs.
    """
    leaves, treedef = jax.tree.flatten(params)

    def drawn(key: jax.Array, w: jax.Array) -> jax.Array:
        if jnp.ndim(w) < 2:
            return jnp.zeros_like(w)
        bound = (w.size // w.shape[-1]) ** -0.5
        return jax.random.uniform(key, w.shape, jnp.float32, -bound, bound)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [drawn(k, w) for k, w in zip(keys, leaves, strict=True)])


def chosen(scores: PyTree, mask: PyTree) -> PyTree:
    """The mask of the highest |scores|, with as many survivors in every layer as the given mask.

    Args:
        scores: a pytree of arrays.
        mask: gives the counts; 0-d leaves stay as they are.
    """
    leaves = jax.tree.leaves(mask)
    going = [m.size - m.sum(dtype=jnp.int32) if jnp.ndim(m) else 0 for m in leaves]
    return prune.remove_counted(jax.tree.map(jnp.abs, scores), jax.tree.map(jnp.ones_like, mask), going)


def begin(
    optimiser: optax.GradientTransformation, weights: PyTree, scores: PyTree, mask: PyTree
) -> tuple[PyTree, Scored]:
    """The weights that take part at the start, and the state of `scored`.

    Args:
        optimiser: trains the scores.
        weights, scores: at the start.
        mask: as for `scored`.
    """
    own = jax.tree.map(lambda m, s: s if jnp.ndim(m) else jnp.zeros_like(s), mask, scores)
    return prune.apply(weights, chosen(own, mask)), Scored(weights, own, optimiser.init(own))


def scored(optimiser: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformation:
    """An optimiser of the choice of weights; in place of `prune.masked`.

    Its update takes the parameters from one choice of weights to the next: they are always exactly a weight
    or 0. The gradient must be that of the loss with respect to all of them.

    Args:
        optimiser: any optax gradient transformation; its weight decay, if any, acts on scores.
        mask: how many weights of every layer take part; may be traced.
    """

    def init(params: PyTree) -> Any:
        raise ValueError("scored: its state needs weights and scores; see supermask.begin.")

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        weights, scores, inner = state
        through = jax.tree.map(
            lambda m, g, w, s: g * w * jnp.sign(s) if jnp.ndim(m) else jnp.zeros_like(g),
            *(mask, updates, weights, scores),
        )
        steps, inner = optimiser.update(through, inner, scores)
        scores = optax.apply_updates(scores, steps)
        taken = prune.apply(weights, chosen(scores, mask))
        return jax.tree.map(jnp.subtract, taken, params), Scored(weights, scores, inner)

    return optax.GradientTransformation(init, update)


def learned(params: PyTree, mask: PyTree) -> PyTree:
    """The mask of the weights that take part: those that are not 0.

    Args:
        params: as `scored` leaves them; no weight of its own is 0.
        mask: 0-d for leaves that are never pruned.
    """
    return jax.tree.map(lambda p, m: p != 0 if jnp.ndim(m) else m, params, mask)
