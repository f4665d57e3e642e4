"""Adding seeds until a claim is decided: the level of each look, so that all looks together err in 5 %."""

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

from lthjax.errors import UserError
from lthjax.measures.stats._checks import inside

# Sequences of studies from which the level is taken: its own error is then a seventh of a percent point.
_MANY = 100_000
_LEAST = 0.001


def level_of_looks(looks: Sequence[int], alpha: float = 0.05) -> float:
    """The one-sided level of every look at which all looks together err in no more than `alpha`.

    A claim that is tested after 3, 6, 9 and 12 seeds at 5 % each time is wrongly decided far more often. With
    the same, smaller level at every look (Pocock 1977), the probability that a mean at its threshold is ever
    found above it is `alpha`. The level is the quantile of the least p-value of all looks in 100,000
    simulated studies of normal differences, which are drawn from a fixed seed; three standard errors of the
    simulation are kept as a margin. It holds for Student's t at few seeds, where published tables assume
    that the spread is known. Looks must be fixed beforehand.

    Args:
        looks: numbers of seeds, ascending, two or more each.
        alpha: for all looks together, in (0.001, 0.5): too few simulated studies tell of a smaller one.

    Returns:
        The level of every look; `alpha` itself for a single one. Use 1 − it as the confidence of a verdict.

    Raises:
        UserError: the looks do not ascend, or alpha is out of range.
    """
    inside("alpha", alpha, _LEAST, 0.5)
    numbers = tuple(looks)
    if not numbers or numbers[0] < 2 or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise UserError(f"looks: {list(looks)} is not allowed; give ascending numbers of seeds from 2 on.")
    return alpha if len(numbers) == 1 else _level(numbers, alpha)


@cache
def _level(looks: tuple[int, ...], alpha: float) -> float:
    values = np.random.default_rng(1977).standard_normal((_MANY, looks[-1]))
    sums, squares = np.cumsum(values, 1), np.cumsum(values**2, 1)
    least = np.ones(_MANY)
    for n in looks:
        mean = sums[:, n - 1] / n
        spread = np.sqrt(np.maximum(squares[:, n - 1] - n * mean**2, 0) / (n - 1))
        least = np.minimum(least, stats.t.sf(mean / (spread / np.sqrt(n)), n - 1))
    error = np.sqrt(alpha * (1 - alpha) / _MANY)
    return float(np.quantile(least, alpha - 3 * error))
