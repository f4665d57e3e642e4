"""How well scores at initialisation, or early in training, tell which weights a ticket keeps.

The question is asked within layers: that some layers are pruned more than others is known from the
rates, and a figure pooled over layers mostly measures just that. Everything here is mathematics on
`Layers` in rows, flat numpy arrays by the path of their prunable leaf; a higher score says that the weight
is predicted to survive.

    from lthjax.measures import predict
    from lthjax.measures.layers import by_layer, flat

    found = predict.scores(logits, initial, params, images, labels)
    score, kept = flat(by_layer(found["snip"], mask)), flat(by_layer(mask, mask))
    predict.measure(score["fc1/kernel"], kept["fc1/kernel"])
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

from lthjax import models, prune
from lthjax.criteria import CRITERIA, Weights
from lthjax.measures import layers
from lthjax.measures.layers import Layers
from lthjax.models import Model, Variables

PyTree = Any
PIXEL_VARIANCE = "pixel_variance"
# A dozen coefficients are known far better from so many weights of a layer than seeds differ.
_FIT_AT_MOST = 200_000


class Seen(NamedTuple):
    """What a score may look at.

    Attributes:
        weights: what criteria look at: `initial` are the weights at step 0, `final` those at step t, the
            loss is that of all images, the mask keeps everything.
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
        of: what is seen -> scores, a pytree like the weights.
        label: of figures.
        from_step: the first step at which it says something that no other score says.
    """

    of: Callable[[Seen], PyTree]
    label: str
    from_step: int


def _criterion(name: str) -> Callable[[Seen], PyTree]:
    """A row of `CRITERIA`, of the weights at step 0 and at step t."""
    return lambda seen: CRITERIA[name].score(seen.weights)


def _at_step(name: str) -> Callable[[Seen], PyTree]:
    """A row of `CRITERIA` that looks at weights before training, of those at step t."""
    return lambda seen: CRITERIA[name].score(seen.weights._replace(initial=seen.weights.final))


def _fisher(seen: Seen) -> PyTree:
    """Mean over the images of the squared gradient of log p(label | image).

    The labels are those of the data, not drawn from the network: the empirical Fisher, of which only
    the diagonal is kept (what it is not: Kunstner et al. 2019, arXiv 1905.12558).
    """
    gradient, params = jax.grad(seen.example), seen.weights.final
    images, labels = (x.reshape(-1, *x.shape[2:]) for x in (seen.images, seen.labels))

    def add(total: PyTree, one: tuple[jax.Array, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(lambda t, g: t + g * g, total, gradient(params, *one)), None

    # One image at a time: a batch would hold as many gradients, and a batched kernel is slow on CPU.
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
"""The scores by name; all but Fisher are rows of `lthjax.criteria.CRITERIA`."""


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

    # No score is random.
    key, shape = jax.random.key(0), (1, *images.shape[2:])
    weights = Weights(initial, params, key, loss, logits, shape, prune.ones(params))
    seen = Seen(weights, example, images, labels)
    return {name: SCORES[name].of(seen) for name in names}


def scorer(model: Model, names: Iterable[str]) -> Callable[..., dict[str, PyTree]]:
    """Compiled scores of a network: (initial weights, state at step t, images, labels) -> name -> scores.

    Args:
        model: the network; batch statistics are those that fit the state's weights and the images, as at
            step 0 the running ones say nothing yet.
        names: which of `SCORES`.
    """
    names = tuple(names)

    @jax.jit
    def compiled(initial: PyTree, now: Variables, images: jax.Array, labels: jax.Array) -> dict[str, PyTree]:
        stats = models.statistics(model, now.params, now.stats, images)

        def logits(params: PyTree, images: jax.Array) -> jax.Array:
            return model.apply(params, stats, images, False)[0]

        with jax.default_matmul_precision("float32"):
            return scores(logits, initial, now.params, images, labels, names)

    return compiled


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
    leaves = {path: m.shape for path, m in layers.by_layer(mask, mask).items()}
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
    (drawn,) = layers.shuffled(generator, [*kept.values()])
    return dict(zip(kept, drawn, strict=True))


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
    made: Layers = {}
    for path in {path: None for name in names for path in found[name]}:
        size = next(found[name][path].size for name in names if path in found[name])
        blank = np.full(size, 0.5, np.float32)
        of_names = [found[name].get(path) for name in names]
        made[path] = np.stack(
            [blank if s is None or not np.isfinite(s).all() else ranks(s) for s in of_names], axis=1
        )
    return made


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
