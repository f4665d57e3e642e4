"""Was training long enough? Where validation loss was lowest: at the end, long before it, or between."""

from collections.abc import Sequence

from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, mean_interval

from .. import words
from ..differences import mean_accuracy
from ..ends import Ends, ends, spacing, total
from ..page import Section, Table
from ..rows import TICKET, Row, accuracies, arms, by_seed, chains, densities, select, worth_seeing
from ..run import Run

# The densities that the table shows, and the last level.
_SHOWN = (0.2, 0.1)
TITLE, ANCHOR = "Was training long enough?", "training"


def section(run: Run) -> Section:
    """The report's section: every arm of every chain, at some levels."""
    end, every, lines = total(run.about, run.rows), spacing(run.about), []
    dense = select(run.rows, chain=DENSE)
    if dense:
        lines.append(_line("–", dense, DENSE, ends(dense, end, every), end))
    for chain in chains(run.rows):
        own = select(run.rows, chain=chain)
        tickets = select(own, arm=TICKET) or own
        for level in worth_seeing(densities(tickets), _SHOWN):
            of_level = select(own, level=level)
            for arm in arms(of_level):
                cells = select(of_level, arm=arm)
                lines.append(_line(chain, cells, arm, ends(cells, end, every), end))
    header = [
        "chain", "arm", "training", "weights (%)", "networks", "lowest at the end", "in the first half",
        "lowest at step", "train accuracy (%)", "test accuracy (%)",
    ]  # fmt: skip
    remark = (
        f"Every training ends at step {end:,}. Validation loss is measured at every evaluation; a network "
        "whose lowest is the last one is still learning, and a gap to it is a gap at this budget; one whose "
        "lowest lies in the first half of its training has overfitted since. The word is that of most "
        "networks; one that was evaluated at its end alone does not count. Steps are means over seeds, at "
        "least that (≥) where a network was lowest at the end, accuracies at the end of training with the "
        "95 % interval."
    )
    return Section(ANCHOR, TITLE, tables=[Table("", header, lines, 3)], remark=remark)


def _line(chain: str, rows: Sequence[Row], arm: str, found: Ends, end: int) -> list[str]:
    train = [100 * value for value in by_seed(rows, "train_accuracy").values()]
    trained = [row for row in rows if row.steps]
    steps = [*by_seed(trained, "early_stop_step").values()]
    bound = "≥ " if any((row.early_stop_step or 0) >= end for row in trained) else ""
    return [
        chain,
        arm,
        found.word,
        f"{100 * sum(row.density for row in rows) / len(rows):.1f}",
        str(found.networks),
        str(found.learning),
        str(found.long_before),
        f"{bound}{sum(steps) / len(steps):,.0f}" if steps else "–",
        words.percent(mean_interval(train, within=PERCENT)),
        words.percent(mean_accuracy(accuracies(rows))),
    ]
