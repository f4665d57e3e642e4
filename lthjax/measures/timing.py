"""Interleaved timings of two functions, so that what else the machine does meets both alike."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from scipy.stats import binom

# Duration of a sample, and of all pairs of samples.
_SAMPLE_SECONDS, _PAIRS_SECONDS = 0.01, 4.0
FEWEST_PAIRS = 6
"""The fewest pairs with which the interval of a median can reach 95 %."""


class Pairs(NamedTuple):
    """Timings of two interleaved sides.

    Attributes:
        ours: median seconds.
        peer: median seconds.
        ratio: median over the pairs of peer / ours; above 1 ours is faster.
        spread: (lowest, highest) ratio of a pair.
        ratios: ratio of every pair, in order of time.
    """

    ours: float
    peer: float
    ratio: float
    spread: tuple[float, float]
    ratios: tuple[float, ...]


class CallTimes(NamedTuple):
    """Times per call of two interleaved functions.

    Attributes:
        ours: median seconds per call.
        peer: likewise.
        ratio: median over the pairs of peer / ours; above 1 ours is faster.
        low, high: interval of the ratio, by `median_interval`.
        pairs: number of pairs.
    """

    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    pairs: int


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call that returns when its work is done."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pairs(ours: Callable[[], object], peer: Callable[[], object], count: int) -> Pairs:
    """Times both sides `count` times each, after one warm-up call each; they take turns to go first.

    So a call that slows the one after it, by threads or by the cache that it fills, slows both sides alike.
    """
    ours()
    peer()
    timed = []
    for i in range(count):
        if i % 2:
            theirs, mine = seconds(peer), seconds(ours)
        else:
            mine, theirs = seconds(ours), seconds(peer)
        timed.append((mine, theirs))
    ratios = [theirs / mine for mine, theirs in timed]
    return Pairs(
        statistics.median(mine for mine, _ in timed),
        statistics.median(theirs for _, theirs in timed),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        tuple(ratios),
    )


def calls(ours: Callable[[], Any], peer: Callable[[], Any], most: int) -> CallTimes:
    """Times two functions alternately; a sample is the number of calls that takes 10 ms, each waited for.

    Args:
        ours, peer: return JAX arrays, or anything.
        most: pairs of samples; fewer, down to `FEWEST_PAIRS`, if all would take more than four seconds.
    """
    (number, ours_s), (peer_number, peer_s) = (_calls(function) for function in (ours, peer))
    count = max(min(most, int(_PAIRS_SECONDS / (ours_s + peer_s))), FEWEST_PAIRS)
    got = pairs(_sample(ours, number), _sample(peer, peer_number), count)
    a_call = number / peer_number
    low, high = median_interval(got.ratios)
    return CallTimes(
        got.ours / number, got.peer / peer_number, got.ratio * a_call, low * a_call, high * a_call, count
    )


def _sample(function: Callable[[], Any], number: int) -> Callable[[], None]:
    """A function that calls `number` times and waits for each call."""

    def sample() -> None:
        for _ in range(number):
            jax.block_until_ready(function())

    return sample


def _calls(function: Callable[[], Any]) -> tuple[int, float]:
    """(calls that fill a sample, its seconds); the first call, which may compile, is left out."""
    once = _sample(function, 1)
    once()
    shortest = seconds(once)
    if shortest < _SAMPLE_SECONDS:
        shortest = max(min(shortest, *(seconds(once) for _ in range(2))), 1e-9)
    number = max(1, min(1000, math.ceil(_SAMPLE_SECONDS / shortest)))
    return number, number * shortest


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median by the sign test: two of the values; holds for any distribution.

    Where two distributions take turns, as by which side goes first, it holds the median of both together with
    95 % or more (Hoeffding 1956).

    Args:
        values: `FEWEST_PAIRS` or more.

    Raises:
        ValueError: there are too few values.
    """
    rank = int(binom.ppf(0.025, len(values), 0.5))
    if rank < 1:
        raise ValueError(f"values: {len(values)} are too few; give 6 or more.")
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]
