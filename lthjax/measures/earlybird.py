"""Early-Bird: when masks drawn from the dense network's weights during its training stop changing.

Source: You et al. 2020 (arXiv 1909.11957), section 3: the Hamming distance of successive masks, a queue of
five, and the threshold 0.1. Theirs are masks of channels by the scales of batch normalisation; these are
masks of any kind, one array a layer.

Masks of few weights, or of nearly all, are near each other by chance: two random ones of density ρ differ in
2ρ(1 − ρ) of the places, less than 0.1 below a density of 5.3 %. So `chance` belongs beside `distance`.
"""

from collections.abc import Sequence

import numpy as np

from lthjax import prune
from lthjax.measures.layers import Layers

QUEUE, THRESHOLD = 5, 0.1
# Densities at which a training draws masks: the paper prunes 30, 50 and 70 %.
DENSITIES = (0.7, 0.5, 0.3, 0.1)
# By scope, whether masks keep the largest weights of every layer or of all together, the curve of distances.
CURVES = {"layer": "distances_layer", "global": "distances_global"}


def distance(a: Layers, b: Layers) -> float:
    """The share of prunable weights that one mask keeps and the other does not: Hamming's, in [0, 1].

    Args:
        a: bool arrays by layer.
        b: likewise, of the same shapes.
    """
    differ = sum(int((m != b[path]).sum()) for path, m in a.items())
    return differ / max(sum(m.size for m in a.values()), 1)


def chance(mask: Layers) -> float:
    """The expected distance of two masks that are drawn at random with the layer densities of this one.

    Σ 2ρ(1 − ρ)n / Σ n over the layers, with n weights and density ρ each.
    """
    expected = sum(2 * m.mean() * (1 - m.mean()) * m.size for m in mask.values() if m.size)
    return float(expected) / max(sum(m.size for m in mask.values()), 1)


def largest(masks: Sequence[Layers], queue: int = QUEUE) -> list[float | None]:
    """For every mask, its largest distance to the others in a queue that ends with it.

    Args:
        masks: in the order in which they were drawn.
        queue: number of masks in the queue, itself included; 2 or more.

    Returns:
        One distance a mask; None for the first queue − 1, whose queue is not full.
    """
    return [
        None
        if place < queue - 1
        else max(distance(mask, other) for other in masks[place - queue + 1 : place])
        for place, mask in enumerate(masks)
    ]


def drawn(distances: Sequence[float | None], threshold: float = THRESHOLD) -> int | None:
    """The place of the first mask whose `largest` distance is below the threshold, or None."""
    below = (n for n, apart in enumerate(distances) if apart is not None and apart < threshold)
    return next(below, None)


class Draws:
    """Masks drawn while a network trains, at `DENSITIES`: the newest ones, and how far they are apart.

    A mask keeps the largest weights, as many as ⌊density · n + ½⌋ of n; of equal ones the first.

    Args:
        whole: whether the weights of all layers are ranked together; otherwise every layer has the density.
        newest: the packed masks of earlier draws, oldest first, at most `QUEUE` − 1: uint8
            [draws, densities, bytes]; None to begin.
    """

    def __init__(self, whole: bool, newest: np.ndarray | None = None) -> None:
        self._whole = whole
        self._newest = [] if newest is None else [*newest]

    @property
    def newest(self) -> np.ndarray | None:
        """The packed masks that the next draw is compared with; None where there are none."""
        return np.stack(self._newest) if self._newest else None

    def add(self, weights: Layers) -> list[float | None]:
        """Draws the masks of these weights.

        Args:
            weights: finite arrays of any shape, by layer; the same layers at every call.

        Returns:
            For each of `DENSITIES` what `largest` gives for this mask and the `QUEUE` − 1 before it.
        """
        sizes = [np.abs(leaf).ravel() for leaf in weights.values()]
        parts = [np.concatenate(sizes)] if self._whole and sizes else sizes
        count = sum(part.size for part in parts)
        kept = [_largest_of(part) for part in parts]
        packed = np.stack(
            [np.packbits(np.concatenate([of[place] for of in kept])) for place in range(len(DENSITIES))]
        )
        apart = [
            np.bitwise_count(packed ^ earlier).sum(1, dtype=np.int64) / count for earlier in self._newest
        ]
        full = len(apart) == QUEUE - 1
        self._newest = [*self._newest, packed][1 - QUEUE :]
        return np.max(apart, 0).tolist() if full else [None] * len(DENSITIES)


def _largest_of(sizes: np.ndarray) -> list[np.ndarray]:
    """For each of `DENSITIES` the places of the largest sizes: bool [n]."""
    counts = [int(prune.rounded_share(density, sizes.size)) for density in DENSITIES]
    ranks = sorted({sizes.size - count for count in counts if count})
    ranked = np.partition(sizes, ranks) if ranks else sizes
    kept = []
    for count in counts:
        if not count:
            kept.append(np.zeros(sizes.shape, bool))
            continue
        least = ranked[sizes.size - count]
        mask = sizes > least
        mask[np.flatnonzero(sizes == least)[: count - int(mask.sum())]] = True
        kept.append(mask)
    return kept
