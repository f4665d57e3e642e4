"""Where two tickets of one network agree: as they are, and after their hidden units are matched.

A network computes the same function when the units of a hidden layer change places, so two tickets may be
the same and not look it. `align` searches the order of one ticket's units in which the two agree most, by
the weight matching of Git Re-Basin (Ainsworth et al. 2023, arXiv 2209.04836, section 3.2): every layer in
turn is a linear assignment, solved exactly, until no layer improves. Matching finds agreement in noise,
too. `compare` therefore also gives the overlap of shuffled tickets.

Everything is numpy on kernels as `transfer.kernels` gives them, a list of [places, inputs, units].

    from lthjax.measures import geography, transfer

    a, b = (transfer.kernels(model.layers, mask) for mask in tickets)
    aligned = geography.permuted(b, geography.align(a, b).units)
    geography.iou(a, aligned)
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from lthjax.measures import transfer
from lthjax.measures.layers import shuffled
from lthjax.models import Layer, Model

PyTree = Any
Kernels = Sequence[np.ndarray]
# In the place of a layer's name.
ALL, INPUTS = "all", "inputs"
TICKET, SHUFFLED = "ticket", "shuffled"


class Alignment(NamedTuple):
    """How one network's hidden units are matched with another's.

    Attributes:
        units: for every hidden layer int [units]: the unit of the second that answers to each of the
            first.
        common: what is maximised: the sum over all weights of the product of the two kernels; for masks
            the connections in common.
    """

    units: list[np.ndarray]
    common: float


class LayerOverlap(NamedTuple):
    """How alike two masks of a layer, or of all layers together, are.

    Attributes:
        iou: connections in both / connections in either; 0 where there is none.
        chance: what random masks of the same counts in every layer have on average, up to the ratio of
            means; without matching.
    """

    iou: float
    chance: float


class TicketKernels(NamedTuple):
    """A trained ticket as `compare` takes it.

    Attributes:
        mask: bool kernels.
        magnitudes: float kernels, the magnitudes of its final weights, 0 where pruned.
    """

    mask: Kernels
    magnitudes: Kernels


class Likeness(NamedTuple):
    """How alike two tickets are in a layer, or in what their first layers read.

    Attributes:
        layer: its name; `ALL` for all layers together; `INPUTS` for the inputs.
        matching: "none": units as they are; "masks", "magnitudes": units matched by these.
        mask: "ticket", or "shuffled": the mean over draws in which both are shuffled within their layers.
        density: weights left / weights, mean of both tickets; of `INPUTS` the first layer's.
        overlap: connections in both / in either. Of `INPUTS` Pearson's correlation of the numbers of
            connections that leave each input; None where a ticket has equally many at all inputs.
    """

    layer: str
    matching: str
    mask: str
    density: float
    overlap: float | None


class InputLikeness(NamedTuple):
    """How an input is read by several tickets.

    Attributes:
        y, x, channel: the pixel, or of a convolution the tap.
        kept: the share of its connections that is left, mean over tickets.
        overlap: `by_input`'s, mean over the pairs that read the input; None where none does.
        chance: likewise.
    """

    y: int
    x: int
    channel: int
    kept: float
    overlap: float | None
    chance: float | None


def ticket(layers: Sequence[Layer], mask: PyTree, weights: PyTree) -> TicketKernels:
    """A trained ticket of a sequential network, from its mask and its final weights."""
    masks = transfer.kernels(layers, mask)
    pairs = zip(transfer.kernels(layers, weights), masks, strict=True)
    return TicketKernels(masks, [abs(kernel) * m for kernel, m in pairs])


def compare(
    layers: Sequence[Layer], a: TicketKernels, b: TicketKernels, draws: int, generator: np.random.Generator
) -> list[Likeness]:
    """How alike two tickets are by every way of matching: in every layer, in all together, at the inputs.

    Args:
        layers: of their network.
        a, b: the tickets.
        draws: how often both are shuffled, 1 or more.
        generator: for the shuffling.
    """
    drawn = []
    for _ in range(draws):
        x, y = (TicketKernels(*shuffled(generator, *ticket)) for ticket in (a, b))
        drawn.append(_overlaps(x, y))
    density = [float(x.mean() + y.mean()) / 2 for x, y in zip(a.mask, b.mask, strict=True)]
    every = float(np.concatenate([mask.ravel() for mask in (*a.mask, *b.mask)]).mean())
    densities = [*density, every, density[0]]
    names = [*(layer.name for layer in layers), ALL, INPUTS]
    found = []
    for (matching, place), overlap in _overlaps(a, b).items():
        known = [value for one in drawn if (value := one[matching, place]) is not None]
        chance = float(np.mean(known)) if known else None
        for mask, value in ((TICKET, overlap), (SHUFFLED, chance)):
            found.append(Likeness(names[place], matching, mask, densities[place], value))
    return found


def _overlaps(a: TicketKernels, b: TicketKernels) -> dict[tuple[str, int], float | None]:
    """(matching, place) -> overlap; the last places are all layers together, and the inputs."""
    matched = {
        "none": b.mask,
        "masks": permuted(b.mask, align(a.mask, b.mask).units),
        "magnitudes": permuted(b.mask, align(a.magnitudes, b.magnitudes).units),
    }
    found: dict[tuple[str, int], float | None] = {
        (matching, place): overlap.iou
        for matching, mask in matched.items()
        for place, overlap in enumerate(iou(a.mask, mask))
    }
    return found | {("none", len(a.mask) + 1): agreement(readers(a.mask), readers(b.mask))}


def inputs(model: Model, masks: Sequence[Kernels]) -> list[InputLikeness]:
    """How every input of a network is read.

    Args:
        model: sequential.
        masks: of two tickets or more.
    """
    first = model.layers[0]
    shape = (first.size, first.size, model.input_shape[2]) if first.size else model.input_shape
    kept = np.mean([readers(mask) / mask[0].shape[-1] for mask in masks], axis=0)
    pairs = [by_input(a, b) for a, b in itertools.combinations(masks, 2)]
    overlap, chance = (mean_known(np.array(of)).reshape(shape) for of in zip(*pairs, strict=True))
    kept = kept.reshape(shape)
    found = []
    for y, x, channel in np.ndindex(*shape):
        at = (y, x, channel)
        same, random = (None if np.isnan(of[at]) else float(of[at]) for of in (overlap, chance))
        found.append(InputLikeness(*at, float(kept[at]), same, random))
    return found


def align(a: Kernels, b: Kernels) -> Alignment:
    """The order of b's hidden units in which a and b have most in common.

    A local optimum, as the problem is NP-hard from two hidden layers on: the best of three ascents, from
    the units as they are, from matching by incoming connections layer after layer, and from
    matching by outgoing ones from the output on.

    Args:
        a, b: kernels of one network, the input first: masks, or magnitudes of weights (not negative).

    Raises:
        ValueError: their shapes differ.
    """
    if [x.shape for x in a] != [x.shape for x in b]:
        raise ValueError("a, b: kernels of different shapes cannot be matched.")
    # Whole numbers below 2**24 are exact.
    a, b = ([np.asarray(x, np.float32) for x in kernels] for kernels in (a, b))
    hidden = range(len(a) - 1)
    plain = [np.arange(a[layer].shape[2]) for layer in hidden]
    forward, backward = list(plain), list(plain)
    for layer in hidden:
        forward[layer] = _assigned(_incoming(a, b, forward, layer))
    for layer in reversed(hidden):
        backward[layer] = _assigned(_outgoing(a, b, backward, layer))
    ascents = [_ascent(a, b, start) for start in (plain, forward, backward)]
    return max(ascents, key=lambda found: found.common)


def permuted(kernels: Kernels, units: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The kernels with the units of every hidden layer, and so the inputs of the next, in another order.

    Args:
        kernels: of a network.
        units: for every hidden layer the unit that comes to each place.
    """
    inputs = [np.arange(kernels[0].shape[1]), *units]
    outputs = [*units, np.arange(kernels[-1].shape[2])]
    return [k[:, i][:, :, o] for k, i, o in zip(kernels, inputs, outputs, strict=True)]


def iou(a: Kernels, b: Kernels) -> list[LayerOverlap]:
    """The overlap of two masks in every layer, and last in all together."""
    counts = [
        (int((x & y).sum()), int((x | y).sum()), int(x.sum()) * int(y.sum()) / max(x.size, 1))
        for x, y in zip(a, b, strict=True)
    ]
    counts.append(tuple(map(sum, zip(*counts, strict=True))))  # type: ignore[arg-type]
    return [
        LayerOverlap(both / max(either, 1), expected / max(both + either - expected, 1))
        for both, either, expected in counts
    ]


def readers(kernels: Kernels) -> np.ndarray:
    """How many connections leave every input: int [places, inputs] of the first layer."""
    return kernels[0].sum(-1)


def agreement(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation of two maps of inputs; None where one of them is the same everywhere."""
    x, y = (np.asarray(m, np.float64).ravel() - np.mean(m) for m in (a, b))
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / size) if size else None


def by_input(a: Kernels, b: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """The overlap of two masks at every input, and by chance: float [places, inputs] each.

    Chance is that of readers drawn at random, as many of either mask as read the input; nan where no
    unit of either mask does.
    """
    x, y = a[0], b[0]
    both, n_x, n_y = ((m.sum(-1, dtype=np.float64)) for m in (x & y, x, y))
    expected = n_x * n_y / x.shape[-1]
    with np.errstate(invalid="ignore"):
        return both / (n_x + n_y - both), expected / (n_x + n_y - expected)


def mean_known(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis of the values that are not nan; nan where all are."""
    known = ~np.isnan(values)
    counts = known.sum(0)
    return np.where(counts, np.where(known, values, 0).sum(0) / np.maximum(counts, 1), np.nan)


def over_pairs(values: dict[tuple[int, int], float]) -> list[float]:
    """One number a seed from one number a pair of seeds, for intervals over seeds: jackknife pseudo-values.

    Pairs that share a seed are not independent. n U − (n − 1) U₋ᵢ, with U the mean over all pairs and
    U₋ᵢ that over the pairs without seed i, may be treated as if they were (Arvesen 1969, for
    U-statistics); their mean is U.

    Args:
        values: (seed, seed) -> value, for all pairs of the seeds.

    Returns:
        A value a seed; of two seeds their one value.
    """
    seeds = sorted({seed for pair in values for seed in pair})
    if len(seeds) < 3:
        return list(values.values())
    mean, n = float(np.mean(list(values.values()))), len(seeds)
    without = [np.mean([v for pair, v in values.items() if seed not in pair]) for seed in seeds]
    return [float(n * mean - (n - 1) * left) for left in without]


def _ascent(a: Kernels, b: Kernels, start: Sequence[np.ndarray]) -> Alignment:
    units = list(start)
    # A layer can improve only where a neighbour has changed since it was last matched.
    stale = set(range(len(units)))
    while stale:
        layer = min(stale)
        stale.remove(layer)
        gain = _incoming(a, b, units, layer) + _outgoing(a, b, units, layer)
        better, places = _assigned(gain), np.arange(len(units[layer]))
        before, after = gain[places, units[layer]].sum(), gain[places, better].sum()
        # More than rounding, so that it ends.
        if after > before * (1 + 1e-6):
            units[layer] = better
            stale |= {layer - 1, layer + 1} & set(range(len(units)))
    common = sum(float((x * y).sum(dtype=np.float64)) for x, y in zip(a, permuted(b, units), strict=True))
    return Alignment(units, common)


def _incoming(a: Kernels, b: Kernels, units: Sequence[np.ndarray], layer: int) -> np.ndarray:
    """float64 [units of a, units of b]: in common on the way in, were they matched."""
    theirs = b[layer][:, units[layer - 1]] if layer else b[layer]
    count = theirs.shape[2]
    return (a[layer].reshape(-1, count).T @ theirs.reshape(-1, count)).astype(np.float64)


def _outgoing(a: Kernels, b: Kernels, units: Sequence[np.ndarray], layer: int) -> np.ndarray:
    """The same on the way out."""
    last = layer + 1 == len(units)
    ours, theirs = a[layer + 1], b[layer + 1] if last else b[layer + 1][:, :, units[layer + 1]]
    rows = [x.transpose(1, 0, 2).reshape(x.shape[1], -1) for x in (ours, theirs)]
    return (rows[0] @ rows[1].T).astype(np.float64)


def _assigned(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1]
