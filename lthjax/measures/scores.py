"""Scores of weights at initialisation or at step t of a training run.

A higher score means that the weight is predicted to survive. All scores but Fisher come from
`lthjax.criteria.CRITERIA`.

    from lthjax.measures import scores

    found = scores.compute(logits, initial, params, images, labels)
    found["snip"]["fc1"]["kernel"]          # float32 [784, 300]
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lthjax import models, prune
from lthjax.criteria import CRITERIA, Weights
from lthjax.measures import layers
from lthjax.measures.layers import Layers
from lthjax.models import Model, Variables

PyTree = Any
PIXEL_VARIANCE = "pixel_variance"


class Seen(NamedTuple):
    """The inputs of a score.

    Attributes:
        weights: the inputs of a criterion: `initial` are the weights at step 0, `final` those at step t,
            the loss is over all images, and the mask keeps everything.
        example: (weights, one image [H, W, C], its label) -> its loss, nats.
        images: float32 [batches, B, H, W, C], normalised.
        labels: int32 [batches, B].
    """

    weights: Weights
    example: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    images: jax.Array
    labels: jax.Array


class Score(NamedTuple):
    """A row of `SCORES`.

    Attributes:
        of: `Seen` -> scores, a pytree like the weights.
        label: name in figures.
        from_step: the first step at which it differs from all other scores.
    """

    of: Callable[[Seen], PyTree]
    label: str
    from_step: int


def _criterion(name: str) -> Callable[[Seen], PyTree]:
    """A criterion on the weights at step 0 and at step t."""
    return lambda seen: CRITERIA[name].score(seen.weights)


def _at_step(name: str) -> Callable[[Seen], PyTree]:
    """A criterion that takes weights before training, applied to the weights at step t."""
    return lambda seen: CRITERIA[name].score(seen.weights._replace(initial=seen.weights.final))


def _fisher(seen: Seen) -> PyTree:
    """Mean over the images of the squared gradient of log p(label | image).

    The labels are those of the data, not drawn from the network: this is the diagonal of the empirical
    Fisher (for its limits see Kunstner et al. 2019, arXiv 1905.12558).
    """
    gradient, params = jax.grad(seen.example), seen.weights.final
    images, labels = (x.reshape(-1, *x.shape[2:]) for x in (seen.images, seen.labels))

    def add(total: PyTree, one: tuple[jax.Array, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(lambda t, g: t + g * g, total, gradient(params, *one)), None

    # One image at a time: a batch would hold one gradient per image, and batched kernels are slow on CPU.
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (images, labels))
    return jax.tree.map(lambda t: t / len(labels), total)


SCORES: dict[str, Score] = {
    "init_magnitude": Score(_criterion("large_init"), "|θ₀|", 0),
    "magnitude": Score(_criterion("large_final"), "|θₜ|", 1),
    "movement": Score(_criterion("movement"), "|θₜ − θ₀|", 1),
    "snip": Score(_at_step("snip"), "SNIP", 0),
    "grasp": Score(_at_step("grasp"), "GraSP", 0),
    "synflow": Score(_at_step("synflow"), "SynFlow", 0),
    "fisher": Score(_fisher, "Fisher", 0),
}
"""Name -> score."""


def names_at(step: int) -> list[str]:
    """The scores in `SCORES` that are computed at a step of the dense training run."""
    return [name for name, score in SCORES.items() if step >= score.from_step]


def compute(
    logits: Callable[[PyTree, jax.Array], jax.Array],
    initial: PyTree,
    params: PyTree,
    images: jax.Array,
    labels: jax.Array,
    names: Iterable[str] = tuple(SCORES),
    training: Callable[[PyTree, jax.Array], jax.Array] | None = None,
    fitted: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> dict[str, PyTree]:
    """Scores of all weights, name -> a pytree like the parameters. Works under `jit`.

    Args:
        logits: (weights, images [N, H, W, C]) -> logits [N, classes].
        initial: the weights at step 0.
        params: the weights at step t.
        images: float32 [batches, B, H, W, C], normalised; one batch at a time is in memory.
        labels: int32 [batches, B].
        names: keys of `SCORES`.
        training: the logits in training, of which the loss over all images is; by default `logits`.
        fitted: the logits by batch statistics of the images, of which one image's loss is; by default
            `logits`.
    """
    of_batch, of_one = (logits if given is None else given for given in (training, fitted))

    def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def loss(params: PyTree, temperature: float = 1.0) -> jax.Array:
        # Recomputed in the backward pass, so that memory does not grow with the number of batches.
        one = jax.checkpoint(lambda batch: entropy(of_batch(params, batch[0]) / temperature, batch[1]))
        return jax.lax.map(one, (images, labels)).mean()

    def example(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        return entropy(of_one(params, image[None]), label[None])

    # No score uses the key.
    key, shape = jax.random.key(0), (1, *images.shape[2:])
    weights = Weights(initial, params, key, loss, logits, shape, prune.ones(params))
    seen = Seen(weights, example, images, labels)
    return {name: SCORES[name].of(seen) for name in names}


def scorer(model: Model) -> Callable[..., dict[str, PyTree]]:
    """Compiled `compute`: (initial weights, state at step t, images, labels, names=...) -> name -> scores.

    The loss of SNIP and GraSP is that of training, as for the criteria: batches are normalised by their own
    statistics. SynFlow sees no data: it has the state's own statistics, as the criterion (at step 0 means of
    0 and variances of 1). For Fisher batch statistics are recomputed for the state's weights and the images,
    as the running statistics are not yet meaningful at step 0.
    """

    @partial(jax.jit, static_argnames="names")
    def compiled(
        initial: PyTree, now: Variables, images: jax.Array, labels: jax.Array, names: tuple[str, ...]
    ) -> dict[str, PyTree]:
        stats = models.statistics(model, now.params, now.stats, images)

        def logits(stats: PyTree, train: bool) -> Callable[[PyTree, jax.Array], jax.Array]:
            return lambda params, images: model.apply(params, stats, images, train)[0]

        of = logits(now.stats, False), initial, now.params, images, labels, names
        with jax.default_matmul_precision("float32"):
            return compute(*of, training=logits(stats, True), fitted=logits(stats, False))

    return compiled


def pixel_variance(images: np.ndarray, std: np.ndarray, mask: PyTree, order: Sequence[str] = ()) -> Layers:
    """The variance of the pixel that a weight of the first layer reads.

    Args:
        images: uint8 [N, H, W, C], the train split.
        std: [C], the divisor of pixels in [0, 1].
        mask: any mask of the network; only its shapes are used.
        order: of `lthjax.models.Model`; without it leaves are in the order of their names.

    Returns:
        float64 [n] for the first leaf of a fully connected network with as many inputs as there are pixels.
        Empty for convolutional networks, as their weights read every pixel.
    """
    height, width, channels = images.shape[1:]
    pixels = height * width * channels
    leaves = {path: m.shape for path, m in layers.by_number(layers.by_layer(mask, mask)).items()}
    first = [path for path, shape in leaves.items() if len(shape) == 2 and shape[0] == pixels]
    if not first or any(len(shape) != 2 for shape in leaves.values()):
        return {}
    # A hidden layer may be as wide.
    if {*first} <= {*order}:
        first.sort(key=order.index)
    # Integer sums, so that the result does not depend on the order.
    total, squares = np.zeros(pixels, np.int64), np.zeros(pixels, np.int64)
    for part in np.array_split(images, max(1, len(images) // 5000)):
        flat = part.reshape(len(part), -1).astype(np.int64)
        total += flat.sum(0)
        squares += (flat * flat).sum(0)
    mean = total / len(images)
    scaled = np.tile(255 * np.asarray(std, np.float64), height * width)
    variance = np.maximum(squares / len(images) - mean * mean, 0) / scaled**2
    return {first[0]: np.repeat(variance, leaves[first[0]][1])}
