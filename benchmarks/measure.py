"""Measurements: this machine's peak, and the operations of a training step."""

from typing import Any

import jax
import jax.numpy as jnp

from lthjax import models, prune
from lthjax.measures.timing import seconds
from lthjax.models import Model

MODELS = sorted(name for name, entry in models.MODELS.items() if entry.layers(10) and not entry.dropout)
"""The networks with a PyTorch twin: the sequential ones without dropout, which the twin does not have."""


def matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """The best GFLOP/s of a float32 matrix product of this size on this whole machine."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = min(seconds(lambda: product(a, a).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best / 1e9


def step_gflop(model: Model, batch: int) -> float:
    """GFLOP of the matrix products and convolutions of one training step.

    Forward, weight gradient and input gradient cost the same; the first layer has no input gradient. The
    model is one of the package.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    params, stats = jax.tree.map(jnp.zeros_like, (variables.params, variables.stats))
    first = model.layers[0].name if model.layers else "conv1"

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, stats, images, False)[0]

    rows = prune.table(params, prune.ones(params), apply=logits, shape=(1, *model.input_shape)).rows
    macs = {row.path: row.macs or 0 for row in rows}
    return 2 * batch * (3 * sum(macs.values()) - macs[f"{first}/kernel"]) / 1e9
