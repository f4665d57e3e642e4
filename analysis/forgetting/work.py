"""Replays trainings, and counts how often every image goes from right to wrong along them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lthjax import imp, study
from lthjax.errors import UserError, counted
from lthjax.folder.places import folder
from lthjax.imp import DENSE, Cell
from lthjax.measures import examples
from lthjax.record import describe
from lthjax.study import Watch
from lthjax.training.job import Job, Trained

from .. import origins, page, record, tables
from .. import work as trainings
from ..rows import TICKET, Row, asked_levels, controlled, densities, select
from ..run import Run, Tickets
from . import figures
from .table import TABLES, TEST, TRAIN, EventRow

NAME = "forgetting"
ARMS = (TICKET, "reinit", "random")
# Evaluations by default; the weights at all of them are kept until a training ends.
_EVALUATIONS = 50
_NEAR = (0.2, 0.1, 0.03)


@dataclass(frozen=True, kw_only=True)
class Options(record.TrainingOptions):
    """Counts forgetting events along trainings: images that a network gets right, and later wrong."""

    chain: str | None = None
    """The tickets' chain; by default that of the lowest rewind step with a trained ticket."""
    levels: tuple[int, ...] = ()
    """Levels, beside the dense network; by default those nearest to 20, 10 and 3 % of the weights of those
    that have a control of `--arms`, where any has one."""
    arms: tuple[str, ...] = ARMS
    """Whose trainings are replayed; the first repeat of each."""
    every: int | None = None
    """Steps between two evaluations; by default 2 % of the dense training."""
    images: int = 2000
    """Train images, and as many test images."""


class Asked(NamedTuple):
    """What is asked of a run.

    Attributes:
        prepared: its study.
        tickets: of the chain.
        rows: of the networks, the dense one of a seed before its others.
        others: likewise all that could be asked for; what an earlier call has counted stays in the table.
        steps: at which images are looked at.
        notes: sentences on what is left out.
    """

    prepared: study.Prepared
    tickets: Tickets
    rows: list[Row]
    others: list[Row]
    steps: list[int]
    notes: list[str]


def ask(run: Run, options: Options) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain, level or arm, a number is out of range, or the data differ.
    """
    if options.images < 1:
        raise UserError(f"--images: {options.images} is not allowed; it must be 1 or more.")
    tickets, total = run.tickets(options.chain), run.lengths.total
    every = -(-total // _EVALUATIONS) if options.every is None else options.every
    if not 1 <= every <= total:
        raise UserError(f"--every: {every} is not allowed; it must be from 1 to {total}, the last step.")
    # Before the rewind step tickets do not exist: all networks are looked at from there on.
    steps = sorted({*(step for step in range(every, total, every) if step > tickets.rewind), total})
    if len(steps) < 2:
        raise UserError(
            f"--every: {every} is not allowed; it looks at step {total} alone, and an image is forgotten "
            f"between two looks: a multiple must lie between the rewind step, {tickets.rewind}, and {total}."
        )
    known = {row.arm for row in select(run.rows, chain=tickets.chain)}
    run.check_arms(sorted(known))
    for arm in options.arms:
        if arm not in known and arm not in ARMS:
            raise UserError(f"--arms: {arm!r} is not in the run; it may be {', '.join(sorted(known))}.")
    dense = {row.seed: row for row in run.rows if row.arm == DENSE and row.status == "done"}
    there = densities(row for row in tickets.done if row.seed in dense)
    if not there:
        both = f"both a dense network and a ticket of {tickets.chain} that did not diverge"
        raise UserError(f"{run.path}: no seed has {both}.")
    beside = controlled(run.rows, tickets.chain, options.arms)
    what = f"trained ticket in {tickets.chain}"
    levels = asked_levels(options.levels, there, what, _NEAR, last=False, beside=beside)
    rows, notes = _chosen(run, tickets, levels, options.arms, dense)
    if not rows:
        raise UserError(f"--arms, --levels: no network is left ({' '.join(notes)}); name others.")
    everything = _chosen(run, tickets, sorted(there), sorted(known), dense)[0]
    prepared = run.prepared({row.seed for row in rows}, options.data_dir)
    return Asked(prepared, tickets, rows, everything, steps, notes)


def _chosen(
    run: Run, tickets: Tickets, levels: Sequence[int], arms: Sequence[str], dense: dict[int, Row]
) -> tuple[list[Row], list[str]]:
    """The rows of the networks by seed, and sentences on those that are left out."""
    found, notes = [], []
    for level in levels:
        for arm in dict.fromkeys(arms):
            own = [row for row in select(run.rows, tickets.chain, level, arm) if row.repeat == 1]
            if not own:
                notes.append(f"Level {level} has no {arm}; it is left out.")
            for row in own:
                first, last = imp.span_of(row.cell, imp.chain_of(run.study, row.chain), run.lengths.total)
                if row.status != "done" or row.seed not in dense:
                    notes.append(f"{describe(row.cell)}: it or its dense network diverged; it is left out.")
                elif (first <= tickets.rewind, last) != (True, run.lengths.total):
                    notes.append(
                        f"{describe(row.cell)}: its steps are others than the ticket's; it is left out."
                    )
                else:
                    found.append(row)
    seeds = sorted({row.seed for row in found})
    return [row for seed in seeds for row in (dense[seed], *(r for r in found if r.seed == seed))], notes


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Replays what is missing, and writes RUN/forgetting; see `analysis.record.Analysis`.

    Trainings that an earlier call has finished with the same settings are not replayed again, unless the cell
    was made anew.
    """
    asked = ask(run, options)
    with trainings.kept(run, NAME):
        at = _Forgetting(run, asked, options, watch)
        at.announce()
        at.replay()
        rows = at.rows()
        found: dict[str, Any] = {"events.csv": rows}
        texts = {name: tables.of_rows(kind, found[name]) for name, kind in TABLES.items()}
        return page.write_folder(run.path / NAME, figures.drawn(found), texts)


class _Forgetting(trainings.Work):
    """One call of `work`: the trainings to replay, and the images counted along them."""

    def __init__(self, run: Run, asked: Asked, options: Options, watch: Watch) -> None:
        super().__init__(run, asked.prepared, watch, options.chunk)
        self._asked, data = asked, asked.prepared.dataset
        validation = asked.prepared.study.data.validation
        there = {TRAIN: len(data.train_images) - validation, TEST: len(data.test_images)}
        self._images = {part: min(options.images, count) for part, count in there.items()}
        self._basis = {"steps": asked.steps, "images": self._images}

    def _file(self, cell: Cell) -> Path:
        place = folder(Path(), cell)
        return self.run.path / NAME / "events" / place.parent / f"{place.name}.npz"

    def _known(self, cell: Cell) -> dict[str, np.ndarray] | None:
        """Part -> events of its images, as `examples.events`, if an earlier call has counted them."""
        return origins.read_arrays(self._file(cell), self._basis, [folder(self.run.path, cell)])

    def _jobs(self) -> list[tuple[Cell, Job]]:
        jobs = []
        for cell in [row.cell for row in self._asked.rows if self._known(row.cell) is None]:
            task = self.run.task(self.prepared, cell)
            place, captures = (cell.seed, cell.level, task.start, task.stop), tuple(self._asked.steps)
            job = Job(*place, task.variables, task.mask, captures, held=task.held, scores=task.scores)
            jobs.append((cell, job))
        return jobs

    def announce(self) -> None:
        """Says what is left out, how much there is to train and, by measuring a few steps, how long."""
        for note in self._asked.notes:
            self.watch.say(note)
        jobs = self._jobs()
        steps = sum(job.stop - job.start for _, job in jobs)
        trained = sum(row.steps for row in self.run.rows)
        share = f", {100 * steps / trained:.1f} % of the run's" if trained and steps else ""
        images = " and ".join(f"{count:,} {part}" for part, count in self._images.items())
        self.watch.say(
            f"{counted(len(jobs), 'training')} to be replayed: {steps:,} steps{share}"
            f"{self.time([cell for cell, _ in jobs], steps)}; {images} images at "
            f"{counted(len(self._asked.steps), 'step')} of each"
        )

    def replay(self) -> None:
        """Replays the trainings that are missing; every finished one is kept."""
        for cell, _, trained in self.train(self._jobs()):
            if trained.status == "done":
                self.compare(cell, trained)
                basis = origins.named(self._basis, [folder(self.run.path, cell)])
                tables.write_arrays(self._file(cell), basis, self._counted(cell, trained))
            else:
                self.watch.say(f"{describe(cell)}: its replay diverged, and it is left out")

    def _counted(self, cell: Cell, trained: Trained) -> dict[str, np.ndarray]:
        data, split = self.prepared.dataset, self.trainer.splits[cell.seed]
        index, seen = split.train[: self._images[TRAIN]], slice(self._images[TEST])
        parts = {
            TRAIN: (data.train_images[index], data.train_labels[index]),
            TEST: (data.test_images[seen], data.test_labels[seen]),
        }
        made = {}
        for part, (images, labels) in parts.items():
            how = (images, split.mean, split.std)
            right = [
                examples.predictions(self.prepared.model, trained.states[step], *how) == labels
                for step in self._asked.steps
            ]
            made[part] = examples.events(np.stack(right))
        return made

    def rows(self) -> list[EventRow]:
        """What every network forgets that was ever counted at these steps and images, by seed."""
        made, evaluations = [], len(self._asked.steps)
        dense: dict[str, np.ndarray] = {}
        for row in self._asked.others:
            found = self._known(row.cell)
            dense = (found or {}) if row.arm == DENSE else dense
            for part, events in (found or {}).items():
                learned = events >= 0
                kept, lost = int((events == 0).sum()), int(events[learned].sum())
                beside = row.arm != DENSE and part in dense
                like = examples.rank_correlation(events, dense[part]) if beside else None
                place = (row.chain, row.level, row.seed, row.arm, part, row.density)
                counts = (len(events), evaluations, int(learned.sum()), kept, lost)
                made.append(EventRow(*place, *counts, like))
        return made
