"""A study from config to run folder: plan the cells, train what is missing, write each once.

from lthjax import config, study

prepared = study.prepare(config.load("configs/quickstart.py"))
run_folder = study.run(prepared, "runs")
"""

import contextlib
import dataclasses
import logging
import platform
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import config, data, imp, models, optim, prune, replicate, rng, train
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell, Chain, Task, Ticket
from lthjax.models import Model, Variables
from lthjax.store import Store, check_identity, folder, read_result, state_folder

_log = logging.getLogger(__name__)
_PACKAGES = ("lthjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Prepared(NamedTuple):
    """A study that has been checked against its data.

    Attributes:
        study: the config.
        dataset: its images.
        lengths: its durations in steps.
        model: its network.
        identity: what its numbers depend on, by name.
    """

    study: config.Study
    dataset: data.Dataset
    lengths: config.Lengths
    model: Model
    identity: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name of the run folder."""
        return f"{self.study.name}-{config.fingerprint(self.identity)}"


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
        cells: all cells of the study.
        done: those in the run folder.
        missing: those that are not, but for those behind a diverged training.
        steps: replicate steps that the missing ones take.
    """

    cells: list[Cell]
    done: list[Cell]
    missing: list[Cell]
    steps: int


class Estimate(NamedTuple):
    """What a study will cost on this machine, measured by training a few steps.

    Attributes:
        seconds: for what is missing, compilation included.
        step_seconds: of one step of one replicate, when all devices are busy.
        bytes: of memory, data and programs.
    """

    seconds: float
    step_seconds: float
    bytes: int


class Watch(Protocol):
    """What wants to be told how a study is getting on."""

    def begin(self, prepared: Prepared, plan: Plan) -> None:
        """Before the first training."""

    def chunk(self, cells: Sequence[Cell]) -> None:
        """These are trained next."""

    def advance(self, steps: int, accuracy: float | None) -> None:
        """So many replicate steps are done; the mean test accuracy where it was evaluated."""

    def finished(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell was written."""

    def end(self) -> None:
        """After the last, or when it was interrupted."""


def prepare(study: config.Study, data_dir: str | Path = "data") -> Prepared:
    """Validates a study, loads its data, and resolves what depends on them.

    Args:
        study: the config.
        data_dir: the data folder.

    Raises:
        UserError: something in the config is not allowed or does not fit the data.
    """
    replicate.use_all_cores()
    config.validate(study)
    dataset = data.load(study.data.name, data_dir)
    lengths = config.lengths(study, len(dataset.train_images) - study.data.validation)
    model = models.build(study.model, dataset.shape, dataset.classes)
    _check_rates(study, model)
    return Prepared(study, dataset, lengths, model, config.identity(study, lengths, dataset.digest))


def _check_rates(study: config.Study, model: Model) -> None:
    """Raises for a pruning rate whose pattern matches no weight: a slip, or another model's."""
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


def plan(prepared: Prepared, out: str | Path = "runs") -> Plan:
    """The cells of a study, and which are missing from its run folder.

    Raises:
        UserError: the folder was made by another config.
    """
    run = Path(out) / prepared.folder
    check_identity(run, prepared.identity)
    study, lengths = prepared.study, prepared.lengths
    steps = 0
    missing: list[Cell] = []
    for seed in study.seeds:
        dense = Cell(seed, DENSE, 0, DENSE)
        needed = [k for k in lengths.rewind if not _there(state_folder(run, seed, k))]
        if not _there(folder(run, dense)):
            missing.append(dense)
            steps += lengths.total
        elif _diverged(run, dense):
            continue
        else:
            steps += max(needed, default=0)
        for chain in imp.chains(study, lengths):
            for level in range(1, study.levels + 1):
                absent = [
                    cell for cell in imp.cells_at(study, seed, chain, level) if not _there(folder(run, cell))
                ]
                missing += absent
                spans = [imp.span_of(cell, chain, lengths.total) for cell in absent]
                steps += sum(stop - start for start, stop in spans)
                leader = Cell(seed, chain.name, level, chain.leader)
                if leader not in absent and _diverged(run, leader):
                    break
    cells = imp.cells(study, lengths)
    done = [cell for cell in cells if _there(folder(run, cell))]
    return Plan(cells, done, missing, steps)


def run(
    prepared: Prepared,
    out: str | Path = "runs",
    *,
    watch: Watch | None = None,
    chunk: int | None = None,
) -> Path:
    """Trains what is missing from the study's run folder, cell by cell.

    May be stopped at any time: what is written stays, and the same call goes on from there.

    Args:
        prepared: the study.
        out: the folder of run folders.
        watch: is told how it is getting on.
        chunk: replicates trained in one program; by default as many as there are cores on CPU.

    Returns:
        The run folder.

    Raises:
        UserError: the run folder cannot be written, was made by another config, or is in use.
    """
    path = Path(out) / prepared.folder
    todo = plan(prepared, out)
    if not todo.missing and not todo.steps:
        return path
    with Store(path, prepared.identity, _about(prepared)) as store, _logged(path / "log.txt"):
        # Asked again under the lock: another process may just have finished.
        todo = plan(prepared, out)
        if watch is not None:
            watch.begin(prepared, todo)
        try:
            _Run(prepared, store, watch, chunk).go()
        finally:
            if watch is not None:
                watch.end()
    return path


def estimate(prepared: Prepared, todo: Plan, chunk: int | None = None) -> Estimate:
    """Measures what is missing by training a few steps of it, on this machine.

    Args:
        prepared: the study.
        todo: its plan.
        chunk: as for `run`.
    """
    began = time.perf_counter()
    seed = prepared.study.seeds[0]
    trainer = make_trainer(prepared, chunk, [seed])
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


def make_trainer(prepared: Prepared, chunk: int | None, seeds: Sequence[int]) -> train.Trainer:
    """The compiled programs of a study.

    Args:
        prepared: the study.
        chunk: replicates in a program, or None.
        seeds: those to be trained.
    """
    study = prepared.study
    widest = max(
        len(study.seeds),
        len(study.seeds)
        * sum(len(imp.cells_at(study, 0, c, 1)) for c in imp.chains(study, prepared.lengths)),
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


class _Item(NamedTuple):
    """A training in the queue: its job, and the cell it makes (None: only rewind states)."""

    priority: tuple[int, ...]
    cell: Cell | None
    job: train.Job


class _Run:
    """One run of a study: a queue of trainings, and the chains that feed it.

    A finished dense network starts its seed's chains; a finished ticket makes the next level's
    tasks. The queue is served in the order of levels, in chunks of the same first step; so the
    devices stay busy whatever the number of seeds and arms. What is trained together changes no
    number.
    """

    def __init__(self, prepared: Prepared, store: Store, watch: Watch | None, chunk: int | None) -> None:
        self._prepared, self._store, self._watch = prepared, store, watch
        self._study, self._lengths = prepared.study, prepared.lengths
        self._trainer = make_trainer(prepared, chunk, self._study.seeds)
        self._chains = imp.chains(self._study, self._lengths)
        self._rounds: dict[tuple[int, str], Generator[list[Task], Ticket, None]] = {}
        self._initial: dict[int, Variables] = {}
        self._queue: list[_Item] = []

    def go(self) -> None:
        _log.info("lthjax on %s, %s", devices(), " ".join(sys.argv))
        for seed in self._study.seeds:
            self._begin_seed(seed)
        while self._queue:
            chunk = self._take()
            named = [item.cell or Cell(item.job.seed, DENSE, 0, DENSE) for item in chunk]
            if self._watch is not None:
                self._watch.chunk(named)
            _log.info("training %s", ", ".join(map(describe, named)))
            results = train.train(self._trainer, [item.job for item in chunk], self._advance)
            for item, trained in zip(chunk, results, strict=True):
                self._finish(item, trained)

    def _advance(self, steps: int, accuracy: float | None) -> None:
        if self._watch is not None:
            self._watch.advance(steps, accuracy)

    def _take(self) -> list[_Item]:
        """The first in the queue, and those after it that start and stop with it."""
        self._queue.sort(key=lambda item: item.priority)
        start, stop = self._queue[0].job.start, self._queue[0].job.stop
        chunk: list[_Item] = []
        rest: list[_Item] = []
        for item in self._queue:
            alike = (item.job.start, item.job.stop) == (start, stop)
            (chunk if alike and len(chunk) < self._trainer.width else rest).append(item)
        self._queue = rest
        return chunk

    def _begin_seed(self, seed: int) -> None:
        initial = jax.device_get(self._prepared.model.init(rng.stream(seed, "init")))
        self._initial[seed] = initial
        if not self._store.has_state(seed, 0):
            self._store.write_state(seed, 0, initial)
        dense = Cell(seed, DENSE, 0, DENSE)
        states = tuple(k for k in self._lengths.rewind if not self._store.has_state(seed, k))
        present = self._store.has(dense)
        if present and (not states or self._store.result(dense)["status"] == "diverged"):
            self._begin_chains(seed)
            return
        # A rewind point asked for later is found by going the dense network's first steps again.
        stop = max(states) if present else self._lengths.total
        mask = jax.device_get(prune.ones(initial.params))
        job = train.Job(seed, 0, 0, stop, initial, mask, states)
        self._queue.append(_Item((0, 0, 0, seed), None if present else dense, job))

    def _begin_chains(self, seed: int) -> None:
        """Takes up every chain of a seed at the first level that is not complete."""
        for chain in self._chains:
            parent = Cell(seed, DENSE, 0, DENSE)
            for level in range(1, self._study.levels + 1):
                if self._store.result(parent)["status"] == "diverged":
                    break
                cells = imp.cells_at(self._study, seed, chain, level)
                if all(self._store.has(cell) for cell in cells):
                    parent = cells[0]
                    continue
                initial = self._initial[seed]
                origin = self._store.state(seed, chain.rewind, initial)
                self._rounds[seed, chain.name] = imp.rounds(
                    self._study,
                    self._lengths,
                    chain,
                    seed,
                    self._prepared.model,
                    initial,
                    origin,
                    self._ticket(parent),
                    self._batch(seed),
                    level,
                )
                self._next_level(seed, chain, None)
                break

    def _batch(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The first batch of the seed's dense network, on which criteria see gradients."""
        split, dataset = self._trainer.splits[seed], self._prepared.dataset
        index = train.order(split.train, self._lengths, self._study.train.batch, seed, 0, 0, 1)[0]
        images = jnp.asarray(dataset.train_images[index])
        scaled = data.gather(images, jnp.arange(len(index)), jnp.asarray(split.mean), jnp.asarray(split.std))
        return np.asarray(scaled), dataset.train_labels[index]

    def _ticket(self, cell: Cell) -> Ticket:
        """A trained ticket, or the dense network, from the store."""
        initial = self._initial[cell.seed]
        mask = self._store.mask(cell, prune.ones(initial.params))
        return Ticket(mask, self._store.variables(cell, initial).params)

    def _next_level(self, seed: int, chain: Chain, ticket: Ticket | None) -> None:
        """Queues a chain's next level; goes on at once past tickets that are in the store."""
        rounds = self._rounds[seed, chain.name]
        while True:
            try:
                tasks = next(rounds) if ticket is None else rounds.send(ticket)
            except StopIteration:
                return
            for place, task in enumerate(tasks):
                if not self._store.has(task.cell):
                    self._queue.append(self._item(chain, task, place))
            first = tasks[0].cell
            if not self._store.has(first) or self._store.result(first)["status"] == "diverged":
                return
            ticket = self._ticket(first)

    def _item(self, chain: Chain, task: Task, place: int) -> _Item:
        cell = task.cell
        job = train.Job(cell.seed, cell.level, task.start, task.stop, task.variables, task.mask)
        order = (cell.level, int(place > 0), self._chains.index(chain), cell.seed, place)
        return _Item(order, cell, job)

    def _finish(self, item: _Item, trained: train.Trained) -> None:
        seed = item.job.seed
        for step, variables in trained.states.items():
            if not self._store.has_state(seed, step):
                self._store.write_state(seed, step, variables)
        cell = item.cell
        if cell is not None:
            result = self._result(cell, item.job, trained)
            done = trained.status == "done"
            self._store.write(cell, result, item.job.mask, trained.variables if done else None)
            _log.info("%s: %s", describe(cell), outcome(result))
            if self._watch is not None:
                self._watch.finished(cell, result)
        if cell is None or cell.arm == DENSE:
            self._begin_chains(seed)
            return
        chain = next(c for c in self._chains if c.name == cell.chain)
        if cell.arm == chain.leader and trained.status == "done":
            self._next_level(seed, chain, Ticket(item.job.mask, trained.variables.params))

    def _result(self, cell: Cell, job: train.Job, trained: train.Trained) -> dict[str, Any]:
        """The contents of a cell's result.json."""
        left, total = prune.totals(job.mask)
        return {
            **cell._asdict(),
            "status": trained.status,
            "reason": trained.reason,
            "density": int(left) / total,
            "weights_left": int(left),
            "weights": total,
            **trained.scalars,
            "start": job.start,
            "steps": job.stop - job.start,
            "seconds": trained.seconds,
            "curves": trained.curves,
            "layers": layers(job.mask),
            "made_from": self._made_from(cell, job),
            "platform": devices(),
        }

    def _made_from(self, cell: Cell, job: train.Job) -> dict[str, Any] | None:
        """What a cell's mask and weights came from; None for the dense network."""
        if cell.arm == DENSE:
            return None
        chain = next(c for c in self._chains if c.name == cell.chain)
        parent = Cell(cell.seed, cell.chain, cell.level - 1, chain.leader)
        if cell.level == 1:
            parent = Cell(cell.seed, DENSE, 0, DENSE)
        rewound = ARMS[cell.arm].start == "rewind"
        return {
            "parent": str(folder(Path(), parent)),
            "origin": str(state_folder(Path(), cell.seed, job.start)) if rewound else "fresh weights",
            "criterion": chain.criterion,
            "scope": self._study.prune.scope,
            **imp.schedule_at(self._study, cell.level),
        }


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Writes what the package logs to a file, too."""
    logger = logging.getLogger("lthjax")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # What goes to standard error is the watch's affair.
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)
        handler.close()


def layers(mask: Any) -> list[dict[str, Any]]:
    """[{"path", "left", "weights"}, ...] of the prunable leaves of a mask."""
    return [
        {"path": path, "left": int(np.asarray(leaf).sum()), "weights": int(leaf.size)}
        for path, leaf in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
        if leaf.ndim
    ]


def describe(cell: Cell) -> str:
    """A cell in words: `seed 0, rewind-0, level 3, reinit, repeat 2`."""
    if cell.arm == DENSE:
        return f"seed {cell.seed}, dense"
    repeat = f", repeat {cell.repeat}" if cell.repeat > 1 else ""
    return f"seed {cell.seed}, {cell.chain}, level {cell.level}, {cell.arm}{repeat}"


def outcome(result: dict[str, Any]) -> str:
    """A result in words: density and test accuracy, or why there is none."""
    if result["status"] == "diverged":
        return f"diverged: {result['reason']}"
    return f"{100 * result['density']:.1f} % of weights, test accuracy {100 * result['test_accuracy']:.2f} %"


def devices() -> str:
    """The devices in words: `2 x cpu (x86_64)`."""
    local = jax.local_devices()
    kind = platform.machine() if local[0].platform == "cpu" else local[0].device_kind
    return f"{len(local)} x {local[0].platform} ({kind})"


def _there(cell_folder: Path) -> bool:
    return (cell_folder / "result.json").is_file()


def _diverged(run: Path, cell: Cell) -> bool:
    where = folder(run, cell)
    return _there(where) and read_result(where)["status"] == "diverged"


def _about(prepared: Prepared) -> dict[str, Any]:
    """What study.json says besides the identity."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "config": dataclasses.asdict(prepared.study),
        "lengths": prepared.lengths._asdict(),
        "data": {
            "name": prepared.dataset.name,
            "source": prepared.dataset.source,
            "digest": prepared.dataset.digest,
            "shape": prepared.dataset.shape,
            "classes": prepared.dataset.classes,
            "train": len(prepared.dataset.train_images) - prepared.study.data.validation,
            "validation": prepared.study.data.validation,
            "test": len(prepared.dataset.test_images),
        },
        "commands": [" ".join(sys.argv)],
        "versions": {"python": platform.python_version(), **versions},
        "devices": devices(),
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this package is in, if it is in one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
