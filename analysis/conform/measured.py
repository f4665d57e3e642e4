"""The cells of a study as accuracies, gaps and ratios, from a run folder or a published one."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE, rewind_of
from lthjax.measures import stats
from lthjax.measures.stats import Interval, mean_interval, paired

from .. import tables
from ..differences import difference, mean_accuracy
from ..rows import TICKET, Row, by_seed, chains, percent, select
from ..run import Run

_Of = TypeVar("_Of")


class Cells:
    """The cells of one study, or of several.

    Attributes:
        folder: where they lie.
        about: its study.json.
        rows: its cells.
    """

    def __init__(self, folder: Path, about: Any, rows: list[Row]) -> None:
        """A study by its parts; `opened` reads them."""
        self.folder, self.about, self.rows = folder, about, rows

    def _known(self, found: _Of | None, what: str) -> _Of:
        """Something found in the folder; a UserError where it is None."""
        if found is None:
            raise UserError(f"{self.folder}: {what}.")
        return found

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len({row.seed for row in self.rows})


class Measured(Cells):
    """The cells of one study, as accuracies, gaps and ratios."""

    def cells(self, arm: str, level: int = 0, rewind: int = 0) -> list[Row]:
        """The cells of an arm at a level; the dense network has neither level nor rewind step."""
        found, chain = self._cells(arm, level, rewind), self._chain(arm, rewind)
        return self._known(found or None, f"it has no cell {chain}, level {level}, {arm}")

    def _cells(self, arm: str, level: int, rewind: int) -> list[Row]:
        at = 0 if arm == DENSE else level
        return select(self.rows, chain=self._chain(arm, rewind), arm=arm, level=at)

    def _chain(self, arm: str, rewind: int) -> str:
        """The chain of a rewind step that has an arm: that of the tickets, or one that another arm leads."""
        there, row = chains(select(self.rows, arm=arm)), ARMS.get(arm)
        found = [chain for chain in there if rewind_of(chain) == rewind]
        # It always starts at step 0, and has no chain of later steps.
        only = there if row and row.leads and row.start == "zero" else []
        return DENSE if arm == DENSE else next(iter([*found, *only]), f"rewind-{rewind}")

    def diverged(self, arm: str, level: int = 0, rewind: int = 0) -> set[int]:
        """The seeds of which a network of an arm at a level diverged."""
        return {row.seed for row in self._cells(arm, level, rewind) if row.status == "diverged"}

    def of_seeds(self, arm: str, level: int = 0, rewind: int = 0, early: bool = False) -> dict[int, float]:
        """Seed -> test accuracy in percent, at the end or at the step of the lowest validation loss."""
        column = "early_stop_test_accuracy" if early else "test_accuracy"
        return percent(self.cells(arm, level, rewind), column)

    def accuracy(self, arm: str, level: int = 0, rewind: int = 0, early: bool = False) -> Interval:
        """Test accuracy in percent, mean over seeds; at the end of training, or at `early` stop."""
        return mean_accuracy(self.of_seeds(arm, level, rewind, early))

    def gaps(self, arm: str, other: str, level: int, rewind: int = 0, early: bool = False) -> list[float]:
        """arm − other at a level in percentage points, one a seed; at the end, or at `early` stop."""
        return paired(*(self.of_seeds(of, level, rewind, early) for of in (arm, other)))

    def gap(self, arm: str, other: str, level: int, rewind: int = 0, early: bool = False) -> Interval:
        """The mean of `gaps` with its interval."""
        return mean_interval(self.gaps(arm, other, level, rewind, early))

    def best(self, other: str = DENSE, rewind: int = 0, early: bool = False) -> int:
        """The level at which the mean ticket is furthest above another arm, of those that it shares."""
        levels = self._known(
            self.shared(other, rewind, early) or None, f"it has no level of the ticket and {other}"
        )
        return max(levels, key=lambda level: self.gap("ticket", other, level, rewind, early).mean)

    def shared(self, other: str = DENSE, rewind: int = 0, early: bool = False) -> list[int]:
        """The levels at which a seed has both the ticket and another arm."""
        there = [level for level in self.levels(rewind=rewind) if self._cells(other, level, rewind)]
        return [level for level in there if self.gaps("ticket", other, level, rewind, early)]

    def steps(self, arm: str, level: int, rewind: int = 0) -> dict[int, float]:
        """Seed -> step of the lowest validation loss."""
        return by_seed(self.cells(arm, level, rewind), "early_stop_step")

    def slowness(self, arm: str, other: str, level: int, rewind: int = 0) -> list[float]:
        """Early-stop step of an arm over another's at a level, one a seed."""
        ours, theirs = (self.steps(of, level, rewind) for of in (arm, other))
        return [ours[seed] / theirs[seed] for seed in ours if theirs.get(seed)]

    def slower(self, arm: str, other: str, level: int, rewind: int = 0) -> Interval:
        """The geometric mean of `slowness` with its interval."""
        return stats.geometric_interval(self.slowness(arm, other, level, rewind))

    def rewound(self, level: int, step: int | None = None) -> Interval:
        """Tickets of a rewind step (by default the latest) − those of the earliest, in points, by seed."""
        later = self.rewinds[-1] if step is None else step
        late, early = (self.of_seeds("ticket", level, k) for k in (later, self.rewinds[0]))
        return difference(late, early)

    def train(self, arm: str, level: int = 0, rewind: int = 0) -> float:
        """Train accuracy at the end, as a fraction, mean over seeds."""
        return fmean(by_seed(self.cells(arm, level, rewind), "train_accuracy").values())

    def density(self, level: int, rewind: int = 0) -> float:
        """Weights left / prunable weights."""
        return self.cells("ticket", level, rewind)[0].density

    def weights(self, level: int = 0) -> int:
        """Prunable weights left."""
        return self.cells("ticket" if level else DENSE, level)[0].weights_left

    def levels(self, arm: str = "ticket", rewind: int = 0) -> list[int]:
        """The levels at which an arm was trained."""
        return sorted({row.level for row in select(self.rows, chain=self._chain(arm, rewind), arm=arm)})

    @property
    def rewinds(self) -> list[int]:
        """The steps that tickets are rewound to, by the cells: study.json has those of the last command.

        Without tickets, those of study.json.
        """
        there = {rewind_of(row.chain) for row in self.rows if row.arm == TICKET}
        return sorted(there or self.about["lengths"]["rewind"])

    @property
    def last(self) -> int:
        """The sparsest level."""
        return self.levels()[-1]

    def first_below(self, other: str) -> int:
        """The first level from which on all tickets are worse than another arm, by the 95 % interval."""
        below = [self.gap("ticket", other, level).high < 0 for level in self.levels()]
        firm = (level for place, level in enumerate(self.levels()) if all(below[place:]))
        return self._known(next(firm, None), f"its tickets are not below {other} at the end")


def opened(folder: Path) -> Measured:
    """The study of a run folder, or of one that `analysis.publish` has written of a run.

    Raises:
        UserError: it is neither, or a file cannot be read.
    """
    if (folder / "comparison.csv").is_file():
        raise UserError(f"{folder}: it holds several runs side by side; name a folder of one.")
    if not (folder / "cells.csv").is_file():
        run = Run(folder)
        return Measured(folder, run.about, run.finished())
    return Measured(folder, *published(folder, "cells.csv", "study"))


def published(folder: Path, table: str, what: str) -> tuple[Any, list[Row]]:
    """The study.json and the cells of a published folder; a UserError that says what it is not."""
    try:
        about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        return about, tables.read_rows(folder / table, Row)
    except tables.DAMAGED as error:
        raise UserError(f"{folder}: it is no published {what} ({error}).") from error
