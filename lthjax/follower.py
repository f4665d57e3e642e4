"""The store of a process that leaves writing to process 0 of its program (`lthjax.devices.hosts`)."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lthjax import fields
from lthjax.folder.places import folder, state_folder
from lthjax.folder.reader import Reader
from lthjax.folder.store import contents
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.training.job import Position

PyTree = Any


class Follower(Reader):
    """A run folder with the face of `Store`, to which nothing is written: what would be is remembered.

    So its answers do not depend on when process 0 writes, or on when a shared disk shows that: they are those
    of the folder at the start, and of what was trained since. Weights are kept of dense networks and rewind
    states only, for other studies of the sweep and for chains, which ask for no others.

    Args:
        path: the folder; need not exist.
        seeds: the seeds of the study that this program trains.

    Attributes:
        seeds: as given.
    """

    def __init__(self, path: Path, seeds: Collection[int]) -> None:
        """Looks at what is there."""
        super().__init__(path)
        self.seeds = list(seeds)
        self._there = {*contents(path, seeds)}
        self._results: dict[Cell, fields.Result] = {}
        self._dense: dict[Cell, tuple[PyTree, Variables]] = {}
        self._states: dict[tuple[int, int], Variables] = {}

    def has(self, cell: Cell) -> bool:
        """As of `Reader`."""
        return cell in self._results or folder(Path(), cell).as_posix() in self._there

    def has_state(self, seed: int, step: int) -> bool:
        """As of `Reader`."""
        return (seed, step) in self._states or state_folder(Path(), seed, step).as_posix() in self._there

    def result(self, cell: Cell) -> fields.Result:
        """As of `Reader`."""
        return self._results[cell] if cell in self._results else super().result(cell)

    def mask(self, cell: Cell) -> PyTree:
        """As of `Reader`."""
        return self._dense[cell][0] if cell in self._dense else super().mask(cell)

    def variables(self, cell: Cell) -> Variables:
        """As of `Reader`."""
        return self._dense[cell][1] if cell in self._dense else super().variables(cell)

    def state(self, seed: int, step: int) -> Variables:
        """As of `Reader`."""
        known = self._states.get((seed, step))
        return super().state(seed, step) if known is None else known

    def write(
        self,
        cell: Cell,
        result: fields.Result,
        mask: PyTree,
        variables: Variables | None,
        parents: Iterable[Path] = (),
    ) -> None:
        """Remembers a cell."""
        self._results[cell] = result
        if cell.arm == DENSE and variables is not None:
            self._dense[cell] = mask, variables

    def write_state(self, seed: int, step: int, variables: Variables) -> None:
        """Remembers a rewind state."""
        self._states[seed, step] = variables

    def write_position(self, cell: Cell, position: Position, parents: Iterable[Path]) -> None:
        """Does nothing."""

    def drop_position(self, cell: Cell) -> None:
        """Does nothing."""

    def copy_seed(self, other: Reader, seed: int) -> None:
        """Remembers the missing dense network and rewind states of a seed of another folder."""
        assert isinstance(other, Follower), "all stores of one process are of one kind"
        cell = Cell(seed, DENSE, 0, DENSE)
        if not self.has(cell):
            result = other.result(cell)
            self._results[cell] = result
            if result["status"] == "done":
                self._dense[cell] = other.mask(cell), other.variables(cell)
        for step in other.steps(seed):
            if not self.has_state(seed, step):
                self.write_state(seed, step, other.state(seed, step))

    def steps(self, seed: int) -> list[int]:
        """The steps of a seed's rewind states."""
        first = f"seed={seed}/state="
        there = [int(place.removeprefix(first)) for place in self._there if place.startswith(first)]
        return sorted({*there, *(step for of, step in self._states if of == seed)})
