"""Replays the dense trainings, draws a mask every so many steps, and finds when masks stop changing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lthjax import prune, study
from lthjax.errors import UserError, counted
from lthjax.folder.places import folder
from lthjax.imp import DENSE, Cell
from lthjax.measures import earlybird, layers
from lthjax.measures.layers import Layers
from lthjax.measures.predict import keep_highest
from lthjax.models import Variables
from lthjax.study import Watch
from lthjax.training.job import Job

from .. import origins, page, record, tables
from .. import work as trainings
from ..rows import TICKET, asked_levels, densities
from ..run import Run, Tickets
from . import figures
from .table import TABLES, DrawRow, MaskRow

# As many masks are drawn by default; their weights are kept until the training ends.
_MASKS = 50
# The masks of a seed, in a folder of its own; no CSV, which would be published a second time.
_ROWS = "rows.txt"
# Densities of the paper: 30, 50 and 70 % are pruned; and that at which tickets are interesting.
_NEAR = (0.7, 0.5, 0.3, 0.1)


@dataclass(frozen=True, kw_only=True)
class Options(record.TrainingOptions):
    """Finds when masks drawn during the dense training stop changing: the Early-Bird ticket's step."""

    chain: str | None = None
    """The chain whose tickets give the densities; by default that of the lowest rewind step with a
    trained ticket."""
    levels: tuple[int, ...] = ()
    """Levels; by default those nearest to 70, 50, 30 and 10 % of the weights."""
    every: int | None = None
    """Steps between two masks; by default 2 % of the dense training."""
    queue: int = earlybird.QUEUE
    """Masks in the queue, the newest included."""
    threshold: float = earlybird.THRESHOLD
    """Largest distance of masks in the queue at which the ticket is drawn."""


class Asked(NamedTuple):
    """What is asked of a run: its study, tickets, level -> seeds, the steps at which masks are drawn."""

    prepared: study.Prepared
    tickets: Tickets
    seeds: dict[int, list[int]]
    every: int
    steps: list[int]


def ask(run: Run, options: Options) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain or level, an option is out of range, or the data differ.
    """
    if not 2 <= options.queue <= 1000:
        raise UserError(f"--queue: {options.queue} is not allowed; it must be from 2 to 1000.")
    if not 0 < options.threshold <= 1:
        raise UserError(
            f"--threshold: {options.threshold:g} is not allowed; it must be above 0, and at most 1."
        )
    tickets = run.tickets(options.chain)
    dense = {row.seed for row in run.rows if row.arm == DENSE and row.status == "done"}
    done = [row for row in tickets.done if row.seed in dense]
    there = densities(done)
    if not there:
        both = f"both a dense network and a ticket of {tickets.chain} that did not diverge"
        raise UserError(f"{run.path}: no seed has {both}.")
    what = f"trained ticket in {tickets.chain}"
    levels = asked_levels(options.levels, there, what, near=_NEAR, last=False)
    seeds = {level: sorted(row.seed for row in done if row.level == level) for level in levels}
    prepared = run.prepared({seed for of in seeds.values() for seed in of}, options.data_dir)
    total, every = prepared.lengths.total, options.every
    if every is None:
        every = -(-total // _MASKS)
    if not 1 <= every <= total:
        raise UserError(f"--every: {every} is not allowed; it must be from 1 to {total}, the last step.")
    steps = sorted({*range(every, total, every), total})
    if len(steps) < options.queue:
        raise UserError(
            f"--every: {every} gives {counted(len(steps), 'mask')} in {total} steps, fewer than the queue's "
            f"{options.queue}; give a smaller --every or --queue."
        )
    return Asked(prepared, tickets, seeds, every, steps)


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Replays what is missing and writes RUN/earlybird; see `analysis.record.Analysis`.

    Masks of levels and seeds that an earlier call has finished with the same settings are not drawn again,
    unless the dense network or the ticket was made anew.
    """
    asked = ask(run, options)
    with trainings.kept(run, "earlybird"):
        at = _Drawing(run, asked, options, watch)
        at.announce()
        at.draw()
        rows = at.rows()
        draws = list(_draws(asked, options, rows))
        found: dict[str, Any] = {"masks.csv": rows, "draws.csv": draws}
        texts = {name: tables.of_rows(kind, found[name]) for name, kind in TABLES.items()}
        return page.write_folder(run.path / "earlybird", figures.drawn(found), texts)


class _Drawing(trainings.Work):
    """One call of `work`: the dense trainings to replay, and the masks drawn from them."""

    def __init__(self, run: Run, asked: Asked, options: Options, watch: Watch) -> None:
        super().__init__(run, asked.prepared, watch, options.chunk)
        self._asked, self._queue = asked, options.queue
        self._where = run.path / "earlybird"
        # What a seed's masks are drawn from.
        self._basis = {"chain": asked.tickets.chain, "every": asked.every, "queue": options.queue}

    def _known(self, seed: int) -> list[MaskRow]:
        """The masks of a seed, of any level, that earlier calls have drawn with these settings."""
        of = self._where / f"masks={seed}"
        try:
            about = json.loads(tables.read_text(of / "about.json"))
            same = {name: about.get(name) for name in self._basis} == self._basis
            rows = tables.read_rows(of / _ROWS, MaskRow) if same else []
        except tables.DAMAGED:
            return []
        # Earlier versions did not name the contents of the cells.
        told: dict[str, list[str]] | None = about.get("of")
        levels = {row.level: self._cells(seed, row.level) for row in rows if row.level is not None}
        good = {
            level
            for level, cells in levels.items()
            if (
                origins.surely_of(of / _ROWS, cells)
                if told is None
                else told.get(str(level)) == origins.contents(cells)
            )
        }
        return [row for row in rows if row.level in good]

    def _cells(self, seed: int, level: int) -> list[Path]:
        """The folders of the cells that masks are drawn from and compared with."""
        ticket = Cell(seed, self._asked.tickets.chain, level, TICKET)
        return [folder(self.run.path, cell) for cell in (Cell(seed, DENSE, 0, DENSE), ticket)]

    def _lacking(self, seed: int) -> list[int]:
        """The levels asked for at which a seed has a ticket and no masks."""
        there = {row.level for row in self._known(seed)}
        return [n for n, seeds in self._asked.seeds.items() if seed in seeds and n not in there]

    def _missing(self) -> list[int]:
        return [seed for seed in self.prepared.study.seeds if self._lacking(seed)]

    def announce(self) -> None:
        """Says how much there is to train and, by measuring a few steps, how long it will take."""
        missing, total = self._missing(), self.prepared.lengths.total
        cells, steps = [Cell(seed, DENSE, 0, DENSE) for seed in missing], len(missing) * total
        trained = sum(row.steps for row in self.run.rows)
        share = f", {100 * steps / trained:.1f} % of the run's" if trained and steps else ""
        time = self.time(cells, steps)
        self.watch.say(
            f"{counted(len(missing), 'dense training')} to be replayed: {steps:,} steps{share}{time}; "
            f"{counted(len(self._asked.steps), 'mask')} of each at "
            f"{counted(len(self._asked.seeds), 'density', 'densities')}"
        )

    def draw(self) -> None:
        """Replays the dense trainings of the seeds that are missing; every finished seed is kept."""
        jobs = []
        for seed in self._missing():
            dense = self.run.task(self.prepared, Cell(seed, DENSE, 0, DENSE))
            stop, captures = self._asked.steps[-1], tuple(self._asked.steps)
            jobs.append((dense.cell, Job(seed, 0, 0, stop, dense.variables, dense.mask, captures)))
        for cell, _, trained in self.train(jobs):
            self.compare(cell, trained)
            rows = self._known(cell.seed)
            for level in self._lacking(cell.seed):
                rows += self._drawn(cell.seed, level, trained.states)
            levels = sorted({row.level for row in rows if row.level is not None})
            of = {str(level): origins.contents(self._cells(cell.seed, level)) for level in levels}
            about = json.dumps({**self._basis, "of": of}) + "\n"
            texts = {_ROWS: tables.of_rows(MaskRow, rows), "about.json": about}
            tables.write_tables(self._where / f"masks={cell.seed}", texts)

    def _drawn(self, seed: int, level: int, states: dict[int, Variables]) -> Iterator[MaskRow]:
        """The masks of a seed at a level: the largest weights of every layer, as many as the ticket has."""
        tree = self.run.mask(Cell(seed, self._asked.tickets.chain, level, TICKET))
        ticket = layers.flat(layers.by_layer(tree, tree))
        counts = {path: int(m.sum()) for path, m in ticket.items()}
        masks: list[Layers] = []
        for step in self._asked.steps:
            weights = layers.flat(layers.by_layer(states[step].params, tree))
            masks.append(keep_highest({path: np.abs(w) for path, w in weights.items()}, counts))
        density = sum(counts.values()) / sum(m.size for m in ticket.values())
        by_chance = earlybird.chance(ticket)
        for place, (step, apart) in enumerate(
            zip(self._asked.steps, earlybird.largest(masks, self._queue), strict=True)
        ):
            before = earlybird.distance(masks[place], masks[place - 1]) if place else None
            iou, iou_chance = map(float, prune.overlap(masks[place], ticket))
            place_of = (self._asked.tickets.chain, level, seed, step, density)
            yield MaskRow(*place_of, before, apart, by_chance, iou, iou_chance)

    def rows(self) -> list[MaskRow]:
        """The masks of the levels and seeds asked for, by level and seed."""
        asked = self._asked.seeds
        every = [row for seed in self.prepared.study.seeds for row in self._known(seed)]
        found = [row for row in every if row.level is not None and row.seed in asked.get(row.level, ())]
        return sorted(found, key=lambda row: (row.level, row.seed, row.step))


def _draws(asked: Asked, options: Options, rows: Sequence[MaskRow]) -> Iterator[DrawRow]:
    """When the ticket could have been drawn, by level and seed."""
    for (chain, level, seed), own in tables.grouped(((r.chain, r.level, r.seed), r) for r in rows).items():
        place = earlybird.drawn([row.largest for row in own], options.threshold)
        at = None if place is None else own[place]
        epoch = None if at is None else at.step / asked.prepared.lengths.per_epoch
        rule = (options.queue, options.threshold, asked.every, asked.prepared.lengths.total)
        step, iou = (None, None) if at is None else (at.step, at.iou)
        yield DrawRow(chain, level, seed, own[0].density, *rule, step, epoch, own[0].chance, iou)
