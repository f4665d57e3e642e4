"""A study that grows: results queue further training runs, and are written as cells."""

import logging
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from lthjax import fields, imp, prune, record, rng, supermask
from lthjax.arms import ARMS, versions
from lthjax.errors import UserError
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.follower import Follower
from lthjax.imp import DENSE, Cell, Chain, Leader, Task
from lthjax.inputs import first_batch
from lthjax.models import Variables
from lthjax.plan import Plan, Prepared
from lthjax.queue import Item, Queue
from lthjax.training.job import Job, Position, Trained
from lthjax.training.trainer import Trainer

PyTree = Any
_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Receives the progress of studies. `label` is `Prepared.label`."""

    def begin(self, title: str, plan: Plan) -> None:
        """Called before the first training; the plan covers all studies together."""

    def chunk(self, cells: Sequence[Cell], label: str) -> None:
        """These cells are trained next; the label is that of the first cell's study."""

    def advance(self, steps: int, accuracy: float | None) -> None:
        """So many more replicate steps are done; the mean test accuracy where it was evaluated."""

    def finished(self, cell: Cell, result: fields.Result, label: str) -> None:
        """A cell was written."""

    def end(self) -> None:
        """Called after the last training, or after an interruption."""

    def say(self, text: str) -> None:
        """Shows a line to the user, outside of trainings."""


class Run:
    """One study in a drive: its store, and its chains, which fill the queue.

    A finished dense network starts the chains of its seed; a finished ticket queues the tasks of the next
    level.
    """

    def __init__(
        self,
        number: int,
        prepared: Prepared,
        store: Store | Follower,
        trainer: Trainer,
        queue: Queue,
        watch: Watch | None,
    ) -> None:
        self.prepared, self.trainer = prepared, trainer
        self._number, self._store, self._queue, self._watch = number, store, queue, watch
        self._study, self._lengths = prepared.study, prepared.lengths
        self._chains = imp.chains(self._study, self._lengths)
        self._versions = versions(self._study, prepared.model)
        self._rounds: dict[tuple[int, str], Generator[list[Task], Leader, None]] = {}
        self._initial: dict[int, Variables] = {}
        self._borrowers: list[Run] = []

    def begin(self, lender: "Run") -> None:
        """Queues all tasks that can start; waits for the lender's dense networks if it has a lender."""
        if lender is not self:
            lender._borrowers.append(self)
        for seed in self._study.seeds:
            if lender is self or seed not in lender._study.seeds:
                self._begin_seed(seed)
            elif lender._store.has(Cell(seed, DENSE, 0, DENSE)):
                self._borrow(lender, seed)

    def _borrow(self, lender: "Run", seed: int) -> None:
        """Copies a seed's dense network and rewind states from another study, and starts its chains."""
        if not self._store.has(Cell(seed, DENSE, 0, DENSE)):
            self._store.copy_seed(lender._store, seed)
            self._told(Cell(seed, DENSE, 0, DENSE), self._store.result(Cell(seed, DENSE, 0, DENSE)))
        self._begin_seed(seed)

    def lends(self, item: Item) -> bool:
        """Whether other studies copy the cell of this item."""
        return (
            item.cell is not None
            and item.cell.arm == DENSE
            and any(item.job.seed in borrower._study.seeds for borrower in self._borrowers)
        )

    def log(self, words: str, *values: object) -> None:
        """Writes to this study's log."""
        _log.info(words, *values, extra={"folder": self.prepared.folder})

    def _say(self, text: str) -> None:
        self.log("%s", text)
        if self._watch is not None:
            self._watch.say(text)

    def _told(self, cell: Cell, result: fields.Result) -> None:
        self.log("%s: %s", record.describe(cell), record.outcome(result))
        if self._watch is not None:
            self._watch.finished(cell, result, self.prepared.label)

    def _begin_seed(self, seed: int) -> None:
        initial = jax.device_get(self.prepared.model.init(rng.stream(seed, "init")))
        self._initial[seed] = initial
        if not self._store.has_state(seed, 0):
            self._store.write_state(seed, 0, initial)
        dense = Cell(seed, DENSE, 0, DENSE)
        states = tuple(k for k in self._lengths.rewind if not self._store.has_state(seed, k))
        present = self._store.has(dense)
        if present:
            result = self._store.result(dense)
            if not states or result["status"] == "diverged":
                self._begin_chains(seed, result["status"], None, {})
                return
        # A missing rewind state is made by replaying the first steps of the dense training.
        stop = max(states) if present else self._lengths.total
        mask = jax.device_get(prune.ones(initial.params))
        job = Job(seed, 0, 0, stop, initial, mask, states, draws=not present)
        job = self._resumed(dense, job)
        self._queue.add(Item((self._number, 0, 0, 0, seed), self, None if present else dense, job))

    def _resumed(self, cell: Cell, job: Job) -> Job:
        """The job, from the position that was saved when it was interrupted."""
        try:
            position = self._store.position(cell)
        except UserError as error:
            self._say(f"{error} The training of {record.describe(cell)} begins anew.")
            self._store.drop_position(cell)  # or it would not be saved again at this step
            return job
        # Earlier versions saved positions at the start, too; whoever begins there has none, and is trained
        # beside others that have none.
        if position is None or not job.start < position.at <= job.stop:
            return job
        if any(k <= position.at and k not in position.states for k in job.captures):
            self._store.drop_position(cell)  # from before this rewind state was asked for; as above
            return job
        self.log("%s goes on from step %d", record.describe(cell), position.at)
        every, known = self.trainer.log_every, position.curves
        if every and known.get("loss_step") != [s for s in range(job.start, position.at) if s % every == 0]:
            self.log("%s began with another train.log_every; its loss is not logged", record.describe(cell))
            kept = {name: curve for name, curve in known.items() if name not in ("loss_step", "loss")}
            position = position._replace(curves=kept)
        return job._replace(position=position)

    def _begin_chains(
        self, seed: int, status: str, dense: Leader | None, states: Mapping[int, Variables]
    ) -> None:
        """Starts every chain of a seed at the first level that is not complete.

        Args:
            seed: the seed.
            status: of its dense network.
            dense: its dense network, if it has just been trained.
            states: its rewind states that have just been captured.
        """
        for chain in self._chains:
            parent, leader, state = Cell(seed, DENSE, 0, DENSE), dense, status
            for level in range(1, self._study.levels + 1):
                if state == "diverged":
                    break
                cells = imp.cells_at(self._study, seed, chain, level)
                if all(self._store.has(cell) for cell in cells):
                    parent, leader, state = cells[0], None, self._store.result(cells[0])["status"]
                    continue
                origin = states.get(chain.rewind)
                self._rounds[seed, chain.name] = imp.rounds(
                    self._study,
                    self._lengths,
                    chain,
                    seed,
                    self.prepared.model,
                    self._initial[seed],
                    self._store.state(seed, chain.rewind) if origin is None else origin,
                    self._ticket(parent) if leader is None else leader,
                    first_batch(self.prepared, self.trainer.splits[seed], seed),
                    level,
                )
                self._next_level(seed, chain, None)
                break

    def _ticket(self, cell: Cell) -> Leader:
        """A trained ticket, or the dense network, from the store."""
        return Leader(self._store.mask(cell), *self._store.variables(cell))

    def _next_level(self, seed: int, chain: Chain, ticket: Leader | None) -> None:
        """Queues a chain's next level; skips levels whose tickets are in the store."""
        rounds = self._rounds[seed, chain.name]
        while True:
            try:
                tasks = next(rounds) if ticket is None else rounds.send(ticket)
            except StopIteration:
                return
            for place, task in enumerate(tasks):
                if not self._store.has(task.cell):
                    self._queue.add(self._item(chain, task, place))
            first = tasks[0].cell
            if not self._store.has(first) or self._store.result(first)["status"] == "diverged":
                return
            ticket = self._ticket(first)

    def _item(self, chain: Chain, task: Task, place: int) -> Item:
        cell = task.cell
        job = Job(
            *(cell.seed, cell.level, task.start, task.stop, task.variables, task.mask),
            held=task.held,
            scores=task.scores,
            fitted=not ARMS[cell.arm].train,
        )
        order = (self._number, cell.level, int(place > 0), self._chains.index(chain), cell.seed, place)
        return Item(order, self, cell, self._resumed(cell, job))

    def book(self, item: Item, trained: Trained) -> None:
        """Queues the tasks that depend on a training result."""
        cell, leader = item.cell, Leader(_mask(item.job, trained), *trained.variables)
        if cell is None:
            # Only the rewind states are new.
            self._begin_chains(item.job.seed, "done", None, trained.states)
        elif cell.arm == DENSE:
            self._begin_chains(item.job.seed, trained.status, leader, trained.states)
        else:
            chain = next(c for c in self._chains if c.name == cell.chain)
            if cell.arm == chain.leader and trained.status == "done":
                self._next_level(item.job.seed, chain, leader)

    def write(self, item: Item, trained: Trained) -> None:
        """Writes a training result, and lends it to the studies that wait for it."""
        seed, cell = item.job.seed, item.cell
        for step, variables in trained.states.items():
            if not self._store.has_state(seed, step):
                self._store.write_state(seed, step, variables)
        if cell is not None:
            made_from = self._made_from(cell, item.job)
            job, done = item.job._replace(mask=_mask(item.job, trained)), trained.status == "done"
            result = record.result(cell, job, trained, made_from)
            if cell.arm in self._versions:
                result["version"] = self._versions[cell.arm]
            parents = _parents(seed, made_from)
            self._store.write(cell, result, job.mask, trained.variables if done else None, parents)
            self._told(cell, result)
        self._store.drop_position(item.named)
        if self.lends(item):
            for borrower in self._borrowers:
                if seed in borrower._study.seeds:
                    borrower._borrow(self, seed)

    def save(self, item: Item, position: Position) -> None:
        """Writes the position of a training run that is under way."""
        parents = _parents(item.job.seed, self._made_from(item.named, item.job))
        self._store.write_position(item.named, position, parents)
        self.log("%s saved at step %d", record.describe(item.named), position.at)

    def _made_from(self, cell: Cell, job: Job) -> dict[str, Any] | None:
        """The sources of a cell's mask and weights; None for the dense network."""
        if cell.arm == DENSE:
            return None
        chain = next(c for c in self._chains if c.name == cell.chain)
        parent, arm = str(folder(Path(), imp.parent_of(cell))), ARMS[cell.arm]
        state = str(state_folder(Path(), cell.seed, job.start))
        structured = self._study.prune.granularity != "weight"
        return {
            "parent": parent,
            "origin": parent if arm.final else state if arm.start == "rewind" else "fresh weights",
            "criterion": chain.criterion,
            "scope": self._study.prune.scope,
            **({"granularity": self._study.prune.granularity} if structured else {}),
            **imp.schedule_at(self._study, cell.level),
        }


def _mask(job: Job, trained: Trained) -> PyTree:
    """The mask of a finished training: the one that it was given, or that it has learned."""
    if job.scores is None or trained.status != "done":
        return job.mask
    return jax.device_get(supermask.learned(trained.variables.params, job.mask))


def _parents(seed: int, made_from: dict[str, Any] | None) -> list[Path]:
    """The folders in the run that a cell was made from."""
    if made_from is None:
        return [state_folder(Path(), seed, 0)]
    named = [Path(made_from[name]) for name in ("parent", "origin")]
    return [path for path in named if path.parts[0] == f"seed={seed}"]
