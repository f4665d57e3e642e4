"""How predictable a run's tickets are, at initialisation and early in training.

python -m analysis.predict runs/quickstart-0123abcd
python -m analysis.predict runs/quickstart-0123abcd --levels 7 11 --steps 0 10 100 --no-training

Scores every weight at some steps of the dense training, holds the scores against the masks that
iterative pruning found (`lthjax.measures.predict`), and trains what was predicted beside its shuffled
twin. The dense network's first steps are gone again for it, which on one CPU gives the same bits. The
run's own cells are only read; what this writes lies in RUN/predict:

  scores.csv                        `Row`: how well every score finds a ticket's mask
  functional.csv                    `Trial`: what predicted masks are worth, trained
  about.json                        chain, levels, seeds, steps, notes
  predict_bars, _curve, _functional figures, as PNG, SVG and the CSV of their data
  seed=3/state=50/                  the dense network at a step that the run did not keep
  seed=3/chain=C/level=07/ARM/      a trained mask; ARM is predicted or predicted_shuffled
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, extra, figures, page
from analysis.page import Drawn, Link, Section
from analysis.verdicts import Finding
from lthjax import cli, data, models, progress, prune, record, rng, settings, study, train
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError, shell
from lthjax.imp import DENSE, Cell
from lthjax.measures import predict
from lthjax.measures.predict import PIXEL_VARIANCE, SCORES, Layers
from lthjax.measures.stats import POSITIVE, SHARE, Range, mean_interval, paired, verdict
from lthjax.models import Variables
from lthjax.store import Store, read_study

PyTree = Any
ABOUT = "predict/about.json"
LOGISTIC = "logistic"
MEAN, POOLED = "mean", "pooled"
PREDICTED, TWIN = "predicted", "predicted_shuffled"
_NEAR = (0.2, 0.1, 0.03)
# Train images that scores see.
_IMAGES = 1000
# Shares of the dense training at which it is looked at, besides its beginning and its end.
_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


class Row(NamedTuple):
    """How well a score at a step finds one ticket's mask, as in scores.csv.

    Attributes:
        seed, chain, level: which ticket.
        step: of the dense training, at which the score is taken.
        score: a key of `predict.SCORES`, "pixel_variance", or "logistic": the predictor fitted to all
            the other seeds.
        mask: "ticket", or "shuffled": the null, its mask shuffled within layers (for the logistic
            predictor those that it was fitted to, too).
        layer: path of the leaf; "mean" over the layers where there is something to tell; "pooled".
        density, ...: as in `predict.Measured`; of "pooled" only `auroc`, the others None.
    """

    seed: int
    chain: str
    level: int
    step: int
    score: str
    mask: str
    layer: str
    density: float | None
    auroc: float | None
    average_precision: float | None
    precision: float | None
    lift: float | None
    iou: float | None
    iou_chance: float | None


class Trial(NamedTuple):
    """A mask trained from the weights that the ticket starts from, as in functional.csv.

    Attributes:
        seed, chain, level, repeat: where.
        mask: "ticket"; "predicted" by the other seeds' predictor, with the ticket's layer-wise
            densities; "predicted_shuffled", the same shuffled within layers; "random", the run's own.
        step: at which the scores were taken for the prediction: that to which the ticket is rewound.
        density: weights left / prunable weights.
        iou: with the ticket's mask.
        iou_chance: of a random mask of the same layer-wise densities.
        test_accuracy: a fraction, at the end; None where it diverged.
        early_stop_step: the step of the lowest validation loss; None where it diverged.
        status: "done" or "diverged".
    """

    seed: int
    chain: str
    level: int
    repeat: int
    mask: str
    step: int
    density: float
    iou: float
    iou_chance: float
    test_accuracy: float | None
    early_stop_step: int | None
    status: str


class Loaded(NamedTuple):
    """What RUN/predict holds: rows of scores, trained masks, and what a reader must know.

    Attributes:
        rows, trials, notes: these.
        density: level -> weights left / prunable weights, mean of the run's tickets.
    """

    rows: list[Row]
    trials: list[Trial]
    notes: list[str]
    density: dict[int, float]


class Asked(NamedTuple):
    """What is asked of a run.

    Attributes:
        run: the run folder.
        prepared: its study, with the seeds that have a ticket.
        chain: the chain's name.
        rewind: the step that its tickets are rewound to.
        levels: at which tickets are looked at.
        seeds: level -> those whose ticket is there and done.
        steps: of the dense training.
        batches: of train images that scores see.
        notes: what is left out, and why.
    """

    run: Path
    prepared: study.Prepared
    chain: str
    rewind: int
    levels: list[int]
    seeds: dict[int, list[int]]
    steps: list[int]
    batches: int
    notes: list[str]


def ask(
    run: str | Path,
    data_dir: str | Path = "data",
    *,
    chain: str | None = None,
    levels: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    images: int | None = None,
) -> Asked:
    """Resolves what is asked against what the run has.

    Args:
        run: the run folder.
        data_dir: the data folder.
        chain: the tickets' chain; by default the one that is rewound to the lowest step.
        levels: by default those whose densities are nearest to 20 %, 10 % and 3 %, and the last.
        steps: of the dense training; by default shares of it from 0.2 % to 20 %, and its end. Step 0
            and the chain's rewind step are always among them.
        images: how many train images the scores that look at gradients see: whole batches, the first
            of the dense network's order, one epoch at most. By default 1,000, or all of fewer.

    Raises:
        UserError: the run has no such chain, level or ticket; a step or number of images is out of
            range; the data differ.
    """
    run = Path(run)
    about, chain, rewind, _, tickets = extra.opened(run, chain)
    done = [row for row in tickets if row.status == "done"]
    there = sorted({row.level for row in done})
    if not there:
        raise UserError(f"{run}: every ticket of {chain} diverged; there is nothing to predict.")
    for level in levels or ():
        if level not in there:
            raise UserError(
                f"--levels: {level} has no trained ticket in {chain}; it may be {', '.join(map(str, there))}."
            )
    density = cells.densities(done)
    nearest = {cells.nearest(density, near) for near in _NEAR}
    chosen = sorted({*levels} if levels else {*nearest, there[-1]})
    seeds = {n: sorted(row.seed for row in cells.select(done, level=n)) for n in chosen}
    every = {seed for of_level in seeds.values() for seed in of_level}
    prepared = extra.prepared(about, every, data_dir)
    total = prepared.lengths.total
    for step in steps or ():
        if not 0 <= step <= total:
            raise UserError(f"--steps: {step} is not allowed; it must be from 0 to {total}, the last step.")
    there_are = len(prepared.dataset.train_images) - prepared.study.data.validation
    images = min(_IMAGES, there_are) if images is None else images
    if not 1 <= images <= there_are:
        raise UserError(
            f"--images: {images} is not allowed; it must be from 1 to {there_are}, the images of the train "
            "split."
        )
    looked_at = {round(share * total) for share in _SHARES} | {total} if steps is None else {*steps}
    batches = min(-(-images // prepared.study.train.batch), prepared.lengths.per_epoch)
    return Asked(
        run,
        prepared,
        chain,
        rewind,
        chosen,
        seeds,
        sorted({0, rewind, *looked_at}),
        batches,
        _absent(tickets, seeds),
    )


def _absent(tickets: Sequence[cells.Row], seeds: dict[int, list[int]]) -> list[str]:
    """What of the tickets is not looked at."""
    notes = []
    every = sorted({row.seed for row in tickets})
    for level, present in seeds.items():
        for seed in sorted({*every} - {*present}):
            diverged = any((row.seed, row.level) == (seed, level) for row in tickets)
            why = "diverged" if diverged else "is not there"
            notes.append(f"The ticket of seed {seed} at level {level} {why} and is left out.")
    return notes


@settings.pinned()
def build(asked: Asked, *, training: bool = True, quiet: bool = True, chunk: int | None = None) -> Path:
    """Scores, measures, trains what is missing, and writes RUN/predict.

    May be stopped at any time: replayed states and trained masks stay, and the same call goes on.

    Args:
        asked: as `ask` resolved it.
        training: whether predicted masks are trained; those trained before are reported all the same.
        quiet: whether nothing is said on standard error; if not, first what it will cost.
        chunk: replicates trained in one program.

    Returns:
        The folder.

    Raises:
        UserError: a file cannot be read or written, or another process is at it.
    """
    about = read_study(asked.run)
    here = {**about, "commands": [shell(*sys.argv)]}
    with Store(asked.run / "predict", about["identity"], here) as kept:
        work = _Work(asked, kept, Store(asked.run, about["identity"], about), quiet, chunk)
        work.announce(training)
        work.replay()
        rows = work.measure()
        if training:
            work.train_predicted()
        trials = work.trials()
        _write(asked, kept.path, rows, trials, [*asked.notes, *_told(asked, rows, trials)])
    return kept.path


class _Work:
    """One call of `build`: the stores that it reads and writes, and what it has predicted so far."""

    def __init__(self, asked: Asked, kept: Store, store: Store, quiet: bool, chunk: int | None) -> None:
        self._asked, self._kept, self._store = asked, kept, store
        self._quiet, self._chunk = quiet, chunk
        self._prepared, self._study = asked.prepared, asked.prepared.study
        self._like = jax.eval_shape(asked.prepared.model.init, jax.random.key(0))
        self._ones = prune.ones(self._like.params)
        self._trainer: train.Trainer | None = None
        self._predicted: dict[tuple[int, int], Layers] = {}

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr)

    def _state(self, seed: int, step: int) -> Variables:
        """The dense network at a step."""
        if step == self._prepared.lengths.total:
            return self._store.variables(Cell(seed, DENSE, 0, DENSE), self._like)
        where = self._store if self._store.has_state(seed, step) else self._kept
        return where.state(seed, step, self._like)

    def _missing_states(self) -> dict[int, tuple[int, ...]]:
        """Seed -> the steps whose states neither the run nor an earlier call has kept."""
        stores = (self._store, self._kept)
        inner = [step for step in self._asked.steps if step < self._prepared.lengths.total]
        lacking = {
            seed: tuple(k for k in inner if not any(store.has_state(seed, k) for store in stores))
            for seed in self._study.seeds
        }
        return {seed: steps for seed, steps in lacking.items() if steps}

    def _ticket(self, seed: int, level: int) -> Layers:
        mask = self._store.mask(Cell(seed, self._asked.chain, level, "ticket"), self._ones)
        return predict.by_layer(mask, self._ones)

    def _cells(self) -> list[Cell]:
        """All that the functional test trains: levels with two seeds or more."""
        return [
            Cell(seed, self._asked.chain, level, arm)
            for level in self._asked.levels
            if len(self._asked.seeds[level]) > 1
            for seed in self._asked.seeds[level]
            for arm in (PREDICTED, TWIN)
        ]

    def _basis(self, cell: Cell) -> dict[str, Any]:
        """What a predicted mask is made from; a trained one of another basis is made anew."""
        return {
            "predictor": LOGISTIC,
            "fitted_to": [seed for seed in self._asked.seeds[cell.level] if seed != cell.seed],
            "step": self._asked.rewind,
            "scores": [*predict.names_at(self._asked.rewind), PIXEL_VARIANCE],
            "grasp": CRITERIA["grasp"].version,
            "images": self._asked.batches * self._study.train.batch,
        }

    def _there(self, cell: Cell) -> bool:
        return self._kept.has(cell) and self._kept.result(cell).get("made_from") == self._basis(cell)

    def announce(self, training: bool) -> None:
        """Says how much there is to train and, by measuring a few steps, how long it will take."""
        if self._quiet:
            return
        states = self._missing_states()
        missing = [cell for cell in self._cells() if not self._there(cell)] if training else []
        todo = self._plan([Cell(seed, DENSE, 0, DENSE) for seed in states], missing)
        time = ""
        if todo.steps:
            cost = study.estimate([self._prepared], [todo], self._chunk)
            time = f" (about {progress.duration(cost.seconds)})"
        self._say(
            f"{len(states)} dense trainings to be gone again as far as the states asked for, and "
            f"{len(missing)} predicted masks to be trained: {todo.steps:,} steps in all{time}; scores of "
            f"{len(self._study.seeds)} seeds at steps {', '.join(map(str, self._asked.steps))}"
        )

    def _plan(self, replays: list[Cell], trainings: list[Cell]) -> study.Plan:
        states = self._missing_states()
        steps = sum(max(states[cell.seed]) for cell in replays)
        steps += len(trainings) * (self._prepared.lengths.total - self._asked.rewind)
        return study.Plan([*replays, *trainings], [], [*replays, *trainings], steps)

    def _train(
        self, jobs: Sequence[tuple[Cell, train.Job]], watch: study.Watch
    ) -> Iterator[tuple[Cell, train.Job, train.Trained]]:
        """Trains in chunks of the same first and last step, and yields what is finished."""
        if self._trainer is None:
            self._trainer = study.make_trainer([self._prepared], self._chunk, self._study.seeds)
        yield from extra.in_chunks(self._trainer, jobs, watch)

    def replay(self) -> None:
        """Goes the dense networks' first steps again for the states that nobody has kept."""
        jobs = []
        for seed, steps in self._missing_states().items():
            initial = jax.device_get(self._prepared.model.init(rng.stream(seed, "init")))
            job = train.Job(seed, 0, 0, max(steps), initial, jax.device_get(self._ones), steps)
            jobs.append((Cell(seed, DENSE, 0, DENSE), job))
        if not jobs:
            return
        todo = self._plan([cell for cell, _ in jobs], [])
        with extra.watched(self._asked.run.name, todo, self._quiet) as watch:
            for cell, job, trained in self._train(jobs, watch):
                for step in job.captures:
                    self._kept.write_state(cell.seed, step, trained.states[step])

    def measure(self) -> list[Row]:
        """Scores every seed at every step and holds the scores against the tickets' masks."""
        asked, rows, pixels = self._asked, [], {}
        tickets = {n: {seed: self._ticket(seed, n) for seed in asked.seeds[n]} for n in asked.levels}
        null = {
            n: {seed: predict.shuffled(np.random.default_rng([seed, n]), m) for seed, m in of_level.items()}
            for n, of_level in tickets.items()
        }
        splits = {
            s: data.split(self._prepared.dataset, s, self._study.data.validation) for s in self._study.seeds
        }
        for seed, split in splits.items():
            images = self._prepared.dataset.train_images[split.train]
            pixels[seed] = predict.pixel_variance(images, split.std, self._ones)
        scorers: dict[tuple[str, ...], Callable[..., dict[str, PyTree]]] = {}
        for step in asked.steps:
            names, seen = tuple(predict.names_at(step)), {}
            scorer = scorers.setdefault(names, self._scorer(names))
            self._say(f"scores at step {step}")
            for seed, split in splits.items():
                initial, now = self._state(seed, 0), self._state(seed, step)
                found = scorer(initial.params, now, *self._images(seed, split))
                layers = {name: predict.by_layer(tree, self._ones) for name, tree in found.items()}
                layers[PIXEL_VARIANCE] = pixels[seed]
                for name, score in layers.items():
                    rows += self._rows(seed, step, name, "ticket", score, tickets)
                    if step == 0:
                        rows += self._rows(seed, step, name, "shuffled", score, null)
                seen[seed] = predict.features(layers)
            for level in asked.levels:
                if len(asked.seeds[level]) > 1:
                    rows += self._held_out(step, level, seen, tickets, "ticket")
                    if step == 0:
                        rows += self._held_out(step, level, seen, null, "shuffled")
        return rows

    def _scorer(self, names: tuple[str, ...]) -> Callable[..., dict[str, PyTree]]:
        """Compiled: (initial weights, state, images, labels) -> name -> scores."""
        model = self._prepared.model

        @jax.jit
        def scores(
            initial: PyTree, now: Variables, images: jax.Array, labels: jax.Array
        ) -> dict[str, PyTree]:
            # At step 0 the running ones say nothing yet.
            stats = models.statistics(model, now.params, now.stats, images)

            def logits(params: PyTree, images: jax.Array) -> jax.Array:
                return model.apply(params, stats, images, False)[0]

            with jax.default_matmul_precision("float32"):
                return predict.scores(logits, initial, now.params, images, labels, names)

        return scores

    def _images(self, seed: int, split: data.Split) -> tuple[jax.Array, jax.Array]:
        """The first batches of the dense network's order: images [m, B, H, W, C], labels [m, B]."""
        dataset, batch = self._prepared.dataset, self._study.train.batch
        index = train.order(split.train, self._prepared.lengths, batch, seed, 0, 0, self._asked.batches)
        raw = jnp.asarray(dataset.train_images[index.ravel()])
        images = data.gather(raw, jnp.arange(index.size), jnp.asarray(split.mean), jnp.asarray(split.std))
        return images.reshape(*index.shape, *dataset.shape), jnp.asarray(dataset.train_labels[index])

    def _held_out(
        self, step: int, level: int, seen: dict[int, Layers], masks: dict[int, dict[int, Layers]], kind: str
    ) -> list[Row]:
        """The logistic predictor, every seed's by the others; keeps the mask it predicts for training."""
        rows: list[Row] = []
        of_level = masks[level]
        for seed, score in predict.held_out({seed: seen[seed] for seed in of_level}, of_level).items():
            rows += self._rows(seed, step, LOGISTIC, kind, score, {level: of_level})
            if kind == "ticket" and step == self._asked.rewind:
                counts = {path: int(m.sum()) for path, m in of_level[seed].items()}
                self._predicted[seed, level] = predict.keep_highest(score, counts)
        return rows

    def _rows(
        self, seed: int, step: int, name: str, kind: str, score: Layers, masks: dict[int, dict[int, Layers]]
    ) -> list[Row]:
        rows = []
        for level, of_level in masks.items():
            if seed not in of_level or not score:
                continue
            mask, place = of_level[seed], (seed, self._asked.chain, level, step, name, kind)
            measured = {path: predict.measure(values, mask[path]) for path, values in score.items()}
            told = {path: found for path, found in measured.items() if found is not None}
            rows += [Row(*place, path, *found) for path, found in told.items()]
            if told:
                rows.append(Row(*place, MEAN, *predict.over_layers(list(told.values()))))
            pooled = predict.pooled_auroc(score, mask)
            if pooled is not None:
                rows.append(Row(*place, POOLED, None, pooled, None, None, None, None, None))
        return rows

    def train_predicted(self) -> None:
        """Trains the predicted masks that are missing, and their shuffled twins."""
        jobs = []
        for cell in self._cells():
            if self._there(cell):
                continue
            layers = self._predicted[cell.seed, cell.level]
            if cell.arm == TWIN:
                layers = predict.shuffled(np.random.default_rng([cell.seed, cell.level, 1]), layers)
            start, stop = self._asked.rewind, self._prepared.lengths.total
            origin, mask = self._state(cell.seed, start), predict.as_mask(layers, self._ones)
            jobs.append((cell, train.Job(cell.seed, cell.level, start, stop, origin, mask)))
        if not jobs:
            return
        todo = self._plan([], [cell for cell, _ in jobs])
        with extra.watched(self._asked.run.name, todo, self._quiet) as watch:
            for cell, job, trained in self._train(jobs, watch):
                result = record.result(cell, job, trained, self._basis(cell))
                self._kept.write(cell, result, job.mask, None)
                watch.finished(cell, result, "")

    def trials(self) -> list[Trial]:
        """Every trained mask of the levels looked at: ours, the tickets, and the run's random ones."""
        ours = [(self._kept, cell) for cell in self._cells() if self._there(cell)]
        theirs = [
            (self._store, Cell(row.seed, row.chain, row.level, row.arm, row.repeat))
            for row in cells.select(cells.load(self._asked.run), chain=self._asked.chain)
            if row.arm in ("ticket", "random") and row.seed in self._asked.seeds.get(row.level, ())
        ]
        made = []
        for where, cell in [*ours, *theirs]:
            result, mask = where.result(cell), where.mask(cell, self._ones)
            ticket = self._store.mask(cell._replace(arm="ticket", repeat=1), self._ones)
            iou, chance = prune.overlap(mask, ticket)
            made.append(
                Trial(
                    *(cell.seed, cell.chain, cell.level, cell.repeat, cell.arm),
                    self._asked.rewind,
                    result["density"],
                    float(iou),
                    float(chance),
                    result.get("test_accuracy"),
                    result.get("early_stop_step"),
                    result["status"],
                )
            )
        return sorted(made)


def _told(asked: Asked, rows: Sequence[Row], trials: Sequence[Trial]) -> list[str]:
    """What a reader of the rows must know."""
    notes = []
    leaves = jax.eval_shape(asked.prepared.model.init, jax.random.key(0)).params
    every = set(predict.by_layer(prune.ones(leaves), prune.ones(leaves)))
    for level in asked.levels:
        alone = len(asked.seeds[level]) < 2
        if alone:
            notes.append(
                f"Level {level} has the ticket of one seed only: there is no held-out test of the logistic "
                "predictor, and no predicted mask."
            )
        for seed in asked.seeds[level]:
            seen = {row.layer for row in rows if (row.seed, row.level) == (seed, level)}
            notes += [
                f"Level {level}, seed {seed}: all weights of {layer} are kept, or none, and it is left out."
                for layer in sorted(every - seen)
            ]
        trained = {trial.mask for trial in trials if trial.level == level}
        if not alone and "random" not in trained:
            notes.append(
                f"The run has no arm `random` at level {level}; the predicted mask's shuffled twin is a "
                "random mask of the same layer-wise densities."
            )
    if not any(row.score == PIXEL_VARIANCE for row in rows):
        notes.append(
            "Pixel variance is left out: the first layer is a convolution, whose weights read every pixel."
        )
    bad = sum(trial.status == "diverged" for trial in trials)
    if bad:
        notes.append(f"{bad} of the {len(trials)} trained masks diverged and are left out of means.")
    return notes


def load(run: str | Path) -> Loaded:
    """What was found of a run's predictability.

    Raises:
        UserError: nothing was, or a file cannot be read.
    """
    where = Path(run) / "predict"
    if not (where / "about.json").is_file():
        raise UserError(f"{run}: its predictability is not known yet; run {_command(run)} first.")
    try:
        about = json.loads(extra.read_text(where / "about.json"))
        notes: list[str] = [*about["notes"]]
        rows = extra.read_rows(where / "scores.csv", Row)
        trials = extra.read_rows(where / "functional.csv", Trial)
        for table, of_table in (("scores", rows), ("functional", trials)):
            if len(of_table) != about.get(table, len(of_table)):
                raise ValueError(f"{table}.csv has not as many rows as were written")
        density = _densities(Path(run), rows[0].chain)
        unknown = {*(row.level for row in rows), *(trial.level for trial in trials)} - {*density}
        if unknown:
            raise ValueError(f"the run has no ticket of level {min(unknown)}")
        return Loaded(rows, trials, notes, density)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: it cannot be read ({error}); run {_command(run)} again.") from error


def _command(run: str | Path) -> str:
    return shell("python", "-m", "analysis.predict", run)


def _densities(run: Path, chain: str) -> dict[int, float]:
    return cells.densities(cells.select(cells.load(run), chain=chain, arm="ticket"))


def _write(asked: Asked, where: Path, rows: list[Row], trials: list[Trial], notes: list[str]) -> None:
    about = {
        "chain": asked.chain,
        "levels": asked.levels,
        "seeds": {str(level): seeds for level, seeds in asked.seeds.items()},
        "steps": asked.steps,
        "images": asked.batches * asked.prepared.study.train.batch,
        "notes": notes,
        "scores": len(rows),
        "functional": len(trials),
    }
    try:
        for of_figure in drawn(Loaded(rows, trials, notes, _densities(asked.run, asked.chain))):
            page.show(where, of_figure)
        contents = {
            "scores.csv": page.to_csv(Row._fields, rows),
            "functional.csv": page.to_csv(Trial._fields, trials),
            "about.json": json.dumps(about, indent=1) + "\n",
        }
        extra.write_tables(where, contents)
    except OSError as error:
        raise UserError(f"{where}: it cannot be written ({error.strerror}).") from error


def drawn(loaded: Loaded) -> list[Drawn]:
    """The figures of what was found, with their captions."""
    rows, trials, _, density = loaded
    found = [
        Drawn(
            "predict_bars",
            "How well scores at initialisation find the ticket's mask",
            bars(rows, density),
            "AUROC within layers, and precision at the mask's own number of weights over its density, each "
            "averaged over the layers; one panel a level. Points are seeds, bars their mean, lines the 95 % "
            "interval (of three seeds or more), dashes chance. The logistic predictor is tested on a seed "
            "that it has not seen; hatched is the same on masks shuffled within layers, which must lie at "
            "chance. Look for how far the best bar is from chance, and from 1.",
            (Row._fields, [row for row in rows if row.step == 0]),
        ),
        Drawn(
            "predict_curve",
            "When in training the ticket's mask becomes predictable",
            curve(rows, density),
            "AUROC within layers of every score, taken at a step of the dense network's training; lines are "
            "means over seeds, points seeds, the band the 95 % interval of the logistic predictor (of three "
            "seeds or more). Look for the step at which the lines leave their level at step 0.",
            (Row._fields, [row for row in rows if row.layer == MEAN]),
        ),
    ]
    if any(trial.mask == PREDICTED for trial in trials):
        found.append(
            Drawn(
                "predict_functional",
                "What predicted masks are worth, trained",
                functional(trials, density),
                "Test accuracy at the end of training from the weights that the ticket starts from: the "
                "ticket's mask, the mask that the other seeds' predictor gives, the same shuffled within "
                "layers, and random masks, all of the ticket's layer-wise densities. Small points are seeds, "
                "large ones their mean, lines the 95 % interval (of three seeds or more). Look for whether "
                "predicted lies above its shuffled twin, and how far below the ticket.",
                (Trial._fields, trials),
            )
        )
    return found


def written(run: Path) -> list[Path]:
    """The files that say that there is something to report."""
    return [run / ABOUT] if (run / ABOUT).is_file() else []


def section(run: Path) -> Section | None:
    """The report's section, where the run has been looked at."""
    if not (run / ABOUT).is_file():
        return None
    found = load(run)
    return Section("predict", "Predictability", found.notes, drawn(found))


def findings(run: Path) -> list[Finding]:
    """Whether masks are predictable, near 10 % of the weights, and at every level what they are worth."""
    claim = "The ticket's mask is predictable at initialisation: AUROC within layers above chance"
    if not (run / ABOUT).is_file():
        return [Finding(claim, "not tested", "no scores", 0, _command(run))]
    found = load(run)
    held = [r for r in found.rows if (r.step, r.score, r.mask, r.layer) == (0, LOGISTIC, "ticket", MEAN)]
    if not held:
        return [Finding(claim, "not tested", "one seed: none is held out", 0, _command(run))]
    density = found.density
    level = cells.nearest({row.level: density[row.level] for row in held}, 0.1)
    own = [row for row in held if row.level == level]
    values = [float(row.auroc or 0) for row in own]
    interval = mean_interval(values, within=SHARE)
    bracket = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval.n > 1 else ""
    at = f"at {100 * density[level]:.1f} % of the weights"
    link = Link("predictability", "#predict")
    made = [
        Finding(
            claim,
            verdict(values, 0.5, within=SHARE).outcome,
            f"{interval.mean:.3f}{bracket} {at}",
            interval.n,
            link,
        )
    ]
    for level in sorted({trial.level for trial in found.trials}):
        predicted, twin = (
            cells.accuracies(t for t in found.trials if (t.level, t.mask) == (level, mask))
            for mask in (PREDICTED, TWIN)
        )
        gaps = paired(predicted, twin)
        if gaps:
            claim = f"Predicted masks train to more than the same shuffled, at {100 * density[level]:.1f} %"
            estimate = f"{page.points(mean_interval(gaps))} pp"
            made.append(Finding(claim, verdict(gaps).outcome, estimate, len(gaps), link))
    return made


_LABELS = {name: score.label for name, score in SCORES.items()} | {
    PIXEL_VARIANCE: "pixel variance (first layer)",
    LOGISTIC: "logistic, held-out seed",
}
_COLOURS = {
    "init_magnitude": "#E69F00",
    "magnitude": "#D55E00",
    "movement": "#CC79A7",
    "snip": "#009E73",
    "grasp": "#56B4E9",
    "synflow": "#999999",
    "fisher": "#8A6D00",
    PIXEL_VARIANCE: "#000000",
    LOGISTIC: figures.look("ticket")[0],
}
_MARKERS = dict(zip(_COLOURS, "Dv<s>PXho", strict=True))
_MASKS = {
    "ticket": ("ticket", figures.look("ticket")[0], "o"),
    PREDICTED: ("predicted", "#E69F00", "D"),
    TWIN: ("shuffled\npredicted", "#CC79A7", "v"),
    "random": ("random", figures.look("random")[0], "^"),
}
_PANELS = 4
_CHANCE = "#444444"


def bars(rows: Sequence[Row], density: Mapping[int, float]) -> Figure:
    """Every score at initialisation: AUROC and lift, averaged over layers; a panel a level.

    Points are seeds, bars their mean, lines the 95 % interval (of three seeds or more), dashes chance. The
    hatched bar is the null: masks shuffled within layers.
    """
    rows = [row for row in rows if row.step == 0 and row.layer == MEAN]
    shown = [(name, "ticket") for name in _COLOURS] + [(LOGISTIC, "shuffled")]
    shown = [of for of in shown if any((row.score, row.mask) == of for row in rows)]
    measures = (
        ("auroc", 0.5, "AUROC within layers", SHARE),
        ("lift", 1.0, "precision@k / density", POSITIVE),
    )
    with matplotlib.rc_context(figures.STYLE):
        figure, grid, levels = _panels(rows, density, len(measures), (2.9, 0.3 * len(shown) + 0.9))
        for line, (measure, chance, name_of, within) in zip(grid, measures, strict=True):
            for axes, level in zip(line, levels, strict=True):
                for place, of in enumerate(shown):
                    own = [r for r in rows if r.level == level and (r.score, r.mask) == of]
                    values = [float(getattr(row, measure)) for row in own]
                    _bar(axes, place, values, within, chance, _COLOURS[of[0]], of[1] == "shuffled")
                axes.axvline(chance, color=_CHANCE, lw=1, ls="--")
                axes.grid(axis="y", visible=False)
                axes.set_xlabel(f"{name_of} (chance {chance:g})")
            labels = [
                _LABELS[name] if kind == "ticket" else "the same, shuffled masks" for name, kind in shown
            ]
            line[0].set_yticks(range(len(shown)), labels)
            line[0].set_ylim(len(shown) - 0.4, -0.6)
        return figure


def curve(rows: Sequence[Row], density: Mapping[int, float]) -> Figure:
    """AUROC within layers of every score against the step of the dense training; a panel a level.

    Lines are means over seeds, points seeds, the band the 95 % interval of the logistic predictor.
    """
    rows = [row for row in rows if row.layer == MEAN and row.mask == "ticket"]
    last = max((row.step for row in rows), default=0)
    with matplotlib.rc_context(figures.STYLE):
        figure, grid, levels = _panels(rows, density, 1, (2.9, 4.2))
        for axes, level in zip(grid[0], levels, strict=True):
            for name, colour in _COLOURS.items():
                own = [row for row in rows if (row.level, row.score) == (level, name)]
                x = sorted({row.step for row in own})
                points = [[float(row.auroc or 0) for row in own if row.step == step] for step in x]
                intervals = [mean_interval(of_step, within=SHARE) for of_step in points]
                wide = 2.2 if name == LOGISTIC else 1.2
                means = [interval.mean for interval in intervals]
                if own:
                    axes.plot(
                        x, means, color=colour, lw=wide, marker=_MARKERS[name], ms=4, label=_LABELS[name]
                    )
                for step, of_step in zip(x, points, strict=True):
                    axes.plot([step] * len(of_step), of_step, ".", color=colour, ms=2.5, alpha=0.6)
                if name == LOGISTIC and intervals and intervals[0].n >= figures.BAND_FROM:
                    lows, highs = [i.low for i in intervals], [i.high for i in intervals]
                    axes.fill_between(x, lows, highs, color=colour, alpha=0.15, lw=0)
            axes.axhline(0.5, color=_CHANCE, lw=1, ls="--")
            axes.set_xscale("symlog", linthresh=1, linscale=0.4)
            axes.set_xlim(-0.2, 1.4 * max(last, 1))
            axes.set_xlabel("step of the dense training")
        grid[0][0].set_ylabel("AUROC within layers (chance 0.5)")
        handles = {
            label: handle
            for axes in grid[0]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
        return figure


def functional(trials: Sequence[Trial], density: Mapping[int, float]) -> Figure:
    """Test accuracy of predicted masks, trained, beside the ticket and random masks; a panel a level.

    Small points are seeds (repeats averaged), large ones their mean, lines its 95 % interval (of three
    seeds or more).
    """
    with matplotlib.rc_context(figures.STYLE):
        predicted = [trial for trial in trials if trial.mask == PREDICTED]
        figure, grid, levels = _panels(predicted, density, 1, (2.6, 3.6))
        for axes, level in zip(grid[0], levels, strict=True):
            for place, (mask, (_, colour, marker)) in enumerate(_MASKS.items()):
                of = cells.accuracies(t for t in trials if (t.level, t.mask) == (level, mask))
                if not of:
                    continue
                values, interval = list(of.values()), cells.mean_accuracy(of)
                axes.plot([place + 0.15] * len(values), values, ".", color=colour, ms=5, alpha=0.7)
                axes.plot([place], [interval.mean], marker=marker, color=colour, ms=8)
                if interval.n >= figures.BAND_FROM:
                    axes.vlines(place, interval.low, interval.high, color=colour, lw=1.5, alpha=0.6)
            axes.set_xticks(range(len(_MASKS)), [name for name, _, _ in _MASKS.values()], fontsize=8)
            axes.set_xlim(-0.6, len(_MASKS) - 0.4)
            axes.grid(axis="x", visible=False)
        grid[0][0].set_ylabel("test accuracy at the end (%)")
        return figure


def _panels(
    rows: Sequence[Row] | Sequence[Trial],
    density: Mapping[int, float],
    lines: int,
    size: tuple[float, float],
) -> tuple[Figure, list[list[Axes]], list[int]]:
    """A figure of a column a level, the densest first; of more than four levels four from first to last."""
    levels = sorted({row.level for row in rows})
    if len(levels) > _PANELS:
        levels = [levels[round(i * (len(levels) - 1) / (_PANELS - 1))] for i in range(_PANELS)]
    columns = max(len(levels), 1)
    figure = Figure(figsize=(2.2 + size[0] * columns, size[1] * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey="row")
    for axes, level in zip(grid[0], levels, strict=False):
        n = len({row.seed for row in rows if row.level == level})
        words = f"{100 * density[level]:.1f} % of weights ({n} seed{'s' if n > 1 else ''})"
        axes.set_title(words, loc="left", fontsize=11)
    return figure, grid.tolist(), levels


def _bar(
    axes: Axes,
    place: int,
    values: Sequence[float],
    within: Range,
    chance: float,
    colour: str,
    null: bool,
) -> None:
    """A bar from chance to the mean, with its interval and a point a seed."""
    if not values:
        return
    interval = mean_interval(values, within=within)
    hatch = "////" if null else None
    axes.barh(place, interval.mean - chance, 0.7, chance, color=colour, alpha=0.45, hatch=hatch)
    if interval.n >= figures.BAND_FROM:
        axes.hlines(place, interval.low, interval.high, color=colour, lw=1.5)
    axes.plot(values, [place] * len(values), ".", color=colour, ms=4)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.predict",
        description="Holds scores at initialisation and early in training against a run's tickets.",
    )
    parser.add_argument("run", help="a run folder, for example runs/quickstart-0123abcd")
    parser.add_argument("--chain", help="the tickets' chain; by default that of the lowest rewind step")
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        help="by default those nearest to 20, 10 and 3 %% density and the last",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        help="of the dense training; by default from 0.2 to 20 %% of it, and its end",
    )
    parser.add_argument(
        "--images", type=int, help=f"train images that scores see ({_IMAGES}, or all of fewer)"
    )
    parser.add_argument(
        "--no-training",
        action="store_true",
        help="train no predicted masks; the dense networks' first steps are gone again all the same",
    )
    options = extra.parsed(parser, arguments)
    asked = ask(
        options.run,
        options.data_dir,
        chain=options.chain,
        levels=options.levels,
        steps=options.steps,
        images=options.images,
    )
    print(build(asked, training=not options.no_training, quiet=options.quiet, chunk=options.chunk))


if __name__ == "__main__":
    cli.run(main)
