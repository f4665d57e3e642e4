"""Curves of accuracy against density: where they match, cross, and how far they are apart."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lthjax.errors import UserError
from lthjax.measures.stats._checks import finite, not_negative
from lthjax.measures.stats._intervals import Interval, Ratio, geometric_bounds, geometric_interval

_Point = tuple[float, float]
Curve = Iterable[_Point]
"""(density, accuracy) of one seed and arm, in any order; densities in (0, 1], each at most once."""

# Accuracies are counts of images: a difference below one image in a million is rounding.
_SLACK = 1e-6
# Densities of one level are equal to within this factor; masks of other arms may differ in single weights.
_SAME = 1.01


class IsoAccuracy(NamedTuple):
    """Iso-accuracy compression over seeds.

    Attributes:
        interval: geometric mean and interval of the ratios; NaN where a ratio is censored.
        bounds: bounds of the geometric mean, by `geometric_bounds`; they allow censored ratios.
        ratios: seed -> its ratio or the bounds of it.
        censored: seeds whose ratio is known only by bounds.
    """

    interval: Interval
    bounds: Interval
    ratios: dict[int, Ratio]
    censored: int


def smallest_match(
    curve: Curve, dense: float, tolerance: float = 0.0, *, unbroken: bool = False
) -> float | None:
    """The smallest matching density of a seed: the lowest at which accuracy ≥ dense − tolerance.

    It says how sparse a matching subnetwork was found, even if a denser one did not match; with many levels
    and noise it may be a lucky outlier. With `unbroken` it is the lowest density down to which every larger
    density on the curve matches too; there one unlucky level ends it. The first is the default because papers
    report it as the sparsest matching ticket. Where the two differ much, noise decides; report both.

    Args:
        curve: (density, accuracy); the dense network counts only if it is on the curve.
        dense: the dense network's accuracy of this seed, in the curve's unit.
        tolerance: in the curve's unit, 0 or more.
        unbroken: whether all larger densities must match.

    Returns:
        A density of the curve, or None where none matches.

    Raises:
        UserError: the curve is not valid, or the tolerance is negative.
    """
    target = dense - not_negative("tolerance", tolerance) - _SLACK
    points = _descending(curve)
    if unbroken:
        points = list(itertools.takewhile(lambda point: point[1] >= target, points))
    return min((density for density, accuracy in points if accuracy >= target), default=None)


def sparsest_matches(
    curves: Mapping[int, Curve], dense: Mapping[int, float], tolerance: float = 0.0
) -> dict[int, tuple[float | None, bool]]:
    """The unbroken `smallest_match` of every seed, and whether it is the last point of the curve.

    If it is, sparser networks may match, too, and the density is only an upper bound.

    Args:
        curves: seed -> (density, accuracy).
        dense: seed -> the dense network's accuracy, in the curves' unit; seeds without one are left out.
        tolerance: in that unit, 0 or more.

    Raises:
        UserError: a curve is not one, or the tolerance is negative.
    """
    found = {}
    for seed, curve in curves.items():
        if seed in dense:
            points = [*curve]
            smallest = smallest_match(points, dense[seed], tolerance, unbroken=True)
            found[seed] = (smallest, smallest == min(density for density, _ in points))
    return found


def match_ratio(curve: Curve, dense: float, tolerance: float = 0.0, others: Iterable[float] = ()) -> Ratio:
    """Dense weights over those of a seed's unbroken `smallest_match`; 1 where nothing matches.

    It is known by bounds where the last point of the curve matches, since sparser networks may match, too.
    So it is where another curve was measured between that match and the first point that does not match.

    Args:
        curve: (density, accuracy) of one seed.
        dense: the dense network's accuracy of this seed, in the curve's unit.
        tolerance: in that unit, 0 or more.
        others: the densities at which the other curve was measured.

    Returns:
        The ratio, or its bounds; (least, ∞) if the last point matches.

    Raises:
        UserError: the curve is not valid, or the tolerance is negative.
    """
    points = _descending(curve)
    match = smallest_match(points, dense, tolerance, unbroken=True)
    smallest = match or 1.0
    below = [density for density, _ in points if match is None or density < match]
    if not below:
        return Ratio(1 / smallest, math.inf)
    between = [density for density in others if below[0] * _SAME < density < smallest / _SAME]
    return Ratio(1 / smallest, 1 / min([smallest, *between]))


def nearest(levels: Mapping[int, float], density: float) -> int:
    """The level whose density is nearest by ratio; the first of equally near ones.

    A density of 0 is infinitely far from all others.
    """

    def far(other: float) -> float:
        if not (other and density):
            return 0.0 if other == density else math.inf
        return abs(math.log(other / density))

    return min(levels, key=lambda level: far(levels[level]))


def crossing(curve: Curve, target: float) -> float | None:
    """The density at which accuracy first falls below a target, going down from the largest density.

    Accuracy is interpolated linearly in log density, between the last point at or above the target and
    the first point below it. Later points are ignored.

    Returns:
        The density; the largest where the curve starts below the target, None where it never falls below.

    Raises:
        UserError: the curve is not valid.
    """
    found = _fall(_descending(curve), target)
    if found is None:
        return None
    above, below = found
    if above is None:
        return below[0]
    way = max(0.0, (above[1] - target) / (above[1] - below[1]))
    return float(above[0] * (below[0] / above[0]) ** way)


def _fall(points: Sequence[_Point], target: float) -> tuple[_Point | None, _Point] | None:
    """The first point below a target and the one before it, if any; None where there is none below."""
    before: _Point | None = None
    for point in points:
        if point[1] < target - _SLACK:
            return before, point
        before = point
    return None


def interpolated(curve: Curve, density: float) -> float | None:
    """The accuracy at a density, linear in log density between the two points around it.

    Returns:
        In the curve's unit; None outside the curve's range of densities.

    Raises:
        UserError: the curve is not valid, or the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise UserError(f"density: {density:g} is not in (0, 1].")
    points = _descending(curve)[::-1]
    if not points or not points[0][0] <= density <= points[-1][0]:
        return None
    logs = [math.log(place) for place, _ in points]
    return float(np.interp(math.log(density), logs, [accuracy for _, accuracy in points]))


def iso_ratio(ticket: Curve, control: Curve, dense: float, tolerance: float = 0.0) -> Ratio:
    """A seed's iso-accuracy ratio: the density at which the control's accuracy first falls / the ticket's.

    Accuracy falls where it drops below dense − tolerance, by `crossing`. Both curves start at the dense
    network, which replaces any point at density 1. A curve that never falls is censored: its density is below
    its smallest point, and only a bound of the ratio is known. So is one that falls between two points where
    the other curve has a point between them: it was not measured at that level, and a line across levels is
    no measurement of them (accuracy is concave in log density, so the line falls too early). At tolerance 0 a
    level that is worse by one image is a fall; a tolerance makes the ratio steadier.

    Args:
        ticket: (density, accuracy) of one seed.
        control: likewise.
        dense: the dense network's accuracy of this seed, in the curves' unit.
        tolerance: in the curves' unit, 0 or more.

    Returns:
        The ratio, or its bounds: (least, ∞) if the ticket never falls, (0, most) if the control never does,
        (0, ∞) if neither does.

    Raises:
        UserError: a curve is not valid, or the tolerance is negative.
    """
    target = dense - not_negative("tolerance", tolerance)
    curves = [
        [(1.0, dense), *(point for point in _descending(curve) if point[0] < 1)]
        for curve in (ticket, control)
    ]
    (ticket_low, ticket_high), (control_low, control_high) = (
        _fallen(own, [density for density, _ in other], target) for own, other in (curves, curves[::-1])
    )
    return Ratio(control_low / ticket_high, control_high / ticket_low if ticket_low else math.inf)


def _fallen(points: Sequence[_Point], others: Sequence[float], target: float) -> tuple[float, float]:
    """The least and the largest density at which a curve may first fall below a target.

    Args:
        points: the curve, descending; the first is not below the target.
        others: the densities at which another curve was measured.
        target: an accuracy.
    """
    found = _fall(points, target)
    if found is None:
        return 0.0, points[-1][0]
    above, below = found
    assert above is not None, "the dense network is not below itself"
    if any(below[0] * _SAME < density < above[0] / _SAME for density in others):
        return below[0], above[0]
    at = crossing((above, below), target)
    assert at is not None
    return at, at


def iso_accuracy(
    tickets: Mapping[int, Curve],
    controls: Mapping[int, Curve],
    dense: Mapping[int, float],
    tolerance: float = 0.0,
    confidence: float = 0.95,
) -> IsoAccuracy:
    """Iso-accuracy compression: the geometric mean of `iso_ratio` over the seeds that all three have.

    Where seeds are censored, only bounds of the mean are given. Leaving these seeds out would bias the mean
    down (tickets that never fall have the largest ratios), and using their bounds as values gives no mean.

    Args:
        tickets: seed -> (density, accuracy).
        controls: likewise.
        dense: seed -> the dense network's accuracy, in the curves' unit.
        tolerance: in the curves' unit, 0 or more.
        confidence: of the two-sided interval, in (0, 1); bounds are one-sided and of 95 %.

    Raises:
        UserError: a curve is not valid, the tolerance is negative, or the confidence is out of range.
    """
    seeds = sorted(tickets.keys() & controls.keys() & dense.keys())
    ratios = {seed: iso_ratio(tickets[seed], controls[seed], dense[seed], tolerance) for seed in seeds}
    of = list(ratios.values())
    censored = sum(ratio.low != ratio.high for ratio in of)
    interval = Interval(math.nan, math.nan, math.nan, len(of))
    if not censored:
        interval = geometric_interval([ratio.low for ratio in of], confidence)
    return IsoAccuracy(interval, geometric_bounds(of), ratios, censored)


def area_between(ours: Curve, theirs: Curve) -> float | None:
    """The mean of ours − theirs over log density, from the largest to the smallest density that both have.

    The difference is taken where both curves were measured, to within 1 % of the density, and is linear in
    log density between those points, so that the trapezoid rule is exact.

    Returns:
        In the curves' unit; None where they have fewer than two densities in common.

    Raises:
        UserError: a curve is not valid.
    """
    our, their = _descending(ours), _descending(theirs)
    pairs = [
        (math.log(density), accuracy - other)
        for density, accuracy in our
        for at, other in their
        if density / _SAME < at < density * _SAME
    ]
    if len(pairs) < 2:
        return None
    x, gaps = np.array(pairs[::-1]).T
    return float(np.trapezoid(gaps, x) / (x[-1] - x[0]))


def _descending(curve: Curve) -> list[tuple[float, float]]:
    """The points of a curve by descending density."""
    points = sorted(((float(d), float(a)) for d, a in curve), reverse=True)
    finite("curve", [accuracy for _, accuracy in points])
    for density, _ in points:
        if not 0 < density <= 1:
            raise UserError(f"curve: density {density:g} is not in (0, 1].")
    for (density, _), (following, _) in itertools.pairwise(points):
        if density == following:
            raise UserError(
                f"curve: density {density:g} occurs twice; average repeats within the seed first."
            )
    return points
