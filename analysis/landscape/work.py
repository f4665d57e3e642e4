"""Trains siblings and replays, has networks measured, and writes a level's tables and figures."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from analysis import page, tables
from analysis.landscape import table
from analysis.landscape.figures import drawn_of
from analysis.landscape.measure import Measurer, Networks
from analysis.landscape.table import ARMS, CONTROLS, END, MATCHED, Found, Item, Network, Scope
from analysis.record import TrainingOptions
from analysis.run import TICKET, Run, select
from analysis.work import Work, kept
from lthjax import fields, progress, record
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.measures import programs, quantities
from lthjax.measures.programs import Settings
from lthjax.store import Store, folder
from lthjax.study import Prepared, Watch

# Steps of a replay at which its train loss is looked at, at most.
_CAPTURES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeOptions(Settings, TrainingOptions):
    """Measures the loss landscape around the trained networks of one level, inside their masks: surfaces,
    paths and barriers, the Hessian's spectrum, sharpness. Prints the level's folder."""

    level: int
    """The level, from 1."""
    chain: str | None = None
    """The chain; by default the one of the lowest rewind step."""
    seeds: tuple[int, ...] | None = None
    """The seeds; by default all that have a ticket there."""
    plane_seeds: tuple[int, ...] | None = None
    """The seeds of which surfaces are measured; by default the first."""
    training: bool = True
    """Train siblings and replays; without them there are no paths between data orders and no matched train
    loss."""


class Asked(NamedTuple):
    """What is asked of a run: which networks, how much, and sentences on what is left out."""

    prepared: Prepared
    scope: Scope
    notes: list[str]


def ask(run: Run, options: LandscapeOptions) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain, level or seed; a setting is out of range; the data differ;
            surfaces are wanted of a seed that is not looked at.
    """
    settings = Settings(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    )
    programs.check(settings)
    level, tickets = options.level, run.tickets(options.chain)
    chosen, surfaces = _seeds(
        options, tickets.chain, tickets.seeds(level), {row.level for row in tickets.done}
    )
    done = [row for row in run.rows if row.status == "done" and row.repeat == 1 and row.seed in chosen]
    arms = {DENSE: sorted(row.seed for row in select(done, DENSE))}
    arms |= {arm: sorted(row.seed for row in select(done, tickets.chain, level, arm)) for arm in ARMS}
    notes = [
        f"The {arm} cell of seed {seed}{'' if arm == DENSE else f' at level {level}'} is not there or "
        "diverged, and is left out."
        for arm in (DENSE, *ARMS)
        for seed in sorted({*chosen} - {*arms[arm]})
    ]
    prepared = run.prepared(chosen, options.data_dir)
    train = len(prepared.dataset.train_images) - prepared.study.data.validation
    test = len(prepared.dataset.test_images)
    few = min(settings.images, train, test)
    if few < settings.images:
        notes.append(
            f"{settings.images:,} train and as many test images were asked for; {few:,} of each are looked "
            f"at, as there are {train:,} and {test:,}."
        )
    return Asked(
        prepared, Scope(tickets.chain, tickets.rewind, level, arms, surfaces, settings.limited(few)), notes
    )


def _seeds(
    options: LandscapeOptions, chain: str, there: list[int], levels: set[int]
) -> tuple[list[int], list[int]]:
    """The seeds that are looked at, and those of which surfaces are measured."""
    level, seeds, planes = options.level, options.seeds, options.plane_seeds
    if not there:
        known = ", ".join(map(str, sorted(levels)))
        raise UserError(f"--level: {level} has no trained ticket in {chain}; it may be {known}.")
    for name, wanted in (("--seeds", seeds), ("--plane-seeds", planes)):
        lacking = sorted({*(wanted or ())} - {*there})
        if lacking:
            raise UserError(
                f"{name}: {lacking[0]} has no trained ticket at level {level}; it may be {there}."
            )
    chosen = sorted({*(seeds or there)})
    left = sorted({*(planes or ())} - {*chosen})
    if left:
        raise UserError(f"--plane-seeds: {left[0]} is not among --seeds; it may be {chosen}.")
    return chosen, chosen[:1] if planes is None else sorted({*planes})


def work(run: Run, options: LandscapeOptions, watch: Watch) -> Path:
    """Trains and measures what is missing, and writes the level's tables and figures.

    May be stopped at any time: trained networks and measured arrays stay, and the same call goes on.

    Args:
        run: the run.
        options: what is asked. Siblings and replays that were trained before are measured in any case.
        watch: is told first what it will cost.

    Returns:
        The folder of the level.

    Raises:
        UserError: as `ask`; or a file cannot be read or written, or another process is at it.
    """
    asked = ask(run, options)
    with kept(run, table.NAME) as store:
        at = _Landscape(run, asked, store, watch, options.chunk)
        at.announce(options.training)
        if options.training:
            at.train_siblings()
        at.measurer.measure(at.missing())
        if options.training:
            at.match()
        at.measurer.measure(at.missing(at.matched()))
        return _write(
            run, Found(asked.scope, _density(run, asked.scope), at.rows(), asked.notes + at.notes())
        )


class _Landscape(Work):
    """One call of `work`: the siblings and replays of a level, and what is measured."""

    def __init__(self, run: Run, asked: Asked, store: Store, watch: Watch, chunk: int | None) -> None:
        super().__init__(run, asked.prepared, watch, chunk)
        self._scope, self._store = asked.scope, store
        self._networks = Networks(run, store, asked.prepared)
        self.measurer = Measurer(run, asked.prepared, asked.scope, self._networks, watch)

    def _missing_siblings(self) -> list[Network]:
        return [one for one in self._scope.siblings() if not self._store.has(one.stored)]

    def announce(self, training: bool) -> None:
        """Says what there is to train and to measure and, by measuring a little, how long it will take."""
        if isinstance(self.watch, progress.Silent):
            return
        siblings = self._missing_siblings() if training else []
        there = self._replays()
        present = {(one.cell.seed, one.control) for one in there}
        # Which of two ends at the lower train loss, and is replayed, is not known yet.
        likely = [
            Network(self._scope.network(seed, arm).cell, MATCHED, TICKET)
            for arm, seed in self._pairs()
            if training and (seed, arm) not in present
        ]
        missing = self.missing([*there, *likely], siblings)
        jobs = [self._networks.job(one) for one in (*siblings, *likely)]
        steps = sum(job.stop - job.start for job in jobs)
        seconds = self.seconds([one.stored for one in (*siblings, *likely)], steps)
        seconds += self.measurer.seconds(missing)
        counted = {kind: sum(item.kind == kind for item in missing) for kind in programs.PROGRAMS}
        parts = ", ".join(f"{n} of {kind}" for kind, n in counted.items() if n) or "nothing"
        self.watch.say(
            f"{len(siblings)} siblings and at most {len(likely)} replays to be trained, {steps:,} "
            f"steps in all; to be measured: {parts}; about {progress.duration(seconds)} on {record.devices()}"
        )

    def missing(self, replays: Sequence[Network] = (), coming: Sequence[Network] = ()) -> list[Item]:
        """What can be measured and is not yet.

        Args:
            replays: those that are there.
            coming: siblings that count as there.
        """
        return [
            item
            for item in table.items(self._scope, replays)
            if (item.end is None or item.end in coming or self._networks.done(item.end))
            and table.read(self.run.path, item, self._scope.settings) is None
        ]

    def train_siblings(self) -> None:
        """Trains the siblings that are missing."""
        wanted = {one.stored: one for one in self._missing_siblings()}
        jobs = [(cell, self._networks.job(one)) for cell, one in wanted.items()]
        for cell, job, trained in self.train(jobs):
            made_from = {"sibling_of": str(folder(Path(), wanted[cell].cell)), "noise": job.noise}
            self.write(self._store, cell, job, trained, made_from, weights=True)

    @cached_property
    def _lower(self) -> dict[Network, dict[str, Any]]:
        """The replays that matching ticket with control takes, and what each is made from."""
        lower = {}
        for control, seed in self._pairs():
            cells = [self._scope.network(seed, arm).cell for arm in (TICKET, control)]
            losses = {cell: self._train_loss(cell) for cell in cells}
            cell, other = sorted(losses, key=losses.__getitem__)
            basis = {"target": losses[other], "images": self._scope.settings.images}
            lower[Network(cell, MATCHED, other.arm)] = basis
        return lower

    def _pairs(self) -> list[tuple[str, int]]:
        """(control, seed) of every pair of ticket and control."""
        return [(control, seed) for control in CONTROLS for seed in self._scope.arms[control]]

    def _train_loss(self, cell: Cell) -> float:
        found = table.read(self.run.path, Item("point", Network(cell)), self._scope.settings)
        assert found is not None, "points are measured first"
        return float(found["train_loss"])

    def _replays(self) -> list[Network]:
        """The replays that are there, of whatever target."""
        replays = [
            Network(self._scope.network(seed, arm).cell, MATCHED, other)
            for control, seed in self._pairs()
            for arm, other in ((TICKET, control), (control, TICKET))
        ]
        return [replay for replay in replays if self._store.has(replay.stored)]

    def matched(self) -> list[Network]:
        """The replays that are there and of today's target."""
        return [
            replay
            for replay, basis in self._lower.items()
            if self._store.has(replay.stored) and self._store.result(replay.stored).get("made_from") == basis
        ]

    def match(self) -> None:
        """Replays what ends at the lower train loss, and keeps the step nearest to the other's end."""
        present = self.matched()
        lacking = {replay: basis for replay, basis in self._lower.items() if replay not in present}
        # A ticket that ends lower than both controls is replayed once.
        first = {replay.cell: replay for replay in lacking}
        jobs = []
        for replay in first.values():
            job = self._networks.job(replay)
            steps = np.linspace(job.start, job.stop, _CAPTURES + 1).round().astype(int)
            captures = tuple(sorted({*steps.tolist()} - {job.stop}))
            jobs.append((replay.stored, job._replace(captures=captures)))
        own = {replay.stored: replay.cell for replay in first.values()}
        for stored, job, trained in self.train(jobs):
            cell = own[stored]
            end = self.run.variables(cell)
            same = all(jax.tree.leaves(jax.tree.map(np.array_equal, trained.variables, end)))
            states = {**trained.states, job.stop: end}
            losses = dict(
                zip(states, self.measurer.losses(Network(cell), list(states.values())), strict=True)
            )
            for replay, basis in lacking.items():
                if replay.cell == cell:
                    step = quantities.nearest_step(losses, basis["target"])
                    result = {
                        **replay.stored._asdict(),
                        "status": "done",
                        "step": step,
                        "train_loss": losses[step],
                        "exact": same,
                        "made_from": basis,
                    }
                    self._store.write(replay.stored, cast(fields.Result, result), job.mask, states[step])

    def rows(self) -> list[table.Number]:
        """All that is there, in numbers."""
        rows: list[table.Number] = []
        matched = self.matched()
        for item in table.items(self._scope, matched):
            arrays = table.read(self.run.path, item, self._scope.settings)
            if arrays is not None:
                rows += table.numbers(item, arrays)
        end = float(self.prepared.lengths.total)
        rows += [table.Number(*one.cell[:4], END, "step", end, None) for one in self._scope.networks()]
        for replay in matched:
            where, step = table.matched_with(replay.control), float(self._store.result(replay.stored)["step"])
            rows.append(table.Number(*replay.cell[:4], where, "step", step, None))
            # The other of the two is at its end.
            rows += [
                row._replace(where=where)
                for row in rows
                if (row.seed, row.arm, row.where) == (replay.cell.seed, replay.other, END)
                and row.quantity not in quantities.RISES.values()
            ]
        return sorted(rows, key=table.place_of)

    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        matched, lower = self.matched(), self._lower
        notes = [
            f"The replay {record.describe(replay.stored)} did not end at the very weights of the run, as on "
            "another machine it may not; it is a training of the same kind."
            for replay in matched
            if not self._store.result(replay.stored)["exact"]
        ]
        if len(matched) < len(lower):
            notes.append(
                f"Train losses are not matched in {len(lower) - len(matched)} of {len(lower)} pairs, for "
                "want of replays; there sharpness is known only at the end of training, where losses differ."
            )
        absent = self._missing_siblings()
        if absent:
            notes.append(f"{len(absent)} siblings are not trained; their paths are left out.")
        notes += [
            f"The sibling {record.describe(one.stored)} diverged and is left out."
            for one in self._scope.siblings()
            if one not in absent and not self._networks.done(one)
        ]
        if jax.tree.leaves(self.run.variables_at(self.prepared.study.seeds[0], 0).stats):
            notes.append(
                "The network has running statistics. On paths, ends included, they are computed anew at "
                "every point, from the train images."
            )
        return notes


def _density(run: Run, scope: Scope) -> float:
    """Of the level's tickets, the mean."""
    return float(np.mean([row.density for row in select(run.rows, scope.chain, scope.level, TICKET)]))


def _write(run: Run, found: Found) -> Path:
    """Writes a level's tables and figures where they are not there already."""
    where, texts = table.level_folder(run.path, found.scope.chain, found.scope.level), table.texts(found)
    try:
        if not all(_same(where / name, text) for name, text in texts.items()):
            where.mkdir(parents=True, exist_ok=True)
            (where / table.MARKER).unlink(missing_ok=True)
            for figure in drawn_of(run, found):
                page.show(where, figure)
            tables.write_tables(where, texts)
    except OSError as error:
        raise UserError(f"{where}: it cannot be written ({error.strerror}).") from error
    return where


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
