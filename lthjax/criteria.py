"""Pruning criteria: scores that rank the survivors; the lowest are pruned.

One row per criterion: weights -> scores. Magnitude criteria are named as in Zhou et al. 2019
(arXiv 1905.01067), table 1, with alpha = 1. Where their code gives all weights of the other sign the score 0,
and chance decides between them, these have scores of their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lthjax.prune import _scores
from lthjax.prune._selection import random_scores

PyTree = Any


class Loss(Protocol):
    """A mean loss on fixed train images."""

    def __call__(self, params: PyTree, temperature: float = 1.0) -> jax.Array:
        """In nats, shape (); logits are divided by the temperature."""


class Weights(NamedTuple):
    """The inputs of a criterion.

    Attributes:
        initial: the weights that the chain rewinds to; pruned weights are 0.
        final: the trained weights; pruned weights are 0.
        key: this level's own random stream.
        loss: (weights, temperature if not 1) -> mean loss on a fixed batch of train images, nats.
        logits: (weights, images) -> logits.
        shape: of one image, batch axis included: (1, H, W, C).
        mask: which weights survive.
    """

    initial: PyTree
    final: PyTree
    key: jax.Array
    loss: Loss
    logits: Callable[[PyTree, jax.Array], jax.Array]
    shape: tuple[int, ...]
    mask: PyTree


class Criterion(NamedTuple):
    """A row of `CRITERIA`.

    Attributes:
        score: weights -> scores, a pytree like the weights.
        summary: one line for help and report.
        version: increased when its scores change, so that a study with the new scores gets a new folder.
        initial: whether it reads `Weights.initial`, from which a chain of fresh weights never starts.
        final: whether it reads `Weights.final`; without it a mask needs no training after the rewind step.
    """

    score: Callable[[Weights], PyTree]
    summary: str
    version: int = 1
    initial: bool = False
    final: bool = True


def _by_leaf(score: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[Weights], PyTree]:
    """A criterion that scores every weight on its own: (initial, final) -> score."""
    return lambda weights: jax.tree.map(score, weights.initial, weights.final)


CRITERIA: dict[str, Criterion] = {
    "large_final": Criterion(_by_leaf(lambda i, f: jnp.abs(f)), "magnitude of the trained weight"),
    "small_final": Criterion(_by_leaf(lambda i, f: -jnp.abs(f)), "the opposite of large_final"),
    "large_init": Criterion(
        _by_leaf(lambda i, f: jnp.abs(i)), "magnitude of the initial weight", initial=True, final=False
    ),
    "small_init": Criterion(
        _by_leaf(lambda i, f: -jnp.abs(i)), "the opposite of large_init", initial=True, final=False
    ),
    "large_init_large_final": Criterion(
        _by_leaf(lambda i, f: jnp.minimum(jnp.abs(i), jnp.abs(f))),
        "the smaller of the two magnitudes",
        initial=True,
    ),
    "small_init_small_final": Criterion(
        _by_leaf(lambda i, f: -jnp.maximum(jnp.abs(i), jnp.abs(f))),
        "minus the larger of the two magnitudes",
        initial=True,
    ),
    "large_final_same_sign": Criterion(
        _by_leaf(lambda i, f: jnp.sign(i) * f),
        "magnitude of the trained weight, negative if its sign changed",
        initial=True,
    ),
    "large_final_diff_sign": Criterion(
        _by_leaf(lambda i, f: -jnp.sign(i) * f), "the opposite of large_final_same_sign", initial=True
    ),
    "magnitude_increase_same_sign": Criterion(
        _by_leaf(lambda i, f: jnp.where(i * f > 0, jnp.abs(f) - jnp.abs(i), -jnp.abs(i) - jnp.abs(f))),
        "magnitude_increase where the sign stayed, else minus both magnitudes",
        initial=True,
    ),
    "magnitude_increase_diff_sign": Criterion(
        _by_leaf(lambda i, f: jnp.where(i * f > 0, -jnp.abs(i) - jnp.abs(f), jnp.abs(f) - jnp.abs(i))),
        "magnitude_increase where the sign changed, else minus both magnitudes",
        initial=True,
    ),
    "magnitude_increase": Criterion(
        _by_leaf(lambda i, f: jnp.abs(f) - jnp.abs(i)),
        "by how much training raised the magnitude",
        initial=True,
    ),
    "movement": Criterion(
        _by_leaf(lambda i, f: jnp.abs(f - i)), "how far training moved the weight", initial=True
    ),
    "random": Criterion(lambda w: random_scores(w.key, w.final), "chance", final=False),
    "taylor": Criterion(
        lambda w: _scores.saliency(w.loss, w.final), "|gradient times weight| of the trained network"
    ),
    "snip": Criterion(
        lambda w: _scores.saliency(w.loss, w.initial),
        "|gradient times weight| before training",
        initial=True,
        final=False,
    ),
    "grasp": Criterion(
        lambda w: _scores.gradient_flow(lambda p: w.loss(p, _scores.TEMPERATURE), w.initial, w.mask),
        "what the weight does to gradient flow before training",
        version=2,  # 1 followed the gradient of biases and pruned weights, too, at temperature 1
        initial=True,
        final=False,
    ),
    "synflow": Criterion(
        lambda w: _scores.synaptic_flow(w.logits, w.initial, w.shape),
        "synaptic flow before training, without data",
        initial=True,
        final=False,
    ),
}
"""The criteria by name; add a row to add one."""


def draws_units(criterion: str, scope: str, granularity: str) -> bool:
    """Whether chance ranks units of several layers, each by a draw of its own.

    Earlier versions ranked them by the sums of their weights' draws, that is, by their numbers of inputs.
    """
    return criterion == "random" and scope != "layer" and granularity.startswith("unit-")
