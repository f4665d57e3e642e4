"""Runs a study, from config to run folder: plans the cells, trains missing cells, writes each cell once.

In Python:

    from lthjax import config, study

    prepared = study.prepare(config.load("configs/quickstart.py"))
    run_folder = study.run(prepared, "runs")
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lthjax import prune, record, rng, settings
from lthjax.bucket import Bucket, SharedStore
from lthjax.devices import hardware, hosts
from lthjax.drive import drive
from lthjax.errors import counted
from lthjax.folder.claims import busy_seeds
from lthjax.folder.store import Store, contents
from lthjax.follower import Follower
from lthjax.growth import Watch
from lthjax.inputs import first_batch, first_batches, make_trainer, task
from lthjax.locks import Held
from lthjax.plan import Plan, Prepared, narrowed, plan, plan_all, prepare, prepare_all, shard, together
from lthjax.training.job import Job
from lthjax.training.probe import probe

__all__ = [
    "CHECKPOINT_SECONDS",
    "Estimate",
    "Filled",
    "Plan",
    "Prepared",
    "Watch",
    "estimate",
    "fill",
    "first_batch",
    "first_batches",
    "make_trainer",
    "narrowed",
    "plan",
    "plan_all",
    "prepare",
    "prepare_all",
    "run",
    "run_all",
    "seeds_in_words",
    "shard",
    "task",
    "together",
]

CHECKPOINT_SECONDS = 300.0
_OTHER_STUDY = "start all of them with the same code, config, options and data."
_log = logging.getLogger(__name__)


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

    Seeds that another process trains are left to it; a seed is trained in all studies by one process. The
    processes of one program over several hosts (`lthjax.devices.hosts`) count as one: process 0 writes.

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
    named = [(one.folder, one.study) for one in studies]
    hosts.alike((named, seeds, chunk, checkpoint_seconds > 0), _OTHER_STUDY)
    todo = together(plan_all(studies if seeds is None else narrowed(studies, seeds), out))
    # Of seeds with nothing to train some are opened all the same: study.json is gone, or cells are not sent.
    lost = [one for one, path in zip(studies, paths, strict=True) if not (path / "study.json").is_file()]
    again = {f"seed={seed}" for one in lost for seed in one.study.seeds}
    if bucket is not None:
        again |= {place.partition("/")[0] for path in paths for place in bucket.unsent(path.name)}
    if again:
        asked = dict.fromkeys(seed for one in studies for seed in one.study.seeds)
        due = [seed for seed in asked if seed in todo.seeds or f"seed={seed}" in again]
        todo = todo._replace(seeds=tuple(seed for seed in due if seeds is None or seed in seeds))
    todo = todo._replace(seeds=tuple(hosts.decided(todo.seeds)))
    if not todo.seeds:
        return _idle(paths, todo, watch)
    with contextlib.ExitStack() as stack:
        own, stores = (_opened if hosts.leads() else _followed)(studies, out, todo.seeds, stack, bucket)
        # Said once the folders are open, so that an error before that is the only sentence.
        if watch is not None:
            watch.say(f"lthjax runs on {hardware.described()}")
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
            drive(own, stores, watch, chunk, checkpoint_seconds)
        finally:
            if watch is not None:
                watch.end()
    if not hosts.leads():
        return Filled(paths, [])
    # Looked at without a lock of ours, so that of two processes that end at a time one sees the other gone.
    busy = [busy_seeds(path) if bucket is None else bucket.busy_seeds(path.name) for path in paths]
    return Filled(paths, sorted({seed for of in busy for seed in of}))


def _idle(runs: list[Path], todo: Plan, watch: Watch | None) -> Filled:
    """As `fill` where there is nothing to train, which may be for want of a network that did not diverge."""
    if watch is not None and todo.behind:
        watch.say(
            f"{todo.behind} of {counted(len(todo.cells), 'cell')} lie behind a diverged training and are not "
            "trained; a lower learning rate (optim.lr) may help"
        )
    return Filled(runs, [])


def _opened(
    studies: Sequence[Prepared],
    out: str | Path,
    seeds: Collection[int],
    stack: contextlib.ExitStack,
    bucket: Bucket | None,
) -> tuple[list[Prepared], list[Store] | list[Follower]]:
    """The studies, each with those of its seeds that no other process trains in any study, and their stores.

    Studies that have none are left out.
    """
    for one in studies:
        record.warn_of_environment(Path(out) / one.folder)
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
    stores = [store for _, store in opened if store.seeds]
    hosts.decided(sorted({seed for store in stores for seed in store.seeds}))
    _check_alike(own, out)
    for store in stores:
        stack.enter_context(record.logged(store.path))
    return own, stores


def _followed(
    studies: Sequence[Prepared], out: str | Path, *_: object
) -> tuple[list[Prepared], list[Store] | list[Follower]]:
    """As `_opened`, for the processes of a program that leave writing to process 0."""
    own = narrowed(studies, hosts.decided([]))
    _check_alike(own, out)
    return own, [Follower(Path(out) / one.folder, one.study.seeds) for one in own]


def _check_alike(studies: Sequence[Prepared], out: str | Path) -> None:
    """Checks that all hosts of a program see the same files; process 0 has opened the folders.

    Raises:
        UserError: they do not.
    """
    if hosts.count() == 1:
        return
    for one in studies:
        path = Path(out) / one.folder
        hosts.alike(
            contents(path, one.study.seeds),
            f"it sees other cells in {path}; put --out on a disk that all machines share, or copy that "
            "folder of process 0's machine to the same place on every other one.",
        )
    # Process 0 must not write before all have looked.
    hosts.barrier("opened")


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
    steps = min(prepared.lengths.evaluate, prepared.lengths.total)
    job = Job(seed, 0, 0, steps, variables, prune.ones(variables.params))
    timed = probe(trainer, job)
    compiled = time.perf_counter() - began
    cells = len(todo.missing)
    evaluations = -(-prepared.lengths.total // prepared.lengths.evaluate) * cells
    seconds = (
        todo.steps * timed.step_seconds
        + evaluations * timed.evaluation_seconds
        + cells * (timed.finish_seconds + 0.2)
    )
    return Estimate(compiled + seconds if cells else 0.0, timed.step_seconds, timed.bytes)
