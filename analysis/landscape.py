"""The loss landscape around the networks of one level: ticket, controls and the dense network.

python -m analysis.landscape runs/quickstart-0123abcd --level 7
python -m analysis.landscape runs/quickstart-0123abcd --level 7 --seeds 0 1 --images 1000 --no-training

Measures the trained networks inside their masks (`lthjax.measures.landscape`, `lthjax.measures.hessian`),
on the same images and along the same random directions for all arms of a seed. Two kinds of trainings are
added.
A sibling has the seed, mask and start weights of a cell and another data order: whether a straight path
joins the two without a barrier tells whether they lie in one basin. A replay is a cell's training once
more, on one CPU with the same bits: of ticket and control the one that ends at the lower train loss is
taken at the step at which its loss was nearest to the other's end, so that sharpness is compared at
matched train loss. The run's own cells are only read; what this writes lies in RUN/landscape:

  chain=C/level=07/landscape.csv      `Row`: one a seed, arm and quantity
  chain=C/level=07/differences.csv    `Difference`: ticket − other arm, paired over seeds
  chain=C/level=07/about.json         what was asked, notes
  chain=C/level=07/                   figures, as PNG, SVG and the CSV of their data
  seed=3/chain=C/level=07/ARM/        arrays: point, lines, plane, spectrum, path_OTHER (.npz)
  seed=3/chain=C/level=07/ARM_sibling/, ARM_matched_OTHER/    trained networks; the latter with arrays
  seed=3/dense/                       arrays of the dense network, the same for all levels
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis import cells, extra, page
from analysis.landscape_figures import drawn, drawn_of
from analysis.landscape_measures import PROGRAMS
from analysis.landscape_table import (
    ARMS,
    END,
    KINDS,
    MATCHED,
    QUANTITIES,
    SIBLING,
    Asked,
    Difference,
    Found,
    Item,
    Row,
    Settings,
    cell_of,
    differences,
    findings,
    items,
    level_folder,
    load,
    matched_with,
    numbers,
    place_of,
    read,
    write_arrays,
)
from lthjax import cli, data, imp, progress, prune, record, rng, settings, study, train
from lthjax.devices import replicate
from lthjax.errors import UserError, shell
from lthjax.imp import DENSE, Cell
from lthjax.measures import landscape
from lthjax.models import Variables
from lthjax.store import Store, folder, read_study

__all__ = ["Asked", "Difference", "Found", "Row", "Settings", "ask", "build", "drawn", "findings", "load"]

PyTree = Any
# Steps of a replay at which its train loss is looked at, at most.
_CAPTURES = 32
# Points, draws, probes and steps, each.
_MOST = 10_000
# Images at a time.
_CHUNK = {"cpu": 50}
_CHUNK_ELSEWHERE = 500
# What a gradient costs, in forward passes.
_BACKWARD = 3


def ask(
    run: str | Path,
    level: int,
    data_dir: str | Path = "data",
    *,
    chain: str | None = None,
    seeds: Sequence[int] | None = None,
    planes: Sequence[int] | None = None,
    settings: Settings | None = None,
) -> Asked:
    """Resolves what is asked against what the run has.

    Args:
        run: the run folder.
        level: at which networks are looked at, from 1.
        data_dir: the data folder.
        chain: by default the one that is rewound to the lowest step.
        seeds: by default all that have a ticket there.
        planes: seeds of which surfaces are measured; by default the first.
        settings: how much is measured; images are at most those that there are.

    Raises:
        UserError: the run has no such chain, level or seed; a setting is out of range; the data differ;
            surfaces are wanted of a seed that is not looked at.
    """
    run, settings = Path(run), settings or Settings()
    _check(settings)
    opened = extra.opened(run, chain)
    done = [row for row in opened.rows if row.status == "done" and row.repeat == 1]
    of_ticket = cells.select(done, chain=opened.chain, arm="ticket")
    there = sorted(row.seed for row in of_ticket if row.level == level)
    if not there:
        known = ", ".join(map(str, sorted({row.level for row in of_ticket})))
        raise UserError(f"--level: {level} has no trained ticket in {opened.chain}; it may be {known}.")
    for name, wanted in (("--seeds", seeds), ("--plane-seeds", planes)):
        lacking = sorted({*(wanted or ())} - {*there})
        if lacking:
            raise UserError(
                f"{name}: {lacking[0]} has no trained ticket at level {level}; it may be {there}."
            )
    chosen = sorted({*there} if seeds is None else {*seeds})
    left = sorted({*(planes or ())} - {*chosen})
    if left:
        raise UserError(f"--plane-seeds: {left[0]} is not among --seeds; it may be {chosen}.")
    surfaces = chosen[:1] if planes is None else sorted({*planes})
    arms = {DENSE: sorted(row.seed for row in cells.select(done, chain=DENSE) if row.seed in chosen)}
    for arm in ARMS:
        of_arm = cells.select(done, chain=opened.chain, level=level, arm=arm)
        arms[arm] = sorted(row.seed for row in of_arm if row.seed in chosen)
    notes = [
        f"The {arm} cell of seed {seed}{'' if arm == DENSE else f' at level {level}'} is not there or "
        "diverged, and is left out."
        for arm in (DENSE, *ARMS)
        for seed in sorted({*chosen} - {*arms[arm]})
    ]
    prepared = extra.prepared(opened.about, chosen, data_dir)
    images = len(prepared.dataset.train_images) - prepared.study.data.validation
    few = min(settings.images, images, len(prepared.dataset.test_images))
    if few < settings.images:
        notes.append(
            f"{settings.images:,} train and as many test images were asked for; {few:,} of each are looked "
            f"at, as there are {images:,} and {len(prepared.dataset.test_images):,}."
        )
    settings = settings._replace(
        images=few,
        plane_images=min(settings.plane_images, few),
        plane_test_images=min(settings.plane_test_images, few),
        spectrum_images=min(settings.spectrum_images, few),
    )
    return Asked(run, prepared, opened.chain, opened.rewind, level, arms, surfaces, settings, notes)


def _check(settings: Settings) -> None:
    least = {"images": 4, "points": 3, "alphas": 2, "trace_probes": 2}
    for name, value in settings._asdict().items():
        lowest = least.get(name, 1 if isinstance(value, int) else 0.0)
        # Of images there may be asked for more than there are; of all else so many would take for ever.
        most = math.inf if "images" in name or lowest == 0.0 else _MOST
        if not lowest <= value <= most or not math.isfinite(value) or (lowest == 0.0 and value == 0):
            allowed = f"{lowest} or more" if lowest else "above 0 and finite"
            allowed += f", at most {_MOST}" if most == _MOST else ""
            raise UserError(f"--{name.replace('_', '-')}: {value} is not allowed; it must be {allowed}.")
    if settings.eigenvalues > settings.steps:
        raise UserError(
            f"--eigenvalues: {settings.eigenvalues} is not allowed; it must be --steps = {settings.steps} or "
            "fewer."
        )
    if not settings.points % 2:
        raise UserError(f"--points: {settings.points} is even; an odd number has the network itself on it.")


class _Images(NamedTuple):
    """A seed's images, normalised, in random order: float32 [N, H, W, C], int32 [N]."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def _images(prepared: study.Prepared, seed: int, count: int) -> _Images:
    """So many images of either part; fewer are the first of more."""
    dataset, split = prepared.dataset, data.split(prepared.dataset, seed, prepared.study.data.validation)

    def part(name: str, images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> tuple:
        order = np.asarray(jax.random.permutation(rng.stream(seed, f"landscape/{name}"), len(index)))
        chosen = index[order[:count]]
        raw, mean, std = (jnp.asarray(x) for x in (images[chosen], split.mean, split.std))
        return np.asarray(data.gather(raw, jnp.arange(len(chosen)), mean, std)), labels[chosen]

    every = np.arange(len(dataset.test_images))
    return _Images(
        part("train", dataset.train_images, dataset.train_labels, split.train),
        part("test", dataset.test_images, dataset.test_labels, every),
    )


@settings.pinned()
def build(asked: Asked, *, training: bool = True, quiet: bool = True, chunk: int | None = None) -> Path:
    """Trains and measures what is missing, and writes the level's tables and figures.

    May be stopped at any time: trained networks and measured arrays stay, and the same call goes on.

    Args:
        asked: as `ask` resolved it.
        training: whether siblings and replays are trained; those trained before are measured all the same.
        quiet: whether nothing is said on standard error; if not, first what it will cost.
        chunk: replicates trained in one program.

    Returns:
        The folder of the level.

    Raises:
        UserError: a file cannot be read or written, or another process is at it.
    """
    about = read_study(asked.run)
    with Store(asked.run / "landscape", about["identity"], {**about, "commands": [shell(*sys.argv)]}) as kept:
        work = _Work(asked, kept, Store(asked.run, about["identity"], about), quiet, chunk)
        work.announce(training)
        if training:
            work.train_siblings()
        work.measure(work.missing(()))
        if training:
            work.match()
        work.measure(work.missing(work.matched()))
        where = level_folder(kept.path, asked.chain, asked.level)
        _write(asked, where, work.rows(), [*asked.notes, *work.notes()])
    return where


class _Work:
    """One call of `build`: the stores that it reads and writes, what it has loaded and compiled so far."""

    def __init__(self, asked: Asked, kept: Store, store: Store, quiet: bool, chunk: int | None) -> None:
        self._asked, self._kept, self._store = asked, kept, store
        self._quiet, self._chunk = quiet, chunk
        self._prepared, self._settings = asked.prepared, asked.settings
        self._like = jax.eval_shape(asked.prepared.model.init, jax.random.key(0))
        self._ones = jax.device_get(prune.ones(self._like.params))
        self._mesh = replicate.mesh(sum(map(len, asked.arms.values())))
        self._programs: dict[tuple[str, Settings], Callable[..., dict[str, jax.Array]]] = {}
        self._pictures: dict[int, _Images] = {}
        self._tasks: dict[int, dict[str, imp.Task]] = {}

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr)

    @cached_property
    def _trainer(self) -> train.Trainer:
        return study.make_trainer([self._prepared], self._chunk, self._prepared.study.seeds)

    def _where(self, cell: Cell) -> Store:
        """The store that has a cell: the run's, or ours for siblings and replays."""
        return self._kept if _own(cell) != cell else self._store

    def _network(self, cell: Cell) -> tuple[Variables, PyTree]:
        where = self._where(cell)
        variables, mask = where.variables(cell, self._like), where.mask(cell, self._ones)
        return variables._replace(params=jax.device_get(prune.apply(variables.params, mask))), mask

    def _task(self, seed: int, arm: str) -> imp.Task:
        """What the run trained: an arm's start weights, mask, first and last step."""
        if seed not in self._tasks:
            self._tasks[seed] = self._level_tasks(seed)
        return self._tasks[seed][arm]

    def _level_tasks(self, seed: int) -> dict[str, imp.Task]:
        asked, prepared = self._asked, self._prepared
        arms = tuple(arm for arm in ARMS if seed in asked.arms[arm])
        levels = max(prepared.study.levels, asked.level)
        own = dataclasses.replace(prepared.study, arms=arms, repeats=(), control_levels=(), levels=levels)
        chain = imp.Chain(asked.chain, asked.rewind, "ticket", own.prune.criterion)
        initial = jax.device_get(prepared.model.init(rng.stream(seed, "init")))
        split = data.split(prepared.dataset, seed, own.data.validation)
        before = cell_of(asked, seed, "ticket")._replace(level=asked.level - 1)
        parent = Cell(seed, DENSE, 0, DENSE) if asked.level == 1 else before
        rounds = imp.rounds(
            own,
            prepared.lengths,
            chain,
            seed,
            prepared.model,
            initial,
            self._store.state(seed, asked.rewind, initial),
            imp.Ticket(
                self._store.mask(parent, self._ones), self._store.variables(parent, self._like).params
            ),
            study.first_batch(prepared, split, seed),
            asked.level,
        )
        tasks = {task.cell.arm: task for task in next(rounds)}
        for arm, task in tasks.items():
            stored = self._store.mask(cell_of(asked, seed, arm), self._ones)
            same = jax.tree.map(np.array_equal, task.mask, stored)
            if not all(jax.tree.leaves(same)):
                raise UserError(
                    f"{asked.run}: the mask of {arm} at level {asked.level}, seed {seed}, is not the one "
                    "that this version makes; measure it with the version that trained it."
                )
        ones = Cell(seed, DENSE, 0, DENSE)
        return {DENSE: imp.Task(ones, 0, prepared.lengths.total, initial, self._ones), **tasks}

    def _missing_siblings(self) -> list[Cell]:
        wanted = [cell_of(self._asked, s, SIBLING, arm) for arm in ARMS for s in self._asked.arms[arm]]
        return [cell for cell in wanted if not self._kept.has(cell)]

    def _job(self, cell: Cell) -> train.Job:
        """The training of an arm once more; of a sibling with other noise, of a replay the same."""
        task = self._task(cell.seed, _own(cell).arm)
        noise = int(cell.arm.endswith(f"_{SIBLING}"))
        return train.Job(cell.seed, cell.level, task.start, task.stop, task.variables, task.mask, noise=noise)

    def _plan(self, trained: Sequence[Cell]) -> study.Plan:
        jobs = [self._job(cell) for cell in trained]
        return study.Plan([*trained], [], [*trained], sum(job.stop - job.start for job in jobs))

    def announce(self, training: bool) -> None:
        """Says what there is to train and to measure and, by measuring a little, how long it will take."""
        if self._quiet:
            return
        siblings = self._missing_siblings() if training else []
        # Which of two ends at the lower train loss, and is replayed, is not known yet.
        likely = [
            Cell(seed, self._asked.chain, self._asked.level, f"{arm}_{MATCHED}_ticket")
            for arm in ARMS[1:]
            for seed in self._asked.arms[arm]
        ]
        present = {(cell.seed, _control(cell)) for cell in self._replays()}
        replays = [c for c in likely if training and (c.seed, _control(c)) not in present]
        there = self._replays()
        missing = [
            item
            for item in items(self._asked, [*there, *replays])
            if (item.other is None or item.other in siblings or self._done(item.other))
            and read(self._kept.path, item, self._settings) is None
        ]
        todo = self._plan([*siblings, *replays])
        seconds = 0.0
        if todo.steps:
            seconds += study.estimate([self._prepared], [todo], self._chunk).seconds
        seconds += self._cost(missing)
        counted = {kind: sum(item.kind.startswith(kind) for item in missing) for kind in PROGRAMS}
        parts = ", ".join(f"{n} of {kind}" for kind, n in counted.items() if n) or "nothing"
        self._say(
            f"{len(siblings)} siblings and at most {len(replays)} replays to be trained, {todo.steps:,} "
            f"steps in all; to be measured: {parts}; about {progress.duration(seconds)} on {record.devices()}"
        )

    def _cost(self, missing: Sequence[Item]) -> float:
        """Seconds of what is missing, by timing passes and products of the Hessian on some of the images."""
        if not missing:
            return 0.0
        how = self._settings
        short = how._replace(points=9, draws=1, spectrum_images=min(500, how.images))
        taken = {}
        one = next(cell_of(self._asked, seeds[0], arm) for arm, seeds in self._asked.arms.items() if seeds)
        # A short line, as most images go forward on lines and planes; the quicker of two calls.
        for name, some in (("lines", 2 * how.images * short.points), ("product", short.spectrum_images)):
            each = [self._each(name, one, None, short)] * self._mesh.devices.size
            program = self._program(name, short)
            self._run(program, each)
            calls = []
            for _ in range(2):
                began = time.perf_counter()
                self._run(program, each)
                calls.append(time.perf_counter() - began)
            taken[name] = min(calls) / some / len(each)
        seconds = 0.0
        for item in missing:
            forward, products = _passes(item, how)
            seconds += forward * taken["lines"] + products * taken["product"]
        # Compiling the programs takes some seconds each.
        return seconds + 5 * len({item.kind.partition("_")[0] for item in missing})

    def _has(self, cell: Cell) -> bool:
        return self._where(cell).has(cell)

    def _done(self, cell: Cell) -> bool:
        return self._has(cell) and self._where(cell).result(cell)["status"] == "done"

    def missing(self, matched: Iterable[Cell]) -> list[Item]:
        """What can be measured and is not yet."""
        return [
            item
            for item in items(self._asked, matched)
            if (item.other is None or self._done(item.other))
            and read(self._kept.path, item, self._settings) is None
        ]

    def train_siblings(self) -> None:
        """Trains what is missing of the second members of pairs."""
        wanted = self._missing_siblings()
        if not wanted:
            return
        jobs = [(cell, self._job(cell)) for cell in wanted]
        with extra.watched(self._asked.run.name, self._plan(wanted), self._quiet) as watch:
            for cell, job, trained in extra.in_chunks(self._trainer, jobs, watch):
                own = _own(cell)
                made_from = {"sibling_of": str(folder(Path(), own)), "noise": job.noise}
                result = record.result(cell, job, trained, made_from)
                done = trained.status == "done"
                self._kept.write(cell, result, job.mask, trained.variables if done else None)
                watch.finished(cell, result, "")

    def _train_loss(self, seed: int, arm: str) -> float:
        found = read(self._kept.path, Item("point", cell_of(self._asked, seed, arm)), self._settings)
        assert found is not None, "points are measured first"
        return float(found["train_loss"])

    def _lower(self) -> dict[Cell, dict[str, Any]]:
        """The replays that matching ticket with control takes, and what each is made from."""
        lower = {}
        for control in ARMS[1:]:
            for seed in self._asked.arms[control]:
                losses = {arm: self._train_loss(seed, arm) for arm in ("ticket", control)}
                arm, other = sorted(losses, key=losses.__getitem__)
                cell = Cell(seed, self._asked.chain, self._asked.level, f"{arm}_{MATCHED}_{other}")
                lower[cell] = {"target": losses[other], "images": self._settings.images}
        return lower

    def _replays(self) -> list[Cell]:
        """The replayed networks that are there, of whatever target."""
        pairs = [(a, b) for control in ARMS[1:] for a, b in (("ticket", control), (control, "ticket"))]
        cells_ = [
            Cell(seed, self._asked.chain, self._asked.level, f"{arm}_{MATCHED}_{other}")
            for arm, other in pairs
            for seed in self._asked.arms["ticket"]
        ]
        return [cell for cell in cells_ if self._kept.has(cell)]

    def matched(self) -> list[Cell]:
        """The replayed networks that are there and of today's target."""
        return [
            cell
            for cell, basis in self._lower().items()
            if self._kept.has(cell) and self._kept.result(cell).get("made_from") == basis
        ]

    def match(self) -> None:
        """Replays what ends at the lower train loss, and keeps the step nearest to the other's end."""
        present = self.matched()
        lacking = {cell: basis for cell, basis in self._lower().items() if cell not in present}
        # A ticket that ends lower than both controls is replayed once.
        first = list({_own(cell): cell for cell in lacking}.values())
        if not first:
            return
        jobs = []
        for cell in first:
            job = self._job(cell)
            steps = np.linspace(job.start, job.stop, _CAPTURES + 1).round().astype(int)
            jobs.append((cell, job._replace(captures=tuple(sorted({*steps.tolist()} - {job.stop})))))
        with extra.watched(self._asked.run.name, self._plan(first), self._quiet) as watch:
            for trained_cell, job, trained in extra.in_chunks(self._trainer, jobs, watch):
                own = _own(trained_cell)
                stored = self._store.variables(own, self._like)
                same = all(jax.tree.leaves(jax.tree.map(np.array_equal, trained.variables, stored)))
                states = {**trained.states, job.stop: stored}
                losses = dict(zip(states, self._losses(own, list(states.values())), strict=True))
                for cell, basis in lacking.items():
                    if _own(cell) == own:
                        step = nearest(losses, basis["target"])
                        result = {
                            **cell._asdict(),
                            "status": "done",
                            "step": step,
                            "train_loss": losses[step],
                            "exact": same,
                            "made_from": basis,
                        }
                        self._kept.write(cell, result, job.mask, states[step])

    def _losses(self, like: Cell, states: Sequence[Variables]) -> list[float]:
        """The train losses of states of a cell's training."""
        mask = self._where(like).mask(like, self._ones)
        shared = self._each("loss", like, None)
        program, width = self._program("loss"), self._mesh.devices.size
        losses = []
        for i in range(0, len(states), width):
            each = [
                {**shared, "variables": s._replace(params=jax.device_get(prune.apply(s.params, mask)))}
                for s in states[i : i + width]
            ]
            losses += [float(found["loss"]) for found in self._run(program, each)]
        return losses

    def measure(self, missing: Sequence[Item]) -> None:
        """Measures, as many networks side by side as there are devices."""
        width, done, began = self._mesh.devices.size, 0, time.perf_counter()
        for kind in KINDS:
            of_kind = [item for item in missing if item.kind == kind]
            program = self._program(kind.partition("_")[0])
            for i in range(0, len(of_kind), width):
                chunk = of_kind[i : i + width]
                each = [self._each(kind, item.cell, item.other) for item in chunk]
                for item, arrays in zip(chunk, self._run(program, each), strict=True):
                    counted = _counted(
                        arrays, *(_count(kind, part, self._settings) for part in ("train", "test"))
                    )
                    write_arrays(self._kept.path, item, self._settings, counted)
                done += len(chunk)
                seconds = progress.duration(time.perf_counter() - began)
                names = "; ".join(record.describe(item.cell) for item in chunk)
                self._say(f"[{done}/{len(missing)}] {kind.replace('_', ' to ')}: {names} ({seconds})")

    def _program(self, name: str, how: Settings | None = None) -> Callable[..., dict[str, jax.Array]]:
        """Compiled; one replicate a device. By default for what is asked."""
        how = how or self._settings
        if (name, how) not in self._programs:

            def one(shared: PyTree, carried: PyTree, each: dict[str, Any]) -> dict[str, jax.Array]:
                with jax.default_matmul_precision("float32"):
                    return PROGRAMS[name](self._prepared.model, how, each)

            one.__name__ = name
            self._programs[name, how] = replicate.spread(one, self._mesh)
        return self._programs[name, how]

    def _run(
        self, program: Callable[..., dict[str, jax.Array]], each: Sequence[dict[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        padded = [*each, *[each[0]] * (self._mesh.devices.size - len(each))]
        return replicate.unstack(program((), (), replicate.stack(self._mesh, padded)), len(each))

    def _each(self, kind: str, cell: Cell, other: Cell | None, how: Settings | None = None) -> dict[str, Any]:
        """What a program reads of one network; by default as much as is asked."""
        how = how or self._settings
        variables, mask = self._network(cell)
        train = self._chunks(cell.seed, "train", _count(kind, "train", how))
        each = {"variables": variables, "mask": mask, "train": train}
        if kind in ("lines", "plane", "spectrum"):
            name = "landscape/spectrum" if kind == "spectrum" else "landscape/direction"
            draws = {"lines": how.draws, "plane": how.plane_draws}.get(kind, 1)
            keys = [jax.random.key_data(rng.stream(cell.seed, name, draw)) for draw in range(draws)]
            each["keys"] = np.stack([np.asarray(key) for key in keys])
        if kind not in ("spectrum", "product", "loss"):
            each["test"] = self._chunks(cell.seed, "test", _count(kind, "test", how))
        if kind == "point":
            each["start"] = self._task(cell.seed, _own(cell).arm).variables.params
            size = min(self._prepared.study.train.batch, how.images // 2)
            each["noise"] = self._chunks(cell.seed, "train", how.images // size * size, size)
        if other is not None:
            each["other"], each["other_mask"] = self._network(other)
        return each

    def _chunks(self, seed: int, part: str, count: int, size: int | None = None) -> landscape.Chunk:
        if seed not in self._pictures:
            self._pictures[seed] = _images(self._prepared, seed, self._settings.images)
        images, labels = getattr(self._pictures[seed], part)
        platform = self._mesh.devices.flat[0].platform
        size = size or _CHUNK.get(platform, _CHUNK_ELSEWHERE)
        return landscape.chunks(images[:count], labels[:count], size)

    def rows(self) -> list[Row]:
        """All that is there, in numbers."""
        rows: list[Row] = []
        matched = self.matched()
        for item in items(self._asked, matched):
            arrays = read(self._kept.path, item, self._settings)
            if arrays is not None:
                rows += numbers(item, arrays)
        steps = float(self._prepared.lengths.total)
        rows += [
            Row(*cell_of(self._asked, seed, arm)[:4], END, "step", steps, None)
            for arm, seeds in self._asked.arms.items()
            for seed in seeds
        ]
        for cell in matched:
            where, step = matched_with(_control(cell)), float(self._kept.result(cell)["step"])
            rows.append(Row(*_own(cell)[:4], where, "step", step, None))
            # The other of the two is at its end.
            other = cell.arm.rpartition("_")[2]
            rows += [
                row._replace(where=where)
                for row in rows
                if (row.seed, row.arm, row.where) == (cell.seed, other, END)
                and not row.quantity.startswith("rise_")
            ]
        return sorted(rows, key=place_of)

    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        matched, lower = self.matched(), self._lower()
        notes = [
            f"The replay {record.describe(cell)} did not end at the very weights of the run, as on another "
            "machine it may not; it is a training of the same kind."
            for cell in matched
            if not self._kept.result(cell)["exact"]
        ]
        if len(matched) < len(lower):
            notes.append(
                f"Train losses are not matched in {len(lower) - len(matched)} of {len(lower)} pairs, for "
                "want of replays; there sharpness is known only at the end of training, where losses differ."
            )
        absent = self._missing_siblings()
        if absent:
            notes.append(f"{len(absent)} siblings are not trained; their paths are left out.")
        bad = [
            cell
            for arm in ARMS
            for cell in (cell_of(self._asked, s, SIBLING, arm) for s in self._asked.arms[arm])
            if self._kept.has(cell) and not self._done(cell)
        ]
        notes += [f"The sibling {record.describe(cell)} diverged and is left out." for cell in bad]
        if jax.tree.leaves(self._like.stats):
            notes.append(
                "The network has running statistics. On paths, ends included, they are computed anew at "
                "every point, from the train images."
            )
        return notes


def _own(cell: Cell) -> Cell:
    """The run's cell that a sibling or a replay goes back to."""
    arm = cell.arm.partition(f"_{MATCHED}_")[0].removesuffix(f"_{SIBLING}")
    return cell._replace(arm=arm)


def _control(cell: Cell) -> str:
    """The control of the pair that a replay matches."""
    arm, _, other = cell.arm.partition(f"_{MATCHED}_")
    return other if arm == "ticket" else arm


def nearest(losses: Mapping[int, float], target: float) -> int:
    """The step at which a falling loss meets a target.

    Of the first at or below it and the one before, that whose loss is nearer as a ratio.

    Args:
        losses: step -> loss, by ascending step; the last is the end of training.
        target: the loss to meet.
    """
    steps = list(losses)
    first = next((i for i, step in enumerate(steps) if losses[step] <= target), len(steps) - 1)

    def off(step: int) -> float:
        ratio = max(losses[step], 1e-30) / max(target, 1e-30)
        return abs(math.log(ratio)) if math.isfinite(ratio) else math.inf

    return min(steps[max(first - 1, 0) : first + 1][::-1], key=off)


def _counted(arrays: dict[str, np.ndarray], train: int, test: int) -> dict[str, np.ndarray]:
    """Shares of images as the fractions that they are, which sums of float32 miss by rounding."""

    def exact(name: str, x: np.ndarray) -> np.ndarray:
        images = train if name.startswith("train") else test
        return np.round(x.astype(np.float64) * images) / images

    return {
        name: exact(name, x) if name.endswith(("accuracy", "disagreement")) else x
        for name, x in arrays.items()
    }


def _count(kind: str, part: str, how: Settings) -> int:
    """Images of a part that a program sees."""
    of_plane = {"train": how.plane_images, "test": how.plane_test_images}
    of_hessian = dict.fromkeys(("spectrum", "product"), how.spectrum_images)
    return {"plane": of_plane[part], **of_hessian}.get(kind, how.images)


def _passes(item: Item, how: Settings) -> tuple[float, float]:
    """Images that go forward, and images that go through a product of the Hessian."""
    both = 2 * how.images
    match item.kind:
        case "point":
            return both + how.images * (4 * _BACKWARD + 4), 0
        case "lines":
            return both * how.points * how.draws, 0
        case "plane":
            return (how.plane_images + how.plane_test_images) * how.points**2 * how.plane_draws, 0
        case "spectrum":
            return 0, how.spectrum_images * (how.steps + how.probes * how.probe_steps + how.trace_probes)
        case _:
            return both * (how.alphas + 1), 0


def _write(asked: Asked, where: Path, rows: list[Row], notes: list[str]) -> None:
    density = _density(asked.run, asked.chain, asked.level)
    scope = (asked.rewind, asked.arms, asked.planes, asked.settings)
    found = Found(asked.run, asked.chain, asked.level, density, *scope, rows, notes)
    about = {name: value for name, value in found._asdict().items() if name not in ("run", "rows")}
    about |= {"settings": asked.settings._asdict(), "rows": len(rows)}
    written = {
        "landscape.csv": page.to_csv(Row._fields, rows),
        "differences.csv": page.to_csv(Difference._fields, differences(rows)),
        # Last, as it is what says that the rest is there.
        "about.json": json.dumps(about, indent=1) + "\n",
    }
    try:
        if all(_same(where / name, text) for name, text in written.items()):
            return
        where.mkdir(parents=True, exist_ok=True)
        (where / "about.json").unlink(missing_ok=True)
        for figure in drawn_of(found):
            page.show(where, figure)
        extra.write_tables(where, written)
    except OSError as error:
        raise UserError(f"{where}: it cannot be written ({error.strerror}).") from error


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _density(run: Path, chain: str, level: int) -> float:
    tickets = cells.select(cells.load(run), chain=chain, level=level, arm="ticket")
    return float(np.mean([row.density for row in tickets]))


def written(run: Path) -> list[Path]:
    """The files that say that there is something to report."""
    return sorted((run / "landscape").glob("chain=*/level=*/about.json"))


def section(run: Path) -> page.Section | None:
    """The report's section, where the run has been looked at; differences at the end and at matched loss."""
    found = load(run)
    if not found:
        return None
    header = ["level", "difference", "at", "quantity", "mean", "95 % interval", "n"]
    lines = [
        [
            str(one.level),
            f"ticket\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}{row.other}",
            row.where.replace(" ", "\N{NO-BREAK SPACE}"),
            QUANTITIES[row.quantity],
            f"{row.mean:+.3g}",
            "–" if row.n < 2 else f"[{row.low:+.3g}, {row.high:+.3g}]",
            str(row.n),
        ]
        for one in found
        for row in differences(one.rows)
        if row.quantity in QUANTITIES
    ]
    table = page.Table("Differences, paired by seed", header, lines, 4)
    return page.Section(
        "landscape", "Landscape", [note for one in found for note in one.notes], drawn(run), [table], _REMARK
    )


_REMARK = (
    "Measured inside the mask, on the same train images for all arms of a seed. “end” is after training, "
    "where arms differ in train loss too; “matched” takes the arm that ends at the lower train loss at the "
    "step at which its loss was nearest to the other's end. Intervals are Student's t over seeds. The "
    "further eigenvalues are in differences.csv of the level's folder."
)


def main(arguments: list[str]) -> None:
    """The command line."""
    usual = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m analysis.landscape",
        description="Measures the loss landscape around the trained networks of one level, inside their "
        "masks: surfaces, paths and barriers, the Hessian's spectrum, sharpness. Prints the level's folder.",
    )
    parser.add_argument("run", help="a run folder, for example runs/quickstart-0123abcd")
    parser.add_argument("--level", type=int, required=True, help="from 1")
    parser.add_argument("--chain", help="by default the one of the lowest rewind step")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default all that have a ticket there")
    parser.add_argument(
        "--plane-seeds", type=int, nargs="*", help="of which surfaces are measured; by default the first"
    )
    for name, words in _HELP.items():
        value = getattr(usual, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{words} ({value:g})"
        )
    parser.add_argument(
        "--no-training",
        action="store_true",
        help="train no siblings and no replays: no paths between data orders, no matched train loss",
    )
    options = extra.parsed(parser, arguments)
    asked = ask(
        options.run,
        options.level,
        options.data_dir,
        chain=options.chain,
        seeds=options.seeds,
        planes=options.plane_seeds,
        settings=Settings(**{name: getattr(options, name) for name in _HELP}),
    )
    print(build(asked, training=not options.no_training, quiet=options.quiet, chunk=options.chunk))


_HELP = {
    "images": "train images, and as many test images",
    "plane_images": "train images for surfaces",
    "plane_test_images": "test images for surfaces",
    "spectrum_images": "train images for spectra",
    "points": "on a line, and on either side of a surface; odd",
    "reach": "of lines and surfaces, in lengths of the filters",
    "draws": "directions of lines",
    "plane_draws": "pairs of directions of surfaces",
    "alphas": "points on a path",
    "eigenvalues": "the largest so many",
    "steps": "of Lanczos for them",
    "probes": "of the spectral density",
    "probe_steps": "of Lanczos for every probe",
    "trace_probes": "products for the trace",
    "rho": "length of the step for sharpness",
    "adaptive_rho": "the same relative to the weights",
}


if __name__ == "__main__":
    cli.run(main)
