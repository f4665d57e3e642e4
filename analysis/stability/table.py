"""The rows of stability.csv and levels.csv, and values of seeds from values of pairs."""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lthjax.imp import DENSE
from lthjax.measures.stats import Interval

from .. import record, tables, words
from ..barriers import LIMIT, Paths, paths
from ..differences import difference, floor
from ..rows import grouped, percent
from ..run import Run

NAME, ABOUT = "stability", "about.json"
# Percentage points of accuracy below the dense network's down to which a network matches it (Frankle et al.
# 2020, arXiv 1912.05671, section 4).
MATCHING = 0.2
# Points; errors are counts of images, and less than one in a million of them is rounding.
_SLACK = 1e-4


class PairRow(NamedTuple):
    """Two trainings from one state that differ in data order, as in stability.csv.

    Attributes:
        seed, chain, level, arm: whose state; the dense network is chain "dense" and level 0.
        density: weights left / prunable weights.
        k: the step of the state.
        pair: which two data orders, from 1.
        barrier_train_error, barrier_test_error: on the straight path between the two, fractions.
        barrier_train_loss, barrier_test_loss: in nats.
        matched_train_error, matched_test_error: the same error barriers after the second network's hidden
            units are matched with the first's; None for a network from outside the package.
        units_moved: share of the hidden units that this moves; None likewise.
        distance, degrees: Euclidean distance of the two weights, and the angle between them seen from 0.
        disagreement: share of test images on which the path's ends answer differently.
        test_accuracy: mean of the two, on all test images.
        dense_accuracy: of the run's dense network of this seed, likewise.
        stable: whether the barrier of the test error is below 2 points.
        matching: whether the accuracy is no more than 0.2 points below the dense network's.
        images, alphas: train images and as many test images on the path, and its points.
    """

    seed: int
    chain: str
    level: int
    arm: str
    density: float
    k: int
    pair: int
    barrier_train_error: float
    barrier_test_error: float
    barrier_train_loss: float
    barrier_test_loss: float
    matched_train_error: float | None
    matched_test_error: float | None
    units_moved: float | None
    distance: float
    degrees: float
    disagreement: float
    test_accuracy: float
    dense_accuracy: float
    stable: bool
    matching: bool
    images: int
    alphas: int


class LevelRow(NamedTuple):
    """The path between a ticket and an earlier level of its chain, as in levels.csv.

    Attributes:
        seed, chain, level: the ticket.
        density: weights left / prunable weights.
        other: the earlier level: the one before it, or 0, the dense network.
        barrier_train_error, ..., disagreement: as in `PairRow`; the path lies in the union of the masks.
        test_accuracy, dense_accuracy: of the ticket and of the dense network, on all test images.
        connected: whether the barrier of the test error is below 2 points.
        matching: whether the ticket's accuracy is no more than 0.2 points below the dense network's.
        images, alphas: as in `PairRow`.
    """

    seed: int
    chain: str
    level: int
    density: float
    other: int
    barrier_train_error: float
    barrier_test_error: float
    barrier_train_loss: float
    barrier_test_loss: float
    distance: float
    degrees: float
    disagreement: float
    test_accuracy: float
    dense_accuracy: float
    connected: bool
    matching: bool
    images: int
    alphas: int


class LeftOut(NamedTuple):
    """A pair without a row in stability.csv, as its state or one of its copies diverged.

    Attributes:
        seed, chain, level, arm, k, pair: as in `PairRow`.
    """

    seed: int
    chain: str
    level: int
    arm: str
    k: int
    pair: int


TABLES: dict[str, type] = {"levels.csv": LevelRow, "stability.csv": PairRow}


def load(run: Run) -> dict[str, Any]:
    """File -> rows; under about.json the pairs that are left out.

    Raises:
        UserError: a file cannot be read.
    """
    found, where = record.read_tables(run, NAME, TABLES), run.path / NAME
    # A folder of an earlier version has no such file.
    if (where / ABOUT).is_file():
        with tables.reading(where, words.command(NAME, run.path)):
            about = json.loads(tables.read_text(where / ABOUT))
            found[ABOUT] = [LeftOut(**pair) for pair in about["left_out"]]
    return found


def left_out(
    found: Mapping[str, Any], at_level: int | None = None, arms: Container[str] = (), last: int = 0
) -> str:
    """How many pairs of which states are left out; "" where none is.

    Args:
        found: what `load` returns.
        at_level, arms, last: of this level, these arms and steps up to this one; of all where no level is
            named.
    """
    said = []
    for (level, arm, k), pairs in sorted(grouped(found.get(ABOUT, []), "level", "arm", "k").items()):
        if at_level is not None and not (level == at_level and arm in arms and k <= last):
            continue
        there = [row for row in found["stability.csv"] if (row.level, row.arm, row.k) == (level, arm, k)]
        of = arm if arm == DENSE else f"{arm} at level {level}"
        seeds = sorted({pair.seed for pair in pairs})
        which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        said.append(f"{len(pairs)} of {len(pairs) + len(there)} pairs of {of} from step {k} ({which})")
    return f"left out, as a training diverged: {', '.join(said)}" if said else ""


def stable(barrier: float) -> bool:
    """Whether an error barrier, a fraction, is below 2 points."""
    return 100 * barrier < LIMIT - _SLACK


def matching(accuracy: float, dense: float) -> bool:
    """Whether an accuracy, a fraction, is no more than 0.2 points below the dense network's."""
    return matches(100 * (accuracy - dense))


def matches(gap: float) -> bool:
    """Whether a difference to the dense network's accuracy, in points, is no more than 0.2 below 0."""
    return gap >= -MATCHING - _SLACK


def paths_of(rows: Sequence[PairRow | LevelRow]) -> Paths:
    """The paths of some rows, one a seed: barriers of the test error."""
    barriers, disagreements = (percent(rows, column) for column in ("barrier_test_error", "disagreement"))
    return paths(barriers, disagreements, min(row.images for row in rows))


def gaps(rows: Sequence[PairRow | LevelRow]) -> dict[int, float]:
    """Seed -> accuracy − the dense network's, in percentage points."""
    ours, dense = (percent(rows, column) for column in ("test_accuracy", "dense_accuracy"))
    return {seed: ours[seed] - dense[seed] for seed in ours}


def gap(rows: Sequence[PairRow | LevelRow], images: int) -> Interval:
    """The mean of `gaps` with its interval; `images` of the test set give the floor of their spread."""
    return difference(percent(rows, "test_accuracy"), percent(rows, "dense_accuracy"), images)


def gap_floor(rows: Sequence[PairRow | LevelRow], images: int) -> float:
    """The least standard deviation of one of `gaps`, as `analysis.differences.floor`."""
    return floor(percent(rows, "test_accuracy"), percent(rows, "dense_accuracy"), images)


def subjects(rows: Iterable[PairRow]) -> dict[tuple[int, str], dict[int, list[PairRow]]]:
    """(level, arm) -> step -> its rows, by level; steps ascend."""
    found = sorted(grouped(rows, "level", "arm").items(), key=lambda item: item[0][0])
    return {key: dict(sorted(grouped(of, "k").items())) for key, of in found}


def own_starts(rows: Iterable[PairRow]) -> bool:
    """Whether tickets and controls are of several chains, each from the step that it was rewound to."""
    return len({row.chain for row in rows} - {DENSE}) > 1


def density(rows: Iterable[PairRow | LevelRow]) -> float:
    """The mean density of some rows."""
    return float(np.mean([row.density for row in rows]))
