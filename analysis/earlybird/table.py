"""The rows of masks.csv and draws.csv, and how they are read."""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from lthjax import fields
from lthjax.imp import DENSE
from lthjax.measures import earlybird

from .. import record, tables
from ..run import Run


class MaskRow(NamedTuple):
    """A mask drawn from the dense network's weights at a step of its training, as in masks.csv.

    Attributes:
        chain, level: of the ticket whose layer densities the mask has; "dense" and None for a mask that the
            study itself has drawn.
        seed: the seed.
        step: of the dense training.
        density: weights left / prunable weights.
        previous: distance to the mask before it (`lthjax.measures.earlybird.distance`); None for the first.
        largest: the largest distance to the masks of its queue; None where the queue is not full.
        chance: distance of two random masks of these layer densities; for a mask that the study itself has
            drawn, of two with the same density in every layer. For masks ranked over all layers together,
            whose layer densities are not recorded, that is an upper bound.
        iou, iou_chance: overlap with the ticket's own mask, and that of a random mask; None where there is no
            ticket.
    """

    chain: str
    level: int | None
    seed: int
    step: int
    density: float
    previous: float | None
    largest: float | None
    chance: float
    iou: float | None
    iou_chance: float | None


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
    level: int | None
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


_Of = TypeVar("_Of", MaskRow, DrawRow)
TABLES: dict[str, type] = {"masks.csv": MaskRow, "draws.csv": DrawRow}


def load(run: Run) -> dict[str, Any]:
    """File -> rows; raises as `record.read_tables`, also where a seed's masks are missing."""

    def check(found: Any) -> None:
        there = {(row.level, row.seed) for row in found["masks.csv"]}
        for row in found["draws.csv"]:
            if (row.level, row.seed) not in there:
                raise ValueError(f"masks.csv has no mask of level {row.level}, seed {row.seed}")

    return record.read_tables(run, "earlybird", TABLES, check)


def recorded(run: Run) -> dict[str, Any] | None:
    """File -> rows of the masks of the study's scope that the dense trainings drew at their evaluations.

    None of older runs, and where there are too few evaluations to fill the queue.
    """
    rows, draws = [], []
    for cell, result in run.results.items():
        made = result.get("draws")
        if cell.arm != DENSE or made is None or result["status"] != "done":
            continue
        steps, largest = result["curves"]["step"], fields.largest_of(made, scope_of(run))
        if largest is None or len(steps) < made["queue"]:
            continue
        rule = (made["queue"], earlybird.THRESHOLD, run.lengths.evaluate, run.lengths.total)
        for place, density in enumerate(made["densities"]):
            apart = [of[place] for of in largest]
            chance, of_seed = 2 * density * (1 - density), (DENSE, None, cell.seed)
            rows += [
                MaskRow(*of_seed, step, density, None, far, chance, None, None)
                for step, far in zip(steps, apart, strict=True)
            ]
            at = earlybird.drawn(apart)
            step = None if at is None else steps[at]
            epoch = None if step is None else step / run.lengths.per_epoch
            draws.append(DrawRow(DENSE, None, cell.seed, density, *rule, step, epoch, chance, None))
    return {"masks.csv": rows, "draws.csv": draws} if rows else None


def scope_of(run: Run) -> str:
    """The scope of the recorded masks that are those of a study: groups of layers are none of theirs."""
    return "global" if run.study.prune.scope == "global" else "layer"


def by_density(rows: Iterable[_Of]) -> dict[tuple[int | None, float], list[_Of]]:
    """(level, density) -> its rows; of a level's seeds the density is the first one's."""
    first: dict[int, float] = {}

    def key(row: _Of) -> tuple[int | None, float]:
        level, density = row.level, row.density
        return level, density if level is None else first.setdefault(level, density)

    return tables.grouped((key(row), row) for row in rows)
