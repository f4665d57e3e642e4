"""A run folder, opened once: rows, masks, weights, states; and the choice of chains, levels and seeds.

from analysis import open_run

run = open_run("runs/quickstart-f91424be")
cell = run.rows[-1].cell
run.mask(cell)["conv1"]["kernel"]           # bool array
"""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from lthjax import config, data, imp, models, record
from lthjax.arms import ARMS
from lthjax.catalogue import Unreachable
from lthjax.errors import UserError, shell
from lthjax.fields import About, Result
from lthjax.folder import places, verified
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell
from lthjax.measures.stats import nearest
from lthjax.models import Model, Variables
from lthjax.optim import SCHEDULES
from lthjax.study import Prepared, prepare, task

from . import tables

if TYPE_CHECKING:
    import pandas

PyTree = Any
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


class Tickets(NamedTuple):
    """The tickets of one chain of a run.

    Attributes:
        chain: the chain's name.
        rewind: the step to which they are rewound.
        rows: all of them, by seed and level.
        done: the rows that did not diverge.
    """

    chain: str
    rewind: int
    rows: list[Row]
    done: list[Row]

    def seeds(self, level: int) -> list[int]:
        """The seeds whose ticket of a level is done."""
        return sorted(row.seed for row in self.done if row.level == level)


class Run:
    """A run folder, open for reading; files are checked against their checksums.

    Args:
        path: the folder.
        last: evaluations of whose test and validation curves the rows hold the mean, in place of the values
            at the end of training.

    Raises:
        UserError: it is not a run folder, or `last` is less than 1.
    """

    last = 1

    def __init__(self, path: str | Path, last: int = 1) -> None:
        if last < 1:
            raise UserError(f"--last: {last} is not allowed; it must be 1 or more evaluations.")
        self.path, self.last = Path(path), last
        self.about: About = verified.read_study(self.path)
        self._reader = Reader(self.path)

    @property
    def name(self) -> str:
        """The folder's name, also where its path is `.`."""
        return Path(os.path.abspath(self.path)).name

    @cached_property
    def study(self) -> config.Study:
        """The config that was last asked for."""
        return config.from_dict(self.about["config"])

    @cached_property
    def lengths(self) -> config.Lengths:
        """The study's durations in steps."""
        return config.Lengths(**self.about["lengths"])

    @cached_property
    def results(self) -> dict[Cell, Result]:
        """Cell -> its result.json, sorted by seed, chain, level, arm and repeat.

        Raises:
            UserError: one cannot be read.
        """
        patterns = ("seed=*/dense/result.json", "seed=*/chain=*/level=*/*/result.json")
        read = [verified.read_result(path.parent) for of in patterns for path in self.path.glob(of)]
        cells = {cell_of(result): result for result in read}
        return {cell: cells[cell] for cell in sorted(cells, key=_place)}

    @cached_property
    def rows(self) -> list[Row]:
        """The cells in numbers, in the order of `results`.

        Raises:
            UserError: `last` is more than there are evaluations at the last learning rate.
        """
        if self.last == 1:
            return [row_of(result) for result in self.results.values()]
        since = self._constant_from()
        return [row_of(_smoothed(result, self.last, since)) for result in self.results.values()]

    def _constant_from(self) -> int:
        """The step from which on the learning rate does not change."""
        schedule = self.study.optim.schedule
        # A row of one's own is known only where its file is loaded.
        if schedule in SCHEDULES and SCHEDULES[schedule].falls:
            raise UserError(
                f"--last: {self.last} is not allowed, as the learning rate falls to the end (schedule "
                f"{schedule}); it must be 1."
            )
        return max([self.lengths.warmup, *self.lengths.milestones])

    def finished(self) -> list[Row]:
        """As `rows`; a UserError where there are none yet."""
        if not self.rows:
            raise UserError(f"{self.path}: there is no finished cell in it yet; run the study first.")
        return self.rows

    def mask(self, cell: Cell) -> PyTree:
        """A cell's mask: nested dictionaries of bool arrays; True, 0-d, for a leaf that is never pruned.

        Raises:
            UserError: it cannot be read.
        """
        return self._reader.mask(cell)

    def weights(self, cell: Cell) -> PyTree:
        """A cell's final weights: nested dictionaries of arrays; raises as `mask`."""
        return self.variables(cell).params

    def state(self, seed: int, step: int) -> PyTree:
        """The dense network's weights at a rewind step or at step 0; raises as `mask`."""
        return self.variables_at(seed, step).params

    def variables(self, cell: Cell) -> Variables:
        """As `weights`, with batch statistics; raises as `mask`."""
        return self._reader.variables(cell)

    def variables_at(self, seed: int, step: int) -> Variables:
        """As `state`, with batch statistics; raises as `mask`."""
        return self._reader.state(seed, step)

    def has_state(self, seed: int, step: int) -> bool:
        """Whether a rewind state is there."""
        return self._reader.has_state(seed, step)

    def task(self, prepared: Prepared, cell: Cell) -> imp.Task:
        """What a cell was trained from; see `lthjax.study.task`."""
        return task(prepared, self._reader, cell)

    def network(self) -> Model:
        """The run's network, for a forward pass.

        Raises:
            UserError: it is from outside the package and not loaded here.
        """
        return self._network

    @cached_property
    def _network(self) -> Model:
        name, made = self.study.model, self.about["data"]
        if name not in models.MODELS:
            there = shell("--config", self.path / places.CONFIG)
            how = (
                f"run again with {there}"
                if (self.path / places.CONFIG).is_file()
                else "give its file by --config"
            )
            raise UserError(
                f"{self.path}: the network {name!r} is a row of a config file, which is code and is not run "
                f"unasked; {how}, or in Python import the file that adds it."
            )
        height, width, channels = made["shape"]
        return models.build(name, (height, width, channels), made["classes"], self.study.init)

    def tickets(self, chain: str | None = None) -> Tickets:
        """The tickets of a chain; by default of the chain with the earliest rewind step.

        Raises:
            UserError: there is no ticket, or no such chain.
        """
        rows = [row for row in self.rows if row.arm == TICKET]
        if not rows:
            raise UserError(f"{self.path}: there is no ticket in it yet; run the study first.")
        there = chains(rows)
        chain = there[0] if chain is None else chain
        if chain not in there:
            raise UserError(f"--chain: {chain!r} has no ticket in the run; it may be {', '.join(there)}.")
        own = select(rows, chain=chain)
        return Tickets(chain, imp.rewind_of(chain), own, [row for row in own if row.status == "done"])

    def prepared(self, seeds: Iterable[int], data_dir: str | Path) -> Prepared:
        """The run's study with these seeds; its data are those that the run was trained on.

        Raises:
            UserError: the data differ, or cannot be read.
        """
        study = dataclasses.replace(self.study, seeds=tuple(sorted(seeds)))
        with _of_a_run():
            made = prepare(study, data_dir, trained=True)
        self._check(made.dataset)
        return made

    def dataset(self, data_dir: str | Path) -> data.Dataset:
        """The data that the run was trained on; raises as `prepared`, but prepares no training."""
        with _of_a_run():
            found = data.load(self.study.data.name, data_dir)
        self._check(found)
        return found

    def _check(self, dataset: data.Dataset) -> None:
        ours, theirs = dataset.digest, self.about["data"]["digest"]
        if ours != theirs:
            raise UserError(
                f"--data-dir: {self.study.data.name} there has content hash {ours}, the run's has {theirs}; "
                "name the folder of the data that the run was trained on."
            )


@contextlib.contextmanager
def _of_a_run() -> Iterator[None]:
    """Where data cannot be had, does not propose others."""
    try:
        yield
    except Unreachable as error:
        raise UserError(error.needed) from error


def open_run(path: "str | Path | Run", last: int = 1) -> Run:
    """A run folder, open for reading; arguments and errors as of `Run`. A `Run` is returned as it is."""
    return path if isinstance(path, Run) else Run(path, last)


def load(path: str | Path) -> list[Row]:
    """The cells of a run folder; order and errors as of `Run.results`."""
    return Run(path).rows


def frame(path: str | Path) -> "pandas.DataFrame":
    """As `load`, as a pandas frame with a column for every field of `Row`; pandas must be installed."""
    try:
        import pandas
    except ImportError as error:
        raise UserError("pandas is not installed; pip install pandas, or use analysis.load.") from error
    return pandas.DataFrame(load(path), columns=list(COLUMNS))


def row_of(result: Mapping[str, Any]) -> Row:
    """A cell in numbers, from its result."""
    return Row(*(result.get(name) for name in COLUMNS))  # type: ignore[arg-type]


def _smoothed(result: Mapping[str, Any], last: int, since: int) -> dict[str, Any]:
    """A result whose test and validation values are the means of the last evaluations of its curves."""
    curves = result.get("curves") or {}
    if result["status"] != "done" or not result["steps"]:
        return dict(result)
    there = sum(step > since for step in curves["step"])
    if there < last:
        raise UserError(
            f"--last: {last} is not allowed; {record.describe(cell_of(result))} has {there} evaluations at "
            "its last learning rate."
        )
    names = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")
    return {**result, **{name: sum(curves[name][-last:]) / last for name in names}}


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
    return sorted({row.chain for row in rows} - {DENSE}, key=_by_number)


def ticket_chains(rows: Sequence[Row]) -> list[str]:
    """The chains that tickets lead, by rewind step."""
    return [chain for chain in chains(rows) if imp.leader(chain) == TICKET]


def arms(rows: Sequence[Row]) -> list[str]:
    """The arms of a table in the order of `ARMS`, any others after them, without the dense network."""
    places = {arm: place for place, arm in enumerate(ARMS)}
    # An arm from outside the package need not be known here: it comes last.
    return sorted({row.arm for row in rows} - {DENSE}, key=lambda arm: (places.get(arm, len(places)), arm))


def _place(cell: Cell) -> tuple[int, tuple[bool, int, str], int, str, int]:
    return (cell.seed, _by_number(cell.chain), cell.level, cell.arm, cell.repeat)


def _by_number(chain: str) -> tuple[bool, int, str]:
    """The key that sorts chains by rewind step, the dense network first."""
    return (imp.leader(chain) not in (TICKET, DENSE), imp.rewind_of(chain) if chain != DENSE else -1, chain)
