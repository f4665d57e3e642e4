"""Means with their intervals and bounds, on the scale that keeps them in the quantity's range."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lthjax.errors import UserError
from lthjax.measures.stats._checks import finite, fraction, identical, inside, not_negative

Range = tuple[float, float]
"""The least and the largest possible value of a quantity; infinite where there is no limit."""
ANY: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)
PERCENT: Range = (0.0, 100.0)
POSITIVE: Range = (0.0, math.inf)


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


class Ratio(NamedTuple):
    """A seed's ratio of two densities, or bounds of it; low = high where the ratio is known.

    Attributes:
        low: lower bound; 0 where nothing is known.
        high: upper bound; infinite where nothing is known.
    """

    low: float
    high: float


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """ours − theirs for the seeds that both have, by ascending seed.

    Args:
        ours: seed -> value.
        theirs: seed -> value.
    """
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, within: Range = ANY, floor: float = 0.0
) -> Interval:
    """The mean of independent values with Student's t interval: mean ∓ t(n − 1) s / √n.

    For a quantity with a range, the interval stays within the range. It is computed on an unbounded scale,
    with the standard error of the delta method there, and transformed back. The scale is the logit of the
    mean's position between two limits (`SHARE`, `PERCENT`), or the logarithm of its distance to a single
    limit (`POSITIVE`). The mean stays the arithmetic mean, values may lie at a limit, and far from the limits
    the interval is Student's. For skewed values and three to six seeds its coverage is better than that of t.
    Where the floor is more than the values' own spread, the interval is also no narrower than Student's with
    the floor, cut at the limits.

    For a paired comparison pass the differences, one per seed; differences have no such range. Identical
    values give bounds equal to the mean. Accuracies are counts of images, so two or three seeds may agree by
    chance; such bounds are too narrow.

    Args:
        values: one per seed; a NaN makes the result NaN.
        confidence: of the two-sided interval, in (0, 1).
        within: the quantity's range, in the unit of the values.
        floor: the least standard deviation of a value, in the unit of the values: s is at least that; for
            accuracies by `difference_error`, for barriers by `paired_error`.

    Raises:
        UserError: the confidence or the mean is out of range, or the floor is negative.
    """
    inside("confidence", confidence, 0, 1)
    not_negative("floor", floor)
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    same = n > 1 and identical(values)
    mean = float(values[0] if same else np.mean(values))
    if mean < within[0] or mean > within[1]:
        raise UserError(
            f"values: their mean {mean:g} is not in [{within[0]:g}, {within[1]:g}]; give the range of their "
            "unit."
        )
    if same and not floor:
        return Interval(mean, mean, mean, n)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    spread = 0.0 if same else float(np.std(values, ddof=1))
    # What a standard deviation is multiplied by for half the width of an interval.
    times = float(stats.t.ppf((1 + confidence) / 2, n - 1) / np.sqrt(n))
    low, high = _around(mean, times * spread, within)
    if floor > spread:
        low = min(low, max(mean - times * floor, within[0]))
        high = max(high, min(mean + times * floor, within[1]))
    return Interval(mean, low, high, n)


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


def bounds(
    values: Sequence[float], confidence: float = 0.95, within: Range = ANY, floor: float = 0.0
) -> Interval:
    """The mean with a lower and an upper bound, each one-sided: mean ∓ t(confidence, n − 1) s / √n.

    Each bound alone holds with that confidence; at 95 % the two together are the 90 % interval.

    Args:
        values: one per seed.
        confidence: of either bound, in (0.5, 1).
        within: the quantity's range; bounds stay within it, as in `mean_interval`.
        floor: the least standard deviation of a value, as there.

    Raises:
        UserError: the confidence or the mean is out of range, or the floor is negative.
    """
    inside("confidence", confidence, 0.5, 1)
    return mean_interval(values, 2 * confidence - 1, within, floor)


def geometric_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The geometric mean of positive values: the t interval of their logarithms, transformed back.

    Args:
        values: ratios, one per seed.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        UserError: a value is not positive and finite, or the confidence is out of range.
    """
    for value in finite("values", values):
        if value <= 0:
            raise UserError(f"values: {value:g} has no logarithm; a geometric mean is of positive values.")
    mean, low, high, n = mean_interval([math.log(value) for value in values], confidence)
    return Interval(math.exp(mean), math.exp(low), math.exp(high), n)


def geometric_bounds(ratios: Sequence[Ratio], confidence: float = 0.95) -> Interval:
    """Bounds of the geometric mean of ratios, some of which are known only by bounds ("censored").

    The lower bound counts each censored ratio as its least possible value, which cannot raise the mean; the
    upper bound counts it as its largest. If all ratios are censored, their bounds do not show the spread. Nor
    do ratios that are all the same, as those of pruning levels or of evaluations can be. Then the lower bound
    is the least of the ratios' lower bounds. If the logarithms are symmetric, it is too high in one of 2ⁿ
    cases (all ratios above their median), so 95 % takes five seeds, and fewer have no bound. There is no
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
    if not known or identical(lows):
        return min(lows) if 0.5 ** len(lows) <= 1 - confidence else 0.0
    return math.exp(bounds([math.log(low) for low in lows], confidence).low)


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
    return math.sqrt(fraction(accuracy) * (1 - accuracy) / images)


def difference_error(accuracy: float, other: float, images: int) -> float:
    """The standard error of a difference of two accuracies due to the choice of test images, from above.

    √(p (1 − p) / images + q (1 − q) / images): what it would be if the two networks erred independently. On
    the same images they err on many of the same ones, so the true error is smaller; outcomes of single images
    are not stored, which their covariance would need. As `floor` of an interval it keeps seeds that happen to
    agree from claiming more than the test set can tell. It bounds the deviation of one seed, not that of the
    mean: all seeds share the test set, but most of the error is that of single networks and averages out.

    Args:
        accuracy: a fraction.
        other: likewise.
        images: in the test set.

    Raises:
        UserError: an accuracy is not in [0, 1], or there are no images.
    """
    return math.hypot(sampling_error(accuracy, images), sampling_error(other, images))


def paired_error(share: float, images: int) -> float:
    """The standard error of a difference of two errors on the same images, from above: √(share / images).

    Images on which the two networks answer alike add 0 to the difference, the others −1, 0 or 1, so the
    difference of one image has a variance of no more than their share. It is a fraction.

    Args:
        share: of the images, on which the two networks answer differently; a fraction.
        images: in the test set.

    Raises:
        UserError: the share is not in [0, 1], or there are no images.
    """
    if images < 1:
        raise UserError(f"images: {images} is too few; a test set has one or more.")
    return math.sqrt(fraction(share, "share") / images)


def step_ratio(steps: Sequence[float], others: Sequence[float], last: float) -> Ratio:
    """The ratio of the steps that two arms of a seed take to their lowest validation loss.

    A lowest loss at the last evaluation may not be the lowest there would be: such a step is "censored", at
    least `last`. Where repeats are averaged, one censored repeat makes the mean a lower bound.

    Args:
        steps: of the arm in the numerator, one a repeat; positive.
        others: of the arm in the denominator, likewise.
        last: the step of the last evaluation.

    Returns:
        The ratio of the means, or its bounds: (least, ∞) if the numerator is censored, (0, most) if the
        denominator is, (0, ∞) if both are.

    Raises:
        UserError: a step is not positive, or there is none.
    """
    for name, values in (("steps", steps), ("others", others)):
        if not values or min(values) <= 0:
            raise UserError(f"{name}: {list(values)} is not allowed; give one step or more, each above 0.")
    ratio = float(np.mean(steps) / np.mean(others))
    return Ratio(0.0 if max(others) >= last else ratio, math.inf if max(steps) >= last else ratio)
