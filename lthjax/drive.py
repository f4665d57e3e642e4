"""Trains the missing cells of studies: a queue that all of them fill, results written in the background."""

import logging
import zlib
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from lthjax import home, record
from lthjax.background import Background
from lthjax.devices import hardware, hosts
from lthjax.folder.store import Store
from lthjax.follower import Follower
from lthjax.growth import Run, Watch
from lthjax.inputs import make_trainer
from lthjax.plan import Prepared, lenders
from lthjax.queue import Item, Queue
from lthjax.training import train
from lthjax.training.job import Checkpoints, Position
from lthjax.training.trainer import Trainer

_log = logging.getLogger(__name__)
# Chunks of results and saved positions that may wait for the disk.
_CHUNKS_WAITING = 4


def drive(
    studies: Sequence[Prepared],
    stores: Sequence[Store | Follower],
    watch: Watch | None,
    chunk: int | None,
    checkpoint_seconds: float,
) -> None:
    """Trains one queue that all studies fill."""
    _log.info("lthjax on %s, %s", hardware.described(), home.typed())
    trainers: dict[str, Trainer] = {}
    for one in studies:
        if one.training not in trainers:
            alike = [other for other in studies if other.training == one.training]
            seeds = dict.fromkeys(seed for other in alike for seed in other.study.seeds)
            trainers[one.training] = make_trainer(alike, chunk, seeds)
    with Background(waiting=_CHUNKS_WAITING) as background:
        queue = Queue(background)

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
            keep = Checkpoints(checkpoint_seconds, partial(_save, background, taken))
            jobs = [item.job for item in taken]
            trained = train.train(taken[0].run.trainer, jobs, advance, keep if checkpoint_seconds else None)
            queue.finish(taken, trained)


def _check_alike(chunk: Sequence[Item]) -> None:
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


def _save(background: Background, chunk: list[Item], i: int, position: Position) -> None:
    item = chunk[i]
    background.add(partial(item.run.save, item, position))
