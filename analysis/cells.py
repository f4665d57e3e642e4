"""A run folder as a table: one row a cell."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from analysis import page
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, Interval, mean_interval
from lthjax.store import read_result, read_study

if TYPE_CHECKING:
    import pandas


class Row(NamedTuple):
    """A cell in numbers, as in cells.csv.

    Attributes:
        seed: the seed.
        chain: the chain's name; "dense" for the dense network.
        level: pruning rounds gone before; the dense network is level 0.
        arm: the arm's name, or "dense".
        repeat: from 1.
        density: weights left / prunable weights.
        weights_left: prunable weights left.
        test_accuracy: a fraction, at the end of training.
        test_loss: nats, at the end.
        train_accuracy: a fraction, of the whole train split, at the end.
        validation_accuracy: a fraction, at the end.
        validation_loss: nats, at the end.
        early_stop_step: the first step of the lowest validation loss.
        early_stop_test_accuracy: the test accuracy there.
        steps: steps trained.
        seconds: wall time of its chunk, divided by the replicates in it.
        status: "done" or "diverged"; of a diverged cell the measurements are None.
    """

    seed: int
    chain: str
    level: int
    arm: str
    repeat: int
    density: float
    weights_left: int
    test_accuracy: float | None
    test_loss: float | None
    train_accuracy: float | None
    validation_accuracy: float | None
    validation_loss: float | None
    early_stop_step: int | None
    early_stop_test_accuracy: float | None
    steps: int
    seconds: float
    status: str


COLUMNS = Row._fields


class Seeded(Protocol):
    """A row of whatever table that belongs to a seed."""

    @property
    def seed(self) -> int:
        """The seed."""


def load(run: str | Path) -> list[Row]:
    """The cells of a run folder, sorted by seed, chain, level, arm and repeat.

    Raises:
        UserError: it is not a run folder, or a cell in it cannot be read.
    """
    run = Path(run)
    read_study(run)
    found = [
        *run.glob("seed=*/dense/result.json"),
        *run.glob("seed=*/chain=*/level=*/*/result.json"),
    ]
    results = [read_result(path.parent) for path in found]
    rows = [Row(*(result.get(name) for name in COLUMNS)) for result in results]  # type: ignore[arg-type]
    return sorted(rows, key=_place)


def frame(run: str | Path) -> "pandas.DataFrame":
    """The cells of a run folder as a pandas frame, a column for every field of `Row`.

    Raises:
        UserError: as `load`, or pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("pandas is not installed; pip install pandas, or use analysis.load.") from error
    return pandas.DataFrame(load(run), columns=list(COLUMNS))


def to_csv(rows: Iterable[Row]) -> str:
    """cells.csv: a header, then one line a row; floats as Python writes them, None as nothing."""
    return page.to_csv(COLUMNS, rows)


def by_seed(rows: Iterable[Seeded], column: str) -> dict[int, float]:
    """Seed -> the mean of a column over its rows, those without a value left out."""
    values: dict[int, list[float]] = {}
    for row in rows:
        value = getattr(row, column)
        if value is not None:
            values.setdefault(row.seed, []).append(value)
    return {seed: sum(of_seed) / len(of_seed) for seed, of_seed in sorted(values.items())}


def accuracies(rows: Iterable[Seeded]) -> dict[int, float]:
    """Seed -> test accuracy at the end in percent, repeats averaged."""
    return {seed: 100 * value for seed, value in by_seed(rows, "test_accuracy").items()}


def mean_accuracy(of: Mapping[int, float]) -> Interval:
    """The mean over seeds of accuracies in percent, with its interval, which stays within 0 and 100."""
    return mean_interval(list(of.values()), within=PERCENT)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """The mean difference with its interval, paired over the seeds that both have."""
    return mean_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def densities(rows: Iterable[Row]) -> dict[int, float]:
    """Level -> mean density of its rows, by level."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.level, []).append(row.density)
    return {level: sum(values) / len(values) for level, values in sorted(found.items())}


def nearest(levels: Mapping[int, float], density: float) -> int:
    """The level whose density is nearest by ratio; of equally near ones the first.

    A network without weights is as far as can be from all others.
    """

    def far(other: float) -> float:
        if not (other and density):
            return 0.0 if other == density else math.inf
        return abs(math.log(other / density))

    return min(levels, key=lambda level: far(levels[level]))


def select(
    rows: Iterable[Row], chain: str | None = None, level: int | None = None, arm: str | None = None
) -> list[Row]:
    """The rows of a chain, a level, an arm."""
    return [
        row
        for row in rows
        if (chain is None or row.chain == chain)
        and (level is None or row.level == level)
        and (arm is None or row.arm == arm)
    ]


def chains(rows: Sequence[Row]) -> list[str]:
    """The chains of a table by rewind step, those of other leaders last, without the dense network's."""
    return sorted({row.chain for row in rows} - {DENSE}, key=_by_number)


def arms(rows: Sequence[Row]) -> list[str]:
    """The arms of a table in the order of `ARMS`, any others after them, without the dense network."""
    places = {arm: place for place, arm in enumerate(ARMS)}
    # An arm from outside the package need not be known here: it comes last.
    return sorted({row.arm for row in rows} - {DENSE}, key=lambda arm: (places.get(arm, len(places)), arm))


def _place(row: Row) -> tuple[int, tuple[bool, int, str], int, str, int]:
    return (row.seed, _by_number(row.chain), row.level, row.arm, row.repeat)


def _by_number(chain: str) -> tuple[bool, int, str]:
    """Chains in the order of their rewind steps, the dense network before all."""
    number = chain.rpartition("-")[2]
    led = not chain.startswith(("rewind-", DENSE))
    return (led, int(number) if number.isdecimal() else -1, chain)
