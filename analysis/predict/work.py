"""Takes scores, compares them with the tickets' masks, and trains the masks that are predicted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lthjax import data, models, prune, study
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError, counted
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import layers, predict, scores
from lthjax.measures.layers import Layers
from lthjax.models import Variables
from lthjax.study import Watch
from lthjax.training.job import Job

from .. import origins, page, record, tables
from .. import work as trainings
from ..rows import TICKET, asked_levels, densities, select
from ..run import Run, Tickets
from . import figures, table
from .table import PREDICTED, RANDOM, SHUFFLED, TWIN, Loaded, Scored, Trial

# Train images that scores see.
_IMAGES = 1000
# Shares of the dense training at which it is looked at, besides its beginning and its end.
_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True)
class Options(record.TrainingOptions):
    """Compares scores at initialisation and early in training with the masks of a run's tickets."""

    chain: str | None = None
    """The tickets' chain; by default that of the lowest rewind step with a trained ticket."""
    levels: tuple[int, ...] = ()
    """By default those nearest to 20, 10 and 3 % density and the last."""
    steps: tuple[int, ...] = ()
    """Steps of the dense training; by default from 0.2 to 20 % of it, and its end. Step 0 and the chain's
    rewind step are always among them."""
    images: int | None = None
    """Train images that scores see: whole batches, one epoch at most; by default 1,000, or all of fewer."""
    training: bool = True
    """Train predicted masks; without it the dense networks' first steps are replayed all the same."""


class Asked(NamedTuple):
    """What is asked of a run.

    Attributes:
        prepared: its study, with the seeds that have a ticket.
        tickets: those of the chain.
        seeds: level -> seeds whose ticket is done.
        steps, batches: of the dense training, at which scores are taken; of train images that they see.
        notes: what is left out, and why.
    """

    prepared: study.Prepared
    tickets: Tickets
    seeds: dict[int, list[int]]
    steps: list[int]
    batches: int
    notes: list[str]


def ask(run: Run, options: Options) -> Asked:
    """Resolves what is asked against what the run has.

    Raises:
        UserError: the run has no such chain, level or ticket; an option is out of range; the data differ.
    """
    tickets = run.tickets(options.chain)
    there = densities(tickets.done)
    if not there:
        raise UserError(f"{run.path}: every ticket of {tickets.chain} diverged; there is nothing to predict.")
    levels = asked_levels(options.levels, there, f"trained ticket in {tickets.chain}")
    seeds = {level: tickets.seeds(level) for level in levels}
    prepared = run.prepared({seed for of_level in seeds.values() for seed in of_level}, options.data_dir)
    total = prepared.lengths.total
    for step in options.steps:
        if not 0 <= step <= total:
            raise UserError(f"--steps: {step} is not allowed; it must be from 0 to {total}, the last step.")
    there_are = len(prepared.dataset.train_images) - prepared.study.data.validation
    images = min(_IMAGES, there_are) if options.images is None else options.images
    if not 1 <= images <= there_are:
        raise UserError(
            f"--images: {images} is not allowed; it must be from 1 to {there_are}, the images of the train "
            "split."
        )
    looked_at = {*options.steps} or {round(share * total) for share in _SHARES} | {total}
    batches = min(-(-images // prepared.study.train.batch), prepared.lengths.per_epoch)
    why = {(row.seed, row.level): "diverged" for row in tickets.rows}
    every = sorted({row.seed for row in tickets.rows})
    absent = [(seed, level) for level in seeds for seed in every if seed not in seeds[level]]
    left = "The ticket of seed {} at level {} {} and is left out."
    notes = [left.format(*of, why.get(of, "is not there")) for of in absent]
    return Asked(prepared, tickets, seeds, sorted({0, tickets.rewind, *looked_at}), batches, notes)


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Scores, measures, trains what is missing, and writes RUN/predict; see `analysis.record.Analysis`.

    Masks that an earlier call trained are reported without `options.training`, too.
    """
    asked = ask(run, options)
    with trainings.kept(run, "predict") as store:
        predicting = _Predicting(run, asked, store, watch, options.chunk)
        predicting.announce(options.training)
        predicting.replay()
        rows = predicting.measure()
        if options.training:
            predicting.train_predicted()
        return predicting.write_folder(rows, predicting.trials())


class _Predicting(trainings.Work):
    """One call of `work`: the states, scores and masks of the run, and the masks that are predicted."""

    def __init__(self, run: Run, asked: Asked, store: Store, watch: Watch, chunk: int | None) -> None:
        super().__init__(run, asked.prepared, watch, chunk)
        self._asked, self._store = asked, store
        self._chain, self._rewind = asked.tickets.chain, asked.tickets.rewind
        self._seeds, self._total = asked.prepared.study.seeds, asked.prepared.lengths.total
        self._whole = run.mask(_dense(self._seeds[0]))
        self._images = asked.batches * asked.prepared.study.train.batch
        model = asked.prepared.model
        self._scorer = scores.scorer(model)
        self._normalised = models.has_statistics(model)
        self._split = cache(self._split_of)
        self._predicted: dict[tuple[int, int], Layers] = {}

    def by_layer(self, tree: Any) -> Layers:
        """The prunable leaves of a pytree, each flat."""
        return layers.flat(layers.by_layer(tree, self._whole))

    def _state(self, seed: int, step: int) -> Variables:
        """The dense network at a step."""
        if step == self._total:
            return self.run.variables(_dense(seed))
        own = self.run.has_state(seed, step)
        return self.run.variables_at(seed, step) if own else self._store.state(seed, step)

    @cached_property
    def _missing_states(self) -> dict[int, tuple[int, ...]]:
        """Seed -> the steps whose states neither the run nor an earlier call has kept."""
        inner, found = [step for step in self._asked.steps if step < self._total], {}
        for seed in self._seeds:
            found[seed] = tuple(
                k for k in inner if not (self.run.has_state(seed, k) or self._is_replayed(seed, k))
            )
        return {seed: steps for seed, steps in found.items() if steps}

    def _is_replayed(self, seed: int, step: int) -> bool:
        """Whether a state is stored, of the dense network that is there now."""
        if not self._store.has_state(seed, step):
            return False
        file = state_folder(self._store.path, seed, step) / "result.json"
        return origins.fits(self._store.state_made_from(seed, step), {}, self._dense_of(seed), file)

    def _dense_of(self, seed: int) -> list[Path]:
        """The folder of the dense network whose first steps are replayed."""
        return [folder(self.run.path, _dense(seed))]

    def _cells(self, there: bool) -> list[Cell]:
        """The predicted masks and their twins, of levels with two seeds or more: trained ones, or others."""
        levels = {level: seeds for level, seeds in self._asked.seeds.items() if len(seeds) > 1}
        found = []
        for level, seed, arm in ((n, s, arm) for n in levels for s in levels[n] for arm in (PREDICTED, TWIN)):
            cell = Cell(seed, self._chain, level, arm)
            if self._is_trained(cell) == there:
                found.append(cell)
        return found

    def _is_trained(self, cell: Cell) -> bool:
        """Whether a predicted mask is stored, made from today's basis and the tickets that are there now."""
        if not self._store.has(cell):
            return False
        told, file = self._store.result(cell).get("made_from"), folder(self._store.path, cell) / "result.json"
        return origins.fits(told, self._basis(cell), self._tickets(cell.level), file)

    def _tickets(self, level: int) -> list[Path]:
        """The folders of a level's tickets, to whose masks the predictor is fitted."""
        cells = (Cell(seed, self._chain, level, TICKET) for seed in self._asked.seeds[level])
        return [folder(self.run.path, cell) for cell in cells]

    def _basis(self, cell: Cell) -> dict[str, Any]:
        """What a predicted mask is made from beside tickets; one of another basis is trained anew."""
        made = {
            "predictor": predict.LOGISTIC,
            "fitted_to": [seed for seed in self._asked.seeds[cell.level] if seed != cell.seed],
            "step": self._rewind,
            "scores": [*scores.names_at(self._rewind), scores.PIXEL_VARIANCE],
            "grasp": CRITERIA["grasp"].version,
            "images": self._images,
        }
        # Without batch statistics the scores are what they were before these marks.
        marks = {"loss": "training", "synflow": "without data"}
        return {**made, **marks} if self._normalised else made

    def announce(self, training: bool) -> None:
        """Says how much there is to train and, by measuring a few steps, how long it will take."""
        states, missing = self._missing_states, self._cells(there=False) if training else []
        steps = sum(map(max, states.values())) + len(missing) * (self._total - self._rewind)
        time = self.time([*map(_dense, states), *missing], steps)
        self.watch.say(
            f"{counted(len(states), 'dense training')} to be replayed as far as the states asked for, and "
            f"{counted(len(missing), 'predicted mask')} to be trained: {steps:,} steps in all{time}; "
            f"scores of {counted(len(self._seeds), 'seed')} at steps {', '.join(map(str, self._asked.steps))}"
        )

    def replay(self) -> None:
        """Trains the dense networks' first steps again for the states that are missing."""
        jobs = []
        for seed, steps in self._missing_states.items():
            dense = self.run.task(self.prepared, _dense(seed))
            jobs.append((dense.cell, Job(seed, 0, 0, max(steps), dense.variables, dense.mask, steps)))
        for cell, job, trained in self.train(jobs):
            for step in job.captures:
                made_from = origins.named({}, self._dense_of(cell.seed))
                self._store.write_state(cell.seed, step, trained.states[step], made_from)

    def measure(self) -> list[Scored]:
        """Scores every seed at every step, compares, and keeps the masks that are to be trained."""
        rows, tickets, null, how = [], {}, {}, self.prepared.study.prune.granularity
        for n, seeds in self._asked.seeds.items():
            masks = {seed: self.run.mask(Cell(seed, self._chain, n, TICKET)) for seed in seeds}
            whole = {seed: layers.by_layer(mask, self._whole) for seed, mask in masks.items()}
            drawn = {s: predict.shuffled(np.random.default_rng([s, n]), m, how) for s, m in whole.items()}
            tickets[n], null[n] = ({s: layers.flat(m) for s, m in of.items()} for of in (whole, drawn))
        for step in self._asked.steps:
            self.watch.say(f"scores at step {step}")
            kinds = {TICKET: tickets, **({SHUFFLED: null} if step == 0 else {})}
            judged, odds = predict.judge(self._scores(step), kinds)
            rows += [Scored(of.seed, self._chain, of.level, step, *of[2:5], *of.values) for of in judged]
            for (kind, level, seed), score in odds.items():
                if (step, kind) == (self._rewind, TICKET):
                    counts = {path: int(m.sum()) for path, m in tickets[level][seed].items()}
                    self._predicted[seed, level] = predict.keep_highest(score, counts)
        return rows

    def _scores(self, step: int) -> Iterator[tuple[int, dict[str, Layers]]]:
        """(seed, name -> scores) at a step."""
        names = tuple(scores.names_at(step))
        for seed in self._seeds:
            split, pixels = self._split(seed)
            batches = study.first_batches(self.prepared, split, seed, self._asked.batches)
            found = self._scorer(self._state(seed, 0).params, self._state(seed, step), *batches, names=names)
            by_layer = {name: self.by_layer(of) for name, of in found.items()}
            yield seed, {**by_layer, scores.PIXEL_VARIANCE: pixels}

    def _split_of(self, seed: int) -> tuple[data.Split, Layers]:
        """A seed's split, and for every weight the variance of the pixel that it reads."""
        split = data.split(self.prepared.dataset, seed, self.prepared.study.data.validation)
        images = self.prepared.dataset.train_images[split.train]
        order = self._asked.prepared.model.order
        return split, scores.pixel_variance(images, split.std, self._whole, order)

    def train_predicted(self) -> None:
        """Trains the predicted masks that are missing, and the same shuffled within layers."""
        jobs = []
        for cell in self._cells(there=False):
            kept = self._predicted[cell.seed, cell.level]
            if cell.arm == TWIN:
                kept = predict.shuffled(np.random.default_rng([cell.seed, cell.level, 1]), kept)
            start, mask = self._state(cell.seed, self._rewind), layers.as_mask(kept, self._whole)
            jobs.append((cell, Job(cell.seed, cell.level, self._rewind, self._total, start, mask)))
        for cell, job, trained in self.train(jobs):
            made_from = origins.named(self._basis(cell), self._tickets(cell.level))
            self.write(self._store, cell, job, trained, made_from)

    def trials(self) -> list[Trial]:
        """The predicted masks that are trained, with the run's tickets and random masks of their levels."""
        run, seeds, made = self.run, self._asked.seeds, []
        found = [(one, self._store.result(one), self._store.mask(one)) for one in self._cells(there=True)]
        found += [
            (row.cell, run.results[row.cell], run.mask(row.cell))
            for row in select(run.rows, chain=self._chain)
            if row.arm in (TICKET, RANDOM) and row.seed in seeds.get(row.level, ())
        ]
        for cell, result, mask in found:
            place = (cell.seed, cell.chain, cell.level, cell.repeat, cell.arm, self._rewind)
            iou, chance = map(float, prune.overlap(mask, run.mask(cell._replace(arm=TICKET, repeat=1))))
            reached = result.get("test_accuracy"), result.get("early_stop_step")
            made.append(Trial(*place, result["density"], iou, chance, *reached, result["status"]))
        return sorted(made)

    def write_folder(self, rows: list[Scored], trials: list[Trial]) -> Path:
        """Writes figures, tables and, last, about.json; returns the folder."""
        asked = self._asked
        paths, how = {*self.by_layer(self._whole)}, self.prepared.study.prune.granularity
        notes = table.notes(asked.seeds, paths, rows, trials, how, self._normalised)
        found = Loaded(rows, trials, [*asked.notes, *notes], densities(asked.tickets.rows))
        about: dict[str, Any] = {"chain": self._chain, "levels": [*asked.seeds], "seeds": asked.seeds}
        about |= {"steps": asked.steps, "images": self._images, "notes": found.notes}
        about |= {"scores": len(rows), "functional": len(trials)}
        contents = {
            table.SCORES: tables.of_rows(Scored, rows),
            table.TRIALS: tables.of_rows(Trial, trials),
            table.ABOUT: json.dumps(about, indent=1) + "\n",
        }
        return page.write_folder(self.run.path / "predict", figures.drawn(found), contents)


def _dense(seed: int) -> Cell:
    return Cell(seed, DENSE, 0, DENSE)
