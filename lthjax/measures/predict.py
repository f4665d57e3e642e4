"""How well scores at initialisation, or early in training, predict which weights a ticket keeps.

Predictions are judged within layers. That some layers are pruned more than others is known from the
rates, and a figure pooled over layers mostly measures just that. All functions take flattened `Layers`: flat
numpy arrays by the path of their prunable leaf. A higher score means that the weight is predicted to
survive.

    from lthjax.measures import predict, scores
    from lthjax.measures.layers import by_layer, flat

    found = scores.compute(logits, initial, params, images, labels)
    score, kept = flat(by_layer(found["snip"], mask)), flat(by_layer(mask, mask))
    predict.measure(score["fc1/kernel"], kept["fc1/kernel"])
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from lthjax import prune
from lthjax.measures import layers
from lthjax.measures.layers import Layers

Masks = Mapping[int, Mapping[int, Layers]]
"""Level -> seed -> mask."""
MEAN, POOLED = "mean", "pooled"
LOGISTIC = "logistic"
# The score that all others must add to, and the predictor that sees it alone.
FIRST, ALONE = "init_magnitude", "logistic_init_magnitude"
# The error of a dozen coefficients from this many weights is far below the differences between seeds.
_FIT_AT_MOST = 200_000


class MaskMatch(NamedTuple):
    """How well a score finds the survivors of one layer, or the mean over layers.

    Attributes:
        density: density of the mask; the chance level of `average_precision` and `precision`.
        auroc: probability that a survivor scores higher than a pruned weight, ties counting half;
            chance is 0.5.
        average_precision: area under precision against recall, as a sum of steps.
        precision: share of survivors among the k weights with the highest scores, k being the number
            of survivors; ties count as a random choice on average.
        lift: precision / density; chance is 1.
        iou: intersection over union of those k weights and the survivors, precision / (2 - precision).
        iou_chance: the same for a random mask of k weights, density / (2 - density)
            (approximately, as a ratio of means).
    """

    density: float
    auroc: float
    average_precision: float
    precision: float
    lift: float
    iou: float
    iou_chance: float


def measure(score: np.ndarray, kept: np.ndarray) -> MaskMatch | None:
    """How well a score finds the survivors of a layer.

    Args:
        score: [n], higher for weights predicted to survive.
        kept: bool [n], the layer's mask.

    Returns:
        None where it is undefined: all weights are kept, or none, or a score is not finite.
    """
    left = int(kept.sum())
    if left in (0, kept.size) or not np.isfinite(score).all():
        return None
    density = left / kept.size
    lowest = np.partition(score, kept.size - left)[kept.size - left]
    above, level = score > lowest, score == lowest
    hits = kept[above].sum() + (left - above.sum()) * kept[level].mean()
    precision = float(hits / left)
    return MaskMatch(
        density,
        float(roc_auc_score(kept, score)),
        float(average_precision_score(kept, score)),
        precision,
        precision / density,
        precision / (2 - precision),
        density / (2 - density),
    )


def over_layers(measured: Sequence[MaskMatch]) -> MaskMatch:
    """The mean over layers, with equal weight for every layer."""
    return MaskMatch(*np.mean(np.array(measured, np.float64), axis=0).tolist())


def pooled_auroc(score: Layers, kept: Layers) -> float | None:
    """AUROC over the weights of all layers together; it mostly measures the densities of the layers.

    Args:
        score: for the layers on which it is defined.
        kept: bool, the mask.

    Returns:
        None where all weights of these layers are kept, or none.
    """
    scores, mask = (np.concatenate([of[path] for path in score]) for of in (score, kept))
    if mask.all() or not mask.any() or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(mask, scores))


def chance_deviation(kept: np.ndarray) -> float:
    """Standard deviation of the AUROC of a layer's mask for an uninformative score.

    sqrt((n + 1) / (12 k (n - k))) for k of n kept without ties (Mann & Whitney 1947); ties lower it.
    """
    left, n = int(kept.sum()), kept.size
    return float(np.sqrt((n + 1) / (12 * left * (n - left))))


def shuffled(generator: np.random.Generator, kept: Layers, granularity: str = "weight") -> Layers:
    """The null: a mask shuffled within its layers.

    Args:
        generator: as for `layers.shuffled`.
        kept: bool, the mask; of units or N:M groups with the shapes of its leaves.
        granularity: what the mask was pruned by, as for `prune.shuffle`, and is shuffled by.
    """
    (drawn,) = layers.shuffled(generator, [*kept.values()], granularity=granularity)
    return dict(zip(kept, drawn, strict=True))


def ranks(score: np.ndarray) -> np.ndarray:
    """Ranks within a layer as fractions, (rank - 1/2) / n with ranks from 1; ties get their mean rank.

    Args:
        score: [n].

    Returns:
        float32 [n], in (0, 1).
    """
    return ((rankdata(score) - 0.5) / score.size).astype(np.float32)


def features(found: Mapping[str, Layers]) -> Layers:
    """Ranks of several scores as columns, layer by layer, in the order of the scores' names.

    A score that is undefined or not finite in a layer is 1/2 for all its weights, which carries no
    information.

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
    """One logistic model per layer: log-odds of surviving = ranks @ weights + bias.

    Attributes:
        weights: path -> float64 [scores].
        bias: path -> float64 [].
    """

    weights: Layers
    bias: Layers


def fit(seen: Sequence[Layers], kept: Sequence[Layers]) -> Predictor:
    """Fits a predictor to the masks of some seeds.

    Every layer has its own model, so neither the densities of layers nor patterns of other layers enter a
    layer's prediction. The penalty is scikit-learn's default (squared, C = 1); with this many weights it only
    decides between scores with the same information. Per layer at most 200,000 weights are used, chosen at
    random, the same number from every seed.

    Args:
        seen: features of every seed.
        kept: mask of every seed.

    Returns:
        The predictor; 0 for a layer that all these masks keep entirely, or prune entirely.
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
            # Centred: the mean rank is always 1/2, and the bias is not penalised.
            model = LogisticRegression(solver="newton-cholesky").fit(x - 0.5, y)
            weights[path] = model.coef_[0]
            bias[path] = model.intercept_[0] - 0.5 * model.coef_[0].sum()
    return Predictor(weights, bias)


def predict(predictor: Predictor, seen: Layers) -> Layers:
    """Log-odds of surviving, float64 [n] per layer, from the features of one seed."""
    return {path: x @ predictor.weights[path] + predictor.bias[path] for path, x in seen.items()}


def held_out(seen: Mapping[int, Layers], kept: Mapping[int, Layers]) -> dict[int, Layers]:
    """The log-odds of every seed, from a predictor fitted to all other seeds.

    The predictors of two seeds share most of their training data, so an interval over seeds is slightly too
    narrow.

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
    """The mask of the highest scores with a given number of weights per layer; ties go by lowest index first.

    Args:
        score: [n] for every layer.
        counts: path -> number of weights to keep.
    """
    # Ranked here in float64: the device would round log-odds to float32.
    order = {path: rankdata(s, method="dense").astype(np.uint32) for path, s in score.items()}
    whole = {path: np.ones(s.shape, bool) for path, s in score.items()}
    by_path = sorted(score)  # the order of a dictionary's leaves
    going = [score[path].size - counts[path] for path in by_path]
    return jax.tree.map(np.asarray, prune.remove_counted(order, whole, going))


def against(score: Layers, kept: Layers) -> list[tuple[str, tuple[float | None, ...]]]:
    """How well a score finds a mask, in every layer and in all layers.

    Args:
        score: for the layers on which it is defined.
        kept: bool, the mask.

    Returns:
        (layer, the fields of `MaskMatch`) for every layer where they are defined; for "mean", the mean of
        these; and for "pooled", where all but the AUROC is None.
    """
    if not score:
        return []
    measured = {path: measure(values, kept[path]) for path, values in score.items()}
    told: dict[str, MaskMatch] = {path: found for path, found in measured.items() if found is not None}
    made: list[tuple[str, tuple[float | None, ...]]] = [*told.items()]
    if told:
        made.append((MEAN, over_layers([*told.values()])))
    pooled = pooled_auroc(score, kept)
    if pooled is not None:
        made.append((POOLED, (None, pooled, None, None, None, None, None)))
    return made


class Judged(NamedTuple):
    """How well a score finds one mask in one layer.

    Attributes:
        seed, level: of the mask.
        score: name of the score; "logistic" is the predictor fitted to all other seeds, and
            "logistic_init_magnitude" the nested one, which sees the ranks of |theta_0| alone.
        mask: the kind of mask.
        layer: as in `against`.
        values: the fields of `MaskMatch`, as in `against`.
    """

    seed: int
    level: int
    score: str
    mask: str
    layer: str
    values: tuple[float | None, ...]


def judge(
    found: Iterable[tuple[int, Mapping[str, Layers]]], masks: Mapping[str, Masks]
) -> tuple[list[Judged], dict[tuple[str, int, int], Layers]]:
    """Compares the scores of several seeds, and the predictor that combines them, with masks.

    Beside it a nested predictor is fitted to the same seeds, which sees |theta_0| alone. What the other
    scores add is the difference of the two on held-out seeds, paired by seed.

    Args:
        found: (seed, name -> scores) of every seed; read one at a time.
        masks: kind -> masks of the same levels and seeds, for example tickets and a null.

    Returns:
        The comparisons; and (kind, level, seed) -> log-odds of surviving by the predictor of the other
        seeds, for levels with two or more seeds.
    """
    rows: list[Judged] = []
    seen: dict[str, dict[int, Layers]] = {LOGISTIC: {}, ALONE: {}}
    odds: dict[tuple[str, int, int], Layers] = {}
    for seed, scores in found:
        for name, score in scores.items():
            for kind, of_kind in masks.items():
                for level, kept in of_kind.items():
                    if seed in kept:
                        rows += [Judged(seed, level, name, kind, *of) for of in against(score, kept[seed])]
        seen[LOGISTIC][seed] = features(scores)
        if FIRST in scores:
            seen[ALONE][seed] = features({FIRST: scores[FIRST]})
    for name, level in itertools.product(seen, next(iter(masks.values()))):
        for kind, of_kind in masks.items():
            kept, inputs = of_kind[level], seen[name]
            told = {seed: inputs[seed] for seed in kept if seed in inputs}
            predicted = held_out(told, kept) if len(told) == len(kept) > 1 else {}
            for seed, score in predicted.items():
                if name == LOGISTIC:
                    odds[kind, level, seed] = score
                rows += [Judged(seed, level, name, kind, *of) for of in against(score, kept[seed])]
    return rows, odds
