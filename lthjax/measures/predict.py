"""How well scores at initialisation, or early in training, tell which weights a ticket keeps.

The question is asked within layers: that some layers are pruned more than others is known from the
rates, and a figure pooled over layers mostly measures just that. Everything here is mathematics on
`Layers`, flat numpy arrays by the path of their prunable leaf; a higher score says that the weight is
predicted to survive.

    from lthjax.measures import predict

    found = predict.scores(logits, initial, params, images, labels)
    layers = {name: predict.by_layer(tree, mask) for name, tree in found.items()}
    measured = predict.measure(layers["snip"]["fc1/kernel"], predict.by_layer(mask, mask)["fc1/kernel"])
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from lthjax import prune
from lthjax.criteria import Loss
from lthjax.prune import _scores

PyTree = Any
Layers = dict[str, np.ndarray]
"""Path of a prunable leaf -> its values in one row, [n], or for features [n, features]."""

PIXEL_VARIANCE = "pixel_variance"
# A dozen coefficients are known far better from so many weights of a layer than seeds differ.
_FIT_AT_MOST = 200_000


class Seen(NamedTuple):
    """What a score may look at.

    Attributes:
        initial: the weights at step 0.
        params: the weights at step t.
        loss: weights, and a temperature where it is not 1 -> mean loss on all images, nats.
        example: (weights, one image [H, W, C], its label) -> its loss, nats.
        logits: (weights, images [N, H, W, C]) -> logits [N, classes].
        images: float32 [batches, B, H, W, C], normalised.
        labels: int32 [batches, B].
    """

    initial: PyTree
    params: PyTree
    loss: Loss
    example: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    logits: Callable[[PyTree, jax.Array], jax.Array]
    images: jax.Array
    labels: jax.Array


class Score(NamedTuple):
    """A row of `SCORES`.

    Attributes:
        of: what is seen -> scores, a pytree like the weights.
        label: how figures write it.
        from_step: the first step at which it says something that no other score says.
        summary: one line.
    """

    of: Callable[[Seen], PyTree]
    label: str
    from_step: int
    summary: str


def _magnitude(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.abs, params)


def _fisher(seen: Seen) -> PyTree:
    """Mean over the images of the squared gradient of log p(label | image).

    The labels are those of the data, not drawn from the network: the empirical Fisher, of which only
    the diagonal is kept (what it is not: Kunstner et al. 2019, arXiv 1905.12558).
    """
    gradient = jax.grad(seen.example)
    images, labels = (x.reshape(-1, *x.shape[2:]) for x in (seen.images, seen.labels))

    def add(total: PyTree, one: tuple[jax.Array, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(lambda t, g: t + g * g, total, gradient(seen.params, *one)), None

    # One image at a time: a batch would hold as many gradients, and a batched kernel is slow on CPU.
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, seen.params), (images, labels))
    return jax.tree.map(lambda t: t / len(labels), total)


SCORES: dict[str, Score] = {
    "init_magnitude": Score(
        lambda seen: _magnitude(seen.initial), "|θ₀|", 0, "magnitude of the initial weight"
    ),
    "magnitude": Score(lambda seen: _magnitude(seen.params), "|θₜ|", 1, "magnitude at step t"),
    "movement": Score(
        lambda seen: _magnitude(jax.tree.map(jnp.subtract, seen.params, seen.initial)),
        "|θₜ − θ₀|",
        1,
        "distance from the initial weight at step t",
    ),
    "snip": Score(
        lambda seen: _scores.saliency(seen.loss, seen.params), "SNIP", 0, "|gradient times weight| at step t"
    ),
    "grasp": Score(
        lambda seen: _scores.gradient_flow(
            lambda p: seen.loss(p, _scores.TEMPERATURE), seen.params, prune.ones(seen.params)
        ),
        "GraSP",
        0,
        "what the weight does to gradient flow at step t",
    ),
    "synflow": Score(
        lambda seen: _scores.synaptic_flow(seen.logits, seen.params, (1, *seen.images.shape[2:])),
        "SynFlow",
        0,
        "synaptic flow at step t, without data",
    ),
    "fisher": Score(_fisher, "Fisher", 0, "mean squared gradient of an image's log-likelihood at step t"),
}


def names_at(step: int) -> list[str]:
    """The scores of `SCORES` that are taken at a step of the dense training."""
    return [name for name, score in SCORES.items() if step >= score.from_step]


def scores(
    logits: Callable[[PyTree, jax.Array], jax.Array],
    initial: PyTree,
    params: PyTree,
    images: jax.Array,
    labels: jax.Array,
    names: Iterable[str] = tuple(SCORES),
) -> dict[str, PyTree]:
    """Scores of all weights, name -> a pytree like the parameters. Works under `jit`.

    Args:
        logits: (weights, images [N, H, W, C]) -> logits [N, classes].
        initial: the weights at step 0.
        params: the weights at step t.
        images: float32 [batches, B, H, W, C], as the network takes them; a batch at a time is in memory.
        labels: int32 [batches, B].
        names: which of `SCORES`.
    """

    def batch_loss(
        params: PyTree, images: jax.Array, labels: jax.Array, temperature: float = 1.0
    ) -> jax.Array:
        seen = logits(params, images) / temperature
        return optax.softmax_cross_entropy_with_integer_labels(seen, labels).mean()

    def loss(params: PyTree, temperature: float = 1.0) -> jax.Array:
        # Recomputed in the backward pass, so that memory does not grow with the number of batches.
        one = jax.checkpoint(lambda batch: batch_loss(params, batch[0], batch[1], temperature))
        return jax.lax.map(one, (images, labels)).mean()

    def example(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        return batch_loss(params, image[None], label[None])

    seen = Seen(initial, params, loss, example, logits, images, labels)
    return {name: SCORES[name].of(seen) for name in names}


def pixel_variance(images: np.ndarray, std: np.ndarray, mask: PyTree) -> Layers:
    """The variance of the pixel that a weight of the first layer reads.

    Args:
        images: uint8 [N, H, W, C], the train split.
        std: [C], by which its pixels in [0, 1] are divided.
        mask: any mask of the network; its shapes matter.

    Returns:
        float64 [n] for the one leaf of a fully connected network whose inputs are the pixels. Empty
        where there are convolutions: their weights read every pixel.
    """
    height, width, channels = images.shape[1:]
    pixels = height * width * channels
    named = zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
    leaves = {path: np.shape(m) for path, m in named if np.ndim(m)}
    first = [path for path, shape in leaves.items() if len(shape) == 2 and shape[0] == pixels]
    if len(first) != 1 or any(len(shape) != 2 for shape in leaves.values()):
        return {}
    # Whole numbers are summed, so that nothing depends on the order.
    total, squares = np.zeros(pixels, np.int64), np.zeros(pixels, np.int64)
    for part in np.array_split(images, max(1, len(images) // 5000)):
        flat = part.reshape(len(part), -1).astype(np.int64)
        total += flat.sum(0)
        squares += (flat * flat).sum(0)
    mean = total / len(images)
    scaled = np.tile(255 * np.asarray(std, np.float64), height * width)
    variance = np.maximum(squares / len(images) - mean * mean, 0) / scaled**2
    return {first[0]: np.repeat(variance, leaves[first[0]][1])}


def by_layer(tree: PyTree, mask: PyTree) -> Layers:
    """The prunable leaves of a pytree, each in one row.

    Args:
        tree: scores, weights, or the mask itself.
        mask: a mask of the same tree; says which leaves may be pruned.
    """
    leaves = zip(prune.paths(mask), jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True)
    return {path: np.asarray(leaf).ravel() for path, m, leaf in leaves if np.ndim(m)}


def as_mask(layers: Layers, like: PyTree) -> PyTree:
    """The mask whose prunable leaves these are; the opposite of `by_layer(mask, mask)`."""
    leaves, treedef = jax.tree.flatten(like)
    made = [
        layers[path].reshape(np.shape(m)) if np.ndim(m) else np.asarray(m)
        for path, m in zip(prune.paths(like), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, made)


class Measured(NamedTuple):
    """How well a score finds the survivors of one layer, or the mean over layers.

    Attributes:
        density: of the mask; chance for `average_precision` and `precision`.
        auroc: probability that a survivor scores higher than a pruned weight, ties counting half;
            chance is 0.5.
        average_precision: area under precision against recall, as a sum of steps.
        precision: share of survivors among the k weights of the highest scores, k being the number
            of survivors; of equal scores, what a random choice among them gives on average.
        lift: precision / density; chance is 1.
        iou: intersection over union of those k weights and the survivors, precision / (2 - precision).
        iou_chance: that of a random mask of the same k, density / (2 - density), up to the ratio of
            means.
    """

    density: float
    auroc: float
    average_precision: float
    precision: float
    lift: float
    iou: float
    iou_chance: float


def measure(score: np.ndarray, kept: np.ndarray) -> Measured | None:
    """How well a score finds the survivors of a layer.

    Args:
        score: [n], higher for weights predicted to survive.
        kept: bool [n], the layer's mask.

    Returns:
        None where nothing can be told: all are kept or none, or a score is not finite.
    """
    left = int(kept.sum())
    if left in (0, kept.size) or not np.isfinite(score).all():
        return None
    density = left / kept.size
    lowest = np.partition(score, kept.size - left)[kept.size - left]
    above, level = score > lowest, score == lowest
    hits = kept[above].sum() + (left - above.sum()) * kept[level].mean()
    precision = float(hits / left)
    return Measured(
        density,
        float(roc_auc_score(kept, score)),
        float(average_precision_score(kept, score)),
        precision,
        precision / density,
        precision / (2 - precision),
        density / (2 - density),
    )


def over_layers(measured: Sequence[Measured]) -> Measured:
    """The mean over layers, every layer counting the same."""
    return Measured(*np.mean(np.array(measured, np.float64), axis=0).tolist())


def pooled_auroc(score: Layers, kept: Layers) -> float | None:
    """AUROC over the weights of all layers together; for the most part it measures the layers' densities.

    Args:
        score: of the layers for which it is defined.
        kept: bool, the mask.

    Returns:
        None where all weights of these layers are kept, or none.
    """
    scores, mask = (np.concatenate([of[path] for path in score]) for of in (score, kept))
    if mask.all() or not mask.any() or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(mask, scores))


def chance_deviation(kept: np.ndarray) -> float:
    """Standard deviation of the AUROC of a layer's mask against a score that knows nothing of it.

    sqrt((n + 1) / (12 k (n - k))) for k of n kept and no ties (Mann & Whitney 1947); ties lower it.
    """
    left, n = int(kept.sum()), kept.size
    return float(np.sqrt((n + 1) / (12 * left * (n - left))))


def shuffled(generator: np.random.Generator, kept: Layers) -> Layers:
    """The null: a mask shuffled within its layers."""
    return {path: generator.permutation(m) for path, m in kept.items()}


def ranks(score: np.ndarray) -> np.ndarray:
    """Ranks within a layer as fractions, (rank - 1/2) / n of ranks from 1; equal scores share their mean.

    Args:
        score: [n].

    Returns:
        float32 [n], in (0, 1).
    """
    return ((rankdata(score) - 0.5) / score.size).astype(np.float32)


def features(found: Mapping[str, Layers]) -> Layers:
    """Ranks of several scores side by side, layer by layer, in the order of the scores' names.

    A score that is not defined for a layer, or not finite in it, is 1/2 for all its weights: it says
    nothing there.

    Args:
        found: name -> scores.

    Returns:
        Path -> float32 [n, scores].
    """
    names = sorted(found)
    layers: Layers = {}
    for path in {path: None for name in names for path in found[name]}:
        size = next(found[name][path].size for name in names if path in found[name])
        blank = np.full(size, 0.5, np.float32)
        of_names = [found[name].get(path) for name in names]
        layers[path] = np.stack(
            [blank if s is None or not np.isfinite(s).all() else ranks(s) for s in of_names], axis=1
        )
    return layers


class Predictor(NamedTuple):
    """A logistic model a layer: log-odds of surviving = ranks @ weights + bias.

    Attributes:
        weights: path -> float64 [scores].
        bias: path -> float64 [].
    """

    weights: Layers
    bias: Layers


def fit(seen: Sequence[Layers], kept: Sequence[Layers]) -> Predictor:
    """Fits a predictor to the masks of some seeds.

    Every layer has a model of its own: so neither the layers' densities nor what is true of another
    layer can pass for knowledge within this one. The penalty is scikit-learn's default (squared, C = 1),
    which at these numbers of weights only decides between scores that say the same. Of a layer at most
    200,000 weights are looked at, chosen at random, the same number of every seed.

    Args:
        seen: features of every seed.
        kept: its mask.

    Returns:
        The predictor; 0 for a layer of which all these masks keep everything, or nothing.
    """
    weights: Layers = {}
    bias: Layers = {}
    for path in seen[0]:
        generator = np.random.default_rng(0)
        size = seen[0][path].shape[0]
        share = min(size, max(1, _FIT_AT_MOST // len(seen)))
        rows = [generator.choice(size, share, replace=False) if share < size else slice(None) for _ in seen]
        x = np.concatenate([of[path][r] for of, r in zip(seen, rows, strict=True)]).astype(np.float64)
        y = np.concatenate([of[path][r] for of, r in zip(kept, rows, strict=True)])
        weights[path], bias[path] = np.zeros(x.shape[1]), np.zeros(())
        if 0 < y.sum() < y.size:
            # Centred, as every rank's mean is 1/2 and the bias is not penalised.
            model = LogisticRegression(solver="newton-cholesky").fit(x - 0.5, y)
            weights[path] = model.coef_[0]
            bias[path] = model.intercept_[0] - 0.5 * model.coef_[0].sum()
    return Predictor(weights, bias)


def predict(predictor: Predictor, seen: Layers) -> Layers:
    """Log-odds of surviving, float64 [n] a layer, from the features of one seed."""
    return {path: x @ predictor.weights[path] + predictor.bias[path] for path, x in seen.items()}


def held_out(seen: Mapping[int, Layers], kept: Mapping[int, Layers]) -> dict[int, Layers]:
    """Every seed's log-odds from a predictor that was fitted to all the other seeds.

    The predictions of two seeds share most of what they were fitted to, so an interval over seeds is
    a little too narrow.

    Args:
        seen: seed -> features.
        kept: seed -> mask; at least two seeds.
    """
    predicted = {}
    for seed in kept:
        others = [s for s in kept if s != seed]
        predictor = fit([seen[s] for s in others], [kept[s] for s in others])
        predicted[seed] = predict(predictor, seen[seed])
    return predicted


def keep_highest(score: Layers, counts: Mapping[str, int]) -> Layers:
    """The mask of the highest scores, exactly so many a layer; of equal ones the lowest index goes first.

    Args:
        score: [n] a layer.
        counts: path -> how many are kept.
    """
    # Ranked in float64 here: on the device log-odds would be rounded to float32.
    order = {path: rankdata(s, method="dense").astype(np.uint32) for path, s in score.items()}
    whole = {path: np.ones(s.shape, bool) for path, s in score.items()}
    by_path = sorted(score)  # the order of a dictionary's leaves
    going = [score[path].size - counts[path] for path in by_path]
    return jax.tree.map(np.asarray, prune.remove_counted(order, whole, going))
