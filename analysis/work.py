"""Further trainings from a finished run: their cost, training in chunks, and the store of their cells."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import jax
import numpy as np

from lthjax import fields, progress, pulse, record, study
from lthjax.folder.store import Store
from lthjax.imp import Cell
from lthjax.study import Watch
from lthjax.training import train
from lthjax.training.job import Job, Trained
from lthjax.training.trainer import Trainer

from . import tables
from .run import Run

Jobs = Sequence[tuple[Cell, Job]]


def kept(run: Run, *folders: str, **told: Any) -> Store:
    """The store of an analysis's own cells, at `folders` in the run folder.

    Its study.json has the run's settings and data, `told`, and by what its own cells are trained: the run
    may be of another machine or version.

    Raises:
        UserError: it cannot be written, or another process writes to it.
    """
    of_run = {name: value for name, value in run.about.items() if name != "earlier"}
    about = {**of_run, **record.provenance(), **told}
    return Store(run.path.joinpath(*folders), cast(fields.About, about))


class Work:
    """Trainings that are added to a run.

    Args:
        run: the run.
        prepared: its study, with the seeds that are trained.
        watch: is told of the progress.
        chunk: replicates trained in one program; None for the default.
    """

    def __init__(self, run: Run, prepared: study.Prepared, watch: Watch, chunk: int | None) -> None:
        self.run, self.prepared, self.watch = run, prepared, watch
        self._chunk = chunk

    @cached_property
    def trainer(self) -> Trainer:
        """The compiled programs."""
        return study.make_trainer([self.prepared], self._chunk, self.prepared.study.seeds)

    def seconds(self, cells: Sequence[Cell], steps: int) -> float:
        """The expected time of these trainings, of `steps` steps in all; measured by training a few steps."""
        if not steps:
            return 0.0
        with pulse.telling(self.watch.say, "compiling, and timing some steps", at_once=False):
            return study.estimate([self.prepared], [_plan(cells, steps)], self._chunk).seconds

    def time(self, cells: Sequence[Cell], steps: int) -> str:
        """The same in words, ` (about 12 s)`; "" without training or without progress."""
        if not steps or isinstance(self.watch, progress.Silent):
            return ""
        return f" (about {progress.duration(self.seconds(cells, steps))})"

    def train(self, jobs: Jobs) -> Iterator[tuple[Cell, Job, Trained]]:
        """Trains in chunks of the same first and last step, and yields every finished job."""
        if not jobs:
            return
        todo = _plan([cell for cell, _ in jobs], sum(job.stop - job.start for _, job in jobs))
        spans = tables.grouped(((job.start, job.stop, job.scores is None), (cell, job)) for cell, job in jobs)
        width = self.trainer.width
        chunks = [of[i : i + width] for of in spans.values() for i in range(0, len(of), width)]
        self.watch.begin(self.run.name, todo)
        try:
            for chunk in chunks:
                self.watch.chunk([cell for cell, _ in chunk], "")
                trained = train.train(self.trainer, [job for _, job in chunk], self.watch.advance)
                for (cell, job), one in zip(chunk, trained, strict=True):
                    yield cell, job, one
        finally:
            self.watch.end()

    def compare(self, cell: Cell, trained: Trained) -> None:
        """Says where the replay of a training does not end at the weights of the run's cell."""
        end = self.run.variables(cell)
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, trained.variables, end))):
            self.watch.say(
                f"{record.describe(cell)}: the replay does not end at the very weights of the run, as on "
                "another machine it may not; it is a training of the same kind"
            )

    def write(
        self,
        store: Store,
        cell: Cell,
        job: Job,
        trained: Trained,
        made_from: Mapping[str, Any],
        weights: bool = False,
    ) -> None:
        """Writes a finished job; with `weights` its final weights too, unless it diverged."""
        result = record.result(cell, job, trained, dict(made_from))
        kept = trained.variables if weights and trained.status == "done" else None
        store.write(cell, result, job.mask, kept)
        self.watch.finished(cell, result, "")


def _plan(cells: Sequence[Cell], steps: int) -> study.Plan:
    return study.Plan([*cells], [], [*cells], steps)
