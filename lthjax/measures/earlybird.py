"""Early-Bird: when masks drawn from the dense network's weights during its training stop changing.

Source: You et al. 2020 (arXiv 1909.11957), section 3: the Hamming distance of successive masks, a queue of
five, and the threshold 0.1. Theirs are masks of channels by the scales of batch normalisation; these are
masks of any kind, one array a layer.

Masks of few weights, or of nearly all, are near each other by chance: two random ones of density ρ differ in
2ρ(1 − ρ) of the places, less than 0.1 below a density of 5.3 %. So `chance` belongs beside `distance`.
"""

from collections.abc import Sequence

from lthjax.measures.layers import Layers

QUEUE, THRESHOLD = 5, 0.1


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
