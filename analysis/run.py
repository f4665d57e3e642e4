"""A run folder, opened once: rows, masks, weights, states.

In Python:

    from lthjax.analysis import open_run

    run = open_run("runs/quickstart-f91424be")
    cell = run.rows[-1].cell
    run.mask(cell)["conv1"]["kernel"]  # bool array
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lthjax import config, data, home, imp, models, record
from lthjax.arms import ARMS
from lthjax.catalogue import Unreachable
from lthjax.errors import UserError, shell
from lthjax.fields import About, Result
from lthjax.folder import places, verified
from lthjax.folder.places import PUBLISHED
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell
from lthjax.models import Model, Variables
from lthjax.optim import SCHEDULES
from lthjax.rows import names, shipped
from lthjax.study import Prepared, prepare, task

from .rows import (
    COLUMNS,
    TICKET,
    Row,
    by_number,
    cell_of,
    diverged,
    row_of,
    select,
    ticket_chains,
    trained_chains,
)

if TYPE_CHECKING:
    import pandas

PyTree = Any


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
        # A cell's result is written last where folders cannot be renamed; without it the cell is not there.
        there = [path.parent for of in places.PLACES[1:] for path in self.path.glob(f"{of}/result.json")]
        cells = {cell_of(result): result for result in map(verified.read_result, there)}
        return {cell: cells[cell] for cell in sorted(cells, key=_place)}

    @cached_property
    def rows(self) -> list[Row]:
        """The cells in numbers, in the order of `results`.

        Raises:
            UserError: `last` is more than there are evaluations at the last learning rate, or it is
                not known to be constant.
        """
        if self.last == 1:
            return [row_of(result) for result in self.results.values()]
        since = self._constant_from()
        return [row_of(_smoothed(result, self.last, since)) for result in self.results.values()]

    def _constant_from(self) -> int:
        """The step from which on the learning rate does not change."""
        schedule = self.study.optim.schedule
        if schedule not in SCHEDULES:
            raise UserError(
                f"--last: {self.last} is not allowed, as it is not known here whether the learning rate "
                f"changes to the end: its schedule {schedule} {self._unloaded()} Without that it must be 1."
            )
        if SCHEDULES[schedule].falls:
            raise UserError(
                f"--last: {self.last} is not allowed, as the learning rate falls to the end (schedule "
                f"{schedule}); it must be 1."
            )
        return max([self.lengths.warmup, *self.lengths.milestones])

    @cached_property
    def planned(self) -> list[Cell]:
        """The cells last asked for, of all seeds begun, trained or not.

        None where an arm is from outside and not loaded here.
        """
        if any(arm not in ARMS for arm in self.study.arms):
            return []
        every = (*self.study.seeds, *self.other_seeds)
        return imp.cells(dataclasses.replace(self.study, seeds=every), self.lengths)

    @cached_property
    def other_seeds(self) -> list[int]:
        """The seeds that are begun, and that the last command did not ask for: others have trained them."""
        under_way = self.path.glob("seed=*/under-way/*/step=*")
        begun = {int(path.parts[-4].removeprefix("seed=")) for path in under_way}
        return sorted({*begun, *(cell.seed for cell in self.results)} - {*self.study.seeds})

    def finished(self) -> list[Row]:
        """As `rows`; a UserError where there are none yet."""
        if not self.rows:
            raise self.lacks("finished cell")
        return self.rows

    def lacks(self, what: str) -> UserError:
        """The error where there is no such cell: a published folder has the numbers of cells alone."""
        if why := diverged(self.rows):
            return UserError(f"{self.path}: there is no {what} in it, as {why} and run the study again.")
        if not (self.path / PUBLISHED).is_file():
            return UserError(f"{self.path}: there is no {what} in it yet; run the study first.")
        made = next(iter(self.about.get("commands", [])), "the study")
        return UserError(
            f"{self.path}: it is a published folder, which holds tables and no cells; name a run folder, for "
            f"example by running {home.again(made)} first."
        )

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
        self._check_network()
        made = self.about["data"]
        height, width, channels = made["shape"]
        return models.build(self.study.model, (height, width, channels), made["classes"], self.study.init)

    def _check_network(self) -> None:
        if self.study.model not in models.MODELS:
            raise self.not_loaded(f"the network {self.study.model!r}")

    def not_loaded(self, row: str) -> UserError:
        """The error where a row from outside the package is needed, such as the network 'mine'."""
        return UserError(f"{self.path}: {row} {self._unloaded()}")

    def _unloaded(self) -> str:
        """Why a row from outside the package is not loaded, and what to do."""
        there = shell("--config", self.path / places.CONFIG)
        known = (self.path / places.CONFIG).is_file()
        how = f"run again with {there}" if known else "give its file by --config"
        return (
            f"is a row of a config file, which is code and is not run unasked; {how}, or in Python import "
            "the file that adds it."
        )

    def own_config(self) -> list[str]:
        """The option that loads the rows of the run's config file; [] where it adds none or is not there."""
        there = self.path / places.CONFIG
        own = any(not {*used} <= {*shipped(*table)} for table, used in self._used().items())
        return ["--config", str(there)] if own and there.is_file() else []

    def is_loaded(self) -> bool:
        """Whether all rows that the study uses are loaded here, those from outside the package, too."""
        return all({*used} <= {*names(*table)} for table, used in self._used().items())

    def _used(self) -> dict[tuple[str, str], Iterable[str]]:
        """(module, table) of `lthjax.rows` -> the keys that the study has of it."""
        study, of_data = self.study, self.study.data.name
        return {
            # Any other data set is a file of the data folder, or of TFDS.
            ("data", "SOURCES"): [of_data] if of_data in data.SOURCES else [],
            ("models", "MODELS"): [study.model],
            ("models", "INITS"): [study.init],
            ("arms", "ARMS"): study.arms,
            ("criteria", "CRITERIA"): [study.prune.criterion],
            ("optim", "OPTIMISERS"): [study.optim.name],
            ("optim", "SCHEDULES"): [study.optim.schedule],
        }

    def check_arms(self, arms: Iterable[str]) -> None:
        """Raises a UserError for an arm that is from outside the package and not loaded here."""
        for arm in arms:
            if arm not in ARMS and arm != DENSE:
                raise self.not_loaded(f"the arm {arm!r}")

    def tickets(self, chain: str | None = None) -> Tickets:
        """The tickets of a chain; by default of the first, by rewind step, that has a trained ticket.

        Where every ticket diverged, of the first.

        Raises:
            UserError: there is no ticket, or no such chain.
        """
        rows = [row for row in self.rows if row.arm == TICKET]
        if not rows:
            raise self.lacks("ticket")
        there = ticket_chains(rows)
        chain = (trained_chains(rows) or there)[0] if chain is None else chain
        if chain not in there:
            raise UserError(f"--chain: {chain!r} has no ticket in the run; it may be {', '.join(there)}.")
        own = select(rows, chain=chain)
        return Tickets(chain, imp.rewind_of(chain), own, [row for row in own if row.status == "done"])

    def prepared(self, seeds: Iterable[int], data_dir: str | Path) -> Prepared:
        """The run's study with these seeds; its data are those that the run was trained on.

        Raises:
            UserError: the data differ, or cannot be read; the network or an arm of the study is from outside
                the package and not loaded here.
        """
        self._check_network()
        self.check_arms(self.study.arms)
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

    def split_here(self, seed: int, data_dir: str | Path) -> data.Split | None:
        """The split that a seed was trained on; None where its data are not in that folder.

        Nothing is downloaded. Data of another content are not the run's.

        Raises:
            UserError: the data set there cannot be read.
        """
        if not data.is_here(self.study.data.name, data_dir):
            return None
        found = data.load(self.study.data.name, data_dir)
        if found.digest != self.about["data"]["digest"]:
            return None
        return data.split(found, seed, self.study.data.validation)

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
        raise UserError(
            "pandas is not installed; pip install pandas, or use lthjax.analysis.load."
        ) from error
    return pandas.DataFrame(load(path), columns=list(COLUMNS))


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


def _place(cell: Cell) -> tuple[int, tuple[bool, int, str], int, str, int]:
    return (cell.seed, by_number(cell.chain), cell.level, cell.arm, cell.repeat)
