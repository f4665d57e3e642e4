"""Measuring: interleaved pairs, this machine's peak, and what a training step has to compute."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lthjax import models, prune
from lthjax.models import Model

MODELS = sorted(name for name, entry in models.MODELS.items() if entry.layers(10))
"""The networks that have a twin: the sequential ones."""


class Pairs(NamedTuple):
    """Two sides timed in turn.

    Attributes:
        ours: median seconds.
        peer: median seconds.
        ratio: median over the pairs of peer / ours; above 1 ours is faster.
        spread: (lowest, highest) ratio of a pair.
        ratios: of every pair, in the order of time.
    """

    ours: float
    peer: float
    ratio: float
    spread: tuple[float, float]
    ratios: tuple[float, ...]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call that returns when its work is done."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pairs(ours: Callable[[], object], peer: Callable[[], object], count: int) -> Pairs:
    """Times both in turn, `count` times each, after one call each that is not counted."""
    ours()
    peer()
    timed = [(seconds(ours), seconds(peer)) for _ in range(count)]
    ratios = [theirs / mine for mine, theirs in timed]
    return Pairs(
        statistics.median(mine for mine, _ in timed),
        statistics.median(theirs for _, theirs in timed),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        tuple(ratios),
    )


def matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """The best GFLOP/s of a float32 matrix product of this size on all of this machine."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = min(seconds(lambda: product(a, a).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best / 1e9


def step_gflop(model: Model, batch: int) -> float:
    """GFLOP of the matrix products and convolutions of one training step.

    Forward, weight gradient and input gradient cost the same; the first layer has no input gradient. The
    model is sequential.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, variables.params)

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, variables.stats, images, False)[0]

    rows = prune.table(params, prune.ones(params), apply=logits, shape=(1, *model.input_shape)).rows
    macs = {row.path: row.macs or 0 for row in rows}
    return 2 * batch * (3 * sum(macs.values()) - macs[f"{model.layers[0].name}/kernel"]) / 1e9
