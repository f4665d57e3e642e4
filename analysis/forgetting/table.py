"""The rows of events.csv, and values of seeds from them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lthjax.imp import DENSE

TRAIN, TEST = "train", "test"


class EventRow(NamedTuple):
    """What a network forgets along its training, as in events.csv.

    Attributes:
        chain, level, seed, arm: the network; the dense one has level 0.
        part: "train" or "test": which images.
        density: weights left / prunable weights.
        images: number of images.
        evaluations: number of steps at which they were looked at.
        learned: images that are right at one of them at least.
        unforgettable: images that are learned and never forgotten.
        events: how often an image goes from right to wrong, over all images.
        like_dense: Spearman's rank correlation of the images' events with those of the seed's dense network,
            images that are never right ranked above all others; None of the dense network itself, and where
            all images are alike.
    """

    chain: str
    level: int
    seed: int
    arm: str
    part: str
    density: float
    images: int
    evaluations: int
    learned: int
    unforgettable: int
    events: int
    like_dense: float | None


TABLES: dict[str, type] = {"events.csv": EventRow}


def levels(rows: Iterable[EventRow]) -> list[int]:
    """The levels of the pruned networks."""
    return sorted({row.level for row in rows if row.arm != DENSE})


def of(rows: Iterable[EventRow], part: str, level: int, arm: str) -> dict[int, EventRow]:
    """Seed -> the row of an arm at a level; the dense network's whatever the level."""
    return {
        row.seed: row
        for row in rows
        if (row.part, row.arm) == (part, arm) and (arm == DENSE or row.level == level)
    }


def rate(row: EventRow) -> float:
    """Events an image."""
    return row.events / row.images


def arms(rows: Sequence[EventRow]) -> list[str]:
    """The arms in the order of the table, the dense network first."""
    return [*dict.fromkeys(row.arm for row in rows)]


def alike(rows: Iterable[EventRow], part: str, level: int, arm: str) -> dict[int, float]:
    """Seed -> `like_dense` of an arm at a level, where it is known."""
    found: Any = of(rows, part, level, arm)
    return {seed: row.like_dense for seed, row in found.items() if row.like_dense is not None}
