"""Rates and densities as they were written: exact shares, by path, and the counts that follow from them."""

import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lthjax.prune._masks import paths, some

PyTree = Any
Number = float | Fraction | Decimal | np.generic | np.ndarray | jax.Array
"""A real number of any kind; an array must have shape ()."""
Rate = Number | Mapping[str, Number] | Iterable[tuple[str, Number]]


def rates_of(rate: Rate, names: list[str]) -> list[float | Fraction]:
    """The rate for every path; 0 if no regex matches.

    Args:
        rate: as for `magnitude`.
        names: paths.

    Returns:
        Floats; a Fraction where no float is written like the given number.
    """
    if is_number(rate):
        return [exact_share(rate, "rate")] * len(names)
    rules = [(rule, exact_share(number, f"rate of {rule!r}")) for rule, number in pairs_of(rate)]
    for rule, _ in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"rate: {rule!r} is not a regex: {error}.") from error
    return [next((r for rule, r in rules if re.search(rule, name)), 0.0) for name in names]


def groups_of(rate: Rate, names: list[str]) -> list[int]:
    """The number of the first regex of a mapping of rates that matches every path, or -1."""
    rules = [rule for rule, _ in pairs_of(rate)]
    return [next((i for i, rule in enumerate(rules) if re.search(rule, name)), -1) for name in names]


def pairs_of(rate: Rate) -> list[tuple[str, Number]]:
    """The (regex, number) pairs of a rate that is not a single number."""
    if isinstance(rate, str):
        raise ValueError(
            f"rate: {rate!r} is neither a number in [0, 1] nor a mapping; a string of digits is no number: "
            "give 0.2, not '0.2'."
        )
    try:
        rules = [(rule, number) for rule, number in (rate.items() if isinstance(rate, Mapping) else rate)]  # type: ignore[union-attr]
        if not all(isinstance(rule, str) for rule, _ in rules):
            raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"rate: {rate!r} is neither a number in [0, 1] nor a mapping or pairs from regexes to such ones."
        ) from error
    if not rules:
        raise ValueError(
            "rate: the mapping is empty, so it prunes nothing; give it a regex on the path, as "
            "{'kernel': 0.2}, or the rate 0.0."
        )
    return rules


def warn_of_idle(rules: list[tuple[str, Number]], mask: PyTree) -> None:
    """Warns of regexes that match no prunable leaf: a typo, or another library's names."""
    weights = [path for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True) if jnp.ndim(m)]
    for rule, _ in rules:
        if not any(re.search(rule, path) for path in weights):
            warnings.warn(
                f"rate: {rule!r} matches no prunable leaf, so it prunes nothing; "
                f"their paths are {some(weights) or '(none)'}.",
                stacklevel=_level_outside(),
            )


def warn_of_nothing(mask: PyTree) -> None:
    """Warns of a mask that has leaves and none that is prunable."""
    leaves = jax.tree.leaves(mask)
    if leaves and not any(map(jnp.ndim, leaves)):
        warnings.warn(
            f"mask: no leaf is prunable, so nothing is pruned; its leaves are {some(paths(mask))}. "
            "prune.ones(params, prunable) decides which are.",
            stacklevel=_level_outside(),
        )


def _level_outside() -> int:
    """The `stacklevel` with which a caller's warning names the line that called `lthjax.prune`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    return level


def check_density(density: Number) -> float | Fraction:
    """The density as a number that `count` takes exactly as written; raises if it is no share in [0, 1]."""
    return exact_share(density, "density")


def rounded_share(rate: Number, n: int | jax.Array) -> int | jax.Array:
    """floor(rate * n + 1/2), exactly, with the rate taken as the decimal that was written.

    How many of n survivors a rate removes, or of n weights a density keeps. `prune.count` is its former name.

    Args:
        rate: in [0, 1]; 0.15 means 15/100, not the nearest binary number. This holds for a Python number, a
            Decimal, a numpy scalar or an array of shape (); the last two mean the shortest decimal that
            identifies them in their dtype. A Fraction is taken exactly.
        n: number of survivors, 0 <= n < 2**31 / 10; may be traced.

    Returns:
        An integer of n's kind. (float32 arithmetic gets 0.15 * 190 wrong; this does not.)

    Raises:
        ValueError: the rate is outside [0, 1], or not a number known at tracing.
    """
    written = _written(rate, "rate")
    if written == 1:
        return n
    # A fraction p/q without a finite decimal is rounded up after so many digits that no integer lies between
    # rate * n + 1/2 and the computed value: the distance to an integer is at least 1/(2 q), or 0.
    places = len(str(2 * written.denominator)) + 10
    digits = str(-(-written.numerator * 10**places // written.denominator)).zfill(places)
    first, *rest = list(digits.rstrip("0") or "0")
    # Schoolbook division by 10 from the last decimal digit up, so that no product exceeds 10 n:
    # floor((a + y) / 10) = floor((a + floor(y)) / 10) for integer a.
    carry: Any = 0
    for digit in reversed(rest):
        carry = (int(digit) * n + carry) // 10
    return (int(first) * n + carry + 5) // 10


count = rounded_share


def is_number(value: Any) -> bool:
    """Whether the value is one number rather than pairs."""
    return isinstance(value, (Real, Decimal)) or getattr(value, "ndim", None) == 0


def _written(number: Any, name: str) -> Fraction:
    """The exact value of a share as written; raises if it is not in [0, 1].

    Args:
        number: the given number.
        name: "density", or the name of a rate.
    """
    if isinstance(number, jax.core.Tracer):
        raise ValueError(
            f"{name}: it is traced; it must be known when the program is traced, or give "
            "prune.remove_counted the counts, which may be traced."
        )
    kind = getattr(number, "dtype", None)
    real = kind is None or jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if isinstance(number, bool) or not (is_number(number) and real):
        what = repr(number) if kind is None else f"an array of {kind}"
        raise ValueError(f"{name}: {what} is no real number; it is one in [0, 1].")
    scalar = number if kind is None else np.asarray(number)[()]
    exact = number if isinstance(number, Fraction) else Decimal(_shortest(scalar))
    finite = isinstance(exact, Fraction) or exact.is_finite()
    if not (finite and 0 <= exact <= 1):
        share = "weights kept" if name == "density" else "survivors removed"
        raise ValueError(f"{name}: {number!r} is outside [0, 1]; it is the share of {share}.")
    if isinstance(exact, Fraction):
        long = exact.denominator.bit_length() > 3300
    else:
        long = int(exact.as_tuple().exponent) < -1000
    if long:
        raise ValueError(f"{name}: it is written in more than 1,000 digits; round it.")
    return Fraction(exact)


def _shortest(scalar: Any) -> str:
    """The shortest decimal that rounds to a number in its dtype; bfloat16 prints a longer one."""
    dtype = getattr(scalar, "dtype", np.dtype(float))
    texts = () if dtype.isbuiltin == 1 else (f"{float(scalar):.{digits}g}" for digits in range(1, 10))
    return next((text for text in texts if dtype.type(float(text)) == scalar), str(scalar))


def exact_share(number: Any, name: str) -> float | Fraction:
    """The number as a float if a float is written the same, else as a Fraction."""
    written = _written(number, name)
    near = float(written)
    return near if Fraction(str(near)) == written else written
