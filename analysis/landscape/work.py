"""Trains siblings and replays, has networks measured, and writes a level's tables and figures."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from analysis import page, tables
from analysis.landscape import table
from analysis.landscape.figures import drawn_of
from analysis.landscape.measure import Measurer
from analysis.landscape.table import ARMS, END, ArmDifference, Arrays, Found, Item, Network, Number, Scope
from analysis.record import TrainingOptions
from analysis.run import Run, select
from analysis.work import Work, kept
from lthjax import fields, progress, record
from lthjax.devices import hardware
from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.measures import programs, quantities
from lthjax.measures.programs import Settings
from lthjax.store import Store, folder
from lthjax.study import Prepared, Watch

# Steps of a replay at which its train loss is measured, at most.
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
    """The networks and settings that are asked for, and sentences on what is left out."""

    prepared: Prepared
    scope: Scope
    notes: list[str]


def ask(run: Run, options: LandscapeOptions) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain, level or seed; a setting is out of range; the data differ.
    """
    settings = Settings(**{of.name: getattr(options, of.name) for of in dataclasses.fields(Settings)})
    programs.check(settings)
    level, tickets = options.level, run.tickets(options.chain)
    there, lacks = tickets.seeds(level), f"has no trained ticket at level {level}"
    if not there:
        known = ", ".join(map(str, sorted({row.level for row in tickets.done})))
        raise UserError(f"--level: {level} has no trained ticket in {tickets.chain}; it may be {known}.")
    chosen = sorted({*(options.seeds or there)})
    planes = chosen[:1] if options.plane_seeds is None else sorted({*options.plane_seeds})
    for name, wanted, allowed, why in (
        ("--seeds", chosen, there, lacks),
        ("--plane-seeds", planes, there, lacks),
        ("--plane-seeds", planes, chosen, "is not among --seeds"),
    ):
        lacking = [seed for seed in wanted if seed not in allowed]
        if lacking:
            raise UserError(f"{name}: {lacking[0]} {why}; it may be {allowed}.")
    done = [row for row in run.rows if row.status == "done" and row.repeat == 1 and row.seed in chosen]
    arms = {DENSE: sorted(row.seed for row in select(done, DENSE))}
    arms |= {arm: sorted(row.seed for row in select(done, tickets.chain, level, arm)) for arm in ARMS}
    notes = [
        f"The {arm} cell of seed {seed}{'' if arm == DENSE else f' at level {level}'} is not there or "
        "diverged, and is left out."
        for arm, seeds in arms.items()
        for seed in sorted({*chosen} - {*seeds})
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
    density = float(np.mean([row.density for row in select(tickets.rows, level=level)]))
    most = settings.limited(few)
    return Asked(prepared, Scope(tickets.chain, level, density, tickets.rewind, arms, planes, most), notes)


def work(run: Run, options: LandscapeOptions, watch: Watch) -> Path:
    """Trains and measures what is missing, and writes the level's folder; see `analysis.record.Analysis`.

    Siblings and replays that an earlier call trained are measured without `options.training`, too.
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
        return _write(run, Found(asked.scope, at.rows(), asked.notes + at.notes()))


class _Landscape(Work):
    """One call of `work`: the siblings and replays of a level, and what is measured."""

    def __init__(self, run: Run, asked: Asked, store: Store, watch: Watch, chunk: int | None) -> None:
        super().__init__(run, asked.prepared, watch, chunk)
        self._scope, self._store = asked.scope, store
        self.measurer = Measurer(run, asked.prepared, asked.scope, store, watch)

    def _read(self, item: Item) -> Arrays | None:
        return table.read(self.run.path, item, self._scope.settings)

    def _missing_siblings(self) -> list[Network]:
        return [one for one in self._scope.siblings() if not self._store.has(one.stored)]

    def announce(self, training: bool) -> None:
        """Says what there is to train and to measure and, by measuring a little, how long it will take."""
        if isinstance(self.watch, progress.Silent):
            return
        siblings, pairs = self._missing_siblings() if training else [], self._scope.replays()
        there = [[one for one in pair if self._store.has(one.stored)] for pair in pairs]
        # Which of the two ends at the lower train loss, and is replayed, is not known yet.
        likely = [pair[1] for pair, known in zip(pairs, there, strict=True) if training and not known]
        missing = self.missing([*itertools.chain(*there), *likely], siblings)
        trained = [*siblings, *likely]
        jobs = [self.measurer.job(one) for one in trained]
        steps = sum(job.stop - job.start for job in jobs)
        seconds = self.seconds([one.stored for one in trained], steps) + self.measurer.seconds(missing)
        counted = {kind: sum(item.kind == kind for item in missing) for kind in programs.PROGRAMS}
        parts = ", ".join(f"{n} of {kind}" for kind, n in counted.items() if n) or "nothing"
        time = f"about {progress.duration(seconds)} on {hardware.described()}"
        self.watch.say(
            f"{len(siblings)} siblings and at most {len(likely)} replays to be trained, {steps:,} "
            f"steps in all; to be measured: {parts}; {time}"
        )

    def missing(self, replays: Sequence[Network] = (), coming: Sequence[Network] = ()) -> list[Item]:
        """The measurements that can be made and are not there; siblings that are coming count as trained."""
        return [
            item
            for item in table.items(self._scope, replays)
            if (item.end is None or item.end in coming or self.measurer.done(item.end))
            and self._read(item) is None
        ]

    def train_siblings(self) -> None:
        """Trains the siblings that are missing."""
        wanted = {one.stored: one for one in self._missing_siblings()}
        jobs = [(cell, self.measurer.job(one)) for cell, one in wanted.items()]
        for cell, job, trained in self.train(jobs):
            made_from = {"sibling_of": str(folder(Path(), wanted[cell].cell)), "noise": job.noise}
            self.write(self._store, cell, job, trained, made_from, weights=True)

    @cached_property
    def _lower(self) -> dict[Network, dict[str, Any]]:
        """The replays by which tickets and controls are matched, and what each is made from."""
        lower = {}
        for pair in self._scope.replays():
            found = [self._read(Item("point", Network(one.cell))) for one in pair]
            ours, theirs = (float(point["train_loss"]) for point in found if point is not None)
            replay, target = (pair[1], ours) if theirs < ours else (pair[0], theirs)
            lower[replay] = {"target": target, "images": self._scope.settings.images}
        return lower

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
        cells, jobs = {replay.stored: cell for cell, replay in first.items()}, []
        for stored, cell in cells.items():
            job = self.measurer.job(first[cell])
            steps = np.linspace(job.start, job.stop, _CAPTURES + 1).round().astype(int)
            jobs.append((stored, job._replace(captures=tuple(sorted({*steps.tolist()} - {job.stop})))))
        for stored, job, trained in self.train(jobs):
            cell, end = cells[stored], self.run.variables(cells[stored])
            same = all(jax.tree.leaves(jax.tree.map(np.array_equal, trained.variables, end)))
            states = {**trained.states, job.stop: end}
            losses = self.measurer.losses(cell, states)
            for replay in (replay for replay in lacking if replay.cell == cell):
                step = quantities.nearest_step(losses, lacking[replay]["target"])
                made = {"status": "done", "step": step, "train_loss": losses[step], "exact": same}
                result = {**replay.stored._asdict(), **made, "made_from": lacking[replay]}
                self._store.write(replay.stored, cast(fields.Result, result), job.mask, states[step])

    def rows(self) -> list[Number]:
        """The table."""
        matched = self.matched()
        measured = {item: self._read(item) for item in table.items(self._scope, matched)}
        rows = [row for item, of in measured.items() if of is not None for row in table.numbers(item, of)]
        steps = {one: self.prepared.lengths.total for one in self._scope.networks()}
        steps |= {replay: self._store.result(replay.stored)["step"] for replay in matched}
        rows += [Number(*one.cell[:4], one.where, "step", float(n), None) for one, n in steps.items()]
        # The other network of a matched pair is at the end of its training.
        rows += [
            row._replace(where=replay.where)
            for replay in matched
            for row in rows
            if (row.seed, row.arm, row.where) == (replay.cell.seed, replay.other, END)
            and row.quantity not in quantities.RISES.values()
        ]
        return sorted(rows, key=table.place_of)

    def notes(self) -> list[str]:
        """Sentences for a reader of the rows."""
        matched, pairs, siblings = self.matched(), len(self._lower), self._scope.siblings()
        notes = [
            f"The replay {record.describe(replay.stored)} did not end at the very weights of the run, as on "
            "another machine it may not; it is a training of the same kind."
            for replay in matched
            if not self._store.result(replay.stored)["exact"]
        ]
        if len(matched) < pairs:
            notes.append(
                f"Train losses are not matched in {pairs - len(matched)} of {pairs} pairs, for "
                "want of replays; there sharpness is known only at the end of training, where losses differ."
            )
        absent = self._missing_siblings()
        if absent:
            notes.append(f"{len(absent)} siblings are not trained; their paths are left out.")
        bad = [one for one in siblings if one not in absent and not self.measurer.done(one)]
        notes += [f"The sibling {record.describe(one.stored)} diverged and is left out." for one in bad]
        if jax.tree.leaves(self.run.variables_at(self.prepared.study.seeds[0], 0).stats):
            notes.append(
                "The network has running statistics. On paths, ends included, they are computed anew at "
                "every point, from the train images."
            )
        return notes


def _write(run: Run, found: Found) -> Path:
    """Writes a level's tables and figures; draws nothing where the tables are there already."""
    scope, settings = found.scope, dataclasses.asdict(found.scope.settings)
    where = table.level_folder(run.path, scope.chain, scope.level)
    about = {**scope._asdict(), "settings": settings, "notes": found.notes, "rows": len(found.rows)}
    texts = {
        table.TABLE: tables.of_rows(Number, found.rows),
        "differences.csv": tables.of_rows(ArmDifference, table.differences(found.rows)),
        table.MARKER: json.dumps(about, indent=1) + "\n",
    }
    there = {path.name: path.read_bytes() for path in map(where.joinpath, texts) if path.is_file()}
    if there == {name: text.encode() for name, text in texts.items()}:
        return where
    (where / table.MARKER).unlink(missing_ok=True)
    return page.write_folder(where, drawn_of(run, found), texts)
