"""The cost of a training run, measured."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from lthjax import batches, settings
from lthjax.devices import replicate
from lthjax.measures.timing import seconds as seconds_of
from lthjax.models import Variables
from lthjax.training.job import Job
from lthjax.training.step import State
from lthjax.training.trainer import Rows, Trainer, evaluate, feed_of, rows_of


class Probed(NamedTuple):
    """The measured cost of a training run.

    Attributes:
        step_seconds: one step of one replicate, with all devices busy.
        evaluation_seconds: one evaluation on validation and test images.
        finish_seconds: the evaluations on the train split at the end.
        bytes: arguments, results and temporary memory of the training program, plus the images.
    """

    step_seconds: float
    evaluation_seconds: float
    finish_seconds: float
    bytes: int


@settings.pinned()
def prepared_segment(trainer: Trainer, job: Job) -> Callable[[], State]:
    """A function that trains a chunk of copies of a job for one more segment per call.

    For measurements: all data are on the devices before the first call.
    """
    width, every = trainer.width, trainer.lengths.evaluate
    mask = replicate.stack(trainer.mesh, [job.mask] * width)
    feed = replicate.stack(trainer.mesh, [feed_of(trainer, job)] * width)
    state = replicate.stack(trainer.mesh, [trainer.init(job.variables, job.mask)] * width)
    split = trainer.splits[job.seed].train
    rows = batches.order(split, trainer.lengths, trainer.batch, job.seed, job.level, 0, every)
    each = (mask, feed, replicate.stack(trainer.mesh, [rows] * width))
    shared = (trainer.images, np.int32(0), np.int32(every))

    @settings.pinned()
    def run() -> State:
        nonlocal state
        state, _ = trainer.segment(shared, state, each)
        return state

    return run


def steady_seconds(run: Callable[[int], object], most: int, enough: float) -> float:
    """Seconds of one step, measured by twice as many steps a call until a call takes long enough.

    A call that is slow only once does not count, such as the first, which may compile: the last call is made
    twice. (On a GPU a later one was slow once, too; docs/performance.md.)

    Args:
        run: takes that many steps.
        most: the largest number of steps in a call.
        enough: seconds.
    """
    count = 1
    while True:
        taken = seconds_of(partial(run, count))
        if taken > enough or count == most:
            taken = min(taken, seconds_of(lambda: run(count)))  # noqa: B023
            if taken > enough or count == most:
                return taken / count
        count = min(2 * count, most)


@settings.pinned()
def probe(trainer: Trainer, job: Job, seconds: float = 3.0) -> Probed:
    """Measures the cost of a job, for about `seconds` after compilation."""
    width = trainer.width
    mask = replicate.stack(trainer.mesh, [job.mask] * width)
    feed = replicate.stack(trainer.mesh, [feed_of(trainer, job)] * width)
    state = replicate.stack(trainer.mesh, [trainer.init(job.variables, job.mask)] * width)
    orders = np.zeros((width, trainer.longest, trainer.batch), np.int32)
    each = (mask, feed, replicate.stack(trainer.mesh, list(orders)))
    shared = (trainer.images, np.int32(0), np.int32(1))
    sizes = trainer.segment.lower(shared, state, each).compile().memory_analysis()  # type: ignore[attr-defined]

    def train(count: int) -> None:
        nonlocal state
        shared = (trainer.images, np.int32(0), np.int32(count))
        state, _ = jax.block_until_ready(trainer.segment(shared, state, each))

    step = steady_seconds(train, trainer.longest, seconds / 2)
    now = Variables(state.params, state.stats)
    costs = []
    for rows in (
        rows_of(trainer, [job] * width, "validation", "test"),
        rows_of(trainer, [job] * width, "train"),
    ):
        # Only the first rows: a whole pass would take too long.
        count = 1 + rows.images.shape[1] // 10
        few = Rows(rows.images[:, :count], (count,), rows.counts[:, :count])
        evaluate(trainer, now, feed, few, width)
        began = time.perf_counter()
        evaluate(trainer, now, feed, few, width)
        costs.append((time.perf_counter() - began) * rows.images.shape[1] / few.parts[0] / width)
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    memory = sum(int(getattr(sizes, part, 0)) for part in parts)
    # Two evaluations on the train split: at the end, and for the early stop.
    return Probed(step / width, costs[0], 2 * costs[1], memory)
