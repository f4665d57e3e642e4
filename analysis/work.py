"""What trains more from a finished run: it says what that costs, trains in chunks, keeps what it trained."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from analysis.run import Run
from lthjax import fields, progress, record, study, train
from lthjax.errors import shell
from lthjax.imp import Cell
from lthjax.store import Store
from lthjax.study import Watch
from lthjax.train import Job, Trained, Trainer

Jobs = Sequence[tuple[Cell, Job]]


def kept(run: Run, *folders: str, **told: Any) -> Store:
    """The store in a run folder that an analysis writes cells of its own to.

    Args:
        run: the run.
        folders: from the run's, one in the other.
        told: what its study.json says besides.

    Raises:
        UserError: it cannot be written, or another process is at it.
    """
    about = {**run.about, "commands": [shell(*sys.argv)], **told}
    return Store(run.path.joinpath(*folders), cast(fields.About, about))


class Work:
    """Trainings that are added to a run.

    Args:
        run: the run.
        prepared: its study, with the seeds that are trained.
        watch: is told how it is getting on.
        chunk: replicates trained in one program, or None.
    """

    def __init__(self, run: Run, prepared: study.Prepared, watch: Watch, chunk: int | None) -> None:
        self.run, self.prepared, self.watch = run, prepared, watch
        self._chunk = chunk

    @cached_property
    def trainer(self) -> Trainer:
        """The compiled programs."""
        return study.make_trainer([self.prepared], self._chunk, self.prepared.study.seeds)

    def seconds(self, cells: Sequence[Cell], steps: int) -> float:
        """What so many trainings, of so many steps in all, will take, by training a few steps."""
        if not steps:
            return 0.0
        return study.estimate([self.prepared], [_plan(cells, steps)], self._chunk).seconds

    def time(self, cells: Sequence[Cell], steps: int) -> str:
        """The same in words, ` (about 12 s)`; "" where nothing is trained, or nobody watches."""
        if not steps or isinstance(self.watch, progress.Silent):
            return ""
        return f" (about {progress.duration(self.seconds(cells, steps))})"

    def train(self, jobs: Jobs) -> Iterator[tuple[Cell, Job, Trained]]:
        """Trains in chunks of the same first and last step, and yields what is finished."""
        if not jobs:
            return
        todo = _plan([cell for cell, _ in jobs], sum(job.stop - job.start for _, job in jobs))
        spans: dict[tuple[int, int], list[tuple[Cell, Job]]] = {}
        for cell, job in jobs:
            spans.setdefault((job.start, job.stop), []).append((cell, job))
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

    def write(
        self,
        store: Store,
        cell: Cell,
        job: Job,
        trained: Trained,
        made_from: Mapping[str, Any],
        weights: bool = False,
    ) -> None:
        """Writes what was trained; its final weights where they are asked for and it did not diverge."""
        result = record.result(cell, job, trained, dict(made_from))
        kept = trained.variables if weights and trained.status == "done" else None
        store.write(cell, result, job.mask, kept)
        self.watch.finished(cell, result, "")


def _plan(cells: Sequence[Cell], steps: int) -> study.Plan:
    return study.Plan([*cells], [], [*cells], steps)
