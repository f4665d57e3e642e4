"""The rows of overlap.csv and inputs.csv, reading them, and values of seeds from values of pairs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from analysis import record
from analysis.run import Run
from lthjax.measures.geography import TICKET, over_pairs


class OverlapRow(NamedTuple):
    """How alike the tickets of two seeds are, as in overlap.csv.

    Attributes:
        chain, level: which tickets.
        seed, other: the two seeds.
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
    places = [(row.y, row.x, row.channel) for row in found["inputs.csv"]]
    every = math.prod(max(axis) + 1 for axis in zip(*places, strict=True))
    of_level = Counter(row.level for row in found["inputs.csv"])
    for level in {row.level for row in found["overlap.csv"]}:
        if of_level[level] != every:
            raise ValueError(f"inputs.csv has not every input of level {level}")


def over_seeds(
    rows: Iterable[OverlapRow], level: int, layer: str, matching: str, mask: str = TICKET, above: str = ""
) -> list[float]:
    """One value a seed from the overlaps of all pairs, by `lthjax.measures.geography.over_pairs`.

    Args:
        rows: of which those of the level, layer and matching count.
        level, layer, matching, mask: as in the rows.
        above: the mask whose overlap is subtracted from every pair's; "" for none.
    """
    pairs: dict[str, dict[tuple[int, int], float]] = {mask: {}, above: {}}
    for row in rows:
        own = (row.level, row.layer, row.matching) == (level, layer, matching)
        if own and row.overlap is not None and row.mask in pairs:
            pairs[row.mask][row.seed, row.other] = row.overlap
    less = pairs[above] if above else dict.fromkeys(pairs[mask], 0.0)
    return over_pairs({pair: pairs[mask][pair] - less[pair] for pair in pairs[mask] if pair in less})


def seeds_at(rows: Iterable[OverlapRow], level: int) -> int:
    """How many seeds have a ticket at a level."""
    return len({seed for row in rows if row.level == level for seed in (row.seed, row.other)})
