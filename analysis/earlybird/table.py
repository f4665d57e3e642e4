"""The rows of masks.csv and draws.csv, and how they are read."""

from typing import Any, NamedTuple

from .. import record
from ..run import Run


class MaskRow(NamedTuple):
    """A mask drawn from the dense network's weights at a step of its training, as in masks.csv.

    Attributes:
        chain, level: of the ticket whose layer densities the mask has.
        seed: the seed.
        step: of the dense training.
        density: weights left / prunable weights.
        previous: distance to the mask before it (`lthjax.measures.earlybird.distance`); None for the first.
        largest: the largest distance to the masks of its queue; None where the queue is not full.
        chance: distance of two random masks of these layer densities.
        iou, iou_chance: overlap with the ticket's own mask, and that of a random mask.
    """

    chain: str
    level: int
    seed: int
    step: int
    density: float
    previous: float | None
    largest: float | None
    chance: float
    iou: float
    iou_chance: float


class DrawRow(NamedTuple):
    """When a seed's Early-Bird ticket could have been drawn, as in draws.csv.

    Attributes:
        chain, level, seed, density: as in `MaskRow`.
        queue, threshold: of the rule.
        every: steps between two masks.
        total: steps of the dense training.
        step: at which it could have been drawn; None where the masks never settled.
        epoch: the same in epochs.
        chance: as in `MaskRow`.
        iou: overlap of the mask drawn there and the ticket's own; None where there is none.
    """

    chain: str
    level: int
    seed: int
    density: float
    queue: int
    threshold: float
    every: int
    total: int
    step: int | None
    epoch: float | None
    chance: float
    iou: float | None


TABLES: dict[str, type] = {"masks.csv": MaskRow, "draws.csv": DrawRow}


def load(run: Run) -> dict[str, Any]:
    """File -> rows; raises as `record.read_tables`, also where a seed's masks are missing."""

    def check(found: Any) -> None:
        there = {(row.level, row.seed) for row in found["masks.csv"]}
        for row in found["draws.csv"]:
            if (row.level, row.seed) not in there:
                raise ValueError(f"masks.csv has no mask of level {row.level}, seed {row.seed}")

    return record.read_tables(run, "earlybird", TABLES, check)
