"""Which differences so many seeds can detect, from the spread between seeds that was seen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import words
from ..page import Table
from ..rows import TICKET, Row, images_of, ticket_chains
from .paired import differences, earliest, in_range
from .verdicts import CONTROLS

# Percentage points for which the table says how many seeds they take.
_WANTED = (1.0, 0.5, 0.2)
TITLE = "What so many seeds can detect"


class Spread(NamedTuple):
    """How far the differences between tickets and an arm spread over seeds.

    Attributes:
        other: the arm that is subtracted.
        points: the standard deviation of a seed's difference, in percentage points.
        seeds: at the levels it is from.
    """

    other: str
    points: float
    seeds: int


def spreads(study: Mapping[str, Any], rows: Sequence[Row]) -> list[Spread]:
    """The spreads against the dense network and the controls, of the first chain of tickets.

    Each is the root mean square over the levels at 80–90 % sparsity, or over all where none is there; never
    below the test set's own error.
    """
    tickets = ticket_chains(rows)
    found = []
    for other in (DENSE, *CONTROLS) if tickets else ():
        every = differences(rows, tickets[0], TICKET, other, images=images_of(study))
        levels = [level for level in every if len(level.values) > 1]
        levels = in_range(levels) or levels
        if levels:
            squares = [max(float(np.std(of.values, ddof=1)), of.floor) ** 2 for of in levels]
            seeds = min(len(level.values) for level in levels)
            found.append(Spread(other, math.sqrt(sum(squares) / len(squares)), seeds))
    return found


def table(study: Mapping[str, Any], rows: Sequence[Row]) -> Table | None:
    """The minimal detectable effects of a run's seeds, and how many seeds smaller ones take."""
    lines = []
    for other, points, seeds in spreads(study, rows):
        needed = [stats.seeds_for(difference, points) if points else None for difference in _WANTED]
        lines.append(
            [
                f"ticket − {other}",
                f"{points:.2f}",
                str(seeds),
                f"{stats.detectable(points, seeds):.2f}",
                *("–" if n is None else str(n) for n in needed),
            ]
        )
    seeds_for = [f"seeds for {difference:g} pp" for difference in _WANTED]
    header = ["difference", "spread between seeds (pp)", "n", "these detect (pp)", *seeds_for]
    which = earliest(rows)
    return Table(f"{TITLE}, {which}" if which else TITLE, header, lines) if lines else None


def planned(study: Mapping[str, Any], rows: Sequence[Row], seeds: int) -> str:
    """What a plan of so many seeds can detect, in words; by the spread seen so far, if there is any."""
    if seeds < 2:
        return "one seed shows no spread: no difference can be told from chance"
    seen = spreads(study, rows)
    if not seen:
        return (
            f"with {words.seeds(seeds)}, differences from {stats.detectable(1.0, seeds):.2f} times their "
            "spread between seeds on; the spread is known once two seeds are trained"
        )
    each = ", ".join(f"ticket − {of.other} {stats.detectable(of.points, seeds):.2f}" for of in seen)
    which = earliest(rows)
    return (
        f"with {words.seeds(seeds)}, points: {each} (one-sided 95 %, power 80 %; by the spread of the "
        f"{words.seeds(max(of.seeds for of in seen))} so far{f', of tickets {which}' if which else ''})"
    )
