"""The rows of cells.csv, and the choice of seeds, levels, chains and arms among them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypeVar

from lthjax import imp
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.measures.stats import nearest

from . import tables

_Of = TypeVar("_Of")
TICKET = "ticket"
# The densities that a slow analysis looks at by default.
NEAR = (0.2, 0.1, 0.03)


class Row(NamedTuple):
    """A cell in numbers, as in cells.csv.

    Attributes:
        seed, repeat: its numbers; repeats count from 1.
        chain, arm: names; "dense" for the dense network.
        level: pruning rounds before it; the dense network is level 0.
        density, weights_left: weights left / prunable weights, and prunable weights left.
        test_accuracy, ...: fractions, and losses in nats, at the end of training, on all images of a part.
        early_stop_step, early_stop_test_accuracy: the first step of the lowest validation loss, and there.
        steps, seconds: steps trained, and the wall time of its chunk / the replicates in it.
        status: "done" or "diverged"; the measurements of a diverged cell are None.
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

    @property
    def cell(self) -> Cell:
        """Which cell it is."""
        return Cell(*(getattr(self, name) for name in Cell._fields))


COLUMNS = Row._fields


class Seeded(Protocol):
    """A row of any table with a column `seed`."""

    @property
    def seed(self) -> int:
        """The seed."""


def row_of(result: Mapping[str, Any]) -> Row:
    """A cell in numbers, from its result."""
    return Row(*(result.get(name) for name in COLUMNS))  # type: ignore[arg-type]


def cell_of(result: Mapping[str, Any]) -> Cell:
    """Which cell a result is of."""
    return Cell(*(result[name] for name in Cell._fields))


def to_csv(rows: Iterable[Row]) -> str:
    """cells.csv: a header, then one line a row; floats as Python writes them, None as nothing."""
    return tables.to_csv(COLUMNS, rows)


def by_seed(rows: Iterable[Seeded], column: str) -> dict[int, float]:
    """Seed -> the mean of a column over its rows, without those that have no value."""
    values = tables.grouped((row.seed, getattr(row, column)) for row in rows)
    known = {seed: [value for value in of if value is not None] for seed, of in values.items()}
    return {seed: sum(of) / len(of) for seed, of in sorted(known.items()) if of}


def images_of(study: Mapping[str, Any]) -> int:
    """The images of a study's test set; 0 where its study.json does not say."""
    return int(study.get("data", {}).get("test") or 0)


def percent(rows: Iterable[Seeded], column: str) -> dict[int, float]:
    """Seed -> a column's share in percent, repeats averaged."""
    return {seed: 100 * value for seed, value in by_seed(rows, column).items()}


def accuracies(rows: Iterable[Seeded]) -> dict[int, float]:
    """Seed -> test accuracy at the end in percent, repeats averaged."""
    return percent(rows, "test_accuracy")


def densities(rows: Iterable[Row]) -> dict[int, float]:
    """Level -> mean density of its rows, by level."""
    return {level: sum(row.density for row in of) / len(of) for level, of in by_level(rows).items()}


def by_level(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Level -> its rows, by level."""
    return dict(sorted(grouped(rows, "level").items()))


def worth_seeing(
    densities: Mapping[int, float], near: Sequence[float] = NEAR, last: bool = True
) -> list[int]:
    """The levels nearest to the densities `near`, and the last if `last`; `densities` must not be empty."""
    return sorted({*(nearest(densities, of) for of in near), *([max(densities)] if last else [])})


def asked_levels(
    levels: Iterable[int] | None,
    densities: Mapping[int, float],
    what: str,
    near: Sequence[float] = NEAR,
    last: bool = True,
    beside: Collection[int] = (),
) -> list[int]:
    """The levels that `--levels` names, or those that `worth_seeing` chooses.

    Args:
        levels: the named ones; None or empty for the default.
        densities: level -> density of all allowed levels; not empty.
        what: for the error, what other levels lack: "trained ticket in rewind-0".
        near, last: as for `worth_seeing`.
        beside: levels to choose from, if any of them is allowed: those that have what is compared.

    Raises:
        UserError: a named level is not allowed.
    """
    named = sorted({*(levels or ())})
    for level in named:
        if level not in densities:
            allowed = ", ".join(map(str, sorted(densities)))
            raise UserError(f"--levels: {level} has no {what}; it may be {allowed}.")
    preferred = {level: left for level, left in densities.items() if level in beside}
    return named or worth_seeing(preferred or densities, near, last)


def controlled(rows: Iterable[Row], chain: str, arms: Collection[str]) -> set[int]:
    """The levels of a chain at which any of these arms, beside the ticket, has a cell that is done."""
    done = [row for row in select(rows, chain=chain) if row.status == "done"]
    return {row.level for row in done if row.arm in arms and row.arm != TICKET}


def select(
    rows: Iterable[Row], chain: str | None = None, level: int | None = None, arm: str | None = None
) -> list[Row]:
    """The rows of a chain, a level, an arm."""
    wanted = {"chain": chain, "level": level, "arm": arm}
    asked = {name: value for name, value in wanted.items() if value is not None}
    return [row for row in rows if all(getattr(row, name) == value for name, value in asked.items())]


def grouped(rows: Iterable[_Of], *columns: str) -> dict[Any, list[_Of]]:
    """The value of a column, or the values of several -> the rows that have it, in order of appearance."""
    key = attrgetter(*columns)
    return tables.grouped((key(row), row) for row in rows)


def chains(rows: Sequence[Row]) -> list[str]:
    """The chains of a table by rewind step, those led by other arms than the ticket last; without "dense"."""
    return sorted({row.chain for row in rows} - {DENSE}, key=by_number)


def ticket_chains(rows: Sequence[Row]) -> list[str]:
    """The chains that tickets lead, by rewind step."""
    return [chain for chain in chains(rows) if imp.leader(chain) == TICKET]


def trained_chains(rows: Sequence[Row]) -> list[str]:
    """Those of them that have a trained ticket."""
    return ticket_chains([row for row in rows if row.arm == TICKET and row.status == "done"])


def diverged(rows: Sequence[Row]) -> str:
    """Why a run has no ticket to look at, and what to do: all diverged, or all dense networks; "" if not."""
    tickets = [row for row in rows if row.arm == TICKET]
    for what, own in (("dense networks", select(rows, chain=DENSE)), ("tickets", tickets)):
        if own and all(row.status == "diverged" for row in own):
            return f"all {what} diverged; lower the learning rate (optim.lr)"
    return ""


def arms(rows: Sequence[Row]) -> list[str]:
    """The arms of a table in the order of `ARMS`, any others after them, without the dense network."""
    places = {arm: place for place, arm in enumerate(ARMS)}
    # An arm from outside the package need not be known here: it comes last.
    return sorted({row.arm for row in rows} - {DENSE}, key=lambda arm: (places.get(arm, len(places)), arm))


def by_number(chain: str) -> tuple[bool, int, str]:
    """The key that sorts chains by rewind step, the dense network first."""
    return (imp.leader(chain) not in (TICKET, DENSE), imp.rewind_of(chain) if chain != DENSE else -1, chain)
