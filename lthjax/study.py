"""Runs a study, from config to run folder: plans the cells, trains missing cells, writes each cell once.

from lthjax import config, study

prepared = study.prepare(config.load("configs/quickstart.py"))
run_folder = study.run(prepared, "runs")
"""

import contextlib
import dataclasses
import logging
import re
import sys
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import config, data, fields, imp, models, optim, prune, record, rng, settings, sweep, train
from lthjax.arms import ARMS, Context
from lthjax.background import Background
from lthjax.bucket import Bucket, SharedStore
from lthjax.devices import replicate
from lthjax.errors import UserError, check_folder, shell
from lthjax.imp import DENSE, Cell, Chain, Leader, Task
from lthjax.locks import Held
from lthjax.models import Model, Variables
from lthjax.store import (
    Reader,
    Store,
    busy_seeds,
    check_identity,
    folder,
    read_result,
    saved_step,
    state_folder,
)

_log = logging.getLogger(__name__)
# Chunks of results and saved positions that may wait for the disk.
_CHUNKS_WAITING = 4
CHECKPOINT_SECONDS = 300.0


class Prepared(NamedTuple):
    """A study that has been checked against its data.

    Attributes:
        study: the config.
        dataset: its images.
        lengths: its durations in steps.
        model: its network.
        identity: the settings that its numbers depend on, by name.
        label: distinguishes it from the other studies of a sweep; "" for a single study.
    """

    study: config.Study
    dataset: data.Dataset
    lengths: config.Lengths
    model: Model
    identity: dict[str, Any]
    label: str = ""

    @property
    def folder(self) -> str:
        """The name of the run folder."""
        return f"{self.study.name}-{config.fingerprint(self.identity)}"

    @property
    def training(self) -> str:
        """The fingerprint of all settings but pruning: equal fingerprints mean equal dense networks."""
        pruning = ("levels", "prune.")
        return config.fingerprint({k: v for k, v in self.identity.items() if not k.startswith(pruning)})


class Plan(NamedTuple):
    """The cells of a study, and those still to train.

    Attributes:
        cells: all cells of the study.
        done: cells in the run folder.
        missing: cells not in the run folder, except those after a diverged training run.
        steps: replicate steps that the missing cells take.
        seeds: the seeds that have something to train.
    """

    cells: list[Cell]
    done: list[Cell]
    missing: list[Cell]
    steps: int
    seeds: tuple[int, ...] = ()


class Filled(NamedTuple):
    """What one process has done for its studies.

    Attributes:
        runs: the run folders, in the order of the studies.
        others: seeds of these folders that other processes still train, where this one has trained some, too.
            The last process to end finds none here.
    """

    runs: list[Path]
    others: list[int]


class Estimate(NamedTuple):
    """The cost of a study on this machine, measured by training a few steps.

    Attributes:
        seconds: for all missing cells, compilation included.
        step_seconds: one step of one replicate, with all devices busy.
        bytes: memory of data and programs.
    """

    seconds: float
    step_seconds: float
    bytes: int


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


def prepare(study: config.Study, data_dir: str | Path = "data") -> Prepared:
    """Validates a study, loads its data, and resolves the settings that depend on them.

    Args:
        study: the config.
        data_dir: the data folder.

    Raises:
        UserError: something in the config is not allowed or does not fit the data.
    """
    return prepare_all([study], data_dir)[0]


@settings.pinned()
def prepare_all(studies: Sequence[config.Study], data_dir: str | Path = "data") -> list[Prepared]:
    """Prepares the studies of a sweep; each data set is loaded once.

    Args:
        studies: the configs.
        data_dir: the data folder.

    Raises:
        UserError: as for `prepare`; or two of them would fill the same folder.
    """
    replicate.use_all_cores()
    for study in studies:
        config.validate(study)
    datasets = {
        name: data.load(name, data_dir) for name in dict.fromkeys(study.data.name for study in studies)
    }
    prepared = [
        _prepare(study, datasets[study.data.name], label)
        for study, label in zip(studies, sweep.labels(studies), strict=True)
    ]
    first: dict[str, int] = {}
    for number, one in enumerate(prepared, 1):
        same = first.setdefault(one.folder, number)
        if same != number:
            raise UserError(
                f"configs: studies {same} and {number} differ in nothing that changes a number, and would "
                f"share the folder {one.folder}; leave one out, or make them one with more seeds, levels or "
                "arms."
            )
    return prepared


def _prepare(study: config.Study, dataset: data.Dataset, label: str) -> Prepared:
    lengths = config.lengths(study, len(dataset.train_images) - study.data.validation)
    model = models.build(study.model, dataset.shape, dataset.classes)
    _check_rates(study, model)
    identity = config.identity(study, lengths, dataset.digest)
    return Prepared(study, dataset, lengths, model, identity, label)


def _check_rates(study: config.Study, model: Model) -> None:
    """Raises for a pruning rate whose pattern matches no weight: a typo, or a name of another model."""
    mask = prune.ones(jax.eval_shape(model.init, jax.random.key(0)).params)
    leaves = zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
    weights = [path for path, leaf in leaves if leaf.ndim]
    if isinstance(study.prune.rate, tuple):
        for pattern, _ in study.prune.rate:
            if not any(re.search(pattern, path) for path in weights):
                raise UserError(
                    f"prune.rate: {pattern!r} matches no weight of {study.model}; its weights are "
                    f"{', '.join(weights)}."
                )


def plan(
    prepared: Prepared,
    out: str | Path = "runs",
    lent: Mapping[int, Iterable[int]] | None = None,
) -> Plan:
    """The cells of a study, and those missing from its run folder.

    Args:
        prepared: the study.
        out: the folder of run folders.
        lent: seeds whose dense network is copied from another study of the sweep, with the rewind
            states that are copied with it.

    Raises:
        UserError: the folder belongs to another config.
    """
    lent = lent or {}
    check_folder(out, "--out")
    run = Path(out) / prepared.folder
    check_identity(run, prepared.identity)
    todo = {seed: _missing(prepared, run, seed, lent.get(seed)) for seed in prepared.study.seeds}
    cells = imp.cells(prepared.study, prepared.lengths)
    return Plan(
        cells,
        [cell for cell in cells if _there(folder(run, cell))],
        [cell for missing, _ in todo.values() for cell in missing],
        sum(steps for _, steps in todo.values()),
        tuple(seed for seed, (missing, steps) in todo.items() if missing or steps),
    )


def _missing(prepared: Prepared, run: Path, seed: int, lent: Iterable[int] | None) -> tuple[list[Cell], int]:
    """The missing cells of a seed, and the steps that they take.

    `lent` has the rewind states that are copied with a dense network from another study, or is None.
    """
    study, lengths = prepared.study, prepared.lengths
    dense = Cell(seed, DENSE, 0, DENSE)
    coming = () if lent is None else tuple(lent)
    needed = [k for k in lengths.rewind if k not in coming and not _there(state_folder(run, seed, k))]
    missing: list[Cell] = []
    if not _there(folder(run, dense)):
        missing.append(dense)
        whole = lengths.total if lent is None else max(needed, default=0)
        steps = max(whole - saved_step(run, dense), 0)
    elif _diverged(run, dense):
        return [], 0
    else:
        steps = max(needed, default=0)
    for chain in imp.chains(study, lengths):
        for level in range(1, study.levels + 1):
            absent = [
                cell for cell in imp.cells_at(study, seed, chain, level) if not _there(folder(run, cell))
            ]
            missing += absent
            for cell in absent:
                start, stop = imp.span_of(cell, chain, lengths.total)
                steps += stop - max(start, saved_step(run, cell))
            leader = Cell(seed, chain.name, level, chain.leader)
            if leader not in absent and _diverged(run, leader):
                break
    return missing, steps


def plan_all(studies: Sequence[Prepared], out: str | Path = "runs") -> list[Plan]:
    """The plans of a sweep's studies. A dense network that several studies share is trained once."""
    plans = []
    for lender, one in zip(_lenders(studies), studies, strict=True):
        lent = {} if lender is one else dict.fromkeys(lender.study.seeds, lender.lengths.rewind)
        plans.append(plan(one, out, lent))
    return plans


def together(plans: Sequence[Plan]) -> Plan:
    """Merges several plans into one."""
    return Plan(
        [cell for one in plans for cell in one.cells],
        [cell for one in plans for cell in one.done],
        [cell for one in plans for cell in one.missing],
        sum(one.steps for one in plans),
        tuple(dict.fromkeys(seed for one in plans for seed in one.seeds)),
    )


def shard(studies: Sequence[Prepared], number: int, of: int) -> list[int]:
    """The seeds of one shard: every `of`-th seed of the studies, from the `number`-th on.

    Args:
        studies: the studies of a sweep, or a single one.
        number: the shard, from 1.
        of: the number of shards.

    Raises:
        UserError: there is no such shard, or there are more shards than seeds.
    """
    seeds = list(dict.fromkeys(seed for one in studies for seed in one.study.seeds))
    if not 1 <= number <= of:
        raise UserError(f"--shard: {number}/{of} is not allowed; it must be i/n with i from 1 to n.")
    if of > len(seeds):
        count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        raise UserError(f"--shard: {number}/{of} is not allowed; {count} make at most as many shards.")
    return seeds[number - 1 :: of]


def narrowed(studies: Sequence[Prepared], seeds: Collection[int]) -> list[Prepared]:
    """The studies with those of their seeds that are among `seeds`, without those that have none."""
    own = [tuple(seed for seed in one.study.seeds if seed in seeds) for one in studies]
    return [
        one._replace(study=dataclasses.replace(one.study, seeds=of))
        for one, of in zip(studies, own, strict=True)
        if of
    ]


def _lenders(studies: Sequence[Prepared]) -> list[Prepared]:
    """For every study, the first study with the same dense networks: itself, or its lender."""
    first: dict[str, Prepared] = {}
    return [first.setdefault(one.training, one) for one in studies]


def run(
    prepared: Prepared,
    out: str | Path = "runs",
    *,
    watch: Watch | None = None,
    chunk: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Path:
    """Trains the cells that are missing from the study's run folder.

    It may be stopped at any time: finished cells stay, and the same call continues from there.

    Args:
        prepared: the study.
        out: the folder of run folders.
        watch: receives the progress.
        chunk: replicates trained in one program; on CPU by default the number of cores.
        checkpoint_seconds: time between two saves of a training run under way, from which the same call goes
            on after a stop; 0 for none.

    Returns:
        The run folder.

    Raises:
        UserError: the run folder cannot be written, belongs to another config, or is in use.
    """
    every = checkpoint_seconds
    return run_all([prepared], out, watch=watch, chunk=chunk, checkpoint_seconds=every)[0]


def run_all(
    studies: Sequence[Prepared],
    out: str | Path = "runs",
    *,
    watch: Watch | None = None,
    chunk: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[Path]:
    """Trains the missing cells of a sweep, as `run` does for one study.

    Studies that differ only in pruning share their dense networks: those of the first study are copied to
    the others, bit for bit equal to training them there.

    Args:
        studies: the result of one `prepare_all`.
        out: as for `run`.
        watch: as for `run`.
        chunk: as for `run`.
        checkpoint_seconds: as for `run`.

    Returns:
        The run folders, in the order of the studies.

    Raises:
        UserError: as for `run`.
    """
    return fill(studies, out, watch=watch, chunk=chunk, checkpoint_seconds=checkpoint_seconds).runs


@settings.pinned()
def fill(
    studies: Sequence[Prepared],
    out: str | Path = "runs",
    *,
    seeds: Collection[int] | None = None,
    watch: Watch | None = None,
    chunk: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    bucket: Bucket | None = None,
) -> Filled:
    """Trains what is missing of some seeds of a sweep, beside other processes that train others.

    Seeds that another process trains are left to it; a seed is trained in all studies by one process.

    Args:
        studies: the result of one `prepare_all`.
        out: as for `run`.
        seeds: the seeds to train, by default all.
        watch: as for `run`.
        chunk: as for `run`.
        checkpoint_seconds: as for `run`.
        bucket: where the cells are copied to and from; `out` is its local copy then.

    Raises:
        UserError: as for `run`; other processes train all these seeds.
    """
    paths = [Path(out) / one.folder for one in studies]
    todo = together(plan_all(studies if seeds is None else narrowed(studies, seeds), out))
    if bucket is not None:
        unsent = {place.partition("/")[0] for path in paths for place in bucket.unsent(path.name)}
        asked = dict.fromkeys(seed for one in studies for seed in one.study.seeds)
        due = [seed for seed in asked if seed in todo.seeds or f"seed={seed}" in unsent]
        todo = todo._replace(seeds=tuple(seed for seed in due if seeds is None or seed in seeds))
    if not todo.seeds:
        return Filled(paths, [])
    for path in paths:
        record.warn_of_environment(path)
    with contextlib.ExitStack() as stack:
        own, stores = _opened(studies, out, todo.seeds, stack, bucket)
        for store in stores:
            stack.enter_context(record.logged(store.path))
        free = {seed for one in own for seed in one.study.seeds}
        # Planned again under the locks: another process may just have finished.
        now = together(plan_all(own, out))
        todo = todo._replace(missing=now.missing, steps=now.steps)
        title = f"{studies[0].study.name}: {len(studies)} studies" if len(studies) > 1 else studies[0].folder
        if taken := [seed for seed in todo.seeds if seed not in free]:
            said = f"other processes train {seeds_in_words(taken)}; this one trains {seeds_in_words(free)}"
            _log.info(said)
            if watch is not None:
                watch.say(f"{title}: {said}")
        if watch is not None:
            watch.begin(title, todo)
        try:
            _drive(own, stores, watch, chunk, checkpoint_seconds)
        finally:
            if watch is not None:
                watch.end()
    # Looked at without a lock of ours, so that of two processes that end at a time one sees the other gone.
    busy = [busy_seeds(path) if bucket is None else bucket.busy_seeds(path.name) for path in paths]
    return Filled(paths, sorted({seed for of in busy for seed in of}))


def _opened(
    studies: Sequence[Prepared],
    out: str | Path,
    seeds: Collection[int],
    stack: contextlib.ExitStack,
    bucket: Bucket | None,
) -> tuple[list[Prepared], list[Store]]:
    """The studies, each with those of its seeds that no other process trains in any study, and their stores.

    Studies that have none are left out.
    """
    make = Store if bucket is None else partial(SharedStore, bucket)
    left, opened, why = set(seeds), [], None
    for one in studies:
        if wanted := [seed for seed in one.study.seeds if seed in left]:
            about = record.about(one.study, one.identity, one.lengths, one.dataset)
            path, free = Path(out) / one.folder, set()
            try:
                store = stack.enter_context(make(path, about, option="--out", seeds=wanted))
                free = {*store.seeds}
                opened.append((one, store))
            except Held as error:
                why = error
            left -= {*wanted} - free
    for _, store in opened:
        store.keep(left)
    own = narrowed([one for one, _ in opened], left)
    if why is not None and not own:
        raise why
    return own, [store for _, store in opened if store.seeds]


def seeds_in_words(seeds: Iterable[int]) -> str:
    """`seed 3`, or `seeds 0, 1, 2`."""
    listed = sorted(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


@settings.pinned()
def estimate(studies: Sequence[Prepared], plans: Sequence[Plan], chunk: int | None = None) -> Estimate:
    """Measures the cost of the missing cells by training a few steps on this machine.

    Args:
        studies: the studies of a sweep, or a single one.
        plans: their plans.
        chunk: as for `run`.

    Returns:
        Seconds and bytes of all together; the seconds per step are those of the slowest study.
    """
    parts = []
    for training in dict.fromkeys(one.training for one in studies):
        alike = [pair for pair in zip(studies, plans, strict=True) if pair[0].training == training]
        parts.append(_estimate([one for one, _ in alike], together([plan for _, plan in alike]), chunk))
    return Estimate(
        sum(part.seconds for part in parts),
        max(part.step_seconds for part in parts),
        sum(part.bytes for part in parts),
    )


def _estimate(studies: Sequence[Prepared], todo: Plan, chunk: int | None) -> Estimate:
    """The cost of studies that differ only in pruning."""
    began = time.perf_counter()
    prepared = studies[0]
    seed = prepared.study.seeds[0]
    trainer = make_trainer(studies, chunk, [seed])
    variables = prepared.model.init(rng.stream(seed, "init"))
    probe = min(prepared.lengths.evaluate, prepared.lengths.total)
    job = train.Job(seed, 0, 0, probe, variables, prune.ones(variables.params))
    timed = train.probe(trainer, job)
    compiled = time.perf_counter() - began
    cells = len(todo.missing)
    evaluations = -(-prepared.lengths.total // prepared.lengths.evaluate) * cells
    seconds = (
        todo.steps * timed.step_seconds
        + evaluations * timed.evaluation_seconds
        + cells * (timed.finish_seconds + 0.2)
    )
    return Estimate(compiled + seconds if cells else 0.0, timed.step_seconds, timed.bytes)


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
        {seed: data.split(prepared.dataset, seed, study.data.validation) for seed in seeds},
        batch=study.train.batch,
        augment=study.data.augment,
        precision=study.train.precision,
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
    context = Context(
        imp.key_of(cell),
        lambda key: prepared.model.init(key).params,
        origin.params,
        run.variables(parent).params,
        run.mask(parent),
        run.mask(ticket),
        scores=None,
    )
    return imp.task(cell, chain, total, context, run.mask(cell), (initial.stats, origin.stats))


class _Item(NamedTuple):
    """A queued training run: its study, its job, and the cell that it makes (None: only rewind states)."""

    priority: tuple[int, ...]
    run: "_Run"
    cell: Cell | None
    job: train.Job

    @property
    def alike(self) -> tuple[int, int, int, int]:
        """The key of items that can share a program."""
        return id(self.run.trainer), self.job.start, self.job.stop, self.job.at

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
            self._background.wait(lambda: not self._open or self._is_full(self._next()))
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


def _drive(
    studies: Sequence[Prepared],
    stores: Sequence[Store],
    watch: Watch | None,
    chunk: int | None,
    checkpoint_seconds: float,
) -> None:
    """Trains one queue that all studies fill."""
    _log.info("lthjax on %s, %s", record.devices(), shell(*sys.argv))
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
            _Run(number, one, store, trainers[one.training], queue, watch)
            for number, (one, store) in enumerate(zip(studies, stores, strict=True))
        ]
        for lender, run in zip(_lenders(studies), runs, strict=True):
            run.begin(next(other for other in runs if other.prepared is lender))
        while taken := queue.take():
            if watch is not None:
                watch.chunk([item.named for item in taken], taken[0].run.prepared.label)
            for item in taken:
                item.run.log("training %s", record.describe(item.named))
            keep = train.Checkpoints(checkpoint_seconds, partial(_save, background, taken))
            jobs = [item.job for item in taken]
            trained = train.train(taken[0].run.trainer, jobs, advance, keep if checkpoint_seconds else None)
            queue.finish(taken, trained)


def _save(background: Background, chunk: list[_Item], i: int, position: train.Position) -> None:
    item = chunk[i]
    background.add(partial(item.run.save, item, position))


class _Run:
    """One study in a drive: its store, and its chains, which fill the queue.

    A finished dense network starts the chains of its seed; a finished ticket queues the tasks of the next
    level.
    """

    def __init__(
        self,
        number: int,
        prepared: Prepared,
        store: Store,
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
        self._borrowers: list[_Run] = []

    def begin(self, lender: "_Run") -> None:
        """Queues all tasks that can start; waits for the lender's dense networks if it has a lender."""
        if lender is not self:
            lender._borrowers.append(self)
        for seed in self._study.seeds:
            if lender is self or seed not in lender._study.seeds:
                self._begin_seed(seed)
            elif lender._store.has(Cell(seed, DENSE, 0, DENSE)):
                self._borrow(lender, seed)

    def _borrow(self, lender: "_Run", seed: int) -> None:
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
        return Leader(self._store.mask(cell), self._store.variables(cell).params)

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
        job = train.Job(cell.seed, cell.level, task.start, task.stop, task.variables, task.mask)
        order = (self._number, cell.level, int(place > 0), self._chains.index(chain), cell.seed, place)
        return _Item(order, self, cell, self._resumed(cell, job))

    def book(self, item: _Item, trained: train.Trained) -> None:
        """Queues the tasks that depend on a training result."""
        cell, leader = item.cell, Leader(item.job.mask, trained.variables.params)
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
            result = record.result(cell, item.job, trained, made_from)
            done = trained.status == "done"
            parents = _parents(seed, made_from)
            self._store.write(cell, result, item.job.mask, trained.variables if done else None, parents)
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
        parent = imp.parent_of(cell)
        rewound = ARMS[cell.arm].start == "rewind"
        return {
            "parent": str(folder(Path(), parent)),
            "origin": str(state_folder(Path(), cell.seed, job.start)) if rewound else "fresh weights",
            "criterion": chain.criterion,
            "scope": self._study.prune.scope,
            **imp.schedule_at(self._study, cell.level),
        }


def _parents(seed: int, made_from: dict[str, Any] | None) -> list[Path]:
    """The folders in the run that a cell was made from."""
    if made_from is None:
        return [state_folder(Path(), seed, 0)]
    named = [Path(made_from[name]) for name in ("parent", "origin")]
    return [path for path in named if path.parts[0] == f"seed={seed}"]


def _there(cell_folder: Path) -> bool:
    return (cell_folder / "result.json").is_file()


def _diverged(run: Path, cell: Cell) -> bool:
    where = folder(run, cell)
    return _there(where) and read_result(where)["status"] == "diverged"
