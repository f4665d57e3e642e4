"""Verdicts on the error barriers of straight paths between two networks, in landscape and stability."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lthjax.measures import stats

# Percentage points of error below which a path counts as without a barrier (Frankle et al. 2020, arXiv
# 1912.05671, section 2).
LIMIT = 2.0
# Points within which the barriers of two arms count as the same.
SAME = 0.5


class Paths(NamedTuple):
    """The paths of one kind, one a seed.

    Attributes:
        barriers: seed -> error barrier in percentage points.
        floor: the least standard deviation of a barrier, in points: what its test images leave open.
    """

    barriers: Mapping[int, float]
    floor: float


def paths(barriers: Mapping[int, float], disagreements: Mapping[int, float], images: int) -> Paths:
    """The paths with their floor.

    A barrier is a difference of errors on the same images, so it varies with the choice of images by no more
    than the share of them that changes. That share is taken as the one on which the ends differ, or as the
    barrier where that is more.

    Args:
        barriers: seed -> error barrier in percentage points.
        disagreements: seed -> percent of the test images on which the two ends answer differently.
        images: test images on the path.
    """
    changing = [max(disagreements[seed], barrier) for seed, barrier in barriers.items()]
    share = min(1.0, float(np.mean(changing)) / 100)
    return Paths(barriers, 100 * stats.paired_error(share, images))


def below(of: Paths) -> stats.Verdict:
    """The verdict on "the barrier is below the limit", on negated values."""
    # A path's highest error is no less than its ends' mean, and no error is above 100 %.
    least, most = stats.PERCENT
    negated = [-value for value in of.barriers.values()]
    return stats.verdict(negated, -LIMIT, within=(-most, -least), floor=of.floor)


def above(of: Paths) -> stats.Verdict:
    """The verdict on "the barrier is above the limit"."""
    return stats.verdict([*of.barriers.values()], LIMIT, within=stats.PERCENT, floor=of.floor)


def higher(theirs: Paths, ours: Paths) -> tuple[stats.Verdict, stats.Verdict]:
    """The verdicts on "theirs are higher" and on "both are the same to within `SAME` points"."""
    gaps = stats.paired(theirs.barriers, ours.barriers)
    floor = float(np.hypot(theirs.floor, ours.floor))
    return stats.verdict(gaps, floor=floor), stats.equivalent(gaps, SAME, floor=floor)
