"""The rows of overlap.csv and inputs.csv, reading them, and values of seeds from values of pairs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lthjax.measures.geography import TICKET, over_pairs

from .. import record
from ..run import Run


class OverlapRow(NamedTuple):
    """How alike the tickets of two seeds are, as in overlap.csv.

    Attributes:
        chain, level, seed, other: which tickets.
        layer, matching, mask, density, overlap: as in `lthjax.measures.geography.Likeness`.
    """

    chain: str
    level: int
    seed: int
    other: int
    layer: str
    matching: str
    mask: str
    density: float
    overlap: float | None

    @property
    def other_seed(self) -> int:
        """`other`: the report reads off `seed` and this one whose tickets a table has."""
        return self.other


class InputRow(NamedTuple):
    """How an input is read, mean over seeds and over pairs of seeds, as in inputs.csv.

    Attributes:
        chain, level: which tickets.
        y, x, channel, kept, overlap, chance: as in `lthjax.measures.geography.InputLikeness`.
    """

    chain: str
    level: int
    y: int
    x: int
    channel: int
    kept: float
    overlap: float | None
    chance: float | None


TABLES: dict[str, type] = {"inputs.csv": InputRow, "overlap.csv": OverlapRow}


def load(run: Run) -> dict[str, Any]:
    """File -> rows; raises as `record.read_tables`, also where an input is missing."""
    return record.read_tables(run, "geography", TABLES, _check)


def _check(found: Mapping[str, Any]) -> None:
    inputs = found["inputs.csv"]
    every = math.prod(max(getattr(row, axis) for row in inputs) + 1 for axis in ("y", "x", "channel"))
    of_level = Counter(row.level for row in inputs)
    for level in {row.level for row in found["overlap.csv"]}:
        if of_level[level] != every:
            raise ValueError(f"inputs.csv has not every input of level {level}")


def over_seeds(
    rows: Iterable[OverlapRow], level: int, layer: str, matching: str, mask: str = TICKET, above: str = ""
) -> list[float]:
    """One value a seed from the overlaps of all pairs, by `lthjax.measures.geography.over_pairs`.

    The overlap of the mask `above`, where one is named, is subtracted from every pair's.
    """
    own = [row for row in rows if (row.level, row.layer, row.matching) == (level, layer, matching)]
    ours, less = (
        {(row.seed, row.other): row.overlap for row in own if row.mask == of and row.overlap is not None}
        for of in (mask, above)
    )
    less = less if above else dict.fromkeys(ours, 0.0)
    return over_pairs({pair: ours[pair] - less[pair] for pair in ours if pair in less})


def whole_units(run: Run) -> bool:
    """Whether the study prunes whole units: matched by masks, any two of its tickets agree."""
    return run.study.prune.granularity in ("unit-l1", "unit-l2")


def seeds_at(rows: Iterable[OverlapRow], level: int) -> int:
    """How many seeds have a ticket at a level."""
    return len({seed for row in rows if row.level == level for seed in (row.seed, row.other)})
