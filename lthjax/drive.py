"""Trains the missing cells of studies: a queue that all of them fill, results written in the background.

A finished dense network starts the chains of its seed; a finished ticket queues the cells of the next level.
"""

import logging
import zlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import data, fields, home, imp, optim, prune, record, rng, settings, supermask, train
from lthjax.arms import ARMS, Context
from lthjax.background import Background
from lthjax.devices import hardware, hosts, replicate
from lthjax.errors import UserError
from lthjax.follower import Follower
from lthjax.imp import DENSE, Cell, Chain, Leader, Task
from lthjax.models import Variables
from lthjax.plan import Plan, Prepared, lenders
from lthjax.store import Reader, Store, folder, state_folder

_log = logging.getLogger(__name__)
# Chunks of results and saved positions that may wait for the disk.
_CHUNKS_WAITING = 4


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


@settings.pinned()
def make_trainer(studies: Sequence[Prepared], chunk: int | None, seeds: Iterable[int]) -> train.Trainer:
    """The compiled programs of studies that differ only in pruning.

    Args:
        studies: the studies.
        chunk: replicates in a program, or None.
        seeds: the seeds to train.
    """
    prepared = studies[0]
    study = prepared.study
    widest = sum(
        len(one.study.seeds)
        * max(1, sum(len(imp.cells_at(one.study, 0, c, 1)) for c in imp.chains(one.study, one.lengths)))
        for one in studies
    )
    mesh = replicate.mesh(widest)
    return train.make(
        prepared.model,
        optim.make(study.optim, prepared.lengths),
        prepared.lengths,
        prepared.dataset,
        data.splits(prepared.dataset, seeds, study.data.validation),
        batch=study.train.batch,
        augment=study.data.augment,
        precision=study.train.precision,
        log_every=study.train.log_every,
        mesh=mesh,
        width=replicate.width(mesh, widest, chunk),
    )


@settings.pinned()
def first_batch(prepared: Prepared, split: data.Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first batch of a seed's dense network, on which criteria compute gradients."""
    images, labels = first_batches(prepared, split, seed, 1)
    return images[0], labels[0]


@settings.pinned()
def first_batches(
    prepared: Prepared, split: data.Split, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first batches of a seed's dense network: float32 [count, B, H, W, C], normalised, and labels.

    Args:
        prepared: the study.
        split: the seed's split.
        seed: the seed.
        count: number of batches, at most those of one epoch.
    """
    dataset = prepared.dataset
    index = train.order(split.train, prepared.lengths, prepared.study.train.batch, seed, 0, 0, count)
    images = jnp.asarray(dataset.train_images[index.ravel()])
    scaled = data.gather(images, jnp.arange(index.size), jnp.asarray(split.mean), jnp.asarray(split.std))
    return np.asarray(scaled).reshape(*index.shape, *dataset.shape), dataset.train_labels[index]


@settings.pinned()
def task(prepared: Prepared, run: Reader, cell: Cell) -> Task:
    """The training inputs of a cell: start weights, mask, first and last step.

    Masks and rewind states are read from the folder; fresh weights are drawn again from the cell's own random
    stream. The criterion's scores are left out, as only the making of masks needs them.

    Args:
        prepared: the run's study.
        run: its folder; the cell, its ticket and all that they were made from are done.
        cell: a cell of any seed, chain, level and arm.

    Raises:
        UserError: one of these is missing or cannot be read.
    """
    initial, total = run.state(cell.seed, 0), prepared.lengths.total
    if cell.arm == DENSE:
        return Task(cell, 0, total, initial, run.mask(cell))
    chain = imp.chain_of(prepared.study, cell.chain)
    origin = run.state(cell.seed, chain.rewind)
    ticket = Cell(cell.seed, cell.chain, cell.level, chain.leader)
    parent = imp.parent_of(cell)
    trained = run.variables(parent)
    context = Context(
        imp.key_of(cell),
        lambda key: prepared.model.init(key).params,
        origin.params,
        trained.params,
        run.mask(parent),
        run.mask(ticket),
        scores=None,
    )
    stats = imp.Statistics(initial.stats, origin.stats, trained.stats)
    return imp.task(cell, chain, total, context, run.mask(cell), stats)


def drive(
    studies: Sequence[Prepared],
    stores: Sequence[Store | Follower],
    watch: Watch | None,
    chunk: int | None,
    checkpoint_seconds: float,
) -> None:
    """Trains one queue that all studies fill."""
    _log.info("lthjax on %s, %s", hardware.described(), home.typed())
    trainers: dict[str, train.Trainer] = {}
    for one in studies:
        if one.training not in trainers:
            alike = [other for other in studies if other.training == one.training]
            seeds = dict.fromkeys(seed for other in alike for seed in other.study.seeds)
            trainers[one.training] = make_trainer(alike, chunk, seeds)
    with Background(waiting=_CHUNKS_WAITING) as background:
        queue = _Queue(background)

        def advance(steps: int, accuracy: float | None) -> None:
            background.check()
            if watch is not None:
                watch.advance(steps, accuracy)

        runs = [
            Run(number, one, store, trainers[one.training], queue, watch)
            for number, (one, store) in enumerate(zip(studies, stores, strict=True))
        ]
        for lender, run in zip(lenders(studies), runs, strict=True):
            run.begin(next(other for other in runs if other.prepared is lender))
        while taken := queue.take():
            _check_alike(taken)
            if watch is not None:
                watch.chunk([item.named for item in taken], taken[0].run.prepared.label)
            for item in taken:
                item.run.log("training %s", record.describe(item.named))
            keep = train.Checkpoints(checkpoint_seconds, partial(_save, background, taken))
            jobs = [item.job for item in taken]
            trained = train.train(taken[0].run.trainer, jobs, advance, keep if checkpoint_seconds else None)
            queue.finish(taken, trained)


def _check_alike(chunk: Sequence["_Item"]) -> None:
    """Checks that all hosts of a program train the same chunk, from masks of the same bits.

    Raises:
        UserError: they do not.
    """
    if hosts.count() > 1:
        told = {"variables": None, "mask": None, "position": None, "scores": None}
        jobs = [item.job._replace(**told) for item in chunk]  # type: ignore[arg-type]
        bits = [zlib.crc32(np.asarray(m).tobytes()) for item in chunk for m in jax.tree.leaves(item.job.mask)]
        hosts.alike(
            (jobs, bits, [(item.priority, item.job.at) for item in chunk]),
            f"it would train another mask for {record.describe(chunk[0].named)}; take machines of one kind, "
            "with the same versions, environment variables and files.",
        )


class _Item(NamedTuple):
    """A queued training run: its study, its job, and the cell that it makes (None: only rewind states)."""

    priority: tuple[int, ...]
    run: "Run"
    cell: Cell | None
    job: train.Job

    @property
    def alike(self) -> tuple[int, int, int, int, bool]:
        """The key of items that can share a program."""
        job = self.job
        return id(self.run.trainer), job.start, job.stop, job.at, job.scores is None

    @property
    def named(self) -> Cell:
        """The cell whose training run this is, or the first part of it."""
        return self.cell or Cell(self.job.seed, DENSE, 0, DENSE)


class _Queue:
    """Training runs that wait, and results whose consequences are worked out while the devices go on.

    The order is that of studies and levels, in chunks with the same program and step. So the devices stay
    busy whatever the number of seeds and arms. Which runs are trained together does not change any number.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._items: list[_Item] = []
        # Results that may still lead to further items.
        self._open = 0

    def add(self, item: _Item) -> None:
        """Adds a training run."""
        with self._background.changed:
            self._items.append(item)

    def take(self) -> list[_Item]:
        """The next chunk; empty if nothing is left. A chunk is full if there is any prospect of it."""
        with self._background.changed:
            # Several hosts must all take the same chunk, whose background threads are never equally fast.
            at_once = hosts.count() == 1
            self._background.wait(lambda: not self._open or (at_once and self._is_full(self._next())))
            taken = self._next()
            self._items = [item for item in self._items if not any(item is other for other in taken)]
        return taken

    def _next(self) -> list[_Item]:
        if not self._items:
            return []
        self._items.sort(key=lambda item: item.priority)
        first = self._items[0]
        return [item for item in self._items if item.alike == first.alike][: first.run.trainer.width]

    @staticmethod
    def _is_full(chunk: list[_Item]) -> bool:
        return bool(chunk) and len(chunk) == chunk[0].run.trainer.width

    def finish(self, chunk: list[_Item], results: list[train.Trained]) -> None:
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
            try:
                for item, trained in pairs:
                    item.run.write(item, trained)
            finally:
                self._close(waits)

        self._close(-1)
        self._background.add(book, urgent=True)
        self._background.add(write)

    def _close(self, number: int) -> None:
        with self._background.changed:
            self._open -= number


def _save(background: Background, chunk: list[_Item], i: int, position: train.Position) -> None:
    item = chunk[i]
    background.add(partial(item.run.save, item, position))


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
        trainer: train.Trainer,
        queue: _Queue,
        watch: Watch | None,
    ) -> None:
        self.prepared, self.trainer = prepared, trainer
        self._number, self._store, self._queue, self._watch = number, store, queue, watch
        self._study, self._lengths = prepared.study, prepared.lengths
        self._chains = imp.chains(self._study, self._lengths)
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

    def lends(self, item: _Item) -> bool:
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
        job = self._resumed(dense, train.Job(seed, 0, 0, stop, initial, mask, states))
        self._queue.add(_Item((self._number, 0, 0, 0, seed), self, None if present else dense, job))

    def _resumed(self, cell: Cell, job: train.Job) -> train.Job:
        """The job, from the position that was saved when it was interrupted."""
        try:
            position = self._store.position(cell)
        except UserError as error:
            self._say(f"{error} The training of {record.describe(cell)} begins anew.")
            return job
        if position is None or not job.start <= position.at <= job.stop:
            return job
        if any(k <= position.at and k not in position.states for k in job.captures):
            return job  # it was saved before this rewind state was asked for
        self.log("%s goes on from step %d", record.describe(cell), position.at)
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

    def _item(self, chain: Chain, task: Task, place: int) -> _Item:
        cell = task.cell
        job = train.Job(
            *(cell.seed, cell.level, task.start, task.stop, task.variables, task.mask),
            held=task.held,
            scores=task.scores,
        )
        order = (self._number, cell.level, int(place > 0), self._chains.index(chain), cell.seed, place)
        return _Item(order, self, cell, self._resumed(cell, job))

    def book(self, item: _Item, trained: train.Trained) -> None:
        """Queues the tasks that depend on a training result."""
        cell, leader = item.cell, Leader(item.job.mask, *trained.variables)
        if cell is None:
            # Only the rewind states are new.
            self._begin_chains(item.job.seed, "done", None, trained.states)
        elif cell.arm == DENSE:
            self._begin_chains(item.job.seed, trained.status, leader, trained.states)
        else:
            chain = next(c for c in self._chains if c.name == cell.chain)
            if cell.arm == chain.leader and trained.status == "done":
                self._next_level(item.job.seed, chain, leader)

    def write(self, item: _Item, trained: train.Trained) -> None:
        """Writes a training result, and lends it to the studies that wait for it."""
        seed, cell = item.job.seed, item.cell
        for step, variables in trained.states.items():
            if not self._store.has_state(seed, step):
                self._store.write_state(seed, step, variables)
        if cell is not None:
            made_from = self._made_from(cell, item.job)
            job, done = item.job, trained.status == "done"
            if job.scores is not None and done:
                job = job._replace(mask=jax.device_get(supermask.learned(trained.variables.params, job.mask)))
            result = record.result(cell, job, trained, made_from)
            parents = _parents(seed, made_from)
            self._store.write(cell, result, job.mask, trained.variables if done else None, parents)
            self._told(cell, result)
        self._store.drop_position(item.named)
        if self.lends(item):
            for borrower in self._borrowers:
                if seed in borrower._study.seeds:
                    borrower._borrow(self, seed)

    def save(self, item: _Item, position: train.Position) -> None:
        """Writes the position of a training run that is under way."""
        parents = _parents(item.job.seed, self._made_from(item.named, item.job))
        self._store.write_position(item.named, position, parents)
        self.log("%s saved at step %d", record.describe(item.named), position.at)

    def _made_from(self, cell: Cell, job: train.Job) -> dict[str, Any] | None:
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


def _parents(seed: int, made_from: dict[str, Any] | None) -> list[Path]:
    """The folders in the run that a cell was made from."""
    if made_from is None:
        return [state_folder(Path(), seed, 0)]
    named = [Path(made_from[name]) for name in ("parent", "origin")]
    return [path for path in named if path.parts[0] == f"seed={seed}"]
