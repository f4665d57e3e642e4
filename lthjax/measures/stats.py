"""Statistics over seeds. The unit is the seed: repeats are averaged within their seed first.

Functions take one number per seed and are pure. scipy supplies distributions and tests. Bounds and p-values
by Student's t are exact for normal values. All seeds share one test set, so the results hold for that set;
`sampling_error` says how much a single accuracy would vary with another test set of the same size.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

from lthjax.errors import UserError, unknown

Outcome = Literal["supported", "refuted", "undecided"]
Alternative = Literal["two-sided", "greater", "less"]

Range = tuple[float, float]
"""The least and the largest possible value of a quantity; infinite where there is no limit."""
ANY: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)
PERCENT: Range = (0.0, 100.0)
POSITIVE: Range = (0.0, math.inf)

Curve = Iterable[tuple[float, float]]
"""(density, accuracy) of one seed and arm, in any order; densities in (0, 1], each at most once."""

# Smaller differences, relative to the largest value, are rounding.
_ROUNDING = 1e-12
# Accuracies are counts of images: a difference below one image in a million is rounding.
_SLACK = 1e-6
# 2^20 sums take 8 MB and some milliseconds.
_MOST_FLIPS = 20


class Interval(NamedTuple):
    """A mean and its confidence interval: two-sided and 95 %, unless the function says otherwise.

    Attributes:
        mean: of the values; NaN where there are none.
        low: lower bound; NaN for fewer than two values.
        high: upper bound, likewise.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


class Verdict(NamedTuple):
    """The result of a test of a claim.

    Attributes:
        outcome: "supported", "refuted" or "undecided"; "undecided" for fewer than two values.
        bounds: the mean with its lower and upper bound, each one-sided, which decide the outcome.
    """

    outcome: Outcome
    bounds: Interval


class Effect(NamedTuple):
    """A standardised effect: the population mean divided by the population's standard deviation.

    Attributes:
        g: the estimate, Hedges' g_z; NaN for fewer than three values or identical values.
        low: lower bound, likewise.
        high: upper bound, likewise.
        n: number of values.
    """

    g: float
    low: float
    high: float
    n: int


class Share(NamedTuple):
    """The share of runs that collapsed, and its confidence interval.

    Attributes:
        share: collapsed / n; NaN where there are no runs.
        low: lower bound; 0 where there are no runs.
        high: upper bound; 1 where there are no runs.
        collapsed: number of runs that collapsed.
        n: number of runs.
    """

    share: float
    low: float
    high: float
    collapsed: int
    n: int


class Ratio(NamedTuple):
    """A seed's ratio of two densities, or bounds of it; low = high where the ratio is known.

    Attributes:
        low: lower bound; 0 where nothing is known.
        high: upper bound; infinite where nothing is known.
    """

    low: float
    high: float


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


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """ours − theirs for the seeds that both have, by ascending seed.

    Args:
        ours: seed -> value.
        theirs: seed -> value.
    """
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def mean_interval(values: Sequence[float], confidence: float = 0.95, within: Range = ANY) -> Interval:
    """The mean of independent values with Student's t interval: mean ∓ t(n − 1) s / √n.

    For a quantity with a range, the interval stays within the range. It is computed on an unbounded scale,
    with the standard error of the delta method there, and transformed back. The scale is the logit of the
    mean's position between two limits (`SHARE`, `PERCENT`), or the logarithm of its distance to a single
    limit (`POSITIVE`). The mean stays the arithmetic mean, values may lie at a limit, and far from the limits
    the interval is Student's. For skewed values and three to six seeds its coverage is better than that of t.

    For a paired comparison pass the differences, one per seed; differences have no such range. Identical
    values give bounds equal to the mean. Accuracies are counts of images, so two or three seeds may agree by
    chance; such bounds are too narrow.

    Args:
        values: one per seed; a NaN makes the result NaN.
        confidence: of the two-sided interval, in (0, 1).
        within: the quantity's range, in the unit of the values.

    Raises:
        UserError: the confidence or the mean is out of range.
    """
    _inside("confidence", confidence, 0, 1)
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    identical = n > 1 and _identical(values)
    mean = float(values[0] if identical else np.mean(values))
    if mean < within[0] or mean > within[1]:
        raise UserError(
            f"values: their mean {mean:g} is not in [{within[0]:g}, {within[1]:g}]; give the range of their "
            "unit."
        )
    if identical:
        return Interval(mean, mean, mean, n)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, *_around(mean, half, within), n)


def _around(mean: float, half: float, within: Range) -> tuple[float, float]:
    """mean ∓ half, on the scale that keeps the bounds within the range."""
    below, above = mean - within[0], within[1] - mean
    if math.isinf(below) and math.isinf(above):
        return mean - half, mean + half
    if below == 0 or above == 0:
        return mean, mean
    # exp(∓ half on the scale): the factor of the odds, or of the distance to the only limit.
    slope = 1 / below + 1 / above
    with np.errstate(over="ignore"):
        less, more = np.exp([-half * slope, half * slope]).tolist()
    if math.isinf(above):
        return within[0] + below * less, within[0] + below * more
    if math.isinf(below):
        return within[1] - above * more, within[1] - above * less
    width = within[1] - within[0]
    return within[0] + width / (1 + above / below * more), within[1] - width / (1 + below / above * more)


def bounds(values: Sequence[float], confidence: float = 0.95, within: Range = ANY) -> Interval:
    """The mean with a lower and an upper bound, each one-sided: mean ∓ t(confidence, n − 1) s / √n.

    Each bound alone holds with that confidence; at 95 % the two together are the 90 % interval.

    Args:
        values: one per seed.
        confidence: of either bound, in (0.5, 1).
        within: the quantity's range; bounds stay within it, as in `mean_interval`.

    Raises:
        UserError: the confidence or the mean is out of range.
    """
    _inside("confidence", confidence, 0.5, 1)
    return mean_interval(values, 2 * confidence - 1, within)


def geometric_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The geometric mean of positive values: the t interval of their logarithms, transformed back.

    Args:
        values: ratios, one per seed.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        UserError: a value is not positive and finite, or the confidence is out of range.
    """
    for value in _finite("values", values):
        if value <= 0:
            raise UserError(f"values: {value:g} has no logarithm; a geometric mean is of positive values.")
    mean, low, high, n = mean_interval([math.log(value) for value in values], confidence)
    return Interval(math.exp(mean), math.exp(low), math.exp(high), n)


def geometric_bounds(ratios: Sequence[Ratio], confidence: float = 0.95) -> Interval:
    """Bounds of the geometric mean of ratios, some of which are known only by bounds ("censored").

    The lower bound counts each censored ratio as its least possible value, which cannot raise the mean; the
    upper bound counts it as its largest. If all ratios are censored, their bounds do not show the spread.
    Then the lower bound is the least of the ratios' lower bounds. If the logarithms are symmetric, it is too
    high in one of 2ⁿ cases (all ratios above their median), so 95 % takes five seeds. There is no
    estimate of the mean where a ratio is censored.

    Args:
        ratios: one per seed.
        confidence: of either bound, in (0.5, 1).

    Returns:
        The geometric mean, NaN where a ratio is censored, with its lower and its upper one-sided bound. A
        bound is 0 or infinite where a seed has none, and NaN for fewer than two seeds.

    Raises:
        UserError: the confidence is out of range.
    """
    lows, highs = [ratio.low for ratio in ratios], [ratio.high for ratio in ratios]
    mean, n = geometric_interval(lows).mean if lows == highs else math.nan, len(ratios)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    known = any(ratio.low == ratio.high for ratio in ratios)
    low = _least(lows, known, confidence)
    # An upper bound is a lower bound of the inverse ratios.
    over = _least([1 / high for high in highs], known, confidence)
    return Interval(mean, low, 1 / over if over else math.inf, n)


def _least(lows: Sequence[float], known: bool, confidence: float) -> float:
    """A lower bound of a geometric mean; `known` says whether any value is more than a bound."""
    if not all(lows):
        return 0.0
    if not known:
        return min(lows) if 0.5 ** len(lows) <= 1 - confidence else 0.0
    return math.exp(bounds([math.log(low) for low in lows], confidence).low)


def geometric_verdict(ratios: Sequence[Ratio], threshold: float, confidence: float = 0.95) -> Verdict:
    """Tests the claim that the geometric mean of ratios, some of them censored, is above a threshold.

    As `verdict`, with the bounds of `geometric_bounds`.

    Args:
        ratios: one per seed.
        threshold: a ratio.
        confidence: of either bound, in (0.5, 1).

    Raises:
        UserError: the confidence is out of range.
    """
    found = geometric_bounds(ratios, confidence)
    return Verdict(_outcome(found.low > threshold, found.high < threshold), found)


def verdict(
    values: Sequence[float], threshold: float = 0.0, confidence: float = 0.95, within: Range = ANY
) -> Verdict:
    """Tests the claim that the mean is above a threshold.

    Supported if the lower one-sided bound is above the threshold, refuted if the upper one is below it. At
    95 % a mean exactly at the threshold is wrongly found above in 5 % of the cases, and below in 5 %. To test
    that the mean is below, negate values and threshold.

    Args:
        values: differences, one per seed, without diverged runs.
        threshold: in the unit of the values.
        confidence: of either bound, in (0.5, 1).
        within: the quantity's range, as in `mean_interval`.

    Raises:
        UserError: a value is not finite, or the confidence or the mean is out of range.
    """
    found = bounds(_finite("values", values), confidence, within)
    return Verdict(_outcome(found.low > threshold, found.high < threshold), found)


def noninferior(values: Sequence[float], margin: float, confidence: float = 0.95) -> Verdict:
    """Tests the claim "within the margin" in one direction: the mean difference is above −margin.

    Args:
        values: differences, ours − theirs, one per seed.
        margin: the largest accepted loss, in the unit of the values, 0 or more.
        confidence: of either bound, in (0.5, 1).

    Raises:
        UserError: the margin is negative, a value is not finite, or the confidence is out of range.
    """
    return verdict(values, -_not_negative("margin", margin), confidence)


def equivalent(values: Sequence[float], margin: float, confidence: float = 0.95) -> Verdict:
    """Tests the claim "within the margin" in both directions, by two one-sided tests (TOST).

    Supported if both one-sided bounds (at 95 % the 90 % interval) lie inside ±margin, refuted if both lie
    outside on the same side. A mean exactly at the margin is wrongly found inside in at most 5 % of the
    cases. It is wrongly found outside in 5 % if the margin is several standard errors wide, and in up to 10 %
    as the margin approaches 0.

    Args:
        values: differences, one per seed.
        margin: in the unit of the values, 0 or more.
        confidence: of either bound, in (0.5, 1).

    Raises:
        UserError: the margin is negative, a value is not finite, or the confidence is out of range.
    """
    _not_negative("margin", margin)
    found = bounds(_finite("values", values), confidence)
    inside = found.low > -margin and found.high < margin
    return Verdict(_outcome(inside, found.low > margin or found.high < -margin), found)


def conjunction(outcomes: Iterable[Outcome]) -> Outcome:
    """Tests the claim that all claims of a family hold, for example one at every level of a range.

    Intersection–union test. Supported if all claims are; at 95 % this is wrong in at most 5 % of the cases,
    without a correction. Refuted if any claim is; this has no such limit: of k true claims whose means lie at
    their thresholds, one is refuted in up to k times 5 % of the cases. Otherwise, and for no claims at all,
    undecided.
    """
    found = list(outcomes)
    for outcome in found:
        if outcome not in ("supported", "refuted", "undecided"):
            raise unknown("outcomes", outcome, ("supported", "refuted", "undecided"))
    return _outcome(bool(found) and all(o == "supported" for o in found), "refuted" in found)


def t_p_value(values: Sequence[float], null: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """The p-value of Student's t test that the mean is `null`; on differences it is the paired test.

    NaN for fewer than two values. For identical values t = ±∞, or 0 if they equal `null`.

    Args:
        values: one per seed.
        null: the mean under the null hypothesis.
        alternative: that the mean differs ("two-sided"), is "greater" or is "less".

    Raises:
        UserError: a value is not finite, or the alternative is not known.
    """
    _known(alternative)
    numbers = _finite("values", values)
    if len(numbers) < 2:
        return float("nan")
    if _identical(numbers):
        # scipy would divide by zero here.
        side = float(np.sign(numbers[0] - null))
        return {"two-sided": 1 - abs(side), "greater": (1 - side) / 2, "less": (1 + side) / 2}[alternative]
    return float(stats.ttest_1samp(numbers, null, alternative=alternative).pvalue)


def sign_flip_p_value(
    values: Sequence[float], null: float = 0.0, alternative: Alternative = "two-sided"
) -> float:
    """The exact p-value of the sign-flip test: it enumerates all 2ⁿ signs of the differences from `null`.

    The test needs symmetry, not normality. Its smallest p-value is 2/2ⁿ two-sided and 1/2ⁿ one-sided, so
    p < 5 % takes six values two-sided and five one-sided. NaN for no values.

    Args:
        values: one per seed, at most 20.
        null: the centre of symmetry under the null hypothesis.
        alternative: that the mean differs ("two-sided"), is "greater" or is "less".

    Raises:
        UserError: there are too many values, one is not finite, or the alternative is not known.
    """
    _known(alternative)
    differences = [value - null for value in _finite("values", values)]
    if not differences:
        return float("nan")
    if len(differences) > _MOST_FLIPS:
        raise UserError(
            f"values: of {len(differences)} values not all signs can be tried; at most {_MOST_FLIPS}, "
            "else use t_p_value."
        )
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    # Tolerance: equal sums may differ by rounding.
    least = sum(differences), _ROUNDING * sum(map(abs, differences))
    if alternative == "two-sided":
        reached = np.abs(sums) >= abs(least[0]) - least[1]
    else:
        sign = 1 if alternative == "greater" else -1
        reached = sign * sums >= sign * least[0] - least[1]
    return float(np.mean(reached))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    The i-th smallest of m is multiplied by m − i + 1; then each is at least the one before it (Holm 1979). If
    values below 5 % count as findings, a family has a false finding in at most 5 % of the cases. Use p-values
    by t: with few seeds, sign-flip p-values have a lower limit that no family passes.

    Raises:
        UserError: a p-value is not in [0, 1]; leave out tests that could not be done.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise UserError(f"p_values: {p:g} is not in [0, 1]; leave out what could not be tested.")
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return [float(p) for p in adjusted]


def hedges_gz(values: Sequence[float], confidence: float = 0.95) -> Effect:
    """Hedges' g_z of paired differences: J mean / s, unbiased for population mean / standard deviation.

    J = Γ(ν/2) / (√(ν/2) Γ((ν − 1)/2)) with ν = n − 1: the exact form, not 1 − 3/(4ν − 1) (Hedges 1981).
    The interval inverts the noncentral t distribution, so it is not centred at g. Beyond |t| = 1,000 it uses
    the limit for large t, which is right to four digits.

    Args:
        values: differences, one per seed.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        UserError: a value is not finite, or the confidence is out of range.
    """
    _inside("confidence", confidence, 0, 1)
    numbers = _finite("values", values)
    n = len(numbers)
    if n < 3 or _identical(numbers):
        return Effect(float("nan"), float("nan"), float("nan"), n)
    d, nu = float(np.mean(numbers) / np.std(numbers, ddof=1)), n - 1
    t, tail = d * math.sqrt(n), (1 - confidence) / 2
    low, high = _noncentrality(t, nu, 1 - tail), _noncentrality(t, nu, tail)
    j = math.exp(math.lgamma(nu / 2) - math.lgamma((nu - 1) / 2)) / math.sqrt(nu / 2)
    return Effect(j * d, low / math.sqrt(n), high / math.sqrt(n), n)


def collapse_share(accuracies: Sequence[float], classes: int, confidence: float = 0.95) -> Share:
    """The share of collapsed runs: runs whose accuracy is below twice chance, 2 / classes.

    The interval is Clopper–Pearson's, whose coverage is at least nominal at any number of runs. It assumes
    independent runs: pass one per seed.

    Args:
        accuracies: fractions.
        classes: number of classes of the data, three or more.
        classes: of the data, three or more.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        UserError: an accuracy is not in [0, 1], there are too few classes, or the confidence is out of range.
    """
    _inside("confidence", confidence, 0, 1)
    if classes < 3:
        raise UserError(f"classes: {classes} is too few; twice chance is below 1 from three classes on.")
    collapsed, n = sum(_fraction(accuracy) < 2 / classes for accuracy in accuracies), len(accuracies)
    if n == 0:
        return Share(float("nan"), 0.0, 1.0, 0, 0)
    low, high = stats.binomtest(collapsed, n).proportion_ci(confidence, method="exact")
    return Share(collapsed / n, float(low), float(high), collapsed, n)


def sampling_error(accuracy: float, images: int) -> float:
    """The standard error of one accuracy due to the choice of test images: √(p (1 − p) / images).

    It is a fraction. It overestimates the error of a difference on the same images, as both networks err on
    many of the same images.

    Args:
        accuracy: a fraction.
        images: in the test set.

    Raises:
        UserError: the accuracy is not in [0, 1], or there are no images.
    """
    if images < 1:
        raise UserError(f"images: {images} is too few; a test set has one or more.")
    return math.sqrt(_fraction(accuracy) * (1 - accuracy) / images)


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
    target = dense - _not_negative("tolerance", tolerance) - _SLACK
    points = _descending(curve)
    if unbroken:
        points = list(itertools.takewhile(lambda point: point[1] >= target, points))
    return min((density for density, accuracy in points if accuracy >= target), default=None)


def sparsest_matches(
    curves: Mapping[int, Curve], dense: Mapping[int, float], tolerance: float = 0.0
) -> dict[int, tuple[float | None, bool]]:
    """The unbroken `smallest_match` of every seed, and whether it is the last point of the curve.

    If it is, sparser networks may match, too, and the density is but a bound.

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
    before: tuple[float, float] | None = None
    for density, accuracy in _descending(curve):
        if accuracy < target - _SLACK:
            if before is None:
                return density
            way = max(0.0, (before[1] - target) / (before[1] - accuracy))
            return float(before[0] * (density / before[0]) ** way)
        before = density, accuracy
    return None


def iso_ratio(ticket: Curve, control: Curve, dense: float, tolerance: float = 0.0) -> Ratio:
    """A seed's iso-accuracy ratio: the density at which the control's accuracy first falls / the ticket's.

    Accuracy falls where it drops below dense − tolerance, by `crossing`. Both curves start at the dense
    network, which replaces any point at density 1. A curve that never falls is censored: its density is below
    its smallest point, and only a bound of the ratio is known. At tolerance 0 a level that is worse by one
    image is a fall; a tolerance makes the ratio steadier.

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
    target = dense - _not_negative("tolerance", tolerance)
    lows, highs = [], []
    for curve in (ticket, control):
        points = [(1.0, dense), *(point for point in _descending(curve) if point[0] < 1)]
        at = crossing(points, target)
        lows.append(0.0 if at is None else at)
        highs.append(points[-1][0] if at is None else at)
    return Ratio(lows[1] / highs[0], highs[1] / lows[0] if lows[0] else math.inf)


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
    """The mean of ours − theirs over log density, on the range of densities that both curves cover.

    Both curves are linear in log density between points, so the trapezoid rule on the points of both is
    exact.

    Returns:
        In the curves' unit; None where they have no range in common.

    Raises:
        UserError: a curve is not valid.
    """
    both = []
    for curve in (ours, theirs):
        ascending = np.array(_descending(curve)[::-1]).reshape(-1, 2)
        both.append((np.log(ascending[:, 0]), ascending[:, 1]))
    (x, y), (u, v) = both
    if not len(x) or not len(u):
        return None
    low, high = max(x[0], u[0]), min(x[-1], u[-1])
    if low >= high:
        return None
    grid = np.union1d(x, u)
    grid = grid[(grid >= low) & (grid <= high)]
    return float(np.trapezoid(np.interp(grid, x, y) - np.interp(grid, u, v), grid) / (high - low))


def _noncentrality(t: float, nu: int, p: float) -> float:
    """The noncentrality at which a noncentral t variable is at most t with probability p."""
    if t < 0:
        return -_noncentrality(-t, nu, 1 - p)

    def spread(q: float) -> float:
        """t times the upper quantile of (sample standard deviation / population standard deviation)."""
        return t * math.sqrt(stats.chi2.isf(q, nu) / nu)

    if t > 1000:
        return spread(p)
    # The noncentrality is the upper p quantile of t times that ratio plus a standard normal, so it lies
    # between the sums of their quantiles at half the tails.
    low = spread(1 - (1 - p) / 2) + stats.norm.ppf((1 - p) / 2)
    high = spread(p / 2) + stats.norm.isf(p / 2)
    # scipy 1.13 warns of a division by zero at some arguments although its value is right.
    with np.errstate(divide="ignore"):
        return float(optimize.brentq(lambda delta: stats.nct.cdf(t, nu, delta) - p, low, high))


def _outcome(supported: bool, refuted: bool) -> Outcome:
    return "refuted" if refuted else "supported" if supported else "undecided"


def _descending(curve: Curve) -> list[tuple[float, float]]:
    """The points of a curve by descending density."""
    points = sorted(((float(d), float(a)) for d, a in curve), reverse=True)
    _finite("curve", [accuracy for _, accuracy in points])
    for density, _ in points:
        if not 0 < density <= 1:
            raise UserError(f"curve: density {density:g} is not in (0, 1].")
    for (density, _), (following, _) in itertools.pairwise(points):
        if density == following:
            raise UserError(
                f"curve: density {density:g} occurs twice; average repeats within the seed first."
            )
    return points


def _identical(values: Sequence[float]) -> bool:
    return bool(np.ptp(values) <= _ROUNDING * np.max(np.abs(values)))


def _finite(field: str, values: Sequence[float]) -> Sequence[float]:
    for value in values:
        if not math.isfinite(value):
            raise UserError(f"{field}: {value} is not a finite number; leave diverged runs out.")
    return values


def _fraction(accuracy: float) -> float:
    if not 0 <= accuracy <= 1:
        raise UserError(f"accuracy: {accuracy:g} is not in [0, 1]; give a fraction, not percent.")
    return accuracy


def _inside(field: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise UserError(f"{field}: {value:g} is not between {low:g} and {high:g}.")


def _not_negative(field: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise UserError(f"{field}: {value:g} is not allowed; give 0 or more, in the unit of the values.")
    return value


def _known(alternative: str) -> None:
    if alternative not in ("two-sided", "greater", "less"):
        raise unknown("alternative", alternative, ("two-sided", "greater", "less"))
