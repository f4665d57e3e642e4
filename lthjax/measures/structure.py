"""Statistics of a mask: units, filters, input pixels and signs, and the same by chance.

By chance means: the mask is shuffled within its layer, so that the layer keeps its density; as whole units or
within N:M groups where those were pruned. Masks and weights are `Layers`: the prunable kernels by path, in
the order of the network. Kernels are [inputs, units] or, for a convolution, [height, width, channels,
filters].

    from lthjax.measures import layers, structure

    mask = layers.by_number(layers.by_layer(ticket, ticket))
    structure.dead(mask)["conv1/kernel"].no_output
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lthjax.measures.layers import Layers, patterned
from lthjax.measures.wiring import FIXED

Ends = Mapping[str, tuple[int, int]]
# Layers of a plain sequence, with the names that `lthjax.models` gives them.
_IN_A_ROW = re.compile(r"(conv|fc)\d+/kernel|output/kernel")


class Dead(NamedTuple):
    """Dead units of a hidden layer: units without surviving incoming or outgoing weights.

    Attributes:
        units: number of units in the layer.
        no_input: units without surviving incoming weights.
        no_output: units without surviving outgoing weights.
        either: units without one or the other.
    """

    units: int
    no_input: int
    no_output: int
    either: int


def incoming(mask: np.ndarray) -> np.ndarray:
    """Surviving weights into every unit (filter) of a layer.

    Args:
        mask: bool [..., in, out].

    Returns:
        int [out].
    """
    return mask.reshape(-1, mask.shape[-1]).sum(0)


def outgoing(mask: np.ndarray, units: int) -> np.ndarray:
    """Surviving weights out of every unit (channel) of the layer before.

    Args:
        mask: bool [..., in, out], mask of the layer that reads the units. In a dense layer after a
            convolution, channel c feeds the inputs c, c + units, c + 2 units, ...: images are flattened with
            the channel last.
        units: number of units of the layer before.

    Returns:
        int [units].
    """
    return mask.reshape(-1, units, mask.shape[-1]).sum((0, 2))


def by_side(mask: np.ndarray) -> dict[str, np.ndarray]:
    """`incoming` and `outgoing` of a layer, by the name that its units have on that side."""
    sides = ("output units", "input units") if mask.ndim == 2 else ("filters", "input channels")
    return dict(zip(sides, (incoming(mask), outgoing(mask, mask.shape[-2])), strict=True))


def in_a_row(mask: Layers) -> bool:
    """Whether every layer feeds only the next one, judged by names and shapes of a network of the package."""
    fits = (
        after.shape[-2] == before.shape[-1]
        or (after.ndim == 2 < before.ndim and after.shape[0] % before.shape[-1] == 0)
        for before, after in itertools.pairwise(mask.values())
    )
    return all(_IN_A_ROW.fullmatch(path) for path in mask) and all(fits)


def reads_pixels(mask: Layers, shape: tuple[int, int, int]) -> bool:
    """Whether the first layer is dense and reads the pixels of an image.

    Args:
        mask: the network's.
        shape: (height, width, channels) of an image.
    """
    path, leaf = next(iter(mask.items()))
    return bool(_IN_A_ROW.fullmatch(path)) and leaf.ndim == 2 and leaf.shape[0] == np.prod(shape)


def first(mask: Layers, order: Sequence[str] = ()) -> str:
    """The path of the first layer: by an order of use, of `lthjax.models.Model`, or of the mask."""
    return next(path for path in (*order, *mask) if path in mask)


def convolves_pixels(mask: Layers, shape: tuple[int, int, int], order: Sequence[str] = ()) -> bool:
    """Whether the `first` layer is a convolution of the image; other arguments as for `reads_pixels`."""
    leaf = mask[first(mask, order)]
    return leaf.ndim == 4 and leaf.shape[2] == shape[2]


def dead(mask: Layers, ends: Ends | None = None) -> dict[str, Dead]:
    """Dead units of every hidden layer by path.

    Layers that write to one residual stream are one: its units are dead where no layer writes to them, or
    none reads them. It is named by the first layer that writes to it.

    Args:
        mask: the network's.
        ends: path -> the groups of its inputs and units, of `wiring.groups`; None where layers are in a row.
    """
    found = {}
    for path, into, out in _hidden(mask, ends):
        units = mask[path].shape[-1]
        no_input = np.all([incoming(mask[one]) == 0 for one in into], axis=0)
        no_output = np.all([outgoing(mask[one], units) == 0 for one in out], axis=0)
        either = no_input | no_output
        found[path] = Dead(units, int(no_input.sum()), int(no_output.sum()), int(either.sum()))
    return found


def dead_by_chance(mask: Layers, ends: Ends | None = None, granularity: str = "weight") -> dict[str, float]:
    """The expected share of dead units of every hidden layer by chance; arguments as for `dead`, `by_chance`.

    Of n weights k survive. The d weights of one unit are all pruned with probability C(n − d, k) / C(n, k) if
    single weights are shuffled, else see `by_chance`. The shuffles of two layers are independent.
    """
    found = {}
    for path, *sides in _hidden(mask, ends):
        units = mask[path].shape[-1]
        cut = [
            [float(by_chance(mask[one], units, [0], granularity, inputs=inputs)[0]) for one in side]
            for side, inputs in zip(sides, (False, True), strict=True)
        ]
        alive = [1 - math.prod(side) for side in cut]
        found[path] = 1 - alive[0] * alive[1]
    return found


def _hidden(mask: Layers, ends: Ends | None) -> list[tuple[str, list[str], list[str]]]:
    """Every hidden layer, the layers that write to its units, and those that read them."""
    if ends is None:
        return [(own, [own], [following]) for own, following in itertools.pairwise(mask)]
    into: dict[int, list[str]] = {}
    for path, (_, own) in ends.items():
        into.setdefault(own, []).append(path)
    read = {group: [path for path, (inputs, _) in ends.items() if inputs == group] for group in into}
    return [(paths[0], paths, read[group]) for group, paths in into.items() if group != FIXED]


def by_chance(
    mask: np.ndarray,
    units: int,
    survivors: Sequence[int],
    granularity: str = "weight",
    *,
    inputs: bool = False,
) -> np.ndarray:
    """The probability of a number of survivors of one unit by chance.

    Of single weights it is hypergeometric. Shuffled as whole units, or within N:M groups, which lie in one
    unit each, a mask keeps its distribution. Only the weights out of an input change: each stays in its N:M
    group with probability N / M, which gives a binomial. It is exact where no group holds two weights of
    one unit. In a dense layer after a convolution of fewer than M channels groups do; the binomial is then
    too wide, and fewer units are dead by chance than it says.

    Args:
        mask: bool, mask of a layer.
        units: number of units, inputs or outputs, among which the weights are divided equally.
        survivors: numbers of survivors of a unit.
        granularity: what the mask was pruned by, as for `prune.shuffle`, and is shuffled by.
        inputs: whether the units are inputs of the layer.

    Returns:
        float [len(survivors)], probabilities.
    """
    fan, fixed = mask.size // units, _fixed(mask, units, granularity, inputs)
    if fixed is not None:
        return (fixed[:, None] == np.asarray(survivors)).mean(0)
    if granularity != "weight":
        return stats.binom.pmf(survivors, fan, mask.mean())
    return stats.hypergeom.pmf(survivors, mask.size, int(mask.sum()), fan)


def variance_by_chance(
    mask: np.ndarray, units: int, granularity: str = "weight", *, inputs: bool = False
) -> float:
    """The variance of the survivors of one unit by chance; arguments as for `by_chance`."""
    n, fan, share = mask.size, mask.size // units, float(mask.mean())
    fixed = _fixed(mask, units, granularity, inputs)
    if fixed is not None:
        return float(fixed.var())
    drawn = fan * share * (1 - share)
    return drawn if granularity != "weight" else drawn * (n - fan) / max(n - 1, 1)


def _fixed(mask: np.ndarray, units: int, granularity: str, inputs: bool) -> np.ndarray | None:
    """The survivors of every unit, int [units], where shuffling keeps their distribution; else None."""
    if granularity == "weight" or (inputs and patterned(mask, granularity)):
        return None
    return outgoing(mask, units) if inputs else incoming(mask)


def degrees(
    survivors: np.ndarray, mask: np.ndarray, granularity: str = "weight", *, inputs: bool = False
) -> list[tuple[int, int, float]]:
    """The distribution of survivors over units, observed and expected by chance.

    Args:
        survivors: int [units], per unit: `incoming` or `outgoing` of the mask.
        mask: bool, mask of the layer.
        granularity, inputs: as for `by_chance`.

    Returns:
        (survivors, units, expected units), over the range outside of which both numbers are negligible.
    """
    units = len(survivors)
    far = 4 * variance_by_chance(mask, units, granularity, inputs=inputs) ** 0.5
    low = max(0, min(int(survivors.min()), int(survivors.mean() - far)))
    high = min(mask.size // units, max(int(survivors.max()), int(survivors.mean() + far) + 1))
    counts = range(low, high + 1)
    found = np.bincount(survivors, minlength=high + 1)
    expected = units * by_chance(mask, units, counts, granularity, inputs=inputs)
    return [(k, int(found[k]), float(n)) for k, n in zip(counts, expected, strict=True)]


def pixels(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Surviving connections of every input pixel, summed over channels.

    Args:
        mask: bool [height · width · channels, units], mask of a dense first layer.
        shape: (height, width, channels) of an image.

    Returns:
        int [height, width].
    """
    return mask.sum(1).reshape(shape).sum(2)


def rings(height: int, width: int) -> np.ndarray:
    """The distance of every pixel to the nearest border, 0 at the border; int [height, width]."""
    down, across = np.ogrid[:height, :width]
    return np.minimum(np.minimum(down, height - 1 - down), np.minimum(across, width - 1 - across))


def border_and_centre(height: int, width: int) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Half of the largest distance to the border; and the outer two rings, and the pixels further inside.

    Further inside means more than that half; both parts are bool [height, width].
    """
    ring = rings(height, width)
    half = int(ring.max()) // 2
    return half, (ring < 2, ring > half)


def by_ring(image: np.ndarray) -> list[tuple[int, int, int, float]]:
    """The rings of a map of survivors: (distance to the border, pixels, survivors, `over_mean`)."""
    ring = rings(*image.shape)
    parts = [(r, ring == r) for r in range(int(ring.max()) + 1)]
    return [(r, int(own.sum()), int(image[own].sum()), over_mean(image, own)) for r, own in parts]


def over_mean(image: np.ndarray, part: np.ndarray) -> float:
    """Survivors per pixel in a part of an image, divided by survivors per pixel in the whole image.

    Args:
        image: int [height, width], as `pixels` gives it, not all 0.
        part: bool [height, width].
    """
    return float(image[part].mean() / image.mean())


def side_by_side(kernel: np.ndarray) -> np.ndarray:
    """The filters of a convolution as one image: one column per filter, one row per channel.

    Args:
        kernel: float [height, width, channels, filters].

    Returns:
        float [channels (height + 1) − 1, filters (width + 1) − 1], nan in the gaps.
    """
    _, _, channels, filters = kernel.shape
    padded = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)), constant_values=np.nan)
    height, width = padded.shape[:2]
    return padded.transpose(2, 0, 3, 1).reshape(channels * height, filters * width)[:-1, :-1]


def histograms(
    before: Layers, after: Layers, stays: Layers, there: Layers, bins: int = 81
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Joint histograms of weight values before and after, for survivors and for pruned weights of a round.

    Args:
        before, after: the weights at two times.
        stays: the mask after pruning.
        there: the mask before pruning.
        bins: number of bins per axis.

    Returns:
        {"survivors": int [bins, bins], "pruned": likewise}; and the bin edges, float [bins + 1], of before
        and after: symmetric about 0, up to the largest value.
    """
    x, y, own, was = (
        np.concatenate([part[path].ravel() for path in stays]) for part in (before, after, stays, there)
    )
    limits = [float(np.abs(values[was]).max()) or 1.0 for values in (x, y)]
    edges = [np.linspace(-limit, limit, bins + 1) for limit in limits]
    parts = {"survivors": own, "pruned": was & ~own}
    counts = {name: np.histogram2d(x[at], y[at], edges)[0].astype(int) for name, at in parts.items()}
    return counts, edges


def sign_changes(before: Layers, after: Layers, mask: Layers) -> tuple[int, int]:
    """(survivors whose sign differs, survivors); a weight of exactly 0 counts as a third sign."""
    changed = sum(int((np.sign(before[path]) != np.sign(after[path]))[m].sum()) for path, m in mask.items())
    return changed, sum(int(m.sum()) for m in mask.values())
