"""What a training after pruning costs and gives, arm by arm: the rows of the section, and its tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lthjax import imp
from lthjax.arms import ARMS
from lthjax.imp import DENSE
from lthjax.measures.stats import Interval

from .. import words
from ..differences import difference, mean_accuracy
from ..page import Table
from ..rows import TICKET, Row, accuracies, arms, by_level, chains, densities, select
from ..run import Run

_AT_COST = "At equal density and training cost"
_AT_ACCURACY = "At equal accuracy: the sparsest level at which the mean is that of the dense network or more"


class Level(NamedTuple):
    """An arm of a chain at one level.

    Attributes:
        chain, arm, level: which.
        density: weights left / prunable weights, mean over seeds.
        steps: trained in all up to its end: the dense network, every level's leader before it, itself.
        trainings: the same, in trainings of the dense network.
        accuracy: seed -> test accuracy at the end in percent, repeats averaged.
    """

    chain: str
    arm: str
    level: int
    density: float
    steps: int
    trainings: float
    accuracy: dict[int, float]


class Retrained(NamedTuple):
    """The arms of a run that train after pruning.

    Attributes:
        dense: seed -> accuracy of the dense network in percent.
        levels: of every arm.
        images: of the test set.
    """

    dense: dict[int, float]
    levels: list[Level]
    images: int

    def of(self, chain: str, arm: str) -> dict[int, Level]:
        """Level -> that arm of that chain."""
        return {row.level: row for row in self.levels if (row.chain, row.arm) == (chain, arm)}

    def ticket(self, chain: str) -> str:
        """The chain of the tickets that are rewound to the step of a chain; its own where there is none."""
        there = {row.chain for row in self.levels if row.arm == TICKET}
        same = [one for one in sorted(there) if imp.rewind_of(one) == imp.rewind_of(chain)]
        return same[0] if same else chain


def load(run: Run) -> Retrained | None:
    """The arms that Renda et al. 2020 compare, by chain; None where none starts from trained weights."""
    return of_rows(run.rows, run.about)


def of_rows(every: Sequence[Row], about: Mapping[str, Any]) -> Retrained | None:
    """As `load`, from the rows of a run and its study.json."""
    rows = [row for row in every if row.status == "done"]
    if not any(row.arm in ARMS and ARMS[row.arm].final for row in rows):
        return None
    shown = [
        TICKET,
        *(arm for arm in arms(rows) if arm in ARMS and (ARMS[arm].final or arm == "continued_reset")),
    ]
    levels = [
        _level(rows, of, about["lengths"]["total"])
        for chain in chains(rows)
        for arm in shown
        for of in by_level(select(rows, chain=chain, arm=arm)).values()
    ]
    return Retrained(accuracies(select(rows, chain=DENSE)), levels, about["data"]["test"])


def _level(rows: Sequence[Row], of: Sequence[Row], total: int) -> Level:
    first = of[0]
    leaders = by_level(select(rows, chain=first.chain, arm=imp.leader(first.chain)))
    before = sum(leaders[level][0].steps for level in leaders if level < first.level)
    steps = total + before + first.steps
    return Level(
        *(first.chain, first.arm, first.level, densities(of)[first.level]),
        steps,
        steps / total,
        accuracies(of),
    )


def named(chain: str, arm: str) -> str:
    """An arm with its chain's step: `ticket, rewound to 500`; `finetune, from step 500`.

    An arm that starts at step 0 has the masks of rewound tickets: `reinit, of tickets rewound to 500`.
    """
    row, step = ARMS.get(arm), imp.rewind_of(chain)
    if row and row.final:
        return f"{arm}, from step {step if row.start == 'rewind' else 0}"
    of = " of tickets" if row and row.start == "zero" and imp.leader(chain) == TICKET else ""
    return f"{arm},{of} rewound to {step}"


def series(found: Retrained) -> list[tuple[str, str]]:
    """(chain, arm) of all levels, each once, in the order of the run."""
    return list(dict.fromkeys((row.chain, row.arm) for row in found.levels))


def shown(found: Retrained) -> list[Table]:
    """Accuracies at equal density and cost, and densities and cost at equal accuracy."""
    return [_at_cost(found), _at_accuracy(found)]


def gain(found: Retrained, row: Level) -> Interval:
    """An arm minus the ticket of its level and rewind step, in percentage points, paired by seed."""
    return difference(row.accuracy, tickets(found, row), found.images)


def tickets(found: Retrained, row: Level) -> dict[int, float]:
    """Seed -> accuracy of the ticket of an arm's level and rewind step; {} where there is none."""
    own = found.of(found.ticket(row.chain), TICKET)
    return own[row.level].accuracy if row.level in own else {}


def _at_cost(found: Retrained) -> Table:
    header = [
        "level",
        "arm",
        "weights left, %",
        "steps trained",
        "dense trainings",
        "accuracy, %",
        "− ticket (pp)",
    ]
    lines = []
    for row in sorted(found.levels, key=lambda row: row.level):
        minus = "" if row.arm == TICKET else words.points(gain(found, row))
        lines.append([str(row.level), named(row.chain, row.arm), f"{100 * row.density:.1f}", f"{row.steps:,}",
                      f"{row.trainings:.2f}", words.percent(mean_accuracy(row.accuracy)), minus])  # fmt: skip
    return Table(_AT_COST, header, lines, 2)


def _at_accuracy(found: Retrained) -> Table:
    header = ["arm", "level", "weights left, %", "steps trained", "dense trainings", "− dense (pp)"]
    lines = []
    for chain, arm in series(found):
        level = matching(found, chain, arm)
        cells = ["–"] * 5
        if level is not None:
            minus = words.points(difference(level.accuracy, found.dense, found.images))
            cells = [str(level.level), f"{100 * level.density:.1f}", f"{level.steps:,}",
                     f"{level.trainings:.2f}", minus]  # fmt: skip
        lines.append([named(chain, arm), *cells])
    return Table(_AT_ACCURACY, header, lines)


def matching(found: Retrained, chain: str, arm: str) -> Level | None:
    """The sparsest level of an arm whose mean accuracy is that of the dense network or more."""
    levels = [
        row
        for row in found.of(chain, arm).values()
        if row.density and (least := difference(row.accuracy, found.dense)).n and least.mean >= 0
    ]
    return min(levels, key=lambda row: row.density, default=None)
