"""p-values, their correction for a search, effect sizes and shares."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

from lthjax.errors import UserError, unknown
from lthjax.measures.stats._checks import ROUNDING, finite, fraction, identical, inside, not_negative

Alternative = Literal["two-sided", "greater", "less"]

# 2^20 sums take 8 MB and some milliseconds.
_MOST_FLIPS = 20


class Effect(NamedTuple):
    """A standardised effect: the population mean divided by the population's standard deviation.

    Attributes:
        g: the estimate, Hedges' g_z; NaN for fewer than three values, or identical ones without a floor.
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


def t_p_value(
    values: Sequence[float],
    null: float = 0.0,
    alternative: Alternative = "two-sided",
    floor: float = 0.0,
) -> float:
    """The p-value of Student's t test that the mean is `null`; on differences it is the paired test.

    NaN for fewer than two values. For identical values t = ±∞, or 0 if they equal `null`.

    Args:
        values: one per seed.
        null: the mean under the null hypothesis.
        alternative: that the mean differs ("two-sided"), is "greater" or is "less".
        floor: the least standard deviation of a value, as in `mean_interval`.

    Raises:
        UserError: a value is not finite, the alternative is not known, or the floor is negative.
    """
    _known(alternative)
    not_negative("floor", floor)
    numbers = finite("values", values)
    if len(numbers) < 2:
        return float("nan")
    if floor > np.std(numbers, ddof=1):
        t, nu = (float(np.mean(numbers)) - null) / (floor / math.sqrt(len(numbers))), len(numbers) - 1
        tail = {"two-sided": 2 * stats.t.sf(abs(t), nu), "greater": stats.t.sf(t, nu)}
        return float(tail.get(alternative, stats.t.cdf(t, nu)))
    if identical(numbers):
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
    differences = [value - null for value in finite("values", values)]
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
    least = sum(differences), ROUNDING * sum(map(abs, differences))
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


def hedges_gz(values: Sequence[float], confidence: float = 0.95, floor: float = 0.0) -> Effect:
    """Hedges' g_z of paired differences: J mean / s, unbiased for population mean / standard deviation.

    J = Γ(ν/2) / (√(ν/2) Γ((ν − 1)/2)) with ν = n − 1: the exact form, not 1 − 3/(4ν − 1) (Hedges 1981).
    The interval inverts the noncentral t distribution, so it is not centred at g. Beyond |t| = 1,000 it uses
    the limit for large t, which is right to four digits.

    Args:
        values: differences, one per seed.
        confidence: of the two-sided interval, in (0, 1).
        floor: the least standard deviation of a value, as in `mean_interval`: s is at least that.

    Raises:
        UserError: a value is not finite, the confidence is out of range, or the floor is negative.
    """
    inside("confidence", confidence, 0, 1)
    not_negative("floor", floor)
    numbers = finite("values", values)
    n = len(numbers)
    if n < 3 or (identical(numbers) and not floor):
        return Effect(float("nan"), float("nan"), float("nan"), n)
    d, nu = float(np.mean(numbers)) / max(floor, float(np.std(numbers, ddof=1))), n - 1
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
        classes: of the data, three or more.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        UserError: an accuracy is not in [0, 1], there are too few classes, or the confidence is out of range.
    """
    inside("confidence", confidence, 0, 1)
    if classes < 3:
        raise UserError(f"classes: {classes} is too few; twice chance is below 1 from three classes on.")
    collapsed, n = sum(fraction(accuracy) < 2 / classes for accuracy in accuracies), len(accuracies)
    if n == 0:
        return Share(float("nan"), 0.0, 1.0, 0, 0)
    low, high = stats.binomtest(collapsed, n).proportion_ci(confidence, method="exact")
    return Share(collapsed / n, float(low), float(high), collapsed, n)


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


def _known(alternative: str) -> None:
    if alternative not in ("two-sided", "greater", "less"):
        raise unknown("alternative", alternative, ("two-sided", "greater", "less"))
