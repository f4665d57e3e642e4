"""The loss landscape inside a mask: directions, surfaces, paths, sharpness, noise, distances.

Everything stays in the space that the mask keeps: pruned weights are 0 at every measured point. Functions
are pure; arguments and masks may be traced. For more data than fit in memory at once, a measure is a sum
over chunks:

    data = landscape.chunks(images, labels, 100)
    measure = landscape.measured(lambda params, images: model.apply(params, {}, images, False)[0])
    first, second = landscape.directions(key, params, mask)
    surface = jax.jit(landscape.plane, static_argnums=0)(measure, params, first, second, a, a, data)
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from lthjax import prune
from lthjax.measures.hessian import Loss

PyTree = Any
Apply = Callable[[PyTree, jax.Array], jax.Array]
"""(params, images float [N, H, W, C]) -> logits float [N, classes]."""
Measure = Callable[..., PyTree]
"""(params) -> a pytree of numbers; or (params, chunk) -> the chunk's contribution to them."""


class Chunk(NamedTuple):
    """Images in chunks of equal size; the last chunk is padded with images of weight 0.

    Attributes:
        images: float32 [chunks, size, H, W, C].
        labels: int32 [chunks, size].
        weights: float32 [chunks, size]; 1 / number of images, or 0 for padding. They add up to 1.
    """

    images: jax.Array
    labels: jax.Array
    weights: jax.Array


class Losses(NamedTuple):
    """Mean loss in nats and accuracy; or a chunk's contribution to them."""

    loss: jax.Array
    accuracy: jax.Array


class Noise(NamedTuple):
    """How much the gradients of batches differ.

    Attributes:
        trace: float (), the trace of the covariance of a batch's gradient, unbiased.
        per_example: float (), the same for single images: the trace times the images in a batch.
        gradient: float (), the Euclidean norm of the mean gradient.
    """

    trace: jax.Array
    per_example: jax.Array
    gradient: jax.Array


class Travel(NamedTuple):
    """How far apart two points are.

    Attributes:
        distance: float (), Euclidean.
        degrees: float (), the angle between them as seen from 0; NaN where one of the points is 0.
    """

    distance: jax.Array
    degrees: jax.Array


def chunks(images: Any, labels: Any, size: int) -> Chunk:
    """Cuts images into chunks whose weighted sums add up to means over all images.

    Args:
        images: float [N, H, W, C], normalised.
        labels: int [N].
        size: images in a chunk. On CPU, 50 to 100 are fastest for convolutional networks.
    """
    if not 1 <= len(images) == len(labels):
        raise ValueError(f"images: {len(images)} with {len(labels)} labels; as many, and at least one.")
    n = len(images)
    size = min(size, n)
    rows = -(-n // size)

    def cut(values: Any, dtype: Any) -> jax.Array:
        values = np.asarray(values, dtype)
        filled = np.zeros((rows * size, *values.shape[1:]), dtype)
        filled[:n] = values
        return jnp.asarray(filled.reshape(rows, size, *values.shape[1:]))

    return Chunk(cut(images, np.float32), cut(labels, np.int32), cut(np.full(n, 1 / n), np.float32))


def cross_entropy(apply: Apply) -> Loss:
    """(params, chunk) -> the chunk's contribution to the mean cross-entropy, nats: a loss for `hessian`."""

    def loss(params: PyTree, chunk: Chunk) -> jax.Array:
        logits = apply(params, chunk.images)
        return chunk.weights @ optax.softmax_cross_entropy_with_integer_labels(logits, chunk.labels)

    return loss


def measured(apply: Apply) -> Measure:
    """(params, chunk) -> the chunk's contribution to mean loss and accuracy, a `Losses`."""

    def measure(params: PyTree, chunk: Chunk) -> Losses:
        logits = apply(params, chunk.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, chunk.labels)
        hits = logits.argmax(-1) == chunk.labels
        return Losses(chunk.weights @ losses, jnp.where(hits, chunk.weights, 0).sum())

    return measure


def direction(key: jax.Array, params: PyTree, mask: PyTree) -> PyTree:
    """A random direction inside the mask, filter-normalised.

    d <- m * N(0, 1), then for every filter f: d_f <- d_f |theta_f| / (|d_f| + 1e-10), with norms over
    the survivors. A filter is all weights into one output unit: one index of the last axis. The direction
    is 0 in leaves that may not be pruned (biases, normalisation), in leaves of fewer than two dimensions,
    and in filters without survivors.

    Args:
        key: a PRNG key.
        params: a pytree of arrays.
        mask: its mask.

    Returns:
        A pytree like the parameters, exactly 0 outside the mask.

    Source: Li et al. 2018 (arXiv 1712.09913), section 4. The mask is applied before the normalisation, so
    that pruned weights do not shrink the direction.
    """
    return directions(key, params, mask, 1)[0]


def directions(key: jax.Array, params: PyTree, mask: PyTree, count: int = 2) -> list[PyTree]:
    """Random directions inside the mask, filter-normalised and orthogonal to one another.

    Gram-Schmidt runs within every filter before that filter is normalised. Scaling whole filters then
    keeps the directions orthogonal; directions that are orthogonal only over all filters together would
    not stay so. In every filter a direction is as long as theta *and* orthogonal to the earlier
    directions. The price: a filter with s survivors has room for s orthogonal directions, and is 0 in all
    later ones (with two directions, this affects filters with a single survivor).

    Args:
        key, params, mask: as for `direction`, which gives the first direction.
        count: number of directions.
    """
    leaves, treedef = jax.tree.flatten(prune.apply(params, mask))
    masks = jax.tree.leaves(mask)
    found: list[list[jax.Array]] = []
    for number in range(count):
        keys = jax.random.split(jax.random.fold_in(key, number), len(leaves))
        earlier = [[d[i] for d in found] for i in range(len(leaves))]
        found.append([_filters(*of_leaf) for of_leaf in zip(keys, leaves, masks, earlier, strict=True)])
    return [jax.tree.unflatten(treedef, d) for d in found]


def _filters(key: jax.Array, w: jax.Array, m: jax.Array, earlier: Sequence[jax.Array]) -> jax.Array:
    if not jnp.ndim(m) or w.ndim < 2:
        return jnp.zeros_like(w)
    inputs = tuple(range(w.ndim - 1))

    def norm(v: jax.Array) -> jax.Array:
        return jnp.sqrt((v * v).sum(inputs, keepdims=True))

    d = jnp.where(m, jax.random.normal(key, w.shape, w.dtype), 0)
    # Twice, because rounding leaves a rest.
    for _ in range(2 if earlier else 0):
        for e in earlier:
            squared = (e * e).sum(inputs, keepdims=True)
            along = (d * e).sum(inputs, keepdims=True) / jnp.where(squared > 0, squared, 1)
            d = jnp.where(m, d - along * e, 0)
    room = m.sum(inputs, keepdims=True) > len(earlier)
    return jnp.where(m & room, d * (norm(w) / (norm(d) + 1e-10)), 0)


def plane(
    measure: Measure,
    params: PyTree,
    first: PyTree,
    second: PyTree,
    a: Any = None,
    b: Any = None,
    chunks: PyTree = None,
    *,
    together: int = 1,
) -> PyTree:
    """The values of `measure` at theta + a first + b second, on a grid.

    Args:
        measure: (params) or (params, chunk) -> numbers.
        params: theta, its pruned weights 0.
        first, second: directions, 0 outside the mask.
        a, b: float [A], float [B]; by default 51 from -1 to 1.
        chunks: a pytree of arrays with a leading axis over which the values are summed, or None.
        together: grid points evaluated at a time. 1 is fastest on CPU, where convolutions under vmap
            are slow; an accelerator needs more.

    Returns:
        The pytree that `measure` returns, every leaf [A, B].
    """
    a, b = grid() if a is None else jnp.asarray(a), grid() if b is None else jnp.asarray(b)
    pairs = jnp.stack(jnp.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    flat = _at_points(
        lambda steps: total(measure, chunks)(moved(params, (first, second), steps)), pairs, together
    )
    return jax.tree.map(lambda x: x.reshape(len(a), len(b), *x.shape[1:]), flat)


def line(
    measure: Measure,
    params: PyTree,
    along: PyTree,
    a: Any = None,
    chunks: PyTree = None,
    *,
    together: int = 1,
) -> PyTree:
    """The values of `measure` at theta + a along; every leaf [A]. Arguments as for `plane`."""
    a = grid() if a is None else jnp.asarray(a)
    return _at_points(lambda step: total(measure, chunks)(moved(params, (along,), step[None])), a, together)


def path(
    measure: Measure,
    first: PyTree,
    second: PyTree,
    alphas: Any = None,
    chunks: PyTree = None,
    *,
    prepare: Callable[[PyTree], PyTree] = lambda params: params,
    together: int = 1,
) -> PyTree:
    """The values of `measure` on the straight path alpha first + (1 - alpha) second.

    Where two networks have different masks, the path lies in the union of the masks.

    Args:
        measure: (point) or (point, chunk) -> numbers.
        first, second: parameters; pruned weights 0.
        alphas: float [A]; by default 30 from 0 to 1.
        chunks, together: as for `plane`.
        prepare: weights on the path -> the point that `measure` takes; by default the weights. Use it to
            recompute batch statistics (`models.statistics`), as those of the ends do not fit the points
            between.

    Returns:
        The pytree that `measure` returns, every leaf [A].
    """
    alphas = jnp.linspace(0, 1, 30) if alphas is None else jnp.asarray(alphas)

    def between(alpha: jax.Array) -> PyTree:
        point = jax.tree.map(lambda one, two: alpha * one + (1 - alpha) * two, first, second)
        return total(measure, chunks)(prepare(point))

    return _at_points(between, alphas, together)


def barrier(values: Any) -> Any:
    """max E(alpha) - (E(0) + E(1)) / 2 along a path; at least 0.

    Args:
        values: float [..., A], a loss or an error (1 - accuracy) on a path, ends included.

    Returns:
        float [...], of JAX where the values are; else of NumPy, float64 where they are.

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 2.
    """
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    return values.max(-1) - (values[..., 0] + values[..., -1]) / 2


def grid(points: int = 51, reach: float = 1.0) -> jax.Array:
    """Evenly spaced values from -reach to reach; float [points]. With an odd `points` one of them is 0."""
    return jnp.linspace(-reach, reach, points)


def moved(params: PyTree, along: Sequence[PyTree], steps: Any) -> PyTree:
    """theta + sum of steps[i] along[i].

    Args:
        params: theta.
        along: directions.
        steps: float [directions].
    """
    return reduce(
        lambda at, pair: jax.tree.map(lambda p, d: p + steps[pair[0]] * d, at, pair[1]),
        enumerate(along),
        params,
    )


def total(measure: Measure, chunks: PyTree = None) -> Callable[[PyTree], PyTree]:
    """params -> the sum of `measure` over all chunks; without chunks `measure` itself."""
    if chunks is None:
        return measure

    def over_all(params: PyTree) -> PyTree:
        one = jax.eval_shape(measure, params, jax.tree.map(lambda x: x[0], chunks))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)

        def add(so_far: PyTree, chunk: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, so_far, measure(params, chunk)), None

        return lax.scan(add, zeros, chunks)[0]

    return over_all


def _at_points(function: Callable[[jax.Array], PyTree], points: jax.Array, together: int) -> PyTree:
    return lax.map(function, points, batch_size=together if together > 1 else None)


def gradient(loss: Loss, params: PyTree, mask: PyTree, chunks: PyTree = None) -> PyTree:
    """m * gradient of the loss at m * theta, over all chunks; exactly 0 outside the mask."""
    return prune.apply(total(jax.grad(loss), chunks)(prune.apply(params, mask)), mask)


def sharpness(
    loss: Loss,
    params: PyTree,
    mask: PyTree,
    rho: float = 0.05,
    chunks: PyTree = None,
    *,
    adaptive: bool = False,
) -> jax.Array:
    """The rise of the loss after a step of length rho up the gradient, inside the mask.

    L(theta + e) - L(theta), with e = rho m*g / |m*g|. Adaptive: e = rho t^2 m*g / |t m*g| with
    t = |theta| elementwise, biases included. Adaptive sharpness is the same for all networks that differ
    only by factors between consecutive ReLU layers. The step is the worst case to first order only.
    Compare networks at the same train loss.

    Args:
        loss: (params) -> (); with chunks (params, chunk) -> (), and the loss is the sum over chunks.
        params: a pytree of arrays.
        mask: its mask.
        rho: length of the step, in weights; if adaptive, relative to the weights (0.5 is usual then).
        chunks: a pytree of arrays with a leading axis of chunks, or None.
        adaptive: whether the step is measured relative to the weights.

    Returns:
        float (); 0 where the gradient is 0.

    Source: Foret et al. 2021, SAM (arXiv 2010.01412), equation 2; Kwon et al. 2021, ASAM (arXiv
    2102.11600), equation 6, without its constant for biases.
    """
    start = prune.apply(params, mask)
    g = gradient(loss, params, mask, chunks)
    scaled = jax.tree.map(lambda g, w: g * jnp.abs(w), g, start) if adaptive else g
    norm = jnp.linalg.norm(ravel_pytree(scaled)[0])
    rate = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    up = jax.tree.map(lambda s, w: s * jnp.abs(w), scaled, start) if adaptive else g
    value = total(loss, chunks)
    return value(jax.tree.map(lambda w, u: w + rate * u, start, up)) - value(start)


def gradient_noise(loss: Loss, params: PyTree, mask: PyTree, chunks: PyTree, size: int) -> Noise:
    """The trace of the gradient covariance inside the mask, with the chunks as batches.

    With c chunks, g_i is c times the gradient of chunk i's contribution, and the mean g of all g_i is the
    gradient of the whole loss. The trace is the sum of |m*(g_i - g)|^2 / (c - 1). For batches of b images
    drawn independently it is 1 / b of the trace for single images.

    Args:
        loss: (params, chunk) -> (); the loss is the sum over the chunks.
        params: a pytree of arrays.
        mask: its mask.
        chunks: a pytree of arrays with a leading axis of two or more chunks, all full and in random
            order.
        size: images in a chunk.
    """
    count = len(jax.tree.leaves(chunks)[0])
    if count < 2:
        raise ValueError(f"chunks: a covariance takes two or more, not {count}.")
    start = prune.apply(params, mask)

    def add(so_far: tuple, chunk: PyTree) -> tuple[tuple, None]:
        # Welford's update: a difference of two large sums would lose precision.
        n, mean, squares = so_far
        g = count * ravel_pytree(prune.apply(jax.grad(loss)(start, chunk), mask))[0]
        off = g - mean
        mean = mean + off / (n + 1)
        return (n + 1, mean, squares + off @ (g - mean)), None

    zero = jnp.zeros_like(ravel_pytree(start)[0])
    (_, mean, squares), _ = lax.scan(add, (jnp.zeros((), zero.dtype), zero, zero.sum()), chunks)
    trace = squares / (count - 1)
    return Noise(trace, size * trace, jnp.linalg.norm(mean))


def travelled(start: PyTree, end: PyTree, mask: PyTree) -> Travel:
    """Distance and angle between two points inside a mask, for example initial and final weights.

    Leaves that may not be pruned belong to the space and count.

    Args:
        start, end: pytrees of arrays.
        mask: their mask.

    Source: Frankle et al. 2019 (arXiv 1903.01611), section 3.
    """
    one, two = (ravel_pytree(prune.apply(point, mask))[0] for point in (start, end))
    lengths = jnp.linalg.norm(one), jnp.linalg.norm(two)
    # By both half-diagonals: the cosine is imprecise at small angles.
    u, v = one / lengths[0], two / lengths[1]
    angle = 2 * jnp.arctan2(jnp.linalg.norm(u - v), jnp.linalg.norm(u + v))
    return Travel(jnp.linalg.norm(two - one), jnp.degrees(angle))


def disagreement(first: Any, second: Any) -> jax.Array:
    """The share of images on which the predictions of two networks differ.

    Args:
        first, second: logits, float [N, classes].
    """
    return (jnp.argmax(first, -1) != jnp.argmax(second, -1)).mean()
