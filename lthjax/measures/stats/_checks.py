"""Checks of arguments."""

import math
from collections.abc import Sequence

import numpy as np

from lthjax.errors import UserError

# Smaller differences, relative to the largest value, are rounding.
ROUNDING = 1e-12


def identical(values: Sequence[float]) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.max(np.abs(values)))


def finite(field: str, values: Sequence[float]) -> Sequence[float]:
    for value in values:
        if not math.isfinite(value):
            raise UserError(f"{field}: {value} is not a finite number; leave diverged runs out.")
    return values


def fraction(value: float, field: str = "accuracy") -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{field}: {value:g} is not in [0, 1]; give a fraction, not percent.")
    return value


def inside(field: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise UserError(f"{field}: {value:g} is not between {low:g} and {high:g}.")


def not_negative(field: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise UserError(f"{field}: {value:g} is not allowed; give 0 or more, in the unit of the values.")
    return value
