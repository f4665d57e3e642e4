"""Which images networks get right: discordant pairs with McNemar's test, and agreement beyond chance.

    from lthjax.measures import examples

    right = examples.predictions(model, variables, images, split.mean, split.std) == labels
    examples.discordant(right, dense_right)  # Discordant(images=1000, both=960, won=12, lost=9, neither=19)

Two networks of one accuracy may err on other images. All functions but `predictions` are plain numpy.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lthjax import data
from lthjax.measures.stats import Interval
from lthjax.models import Model, Variables


class Discordant(NamedTuple):
    """Images by whether either of two networks gets them right.

    Attributes:
        images: number of images.
        both: right in both.
        won: right in ours alone.
        lost: right in theirs alone.
        neither: right in neither.
    """

    images: int
    both: int
    won: int
    lost: int
    neither: int


def predictions(
    model: Model,
    variables: Variables,
    images: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    batch: int = 500,
) -> np.ndarray:
    """The class that a network gives every image: int32 [N].

    Args:
        model: the network.
        variables: its weights, pruned ones 0, and batch statistics.
        images: uint8 [N, H, W, C].
        mean: float32 [C], by which images are normalised.
        std: float32 [C], likewise.
        batch: images per batch; the last one is filled up, so that one program is compiled.
    """
    shown, found = jnp.asarray(images), []
    for first in range(0, len(images), batch):
        index = np.minimum(np.arange(first, first + batch), len(images) - 1)
        found.append(np.asarray(_classes(model, variables, shown, index, mean, std)))
    return np.concatenate(found)[: len(images)]


@partial(jax.jit, static_argnums=0)
def _classes(
    model: Model, variables: Variables, images: jax.Array, index: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        pixels = data.gather(images, index, mean, std)
        return model.apply(variables.params, variables.stats, pixels, False)[0].argmax(-1)


def discordant(ours: np.ndarray, theirs: np.ndarray) -> Discordant:
    """Counts images by whether two networks get them right.

    Args:
        ours: bool [N], whether our network is right.
        theirs: bool [N], likewise of the same images.
    """
    counts = (ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs)
    return Discordant(len(ours), *(int(of.sum()) for of in counts))


def difference(of: Discordant, confidence: float = 0.95) -> Interval:
    """The difference of two accuracies on one test set, ours − theirs, with an interval over test images.

    Half an image is added to each of the four counts, then Wald's interval of paired proportions is taken,
    whose variance is McNemar's (b + c − (b − c)²/n) / n² (Agresti & Min 2005). It says how much the
    difference of these two networks would vary with other test images, not with other seeds.

    Args:
        of: the counts.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        A fraction, with bounds in [-1, 1]; n is the number of images.
    """
    n, won, lost = of.images + 2, of.won + 0.5, of.lost + 0.5
    middle = (won - lost) / n
    error = math.sqrt(won + lost - (won - lost) ** 2 / n) / n
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    mean = (of.won - of.lost) / of.images
    return Interval(mean, max(middle - half, -1.0), min(middle + half, 1.0), of.images)


def p_value(of: Discordant) -> float:
    """The exact two-sided McNemar test that as many images are won as lost; 1 where none is either.

    Given their number, the images won are binomial with probability ½ (McNemar 1947).
    """
    if not of.won + of.lost:
        return 1.0
    return float(stats.binomtest(of.won, of.won + of.lost, 0.5).pvalue)


def forgetting(right: np.ndarray) -> np.ndarray:
    """How often an image is forgotten along a sequence of networks: int [N], steps from right to wrong.

    Source: Toneva et al. 2019 (arXiv 1812.05159), section 3, there along the steps of a training. Along the
    levels of pruning it is what compressed networks forget (Hooker et al. 2019, arXiv 1911.05248).

    Args:
        right: bool [T, N], whether network t gets image n right.
    """
    return (right[:-1] & ~right[1:]).sum(0)


def events(right: np.ndarray) -> np.ndarray:
    """As `forgetting`, with −1 for images that are never right, which have nothing to forget: int [N].

    Args:
        right: bool [T, N], whether the network gets image n right at step t of its training.
    """
    return np.where(right.any(0), forgetting(right), -1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of the events of two networks, of `events`.

    Images that are never right rank above all others, as the hardest (Toneva et al. 2019, section 3).

    Args:
        a: int [N].
        b: int [N], of the same images.

    Returns:
        In [−1, 1]; None where all images of either network have the same rank.
    """
    ranked = [np.where(of < 0, of.max() + 1, of) for of in (a, b)]
    if any(np.ptp(of) == 0 for of in ranked):
        return None
    return float(stats.spearmanr(*ranked).statistic)


def kappa(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cohen's κ of two yes-or-no judgements: (agreement − chance) / (1 − chance).

    1 for the same judgements, 0 for independent ones of the same shares, negative for opposite ones.

    Args:
        a: bool [N], for example whether a network errs.
        b: bool [N], of the same images.

    Returns:
        κ; None where chance alone agrees everywhere, as both judge all images alike.
    """
    agree, p, q = float(np.mean(a == b)), float(np.mean(a)), float(np.mean(b))
    by_chance = p * q + (1 - p) * (1 - q)
    return None if by_chance >= 1 else (agree - by_chance) / (1 - by_chance)
