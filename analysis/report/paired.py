"""Paired differences of a run's arms level by level, and the curves of every seed."""

from collections.abc import Sequence
from typing import NamedTuple

from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import commands, words
from ..differences import floor
from ..record import Said
from ..rows import (
    TICKET,
    Row,
    accuracies,
    by_level,
    by_seed,
    densities,
    select,
    ticket_chains,
    trained_chains,
)

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
    alive, first = trained_chains(rows), next(iter(ticket_chains(rows)), "")
    if not alive or first in alive or not select(rows, chain=first, arm=TICKET):
        return ""
    others = " or ".join(map(words.rewound, alive))
    return (
        f"all tickets {words.rewound(first)} diverged; lower the learning rate (optim.lr), or look at those "
        f"{others}"
    )


def in_range(levels: Sequence[Level]) -> list[Level]:
    """The levels of 80 to 90 % sparsity."""
    return [level for level in levels if commands.is_in_range(level.density)]


class Other(NamedTuple):
    """What tickets are compared with, for what is said where it has no accuracy.

    Attributes:
        name: in a sentence.
        tickets: the levels of 80 to 90 % sparsity at which tickets stand beside their dense network.
        diverged: at how many of these it was trained beside tickets, and diverged beside all of them.
        everywhere: whether it did so at every level.
        stopped: the seeds whose ticket diverged there or before.
        beyond: why there is no level of tickets, where no command makes one; "" if one does.
        ticket: whose ticket that is, in a sentence.
        first: of late rewinding, the seeds whose earliest ticket alone diverged there or before.
    """

    name: str
    tickets: int
    diverged: int = 0
    everywhere: bool = False
    stopped: int = 0
    beyond: str = ""
    ticket: str = "the ticket"
    first: int = 0

    def gone(self, where: str) -> str:
        """That it diverged there; where tickets did, too, in which seeds."""
        which = "earliest ticket" if self.ticket == self.name else "ticket"
        some = f" in every seed whose {which} did not" if self.stopped or self.first else ""
        return f"{self.name} diverged {where}{some}"


def stopped(rows: Sequence[Row], chain: str) -> dict[int, float]:
    """Seed -> the density at which its ticket diverged, of those that did at 80–90 % sparsity or before."""
    lost = [row for row in select(rows, chain=chain, arm=TICKET) if row.status == "diverged"]
    before = [row for row in lost if commands.is_in_range(row.density) or row.density > commands.RANGE[1]]
    return {row.seed: row.density for row in before}


def all_stopped(rows: Sequence[Row], chain: str) -> bool:
    """Whether the ticket of every seed diverged at 80–90 % sparsity or before."""
    return {*accuracies(select(rows, chain=DENSE))} <= stopped(rows, chain).keys()


def levels_there(rows: Sequence[Row], chain: str) -> set[int]:
    """The levels of 80 to 90 % sparsity at which tickets stand beside their dense network."""
    return {of.level for of in in_range(differences(rows, chain, TICKET, DENSE))}


def against(rows: Sequence[Row], chain: str, own: Sequence[Row], name: str, beyond: str = "") -> Other:
    """What the tickets of a chain are compared with, from its own rows."""
    there, tickets = levels_there(rows, chain), select(rows, chain=chain, arm=TICKET)
    # Beside a ticket that diverged a network makes no pair.
    done = {(row.seed, row.level) for row in tickets if row.status == "done"}
    levels = by_level(row for row in own if (row.seed, row.level) in done)
    lost = {level for level, of in levels.items() if all(row.status == "diverged" for row in of)}
    everywhere_lost = bool(levels) and lost == levels.keys()
    return Other(name, len(there), len(there & lost), everywhere_lost, len(stopped(rows, chain)), beyond)


def unpaired(rows: Sequence[Row], chain: str, arm: str) -> list[int]:
    """The seeds whose control diverged at 80–90 % sparsity, where that leaves none beside its ticket."""
    if in_range(differences(rows, chain, TICKET, arm)):
        return []
    there = levels_there(rows, chain)
    own = [row for row in select(rows, chain=chain, arm=arm) if row.level in there]
    return sorted({row.seed for row in own if row.status == "diverged"})


def at_some(levels: int, other: Other) -> str:
    """What must be said where a claim about a range is tested at some of the tickets' levels only."""
    of, trained = f"of the tickets' {other.tickets} levels there", levels + other.diverged
    few = f"; both were trained at {trained} {of}" if trained < other.tickets else ""
    few += f"; {other.name} diverged at {other.diverged} {of}" if other.diverged else ""
    how = "diverged there or before"
    few += f"; {other.ticket} of {words.seeds(other.stopped)} {how}" if other.stopped else ""
    return few + (f"; of {words.seeds(other.first)} the earliest ticket alone {how}" if other.first else "")


def of_those_left(outcome: Said, other: Other) -> Said:
    """The outcome of a claim, from that of the tickets that did not diverge.

    If it holds for these, it is open of all of them. Late rewinding is open, too, if it is refuted for these
    and an earliest ticket alone diverged, which speaks for it.
    """
    doubted = ["supported", "equivalent"] if other.stopped else []
    doubted += ["refuted", "equivalent"] if other.first else []
    return "undecided" if outcome in doubted else outcome
