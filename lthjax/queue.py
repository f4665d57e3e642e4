"""Training runs that wait, and the results whose consequences are still to be worked out."""

from typing import NamedTuple, Protocol

from lthjax import signals
from lthjax.background import Background
from lthjax.devices import hosts
from lthjax.imp import DENSE, Cell
from lthjax.plan import Prepared
from lthjax.training.job import Job, Position, Trained
from lthjax.training.trainer import Trainer


class Growing(Protocol):
    """The study of an item."""

    prepared: Prepared
    trainer: Trainer

    def lends(self, item: "Item") -> bool:
        """Whether other studies copy the cell of this item."""

    def book(self, item: "Item", trained: Trained) -> None:
        """Queues the items that depend on a training result."""

    def write(self, item: "Item", trained: Trained) -> None:
        """Writes a training result."""

    def save(self, item: "Item", position: Position) -> None:
        """Writes the position of a training run that is under way."""

    def log(self, words: str, *values: object) -> None:
        """Writes to the study's log."""


class Item(NamedTuple):
    """A queued training run: its study, its job, and the cell that it makes (None: only rewind states)."""

    priority: tuple[int, ...]
    run: Growing
    cell: Cell | None
    job: Job

    @property
    def alike(self) -> tuple[int, int, int, int, bool, bool]:
        """The key of items that can share a program."""
        job = self.job
        return id(self.run.trainer), job.start, job.stop, job.at, job.scores is None, job.fitted

    @property
    def named(self) -> Cell:
        """The cell whose training run this is, or the first part of it."""
        return self.cell or Cell(self.job.seed, DENSE, 0, DENSE)


class Queue:
    """Training runs that wait, and results whose consequences are worked out while the devices go on.

    The order is that of studies and levels, in chunks with the same program and step. So the devices stay
    busy whatever the number of seeds and arms. Which runs are trained together does not change any number.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._items: list[Item] = []
        # Results that may still lead to further items.
        self._open = 0

    def add(self, item: Item) -> None:
        """Adds a training run."""
        with self._background.changed:
            self._items.append(item)

    def take(self) -> list[Item]:
        """The next chunk; empty if nothing is left. A chunk is full if there is any prospect of it."""
        with self._background.changed:
            # Several hosts must all take the same chunk, whose background threads are never equally fast.
            at_once = hosts.count() == 1
            self._background.wait(lambda: not self._open or (at_once and self._is_full(self._next())))
            taken = self._next()
            self._items = [item for item in self._items if not any(item is other for other in taken)]
        return taken

    def _next(self) -> list[Item]:
        if not self._items:
            return []
        self._items.sort(key=lambda item: item.priority)
        first = self._items[0]
        return [item for item in self._items if item.alike == first.alike][: first.run.trainer.width]

    @staticmethod
    def _is_full(chunk: list[Item]) -> bool:
        return bool(chunk) and len(chunk) == chunk[0].run.trainer.width

    def finish(self, chunk: list[Item], results: list[Trained]) -> None:
        """Queues what depends on results, and writes them, in the background."""
        pairs = list(zip(chunk, results, strict=True))
        # A study that borrows a dense network copies it from disk.
        waits = any(item.run.lends(item) for item in chunk)

        def book() -> None:
            try:
                for item, trained in pairs:
                    item.run.book(item, trained)
            finally:
                self._close(not waits)

        def write() -> None:
            failures: list[Exception] = []
            try:
                for item, trained in pairs:
                    try:
                        item.run.write(item, trained)
                    except Exception as error:  # of this item: the others are written all the same
                        failures.append(error)
            finally:
                self._close(waits)
            if failures:
                raise failures[0]

        self._close(-1)
        # A signal that comes while there is no room acts once the results are in the queue.
        with signals.delayed():
            self._background.add(book, urgent=True)
            self._background.add(write)

    def _close(self, number: int) -> None:
        with self._background.changed:
            self._open -= number
