"""Planning a study: the differences that so many seeds can detect."""

import math

from scipy import stats

from lthjax.errors import UserError
from lthjax.measures.stats._checks import inside, not_negative

# No study is planned with more seeds.
_MOST = 10_000


def detectable(spread: float, n: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """The minimal detectable effect of n pairs: (t(confidence, n − 1) + t(power, n − 1)) s / √n.

    A mean difference of this size is found to be above the threshold, by the one-sided bound of `verdict`,
    with about that power.

    Args:
        spread: the standard deviation of a difference between seeds, s.
        n: seeds, two or more.
        power: the probability of finding it, in (0.5, 1).
        confidence: of the one-sided bound, in (0.5, 1).

    Returns:
        In the unit of the spread.

    Raises:
        UserError: an argument is out of range.
    """
    not_negative("spread", spread)
    inside("power", power, 0.5, 1)
    inside("confidence", confidence, 0.5, 1)
    if n < 2:
        raise UserError(f"n: {n} is too few; a difference takes two seeds or more.")
    return float(sum(stats.t.ppf([confidence, power], n - 1)) * spread / math.sqrt(n))


def seeds_for(difference: float, spread: float, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """The least number of seeds that detect a difference, three or more; None beyond 10,000.

    Args:
        difference: in the unit of the spread, above 0.
        spread, power, confidence: as in `detectable`.

    Raises:
        UserError: an argument is out of range.
    """
    inside("difference", difference, 0, math.inf)
    low, high = 2, 3
    while detectable(spread, high, power, confidence) > difference:
        if high >= _MOST:
            return None
        low, high = high, min(2 * high, _MOST)
    while high - low > 1:
        middle = (low + high) // 2
        if detectable(spread, middle, power, confidence) > difference:
            low = middle
        else:
            high = middle
    return high
