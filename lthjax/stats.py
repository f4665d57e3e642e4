"""Statistics over seeds. The unit is the seed: repeats are averaged within it before.

scipy supplies the distributions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and its two-sided 95 % confidence interval.

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


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values with Student's t interval: mean -+ t(n - 1) s / sqrt(n).

    For a paired comparison give the differences, one a seed.

    Args:
        values: one a seed.
        confidence: of the two-sided interval, in (0, 1).
    """
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)
