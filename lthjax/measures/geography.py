"""The overlap of two tickets of one network, before and after their hidden units are matched.

A network computes the same function when the units of a hidden layer are permuted. So two tickets may be
equal up to a permutation and still look different. `align` searches for the permutation of one ticket's
units that maximises the overlap, by the weight matching of Git Re-Basin (Ainsworth et al. 2023, arXiv
2209.04836, section 3.2): each layer in turn is a linear assignment, solved exactly, until no layer improves.
Matching raises the overlap of random masks, too. `compare` therefore also gives the overlap of shuffled
tickets.

All functions use numpy kernels as `kernels` gives them, a list of [places, inputs, units]. Which layers share
the order of their units is in `wiring`; without it the kernels are those of a plain sequence.

    from lthjax.measures import geography, wiring

    layers = wiring.layers(model)
    a, b = (geography.kernels(layers, mask) for mask in tickets)
    aligned = geography.permuted(b, geography.align(a, b, wiring.groups(layers)).units, wiring.groups(layers))
    geography.iou(a, aligned)
"""

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from lthjax.errors import UserError
from lthjax.measures import transfer, wiring
from lthjax.measures.layers import shuffled
from lthjax.measures.wiring import Named
from lthjax.models import Model, Variables
from lthjax.networks import Layer

PyTree = Any
Kernels = Sequence[np.ndarray]
Groups = Sequence[tuple[int, int]]
# Used in place of a layer's name.
ALL, INPUTS = "all", "inputs"
TICKET, SHUFFLED = "ticket", "shuffled"


class Alignment(NamedTuple):
    """A matching of one network's hidden units with another's.

    Attributes:
        units: for every group (of a sequence: every hidden layer) int [units]: for each unit of the first
            network, the matched unit of the second.
        common: the maximised objective: the sum over all weights of the product of the two kernels. For
            masks it is the number of connections in common.
    """

    units: list[np.ndarray]
    common: float


class LayerOverlap(NamedTuple):
    """The overlap of two masks in one layer, or in all layers together.

    Attributes:
        iou: connections in both / connections in either; 0 where there are none.
        chance: the expected iou of random masks with the same counts in every layer, without matching
            (approximately, as a ratio of means).
    """

    iou: float
    chance: float


class TicketKernels(NamedTuple):
    """A trained ticket, the input of `compare`.

    Attributes:
        mask: bool kernels.
        magnitudes: float kernels, the magnitudes of its final weights, 0 where pruned.
    """

    mask: Kernels
    magnitudes: Kernels


class Likeness(NamedTuple):
    """The overlap of two tickets in one layer, or in the inputs that their first layers read.

    Attributes:
        layer: name of the layer; `ALL` for all layers together; `INPUTS` for the inputs.
        matching: "none": units as they are; "masks", "magnitudes": units matched by masks or magnitudes.
        mask: "ticket"; or "shuffled": the mean over draws in which both are shuffled within their layers.
        density: weights left / weights, mean of both tickets; for `INPUTS` that of the first layer.
        overlap: connections in both / in either. For `INPUTS` Pearson's correlation of the numbers of
            connections that leave each input; None where a ticket has the same number at all inputs.
    """

    layer: str
    matching: str
    mask: str
    density: float
    overlap: float | None


class InputLikeness(NamedTuple):
    """How several tickets read one input.

    Attributes:
        y, x, channel: the pixel; for a convolution the kernel tap.
        kept: surviving share of the input's connections, mean over tickets.
        overlap: the overlap of `by_input`, mean over the pairs that read the input; None where none does.
        chance: the overlap by chance, likewise.
    """

    y: int
    x: int
    channel: int
    kept: float
    overlap: float | None
    chance: float | None


def kernels(layers: Named, tree: PyTree) -> list[np.ndarray]:
    """Every layer's kernel of a pytree as [places, inputs, units].

    Args:
        layers: of the network, from `wiring.layers`.
        tree: parameters, or a mask of them.
    """
    if isinstance(layers[0], Layer):
        return transfer.kernels(layers, tree)  # type: ignore[arg-type]
    found = [np.asarray(wiring.leaf(tree, layer.name)["kernel"]) for layer in layers]
    return [kernel.reshape(-1, *kernel.shape[-2:]) for kernel in found]


def ticket(layers: Named, mask: PyTree, weights: PyTree) -> TicketKernels:
    """A trained ticket, from its mask and its final weights."""
    masks = kernels(layers, mask)
    pairs = zip(kernels(layers, weights), masks, strict=True)
    return TicketKernels(masks, [abs(kernel) * m for kernel, m in pairs])


def compare(
    layers: Named,
    a: TicketKernels,
    b: TicketKernels,
    draws: int,
    generator: np.random.Generator,
    *,
    granularity: str = "weight",
) -> list[Likeness]:
    """The overlap of two tickets under every matching: per layer, in all layers together, at the inputs.

    Args:
        layers: of their network, from `wiring.layers`.
        a, b: the tickets.
        draws: number of shuffles of both tickets, 1 or more.
        generator: draws the shuffles.
        granularity: what the tickets were pruned by, as for `prune.shuffle`, and are shuffled by.
    """
    drawn, groups = [], wiring.groups(layers)
    for _ in range(draws):
        x, y = (_drawn(layers, ticket, generator, granularity) for ticket in (a, b))
        drawn.append(_overlaps(x, y, groups))
    density = [float(x.mean() + y.mean()) / 2 for x, y in zip(a.mask, b.mask, strict=True)]
    every = float(np.concatenate([mask.ravel() for mask in (*a.mask, *b.mask)]).mean())
    densities = [*density, every, density[0]]
    names = [*(layer.name for layer in layers), ALL, INPUTS]
    found = []
    for (matching, place), overlap in _overlaps(a, b, groups).items():
        known = [value for one in drawn if (value := one[matching, place]) is not None]
        chance = float(np.mean(known)) if known else None
        for mask, value in ((TICKET, overlap), (SHUFFLED, chance)):
            found.append(Likeness(names[place], matching, mask, densities[place], value))
    return found


def _drawn(
    layers: Named, ticket: TicketKernels, generator: np.random.Generator, granularity: str
) -> TicketKernels:
    """A ticket shuffled within its layers."""
    # A dense layer is pruned as [places * inputs, units], so that an N:M group may span places.
    shapes = [
        (-1, kernel.shape[-1]) if isinstance(layer, Layer) and not layer.size else kernel.shape
        for layer, kernel in zip(layers, ticket.mask, strict=True)
    ]
    own = ([kernel.reshape(shape) for kernel, shape in zip(of, shapes, strict=True)] for of in ticket)
    moved = shuffled(generator, *own, granularity=granularity)
    pairs = (zip(of, ticket.mask, strict=True) for of in moved)
    return TicketKernels(*([kernel.reshape(mask.shape) for kernel, mask in of] for of in pairs))


def _overlaps(a: TicketKernels, b: TicketKernels, groups: Groups) -> dict[tuple[str, int], float | None]:
    """(matching, index) -> overlap; the last two indices are all layers together, and the inputs."""
    matched = {
        "none": b.mask,
        "masks": permuted(b.mask, align(a.mask, b.mask, groups).units, groups),
        "magnitudes": permuted(b.mask, align(a.magnitudes, b.magnitudes, groups).units, groups),
    }
    found: dict[tuple[str, int], float | None] = {
        (matching, place): overlap.iou
        for matching, mask in matched.items()
        for place, overlap in enumerate(iou(a.mask, mask))
    }
    return found | {("none", len(a.mask) + 1): agreement(readers(a.mask), readers(b.mask))}


def inputs(model: Model, masks: Sequence[Kernels]) -> list[InputLikeness]:
    """How several tickets read every input of a network.

    Args:
        model: the network; one that is no sequence begins with a 3x3 convolution.
        masks: kernels of two or more tickets.
    """
    size = model.layers[0].size if model.layers else 3
    shape = (size, size, model.input_shape[2]) if size else model.input_shape
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


def align(a: Kernels, b: Kernels, groups: Groups = ()) -> Alignment:
    """The permutation of b's hidden units that maximises the overlap of a and b.

    The problem is NP-hard from two hidden layers on, so the result is a local optimum: the best of three
    ascents. They start from the units as they are, from matching by incoming connections layer after layer,
    and from matching by outgoing connections from the output backwards.

    Args:
        a, b: kernels of one network, the input first: masks, magnitudes of weights, or weights.
        groups: from `wiring.groups`; by default those of a sequence.

    Raises:
        ValueError: their shapes differ.
    """
    if [x.shape for x in a] != [x.shape for x in b]:
        raise ValueError("a, b: kernels of different shapes cannot be matched.")
    # Exact for integers below 2**24.
    a, b = ([np.asarray(x, np.float32) for x in kernels] for kernels in (a, b))
    groups = groups or _sequence(a)
    sizes = {own: kernel.shape[2] for kernel, (_, own) in zip(a, groups, strict=True) if own != wiring.FIXED}
    plain = [np.arange(sizes[group]) for group in range(len(sizes))]
    forward, backward = list(plain), list(plain)
    for group in range(len(plain)):
        forward[group] = _assigned(_incoming(a, b, forward, group, groups))
    for group in reversed(range(len(plain))):
        backward[group] = _assigned(_outgoing(a, b, backward, group, groups))
    ascents = [_ascent(a, b, start, groups) for start in (plain, forward, backward)]
    return max(ascents, key=lambda found: found.common)


def permuted(kernels: Kernels, units: Sequence[np.ndarray], groups: Groups = ()) -> list[np.ndarray]:
    """The kernels with the units of every group permuted, and the inputs of those that read them with them.

    Args:
        kernels: of a network.
        units: for every group (of a sequence: every hidden layer), the old unit at each new place.
        groups: as for `align`.
    """
    return [
        _taken(_taken(kernel, 1, inputs, units), 2, outputs, units)
        for kernel, (inputs, outputs) in zip(kernels, groups or _sequence(kernels), strict=True)
    ]


def _sequence(kernels: Kernels) -> Groups:
    """The groups of a plain sequence."""
    last = len(kernels) - 1
    return [(i - 1 if i else wiring.FIXED, i if i < last else wiring.FIXED) for i in range(last + 1)]


def _taken(kernel: np.ndarray, axis: int, group: int, units: Sequence[np.ndarray]) -> np.ndarray:
    """A kernel with one axis in the order of its group."""
    if group == wiring.FIXED:
        return kernel
    return kernel[:, units[group]] if axis == 1 else kernel[:, :, units[group]]


def matching(layers: Named, first: PyTree, second: PyTree) -> list[np.ndarray]:
    """The permutation of the second network's hidden units that brings its weights nearest to the first's.

    `align` on signed kernels: the largest inner product is the least Euclidean distance. Biases and
    normalisations move along with `reordered`, but have no say.

    Args:
        layers: of the network, from `wiring.layers`.
        first, second: its parameters, pruned weights 0.

    Returns:
        For every group (of a sequence: every hidden layer) int [units]: for each unit of the first network,
        the second's unit.

    Source: Ainsworth et al. 2023 (arXiv 2209.04836), section 3.2.
    """
    a, b = (kernels(layers, params) for params in (first, second))
    return align(a, b, wiring.groups(layers)).units


def reordered(layers: Named, tree: PyTree, units: Sequence[np.ndarray]) -> PyTree:
    """A network's parameters, or their mask, with the units in another order, by `wiring.permuted`."""
    return wiring.permuted(layers, Variables(tree, {}), units).params


def iou(a: Kernels, b: Kernels) -> list[LayerOverlap]:
    """The overlap of two masks in every layer; the last entry is that of all layers together."""
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
    """Pearson's correlation of two maps of inputs; None where one of them is constant."""
    x, y = (np.asarray(m, np.float64).ravel() - np.mean(m) for m in (a, b))
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / size) if size else None


def by_input(a: Kernels, b: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """The overlap of two masks at every input, and the overlap by chance: float [places, inputs] each.

    By chance means: each mask keeps the number of units that read the input, and these units are drawn at
    random. nan where no unit of either mask reads the input.
    """
    x, y = a[0], b[0]
    both, n_x, n_y = ((m.sum(-1, dtype=np.float64)) for m in (x & y, x, y))
    expected = n_x * n_y / x.shape[-1]
    with np.errstate(invalid="ignore"):
        return both / (n_x + n_y - both), expected / (n_x + n_y - expected)


def mean_known(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis without nan; nan where all values are nan."""
    known = ~np.isnan(values)
    counts = known.sum(0)
    return np.where(counts, np.where(known, values, 0).sum(0) / np.maximum(counts, 1), np.nan)


def over_pairs(values: dict[tuple[int, int], float]) -> list[float]:
    """Jackknife pseudo-values, for intervals over seeds: one number per seed from one per pair of seeds.

    Pairs that share a seed are not independent. The pseudo-values n U − (n − 1) U₋ᵢ may be treated as
    independent (Arvesen 1969, for U-statistics). U is the mean over all pairs, U₋ᵢ the mean over the pairs
    without seed i; the mean of the pseudo-values is U.

    Args:
        values: (seed, seed) -> value, for all pairs of the seeds.

    Returns:
        One value per seed; for two seeds the one value of their pair.

    Raises:
        UserError: a pair is missing, without which the mean of the pseudo-values is not U.
    """
    seeds = sorted({seed for pair in values for seed in pair})
    for a, b in itertools.combinations(seeds, 2):
        if not {(a, b), (b, a)} & values.keys():
            raise UserError(f"values: the pair of seeds {a} and {b} is missing.")
    if len(seeds) < 3:
        return list(values.values())
    mean, n = float(np.mean(list(values.values()))), len(seeds)
    without = [np.mean([v for pair, v in values.items() if seed not in pair]) for seed in seeds]
    return [float(n * mean - (n - 1) * left) for left in without]


def _ascent(a: Kernels, b: Kernels, start: Sequence[np.ndarray], groups: Groups) -> Alignment:
    units = list(start)
    # A group can improve only if a neighbouring group has changed since it was last matched.
    stale = set(range(len(units)))
    while stale:
        group = min(stale)
        stale.remove(group)
        gain = _incoming(a, b, units, group, groups) + _outgoing(a, b, units, group, groups)
        better, places = _assigned(gain), np.arange(len(units[group]))
        before, after = gain[places, units[group]].sum(), gain[places, better].sum()
        # Must improve by more than rounding, so that the loop ends; of signed kernels a gain may be negative.
        if after > before + 1e-6 * abs(before):
            units[group] = better
            stale |= {own for pair in groups if group in pair for own in pair} - {group, wiring.FIXED}
    moved = permuted(b, units, groups)
    common = sum(float((x * y).sum(dtype=np.float64)) for x, y in zip(a, moved, strict=True))
    return Alignment(units, common)


def _incoming(a: Kernels, b: Kernels, units: Sequence[np.ndarray], group: int, groups: Groups) -> np.ndarray:
    """float64 [units of a, units of b]: incoming connections in common if the two units were matched."""
    found = []
    for ours, theirs, (inputs, own) in zip(a, b, groups, strict=True):
        if own == group:
            moved, count = _taken(theirs, 1, inputs, units), theirs.shape[2]
            product = ours.reshape(-1, count).T @ moved.reshape(-1, count)
            found.append(product.astype(np.float64))
    return reduce(np.add, found)


def _outgoing(a: Kernels, b: Kernels, units: Sequence[np.ndarray], group: int, groups: Groups) -> np.ndarray:
    """The same for outgoing connections."""
    found = []
    for ours, theirs, (inputs, own) in zip(a, b, groups, strict=True):
        if inputs == group:
            pair = (ours, _taken(theirs, 2, own, units))
            rows = [x.transpose(1, 0, 2).reshape(x.shape[1], -1) for x in pair]
            found.append((rows[0] @ rows[1].T).astype(np.float64))
    return reduce(np.add, found)


def _assigned(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1]
