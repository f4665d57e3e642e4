"""Paired differences of a run's arms level by level, and the curves of every seed."""

from collections.abc import Sequence
from typing import NamedTuple

from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import words
from ..differences import floor
from ..rows import TICKET, Row, accuracies, by_level, by_seed, densities, select, ticket_chains

# Percentage points below the dense network that count as its accuracy.
TOLERANCE = 0.5
# Percent; no accuracy is as low, whatever may be lost to the dense network.
_NOTHING = -100.0


class Level(NamedTuple):
    """Paired differences at one level, in percentage points.

    Attributes:
        level: of the chain.
        density: weights left / prunable weights.
        values: one a seed.
        floor: the least standard deviation of a value: what the test set leaves open, in points.
        seeds: whose the values are.
    """

    level: int
    density: float
    values: list[float]
    floor: float = 0.0
    seeds: Sequence[int] = ()

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.values) / len(self.values)


def differences(
    rows: Sequence[Row], chain: str, arm: str, other: str, beside: str | None = None, images: int = 0
) -> list[Level]:
    """arm − other in percentage points, at every level that has both.

    `other` may be the dense network; `beside` is its chain, by default the same. `images` of the
    test set give the floor of the spread, 0 none.
    """
    dense, found = accuracies(select(rows, chain=DENSE)), []
    others = by_level(select(rows, chain=beside or chain, arm=other))
    for level, ours in by_level(select(rows, chain=chain, arm=arm)).items():
        theirs = dense if other == DENSE else accuracies(others.get(level, []))
        mine = accuracies(ours)
        if values := stats.paired(mine, theirs):
            least, both = floor(mine, theirs, images), sorted(mine.keys() & theirs.keys())
            found.append(Level(level, densities(ours)[level], values, least, both))
    return found


def curves(
    rows: Sequence[Row], chain: str, arm: str, diverged: bool = False
) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (density, accuracy in percent) of an arm, without networks that have no weight left.

    With `diverged` there is a point below every accuracy where all repeats of a seed diverged, which matches
    nothing; else there is none.
    """
    curves: dict[int, dict[float, float]] = {}
    for of_level in by_level(select(rows, chain=chain, arm=arm)).values():
        density = by_seed(of_level, "density")
        failed = {row.seed: _NOTHING for row in of_level if diverged and row.status == "diverged"}
        for seed, value in {**failed, **accuracies(of_level)}.items():
            # Where no weight could be removed, a level repeats the density of the one before it.
            if density[seed]:
                curves.setdefault(seed, {}).setdefault(density[seed], value)
    return {seed: list(curve.items()) for seed, curve in curves.items()}


def earliest(rows: Sequence[Row]) -> str:
    """`words.rewound` of the first chain of tickets where there are several, else "".

    What looks at one chain alone looks at the first, and says so.
    """
    first, *later = ticket_chains(rows) or [""]
    return words.rewound(first) if later else ""


def first_diverged(rows: Sequence[Row]) -> str:
    """Why the first of several chains of tickets has none to look at, and what to do; "" if it has any."""
    chains = {of: select(rows, chain=of, arm=TICKET) for of in ticket_chains(rows)}
    alive = [of for of, own in chains.items() if any(row.status == "done" for row in own)]
    first = next(iter(chains), "")
    if not alive or first in alive or not chains[first]:
        return ""
    others = " or ".join(map(words.rewound, alive))
    return (
        f"all tickets {words.rewound(first)} diverged; lower the learning rate (optim.lr), or look at those "
        f"{others}"
    )
