"""The generalised Gauss-Newton matrix and the empirical Fisher of the cross-entropy, inside a mask.

Both are sums over images of J' A J, with J the Jacobian of an image's logits by the parameters, and A a
matrix of the logits alone:

    GGN               A = diag(p) - p p', with p the network's probabilities; the Hessian without the
                      curvature of the network. It is the Fisher information under the network's own labels.
    empirical Fisher  A = (p - y)(p - y)', with y the data's label: the squared gradients of the images.

They are symmetric and have no negative eigenvalue. They are operators as of `hessian`, whose eigenvalues,
traces and densities take them.

    on = gauss_newton.ggn(apply, params, mask, landscape.chunks(images, labels, 100))
    hessian.extremes(on, key, 1), traces.sketched_trace(on, key)

Source: Martens 2020 (arXiv 1412.1193), sections 8 and 9; for what the empirical Fisher is not, Kunstner et
al. 2019 (arXiv 1905.12558).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from lthjax import prune
from lthjax.measures.hessian import Operator, kept_of

PyTree = Any
Apply = Callable[[PyTree, jax.Array], jax.Array]
"""(params, images float [N, H, W, C]) -> logits float [N, classes]; of each image alone."""
_Middle = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(probabilities, labels as probabilities, u) -> A u, image by image; all [N, classes]."""


def ggn(apply: Apply, params: PyTree, mask: PyTree, chunks: PyTree) -> Operator:
    """The generalised Gauss-Newton matrix of the mean cross-entropy inside the mask.

    Args:
        apply: the network; a normalisation over the batch is not allowed.
        params: a pytree of float arrays.
        mask: its mask.
        chunks: images, labels and weights, as of `landscape.chunks`; the sum over all is weighted.
    """
    return _operator(apply, params, mask, chunks, lambda p, y, u: p * u - p * (p * u).sum(1, keepdims=True))


def empirical_fisher(apply: Apply, params: PyTree, mask: PyTree, chunks: PyTree) -> Operator:
    """The empirical Fisher of the cross-entropy inside the mask; arguments as for `ggn`.

    Its trace is the mean squared norm of one image's gradient.
    """
    return _operator(
        apply, params, mask, chunks, lambda p, y, u: (p - y) * ((p - y) * u).sum(1, keepdims=True)
    )


def _operator(apply: Apply, params: PyTree, mask: PyTree, chunks: PyTree, middle: _Middle) -> Operator:
    start, unravel = ravel_pytree(prune.apply(params, mask))
    kept = kept_of(params, mask)

    def of_chunk(vectors: jax.Array, chunk: Any) -> jax.Array:
        logits, pull = jax.vjp(lambda flat: apply(unravel(flat), chunk.images), start)
        # The transpose of u -> J'u is v -> J v: reverse mode twice, as the networks have no forward rules.
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(logits))
        p, y = jax.nn.softmax(logits), jax.nn.one_hot(chunk.labels, logits.shape[1], dtype=logits.dtype)

        def one(v: jax.Array) -> jax.Array:
            return pull(chunk.weights[:, None] * middle(p, y, push(v)[0]))[0]

        # One vector at a time on CPU, where batched convolutions are slow.
        return lax.platform_dependent(
            vectors, cpu=lambda vectors: lax.map(one, vectors), default=lambda vectors: jax.vmap(one)(vectors)
        )

    def product(vectors: jax.Array) -> jax.Array:
        inside = jnp.where(kept[None], vectors.astype(start.dtype), 0)
        whole, _ = lax.scan(
            lambda total, chunk: (total + of_chunk(inside, chunk), None), jnp.zeros_like(inside), chunks
        )
        return jnp.where(kept[None], whole, 0)

    return Operator(product, kept, semidefinite=True)
