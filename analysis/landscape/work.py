"""Trains siblings and replays, has networks measured, and writes a level's tables and figures."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from lthjax import fields, progress, record
from lthjax.devices import hardware
from lthjax.errors import UserError
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import programs, quantities
from lthjax.measures.programs import Settings
from lthjax.models import Variables
from lthjax.study import Prepared, Watch
from lthjax.training.job import Job

from .. import origins, page, tables
from ..record import TrainingOptions
from ..rows import select
from ..run import Run
from ..work import Work, kept
from . import table
from .figures import drawn_of, is_figure
from .measure import Measurer
from .table import ARMS, END, ArmDifference, Found, Item, Network, Number, Scope

# Steps of a replay at which its train loss is measured, at most, in every pass of the search.
_CAPTURES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeOptions(Settings, TrainingOptions):
    """Measures the loss landscape around the trained networks of one level, inside their masks: surfaces,
    paths and barriers, the Hessian's spectrum, sharpness. Prints the level's folder."""

    level: int
    """The level, from 1."""
    chain: str | None = None
    """The chain; by default the one of the lowest rewind step with a trained ticket."""
    seeds: tuple[int, ...] | None = None
    """The seeds; by default all that have a ticket there."""
    plane_seeds: tuple[int, ...] | None = None
    """The seeds of which surfaces are measured and drawn; by default the first."""
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
    if not tickets.done:
        raise UserError(f"{run.path}: every ticket of {tickets.chain} diverged; there is nothing to measure.")
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
        rows = at.rows()
        return _write(run, Found(asked.scope, rows, asked.notes + at.notes(rows)))


class _Landscape(Work):
    """One call of `work`: the siblings and replays of a level, and what is measured."""

    def __init__(self, run: Run, asked: Asked, store: Store, watch: Watch, chunk: int | None) -> None:
        super().__init__(run, asked.prepared, watch, chunk)
        self._scope, self._store = asked.scope, store
        self.measurer = Measurer(run, asked.prepared, asked.scope, store, watch)

    def _missing_siblings(self) -> list[Network]:
        return [one for one in self._scope.siblings() if not self.measurer.is_trained(one)]

    def announce(self, training: bool) -> None:
        """Says what there is to train and to measure and, by measuring a little, how long it will take."""
        if isinstance(self.watch, progress.Silent):
            return
        siblings, pairs = self._missing_siblings() if training else [], self._scope.replays()
        there = [[one for one in pair if self._is_fine(one)] for pair in pairs]
        # Which of the two ends at the lower train loss, and is replayed, is not known yet.
        likely = [pair[1] for pair, known in zip(pairs, there, strict=True) if training and not known]
        missing = self.missing([*itertools.chain(*there), *likely], siblings)
        trained = [*siblings, *likely]
        jobs = [self.measurer.job(one) for one in trained]
        passes = [1] * len(siblings) + [_passes(job.stop - job.start) for job in jobs[len(siblings) :]]
        steps = sum(n * (job.stop - job.start) for n, job in zip(passes, jobs, strict=True))
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
            and self.measurer.read(item) is None
        ]

    def train_siblings(self) -> None:
        """Trains the siblings that are missing."""
        wanted = {one.stored: one for one in self._missing_siblings()}
        jobs = [(cell, self.measurer.job(one)) for cell, one in wanted.items()]
        for cell, job, trained in self.train(jobs):
            one = wanted[cell]
            made_from = origins.named(self.measurer.sibling_of(one), self.measurer.source(one))
            self.write(self._store, cell, job, trained, made_from, weights=True)

    @cached_property
    def _lower(self) -> dict[Network, dict[str, Any]]:
        """The replays by which tickets and controls are matched, and what each is made from."""
        lower = {}
        for pair in self._scope.replays():
            found = [self.measurer.read(Item("point", Network(one.cell))) for one in pair]
            ours, theirs = (float(point["train_loss"]) for point in found if point is not None)
            replay, target = (pair[1], ours) if theirs < ours else (pair[0], theirs)
            lower[replay] = {"target": target, "images": self._scope.settings.images}
        return lower

    def matched(self) -> list[Network]:
        """The replays that are there and of today's target and cell."""
        return [replay for replay, basis in self._lower.items() if self.measurer.stored(replay, basis)]

    def _is_fine(self, replay: Network) -> bool:
        """Whether a replay is there, and as near to its target as its steps allow; older ones may not be."""
        if not self._store.has(replay.stored):
            return False
        result = self._store.result(replay.stored)
        target = float((result.get("made_from") or {}).get("target", math.nan))
        return quantities.off(result["train_loss"] or 0.0, target) <= quantities.WITHIN or bool(
            result.get("finest")
        )

    def match(self) -> None:
        """Replays what ends at the lower train loss, and keeps the step at which it reaches the other's end.

        A first pass looks at steps all over the training, every further one between the two steps around the
        target, until the losses are within `quantities.WITHIN` or no step lies between.
        """
        there = self.matched()
        lacking = {
            replay: basis
            for replay, basis in self._lower.items()
            if replay not in there or not self._is_fine(replay)
        }
        search = {replay.cell: _Search(self.measurer.job(replay)) for replay in lacking}
        wanted = {cell: one.evenly() for cell, one in search.items()}
        while wanted:
            self._look(wanted, search)
            wanted = {}
            for replay, basis in lacking.items():
                finer = quantities.finer_steps(search[replay.cell].losses, basis["target"], _CAPTURES)
                wanted[replay.cell] = sorted({*wanted.get(replay.cell, []), *finer})
            wanted = {cell: steps for cell, steps in wanted.items() if steps}
            for cell, one in search.items():
                one.forget([basis["target"] for replay, basis in lacking.items() if replay.cell == cell])
        for replay, basis in lacking.items():
            one = search[replay.cell]
            step = quantities.nearest_step(one.losses, basis["target"])
            made = {"status": "done", "step": step, "train_loss": one.losses[step], "exact": one.exact}
            made |= {"finest": True, "made_from": origins.named(basis, self.measurer.source(replay))}
            result = {**replay.stored._asdict(), **made}
            self._store.write(replay.stored, cast(fields.Result, result), one.job.mask, one.states[step])

    def _look(self, wanted: Mapping[Cell, Sequence[int]], search: Mapping[Cell, "_Search"]) -> None:
        """Replays cells, and adds the losses at the steps that are wanted."""
        jobs = []
        # All as far as the last step, as trainings of one length are trained together.
        last = max(map(max, wanted.values()))
        for cell, steps in wanted.items():
            stored = next(one.stored for one in self._lower if one.cell == cell)
            jobs.append((stored, search[cell].job._replace(stop=last, captures=tuple(steps))))
        cells = {stored: cell for (stored, _), cell in zip(jobs, wanted, strict=True)}
        for stored, _, trained in self.train(jobs):
            cell, states = cells[stored], dict(trained.states)
            one = search[cell]
            if one.job.stop in states:
                end, replayed = self.run.variables(cell), states[one.job.stop]
                one.exact = all(jax.tree.leaves(jax.tree.map(np.array_equal, replayed, end)))
                states[one.job.stop] = end
            one.add(self.measurer.losses(cell, states), states)

    def rows(self) -> list[Number]:
        """The table."""
        matched = self.matched()
        measured = {item: self.measurer.read(item) for item in table.items(self._scope, matched)}
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
            and row.quantity not in quantities.AT_END
        ]
        return sorted(rows, key=table.place_of)

    def notes(self, rows: Sequence[Number]) -> list[str]:
        """Sentences for a reader of the rows."""
        matched, pairs, siblings = self.matched(), len(self._lower), self._scope.siblings()
        notes = [
            f"The replay {record.describe(replay.stored)} did not end at the very weights of the run, as on "
            "another machine it may not; it is a training of the same kind."
            for replay in matched
            if not self._store.result(replay.stored)["exact"]
        ]
        every = table.matched_pairs(rows)
        wide = [pair.off for pair in every if pair.off > quantities.WITHIN]
        if wide:
            notes.append(
                f"In {len(wide)} of {len(every)} pairs the matched train losses differ by more than "
                f"{100 * quantities.WITHIN:g} %, by up to {100 * max(wide):.0f} %, as a single step of "
                "training changes the loss by more."
            )
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
                "The network has running statistics. On paths, ends and their disagreement included, they "
                "are computed anew at every point, from the train images; all else has them as they were "
                "trained."
            )
        return notes


class _Search:
    """The search for the step of a training at which its loss reaches a target.

    Attributes:
        job: the training.
        losses: step -> train loss, ascending, at the steps looked at.
        states: step -> weights, of those that may be kept.
        exact: whether the replay ended at the very weights of the run.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.exact = job, True
        self.losses: dict[int, float] = {}
        self.states: dict[int, Variables] = {}

    def evenly(self) -> list[int]:
        """The steps of the first pass, the last among them."""
        steps = np.linspace(self.job.start, self.job.stop, _CAPTURES + 1).round().astype(int)
        return sorted({*steps.tolist()})

    def add(self, losses: Mapping[int, float], states: Mapping[int, Variables]) -> None:
        """Adds what was looked at."""
        self.losses = dict(sorted({**self.losses, **losses}.items()))
        self.states |= states

    def forget(self, targets: Sequence[float]) -> None:
        """Drops the weights at all steps but those around a target."""
        near = {step for target in targets for step in quantities.around(self.losses, target)}
        self.states = {step: state for step, state in self.states.items() if step in near}


def _passes(steps: int) -> int:
    """Passes of the search that a training of so many steps takes at most."""
    count, gap = 1, -(-steps // _CAPTURES)
    while gap > 1:
        count, gap = count + 1, -(-gap // (_CAPTURES + 1))
    return count


def _write(run: Run, found: Found) -> Path:
    """Writes a level's tables and figures, in place of earlier ones; nothing where the tables are there."""
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
    drawn = drawn_of(run, found)
    # Those of seeds and draws that an earlier call asked for, and this one did not; no file of the user's.
    for path in where.glob("landscape_*.*"):
        ours = path.suffix in (".png", ".svg", ".csv") and is_figure(found, path.stem)
        if ours and path.stem not in {one.name for one in drawn}:
            path.unlink()
    return page.write_folder(where, drawn, texts)
