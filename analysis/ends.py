"""How trainings end: still learning, long enough, or long past the lowest validation loss.

A network whose validation loss is lowest at the last evaluation is still learning: longer training may raise
its accuracy. One whose loss was lowest in the first half of its training has overfitted since. A gap between
a ticket and a control that is still learning is a gap at this budget. Of a network that was evaluated
once, at its end, neither is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .rows import Row


class Ends(NamedTuple):
    """How many networks of a group were still learning when they ended.

    Attributes:
        learning: whose lowest validation loss is that of the last evaluation.
        long_before: whose lowest is in the first half of their training.
        networks: all that did not diverge and were evaluated before their end, too.
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


class Ended(NamedTuple):
    """A network that was trained beside a run.

    Attributes:
        steps, early_stop_step: as in `analysis.rows.Row`.
    """

    steps: int
    early_stop_step: int | None


def total(study: Mapping[str, Any], rows: Sequence[Row]) -> int:
    """The step at which every training of a study ends; the longest, where its study.json does not say."""
    longest = max((row.steps for row in rows), default=0)
    return int(study.get("lengths", {}).get("total") or longest)


def spacing(study: Mapping[str, Any]) -> int:
    """The steps between two evaluations of a study; 1, where its study.json does not say."""
    return int(study.get("lengths", {}).get("evaluate") or 1)


def ends(rows: Sequence[Row | Ended], end: int, every: int) -> Ends:
    """How many networks were still learning at the step `end`, and how many were past their best.

    Args:
        rows: the networks.
        end, every: `total` and `spacing` of their study.
    """
    # None is evaluated at its start; each is evaluated at every multiple of `every`, and at its end.
    twice = [row for row in rows if (end - 1) // every > (end - row.steps) // every]
    trained = [row for row in twice if row.early_stop_step is not None]
    learning = sum((row.early_stop_step or 0) >= end for row in trained)
    # A rewound network starts late.
    before = sum(end - (row.early_stop_step or 0) > row.steps / 2 for row in trained)
    return Ends(learning, before, len(trained))


def mark(rows: Sequence[Row | Ended], arm: str, end: int, every: int, gap: float) -> str:
    """What a verdict on a gap to an arm must say if most of its networks are still learning; "" if not.

    `gap` is how far it is behind: longer training of an arm that is ahead would widen the gap.
    """
    found = ends(rows, end, every)
    if found.word != "still learning" or gap <= 0:
        return ""
    return (
        f"{arm} is still learning (lowest validation loss at the last evaluation in {found.learning} of "
        f"{found.networks} networks): longer training may narrow the gap"
    )
