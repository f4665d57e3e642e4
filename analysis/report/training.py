"""Was training long enough? Where validation loss was lowest: at the end, long before it, or between.

A network whose validation loss is lowest at the last evaluation is still learning: longer training may raise
its accuracy. One whose loss was lowest in the first half of its training has overfitted since. A gap between
a ticket and a control that is still learning is a gap at this budget.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, mean_interval

from .. import words
from ..differences import mean_accuracy
from ..page import Section, Table
from ..run import TICKET, Row, Run, accuracies, arms, by_seed, chains, densities, select, worth_seeing

# The densities that the table shows, and the last level.
_SHOWN = (0.2, 0.1)
TITLE, ANCHOR = "Was training long enough?", "training"


class Ends(NamedTuple):
    """How many networks of a group were still learning when they ended.

    Attributes:
        learning: whose lowest validation loss is that of the last evaluation.
        long_before: whose lowest is in the first half of their training.
        networks: all that were trained and did not diverge.
    """

    learning: int
    long_before: int
    networks: int

    @property
    def word(self) -> str:
        """What most of them are: "still learning", "overfitted", or "long enough"; "–" for none."""
        if not self.networks:
            return "–"
        if 2 * self.learning > self.networks:
            return "still learning"
        return "overfitted" if 2 * self.long_before > self.networks else "long enough"


def total(study: Mapping[str, Any], rows: Sequence[Row]) -> int:
    """The step at which every training of a study ends; the longest, where its study.json does not say."""
    longest = max((row.steps for row in rows), default=0)
    return int(study.get("lengths", {}).get("total") or longest)


def ends(rows: Sequence[Row], end: int) -> Ends:
    """How many networks were still learning at the step `end`, and how many were past their best."""
    trained = [row for row in rows if row.steps and row.early_stop_step is not None]
    learning = sum((row.early_stop_step or 0) >= end for row in trained)
    # A rewound network starts late.
    before = sum(end - (row.early_stop_step or 0) > row.steps / 2 for row in trained)
    return Ends(learning, before, len(trained))


def mark(rows: Sequence[Row], arm: str, end: int) -> str:
    """What a verdict on a gap to an arm must say if most of its networks are still learning; "" if not."""
    found = ends(rows, end)
    if found.word != "still learning":
        return ""
    return (
        f"{arm} is still learning (lowest validation loss at the last evaluation in {found.learning} of "
        f"{found.networks} networks): longer training may narrow the gap"
    )


def section(run: Run) -> Section:
    """The report's section: every arm of every chain, at some levels."""
    end, lines = total(run.about, run.rows), []
    dense = select(run.rows, chain=DENSE)
    if dense:
        lines.append(_line("–", dense, DENSE, end))
    for chain in chains(run.rows):
        own = select(run.rows, chain=chain)
        tickets = select(own, arm=TICKET) or own
        for level in worth_seeing(densities(tickets), _SHOWN):
            of_level = select(own, level=level)
            lines += [_line(chain, select(of_level, arm=arm), arm, end) for arm in arms(of_level)]
    header = [
        "chain", "arm", "training", "weights (%)", "networks", "lowest at the end", "in the first half",
        "lowest at step", "train accuracy (%)", "test accuracy (%)",
    ]  # fmt: skip
    remark = (
        f"Every training ends at step {end:,}. Validation loss is measured at every evaluation; a network "
        "whose lowest is the last one is still learning, and a gap to it is a gap at this budget; one whose "
        "lowest lies in the first half of its training has overfitted since. The word is that of most "
        "networks. Steps are means over seeds, accuracies at the end of training with the 95 % interval."
    )
    return Section(ANCHOR, TITLE, tables=[Table("", header, lines, 3)], remark=remark)


def _line(chain: str, rows: Sequence[Row], arm: str, end: int) -> list[str]:
    found = ends(rows, end)
    train = [100 * value for value in by_seed(rows, "train_accuracy").values()]
    steps = [*by_seed([row for row in rows if row.steps], "early_stop_step").values()]
    return [
        chain,
        arm,
        found.word,
        f"{100 * sum(row.density for row in rows) / len(rows):.1f}",
        str(found.networks),
        str(found.learning),
        str(found.long_before),
        f"{sum(steps) / len(steps):,.0f}" if steps else "–",
        words.percent(mean_interval(train, within=PERCENT)),
        words.percent(mean_accuracy(accuracies(rows))),
    ]
