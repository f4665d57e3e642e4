"""Trains pairs of copies from common states, has the paths between their ends measured, writes the tables."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import arms, imp, progress, rng
from lthjax.devices import hardware
from lthjax.errors import UserError, counted
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import programs
from lthjax.measures.programs import Settings
from lthjax.models import Variables
from lthjax.record import describe
from lthjax.study import Prepared, Watch
from lthjax.training.job import Job

from .. import page, record, tables
from ..origins import content, fits, named
from ..rows import TICKET, asked_levels, chains, controlled, densities, images_of, select
from ..run import Run, Tickets
from ..work import Work, kept
from . import figures
from .measure import BARRIERS, Line, Measurer
from .table import ABOUT, NAME, TABLES, LeftOut, LevelRow, PairRow, matching, stable

ARMS = (DENSE, TICKET, "reinit", "random")
# Where no level is named, the one nearest to this density beside the dense network.
_NEAR = (0.1,)
# Shares of the training after which pairs start where no step is named, beside 0 and the rewind step.
_SHARES = (0.01, 0.04, 0.2)


@dataclass(frozen=True, kw_only=True)
class Options(record.TrainingOptions):
    """Trains pairs of copies of the same state that differ in the order of the data, and measures how far
    apart they end: barriers, distance, angle. Prints the folder of the tables."""

    k: tuple[int, ...] = ()
    """Steps from whose state pairs are trained; by default 0, the rewind step, and 1, 4 and 20 % of the
    training."""
    levels: tuple[int, ...] = ()
    """Levels; the dense network is always measured. By default that nearest to 10 % of the weights
    of those that have a control of `--arms`, where any has one."""
    arms: tuple[str, ...] = ARMS
    """Whose states."""
    chain: str | None = None
    """The chain; by default the one of the lowest rewind step with a trained ticket."""
    at_rewind: bool = False
    """The tickets and controls of every chain, each from the step that it was rewound to, and the dense
    network from all of these steps; `--k` may name some of them."""
    seeds: tuple[int, ...] = ()
    """The seeds; by default all that have a ticket in the chain."""
    pairs: int = 1
    """Pairs of data orders for every state."""
    images: int = 2000
    """Train images, and as many test images, on every path."""
    alphas: int = 30
    """Points on a path, ends included."""


class Origin(NamedTuple):
    """A state from which pairs are trained.

    Attributes:
        cell: whose training it is of, in the run.
        k: its step.
        start, stop: first step of that training, and one past its last.
        density: weights left / prunable weights.
    """

    cell: Cell
    k: int
    start: int
    stop: int
    density: float

    @property
    def trunk(self) -> Cell:
        """The cell's own training up to the state, as it is stored."""
        return self.cell._replace(arm=f"{self.cell.arm}_to_{self.k}")

    def copies(self, pair: int) -> tuple[Cell, Cell]:
        """The two copies of the state that a pair trains, as they are stored; pairs count from 1."""
        arm, last = f"{self.cell.arm}_from_{self.k}", 2 * pair
        return self.cell._replace(arm=arm, repeat=last - 1), self.cell._replace(arm=arm, repeat=last)


class Training(NamedTuple):
    """A training that is stored: from which state, in which order (0: the study's own), and its `made_from`.

    With order 0 it leads to the state, from the start of the cell's training. `cells` are those of the run
    whose masks and start weights it has; none where `made_from` has the state's content.
    """

    at: Origin
    noise: int
    made_from: dict[str, Any]
    cells: list[Path]

    @property
    def span(self) -> tuple[int, int]:
        """First step, and one past the last."""
        return (self.at.k, self.at.stop) if self.noise else (self.at.start, self.at.k)


class Asked(NamedTuple):
    """The states, levels and settings that are asked for, and sentences on what is left out."""

    prepared: Prepared
    tickets: Tickets
    origins: list[Origin]
    pairs: int
    settings: Settings
    notes: list[str]


def ask(run: Run, options: Options) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain, level, seed or arm; a number is out of range; the data differ.
    """
    settings = Settings(images=options.images, alphas=options.alphas)
    programs.check(settings)
    if not 1 <= options.pairs <= 100:
        raise UserError(f"--pairs: {options.pairs} is not allowed; it must be from 1 to 100.")
    if options.at_rewind and options.chain is not None:
        raise UserError(
            f"--chain: {options.chain} is not allowed with --at-rewind, which takes every chain; leave it "
            "out, or name steps of rewinding by --k."
        )
    tickets = run.tickets(options.chain)
    if not tickets.done:
        raise UserError(f"{run.path}: every ticket of {tickets.chain} diverged; train more seeds.")
    ks, own = _steps(run, tickets, options)
    there = sorted({row.seed for row in tickets.done})
    for seed in options.seeds:
        if seed not in there:
            raise UserError(f"--seeds: {seed} has no trained ticket in {tickets.chain}; it may be {there}.")
    known = {DENSE, *(row.arm for row in run.rows if row.chain in own)}
    for arm in options.arms:
        if arm not in known and arm not in ARMS:
            raise UserError(f"--arms: {arm!r} is not in the run; it may be {', '.join(sorted(known))}.")
        if why := _untrained(arm):
            raise UserError(f"--arms: {arm} {why}, so that no copies of it can be trained; leave it out.")
    run.check_arms(arm for arm in options.arms if arm != DENSE)
    what = f"trained ticket in {tickets.chain}"
    beside = controlled(run.rows, tickets.chain, options.arms)
    levels = asked_levels(options.levels, densities(tickets.done), what, _NEAR, last=False, beside=beside)
    seeds = sorted({*(options.seeds or there)})
    places = [(DENSE, 0, DENSE, ks)] if DENSE in options.arms else []
    places += [
        (chain, level, arm, steps)
        for chain, steps in own.items()
        for arm in dict.fromkeys(options.arms)
        if arm != DENSE
        for level in levels
    ]
    origins, notes = _origins(run, seeds, places)
    if not origins:
        why = "; ".join(notes) or "no arm is asked for"
        raise UserError(f"--k, --arms: there is no state to start from ({why}); name others.")
    prepared = run.prepared(seeds, options.data_dir)
    train = len(prepared.dataset.train_images) - prepared.study.data.validation
    few = min(settings.images, train, len(prepared.dataset.test_images))
    if few < settings.images:
        notes.append(f"{settings.images:,} images of each part were asked for; {few:,} of each are there.")
    return Asked(prepared, tickets, origins, options.pairs, settings.limited(few), notes)


def _untrained(arm: str) -> str:
    """Why an arm trains no weights, "" where it does; the states of a learned mask lack its scores."""
    of = arms.ARMS.get(arm)
    if of is None or (of.train and of.scores is None):
        return ""
    return "learns a mask" if of.train else "trains nothing"


def _held(cell: Cell) -> dict[str, bool]:
    """What `made_from` says of an arm that is trained at the last learning rate; nothing of others."""
    return {"held": True} if cell.arm in arms.ARMS and arms.ARMS[cell.arm].held else {}


def _steps(run: Run, tickets: Tickets, options: Options) -> tuple[list[int], dict[str, list[int]]]:
    """The steps of the dense network's states, and chain -> those of its tickets' and controls' states."""
    total = run.lengths.total
    if options.at_rewind:
        every = {chain: imp.rewind_of(chain) for chain in chains(select(run.rows, arm=TICKET))}
        for k in options.k:
            if k not in every.values():
                allowed = ", ".join(map(str, sorted({*every.values()})))
                raise UserError(f"--k: {k} is not a step that tickets were rewound to; it may be {allowed}.")
        asked = {chain: k for chain, k in every.items() if not options.k or k in options.k}
        return sorted({*asked.values()}), {chain: [k] for chain, k in asked.items()}
    for k in options.k:
        if not 0 <= k <= total:
            raise UserError(f"--k: {k} is not a step of the training; it may be from 0 to {total}.")
    ks = sorted({*options.k} or {0, tickets.rewind, *(round(share * total) for share in _SHARES)})
    return ks, {tickets.chain: ks}


def _origins(
    run: Run, seeds: Iterable[int], places: Iterable[tuple[str, int, str, Sequence[int]]]
) -> tuple[list[Origin], list[str]]:
    """The states of these seeds, and sentences on those that are not there.

    Args:
        run: the run.
        seeds: the seeds.
        places: chain, level, arm and steps.
    """
    rows = {row.cell: row for row in run.rows}
    found, notes = [], []
    for chain, level, arm, ks in places:
        for seed in seeds:
            cell = Cell(seed, chain, level, arm)
            row = rows.get(cell)
            dense = rows.get(Cell(seed, DENSE, 0, DENSE))
            if row is None or dense is None or "diverged" in (row.status, dense.status):
                notes.append(f"{describe(cell)}: it is not there or diverged, and is left out.")
                continue
            start = 0
            if arm != DENSE:
                start, _ = imp.span_of(cell, imp.chain_of(run.study, chain), run.lengths.total)
            early = [k for k in ks if k < start]
            if early:
                none = ", ".join(map(str, early))
                notes.append(f"{arm} of {chain} begins at step {start}; it has no state at {none}.")
            stop = run.lengths.total
            found += [Origin(cell, k, start, stop, row.density) for k in ks if k >= start]
    return found, [*dict.fromkeys(notes)]


def orders(seed: int, level: int, pair: int) -> tuple[int, int]:
    """The noise seeds of a pair's two data orders, from 1: `rng.stream(seed, "stability", pair, level)`.

    All arms of a level and all steps share them, so that their differences are paired.
    """
    drawn = jax.random.randint(rng.stream(seed, NAME, pair, level), (2,), 1, np.iinfo(np.int32).max, np.int32)
    first, second = np.asarray(drawn).tolist()
    return first, second


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Trains and measures what is missing, and writes RUN/stability; see `analysis.record.Analysis`."""
    asked = ask(run, options)
    with kept(run, NAME) as store:
        for note in asked.notes:
            watch.say(note)
        at = _Stability(run, asked, store, watch, options.chunk)
        at.announce()
        at.train_missing(at.trunks())
        at.train_missing(at.copies())
        at.measure()
        found: dict[str, list[Any]] = {"levels.csv": at.level_rows(), "stability.csv": at.pair_rows()}
        about = {"left_out": [pair._asdict() for pair in at.left_out()]}
    if not found["stability.csv"]:
        raise UserError(f"{run.path}: every copy diverged; there is no path to measure.")
    contents = {ABOUT: json.dumps(about, indent=1) + "\n"}
    contents |= {name: tables.of_rows(kind, found[name]) for name, kind in TABLES.items()}
    return page.write_folder(run.path / NAME, figures.drawn(found, images_of(run.about)), contents)


class _Stability(Work):
    """One call of `work`: the states and copies that are trained, and the rows."""

    def __init__(self, run: Run, asked: Asked, store: Store, watch: Watch, chunk: int | None) -> None:
        super().__init__(run, asked.prepared, watch, chunk)
        self._asked, self._store = asked, store
        self._task = cache(lambda cell: run.task(asked.prepared, cell))
        width = len(asked.origins) * asked.pairs
        self._measurer = Measurer(run, asked.prepared, asked.settings, store, watch, width)

    def _is_in_run(self, at: Origin) -> bool:
        """Whether the run has the state, or it is the start of a training, which takes no training."""
        saved = at.cell.arm == DENSE and self.run.has_state(at.cell.seed, at.k)
        return saved or at.k in (at.start, at.stop)

    def _made_from(self, at: Origin) -> dict[str, Any]:
        """The state's identity, for what is made from it; the state must be there."""
        of = {"cell": folder(Path(), at.cell).as_posix(), "step": at.k, **_held(at.cell)}
        if at.k == at.start:
            return of | {"state": "start"}
        if not self._is_in_run(at):
            return of | {"state": content(folder(self._store.path, at.trunk))}
        end = at.k == at.stop
        path = self.run.path
        return of | {
            "state": content(folder(path, at.cell) if end else state_folder(path, at.cell.seed, at.k))
        }

    def _state(self, at: Origin) -> Variables:
        """The weights and statistics of a state that is there."""
        if at.k == at.start:
            return self._task(at.cell).variables
        if not self._is_in_run(at):
            return self._store.variables(at.trunk)
        return self.run.variables(at.cell) if at.k == at.stop else self.run.variables_at(at.cell.seed, at.k)

    def _is_there(self, at: Origin) -> bool:
        """Whether the state is the run's, or trained by a training that did not diverge before it."""
        return self._is_in_run(at) or self._measurer.done(at.trunk)

    def _lacks(self, cell: Cell, one: Training) -> bool:
        """Whether it is not stored, or was trained from another state, or of a cell that was made anew."""
        if not self._store.has(cell):
            return True
        told, file = self._store.result(cell).get("made_from"), folder(self._store.path, cell) / "result.json"
        return not fits(told, one.made_from, one.cells, file)

    def trunks(self) -> dict[Cell, Training]:
        """Stored cell -> the training to a state that is missing."""
        made = {}
        for at in self._asked.origins:
            if not self._is_in_run(at):
                again = {"trained_again": folder(Path(), at.cell).as_posix(), **_held(at.cell)}
                made[at.trunk] = Training(at, 0, again, [folder(self.run.path, at.cell)])
        return {cell: one for cell, one in made.items() if self._lacks(cell, one)}

    def copies(self, coming: Mapping[Cell, Training] | None = None) -> dict[Cell, Training]:
        """Stored cell -> the training from a state that is missing; states that are coming count as there.

        Nothing is trained from a state before which the training diverged.
        """
        missing = {}
        for at in self._asked.origins:
            known = at.trunk not in (coming or {})
            if known and not self._is_there(at):
                continue
            of = self._made_from(at) if known else {}
            cells = [folder(self.run.path, at.cell)] if at.k == at.start else []
            for pair in range(1, self._asked.pairs + 1):
                noises = orders(at.cell.seed, at.cell.level, pair)
                for cell, noise in zip(at.copies(pair), noises, strict=True):
                    one = Training(at, noise, {**of, "noise": noise}, cells)
                    if not known or self._lacks(cell, one):
                        missing[cell] = one
        return missing

    def train_missing(self, missing: Mapping[Cell, Training]) -> None:
        """Trains and writes them."""
        jobs = []
        for cell, (at, noise, *_) in missing.items():
            task, place = self._task(at.cell), (at.cell.seed, at.cell.level)
            start = self._state(at) if noise else task.variables
            job = Job(*place, *missing[cell].span, start, task.mask, noise=noise, held=task.held)
            jobs.append((cell, job))
        for cell, job, trained in self.train(jobs):
            one = missing[cell]
            self.write(self._store, cell, job, trained, named(one.made_from, one.cells), weights=True)

    def announce(self) -> None:
        """Says what there is to train and to measure and, by measuring a little, how long it will take."""
        if isinstance(self.watch, progress.Silent):
            return
        trunks = self.trunks()
        copies = self.copies(trunks)
        steps = sum(one.span[1] - one.span[0] for one in (*trunks.values(), *copies.values()))
        lines = [one for _, _, one in self._pairs()]
        lines = [one for one in lines if one.second in copies or self._measurer.lacks(one)]
        lines += [one for one in self._levels() if self._measurer.lacks(one)]
        seconds = self.seconds([*trunks, *copies], steps)
        seconds += self._measurer.seconds(lines, self._task(self._asked.origins[0].cell))
        self.watch.say(
            f"{counted(len(copies), 'copy', 'copies')} and {counted(len(trunks), 'state')} to be trained, "
            f"{steps:,} steps in all; {counted(len(lines), 'path')} to be measured; about "
            f"{progress.duration(seconds)} on {hardware.described()}"
        )

    def _pairs(self) -> Iterator[tuple[Origin, int, Line]]:
        for at, pair in itertools.product(self._asked.origins, range(1, self._asked.pairs + 1)):
            yield at, pair, Line(*at.copies(pair), in_run=False)

    def _trained(self) -> Iterator[tuple[Origin, int, Line]]:
        """The pairs whose copies are there and did not diverge."""
        return (one for one in self._pairs() if self._is_there(one[0]) and self._measurer.done(*one[2][:2]))

    def left_out(self) -> list[LeftOut]:
        """The other pairs, once everything is trained."""
        there = {(at, pair) for at, pair, _ in self._trained()}
        return [LeftOut(*at.cell[:4], at.k, pair) for at, pair, _ in self._pairs() if (at, pair) not in there]

    def _levels(self) -> Iterator[Line]:
        """From every ticket to the level before it and to the dense network."""
        seeds = {at.cell.seed for at in self._asked.origins}
        done = {row.cell for row in self.run.rows if row.status == "done"}
        for row in self._asked.tickets.done:
            dense = Cell(row.seed, DENSE, 0, DENSE)
            for other in dict.fromkeys((imp.parent_of(row.cell), dense)):
                if row.seed in seeds and done >= {other, dense}:
                    yield Line(other, row.cell, in_run=True)

    def measure(self) -> None:
        """Measures the paths that are missing, those of pairs also with their units matched."""
        pairs = [line for _, _, line in self._trained()]
        self._measurer.measure([*pairs, *self._levels()])
        if self._measurer.matches:
            self._measurer.measure([line._replace(matched=True) for line in pairs])

    def pair_rows(self) -> list[PairRow]:
        """The table of pairs."""
        rows = []
        for at, pair, line in self._trained():
            found = self._measurer.values(line)
            matched = self._measurer.values(line._replace(matched=True)) if self._measurer.matches else {}
            after = [matched.get(name) for name in (*BARRIERS[:2], "units_moved")]
            accuracy = float(np.mean([_accuracy(self._store.result(cell)) for cell in line[:2]]))
            head = (*at.cell[:4], at.density, at.k, pair)
            rest = self._rest(found, at.cell.seed, accuracy)
            rows.append(PairRow(*head, *_barriers(found), *after, *rest))
        return rows

    def level_rows(self) -> list[LevelRow]:
        """The table of levels."""
        rows = []
        for line in self._levels():
            ticket, found = line.second, self._measurer.values(line)
            result = self.run.results[ticket]
            head = (*ticket[:3], result["density"], line.first.level)
            rest = self._rest(found, ticket.seed, _accuracy(result))
            rows.append(LevelRow(*head, *_barriers(found), *rest))
        return rows

    def _rest(self, found: Mapping[str, float], seed: int, accuracy: float) -> tuple[Any, ...]:
        """The columns that both tables end with."""
        dense, how = _accuracy(self.run.results[Cell(seed, DENSE, 0, DENSE)]), self._asked.settings
        apart = [found[name] for name in ("path_length", "path_degrees", "disagreement")]
        good = stable(found["barrier_test_error"]), matching(accuracy, dense)
        return (*apart, accuracy, dense, *good, how.images, how.alphas)


def _accuracy(result: Mapping[str, Any]) -> float:
    return float(result["test_accuracy"])


def _barriers(found: Mapping[str, float]) -> Iterable[Any]:
    return [found[name] for name in BARRIERS]
