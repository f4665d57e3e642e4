"""Verdicts on claims by one-sided bounds."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from lthjax.errors import UserError, unknown
from lthjax.measures.stats._checks import finite, not_negative
from lthjax.measures.stats._intervals import ANY, Interval, Range, Ratio, bounds, geometric_bounds

Outcome = Literal["supported", "refuted", "undecided"]


class Verdict(NamedTuple):
    """The result of a test of a claim.

    Attributes:
        outcome: "supported", "refuted" or "undecided"; "undecided" for fewer than two values.
        bounds: the mean with its lower and upper bound, each one-sided, which decide the outcome.
    """

    outcome: Outcome
    bounds: Interval


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


def geometric_equivalent(ratios: Sequence[Ratio], factor: float, confidence: float = 0.95) -> Verdict:
    """Tests the claim that the geometric mean of ratios is 1 within a factor, by two one-sided tests (TOST).

    As `equivalent`, of the ratios' logarithms, with the bounds of `geometric_bounds`.

    Args:
        ratios: one per seed.
        factor: 1 or more; 1.1 is for ratios from 1/1.1 to 1.1.
        confidence: of either bound, in (0.5, 1).

    Raises:
        UserError: the factor or the confidence is out of range.
    """
    if not 1 <= factor < math.inf:
        raise UserError(f"factor: {factor} is not allowed; it must be 1 or more.")
    found = geometric_bounds(ratios, confidence)
    inside = found.low > 1 / factor and found.high < factor
    return Verdict(_outcome(inside, found.low > factor or found.high < 1 / factor), found)


def verdict(
    values: Sequence[float],
    threshold: float = 0.0,
    confidence: float = 0.95,
    within: Range = ANY,
    floor: float = 0.0,
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
        floor: the least standard deviation of a value, as there.

    Raises:
        UserError: a value is not finite, the confidence or the mean is out of range, or the floor is
            negative.
    """
    found = bounds(finite("values", values), confidence, within, floor)
    return Verdict(_outcome(found.low > threshold, found.high < threshold), found)


def noninferior(
    values: Sequence[float], margin: float, confidence: float = 0.95, floor: float = 0.0
) -> Verdict:
    """Tests the claim "within the margin" in one direction: the mean difference is above −margin.

    Args:
        values: differences, ours − theirs, one per seed.
        margin: the largest accepted loss, in the unit of the values, 0 or more.
        confidence: of either bound, in (0.5, 1).
        floor: the least standard deviation of a value, as in `mean_interval`.

    Raises:
        UserError: the margin or the floor is negative, a value is not finite, or the confidence is out of
            range.
    """
    return verdict(values, -not_negative("margin", margin), confidence, floor=floor)


def equivalent(
    values: Sequence[float], margin: float, confidence: float = 0.95, floor: float = 0.0
) -> Verdict:
    """Tests the claim "within the margin" in both directions, by two one-sided tests (TOST).

    Supported if both one-sided bounds (at 95 % the 90 % interval) lie inside ±margin, refuted if both lie
    outside on the same side. A mean exactly at the margin is wrongly found inside in at most 5 % of the
    cases. It is wrongly found outside in 5 % if the margin is several standard errors wide, and in up to 10 %
    as the margin approaches 0.

    Args:
        values: differences, one per seed.
        margin: in the unit of the values, 0 or more.
        confidence: of either bound, in (0.5, 1).
        floor: the least standard deviation of a value, as in `mean_interval`.

    Raises:
        UserError: the margin or the floor is negative, a value is not finite, or the confidence is out of
            range.
    """
    not_negative("margin", margin)
    found = bounds(finite("values", values), confidence, floor=floor)
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


def _outcome(supported: bool, refuted: bool) -> Outcome:
    return "refuted" if refuted else "supported" if supported else "undecided"
