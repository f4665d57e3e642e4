"""Moves tickets of some runs to others, and trains them there beside their controls."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from lthjax import config, progress, rng, settings, study
from lthjax.errors import UserError, counted, unknown
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import transfer
from lthjax.measures.stats import nearest
from lthjax.measures.transfer_arms import (
    ARMS,
    CARRIED,
    DEFAULT,
    MOVED,
    PERMUTED,
    Moving,
    check_matching,
    moved_mask,
    partner,
)
from lthjax.models import INITS, Model
from lthjax.study import Watch
from lthjax.training.job import Job

from .. import page, record, tables
from ..rows import TICKET, asked_levels, densities, grouped, images_of, select
from ..run import Run, Tickets, open_run
from ..work import Work, kept
from .figures import arms, matrix, permuted
from .table import Pair, TransferRow, described, load, names, notes

_ARMS = "; ".join(f"{name}: {arm.summary}" for name, arm in ARMS.items())
# Densities of the tickets that are moved where no level is named.
_NEAR = (0.1, 0.03)


@dataclass(frozen=True, kw_only=True)
class Options(record.Training):
    """Moves tickets of some runs to other studies, trains them there beside their controls, and draws the
    matrix of sources and targets; prints its folder."""

    sources: Annotated[tuple[Path, ...], tyro.conf.arg(name="from", metavar="RUN [RUN ...]")] = ()
    """Run folders whose tickets are moved; if there is none, nothing is trained and the figures are drawn."""
    targets: Annotated[tuple[Path, ...], tyro.conf.arg(name="to", metavar="CONFIG|RUN [CONFIG|RUN ...]")]
    """Config files, of which what is missing is trained first, or run folders, taken as they are."""
    levels: tuple[int, ...] = ()
    """Levels of the tickets; by default those whose densities are nearest to 10 and 3 %."""
    pairs: tuple[Pair, ...] = ()
    """The mask's seed: the target's own, or another; by default same, within one run other."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(help=f"What is trained. {_ARMS}.")] = DEFAULT
    permuted: bool = False
    """Train transferred_permuted, too: by default within one run from each seed to another."""
    chain: str | None = None
    """The chain of all tickets; by default in every run the one of the lowest rewind step with a
    trained ticket."""
    out: Path = Path("runs")
    """Folder of the run folders."""
    quiet: bool = False
    """Show no progress."""
    config: Path | None = None
    """A config file to run first, for the networks and other rows it adds; RUN/config.py is the run's own."""


class Source(NamedTuple):
    """A run, the chain whose tickets are moved, and their levels."""

    run: Run
    tickets: Tickets
    levels: list[int]


class Target(NamedTuple):
    """A study that tickets are moved to, and its run folder; a given folder is taken as it is."""

    prepared: study.Prepared
    path: Path
    given: bool


class Move(NamedTuple):
    """A ticket (`source`, `source_seed`, `level`) that goes to a seed of the target.

    `own_level` is the level of the target's own ticket of the nearest density.
    """

    source: Source
    source_seed: int
    level: int
    seed: int
    own_level: int


@settings.pinned()
def build(options: Options, watch: Watch | None = None) -> Path:
    """Trains what is missing of every source on every target, and draws all that was moved to the targets.

    May be stopped at any time: what is trained stays, and the same call goes on from there. `watch` is told
    first what it will cost, then how it is getting on. Returns the folder of the matrix, OUT/transfer. Raises
    a UserError where a ticket cannot be moved, a file cannot be read or written, or a folder is in use.
    """
    watch = watch or progress.watch(True)
    if not options.targets:
        raise UserError("--to: it is missing; name a config file or a run folder.")
    if not options.sources:
        for path in options.targets:
            if not path.is_dir():
                raise UserError(
                    f"--from: it is missing, and {path} is no run folder to be drawn; name a run."
                )
        return _draw(map(open_run, options.targets), options.out, watch)
    for name in options.arms:
        if name not in ARMS:
            raise unknown("--arms", name, ARMS)
    trained = tuple(dict.fromkeys((MOVED, *options.arms, *((PERMUTED,) if options.permuted else ()))))
    sources, targets = sources_of(options), targets_of(options)
    # Before anything is trained.
    for source, target in itertools.product(sources, targets):
        networks = source.run.network(), target.prepared.model
        transfer.check(*networks)
        if any(ARMS[arm].matches for arm in trained):
            check_matching(*networks)
    for target in targets:
        if not target.given:
            study.run(target.prepared, options.out, watch=watch, chunk=options.chunk)
    runs = [open_run(target.path) for target in targets]
    for run, target in zip(runs, targets, strict=True):
        own = _trained(run, options.chain)
        chosen = [move for source in sources for move in moves(source, run, own, options.pairs)]
        seeds = {move.seed for move in chosen}
        if left_out := ", ".join(map(str, sorted({row.seed for row in own.done} - seeds))):
            lacking = "a trained dense network or of a partner among the seeds of the sources"
            watch.say(f"{run.name}: nothing is moved to seed {left_out}, for want of {lacking}.")
        theirs = dataclasses.replace(target.prepared.study, seeds=tuple(sorted(seeds)))
        work = Work(run, target.prepared._replace(study=theirs), watch, options.chunk)
        _fill(work, own, chosen, trained)
    return _draw(runs, options.out, watch)


def sources_of(options: Options) -> list[Source]:
    """Whose tickets are moved; raises where a run has no such chain, level or ticket."""
    found = []
    for run in map(open_run, _once("--from", options.sources)):
        tickets = _trained(run, options.chain)
        what = f"trained ticket of {tickets.chain} in {run.path}"
        levels = asked_levels(options.levels, densities(tickets.done), what, _NEAR, last=False)
        found.append(Source(run, tickets, levels))
    return found


def targets_of(options: Options) -> list[Target]:
    """The studies that tickets are moved to; raises where one is not there, or a run's data are others."""
    found = []
    for path in (path if path.is_dir() else config.located(path) for path in options.targets):
        if not path.exists():
            raise UserError(f"--to: {str(path)!r} is not there; name a config file or a run folder.")
        if path.is_dir():
            run = open_run(path)
            found.append(Target(run.prepared(run.study.seeds, options.data_dir), path, True))
        else:
            made = study.prepare_all(config.load_all(path), options.data_dir)
            found += [Target(one, options.out / one.folder, False) for one in made]
    once = _once("--to", [target.path for target in found])
    return [next(target for target in found if target.path == path) for path in once]


def _once(option: str, paths: Iterable[Path]) -> list[Path]:
    """The folders, each once; raises where two have the same name, under which cells are kept."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(Path(os.path.abspath(path)).name, path)
        if other.resolve() != path.resolve():
            same = f"{os.path.abspath(other)} and {os.path.abspath(path)} have the same name"
            raise UserError(
                f"{option}: {same}, under which results are kept; move tickets of the one and the other by "
                "two calls, and rename one before."
            )
    return list(found.values())


def _trained(run: Run, chain: str | None) -> Tickets:
    """The tickets of a chain; raises where all diverged."""
    tickets = run.tickets(chain)
    if not tickets.done:
        raise UserError(f"{run.path}: every ticket of {tickets.chain} diverged; there is nothing to move.")
    return tickets


def moves(source: Source, target: Run, own: Tickets, pairs: Sequence[Pair] = ()) -> list[Move]:
    """Which tickets of a source go to which seeds of a target, which has `own` tickets.

    `pairs` says how seeds are paired, see `partner`: by default "same", within one run "other". Raises where
    the target has no ticket of its own, or no seed has a partner.
    """
    dense = {row.seed for row in select(target.rows, arm=DENSE) if row.status == "done"}
    of_seeds = sorted(grouped(own.done, "seed").items())
    levels = {seed: {row.level: row.density for row in rows} for seed, rows in of_seeds if seed in dense}
    if not levels:
        lacking = "no seed has both a ticket and a trained dense network, with which moved ones are compared"
        raise UserError(f"{target.path}: {lacking}; run its config first.")
    within: Pair = "other" if source.run.name == target.name else "same"
    pairs = list(dict.fromkeys(pairs or (within,)))
    density = {(row.level, row.seed): row.density for row in source.tickets.done}
    seeds = {level: source.tickets.seeds(level) for level in source.levels}
    found = [
        Move(source, of, level, seed, nearest(levels[seed], density[level, of]))
        for level, seed, pair in itertools.product(source.levels, levels, pairs)
        if (of := partner(seed, seeds[level], pair)) is not None
    ]
    if not found:
        theirs = sorted({seed for of_level in seeds.values() for seed in of_level})
        between = f"from {source.run.name}, with seeds {theirs}, to {target.name}, with seeds {[*levels]}"
        advice = "train more seeds, or name the other of 'same' and 'other'."
        raise UserError(f"--pairs: {' '.join(pairs)} leaves nothing to move {between}; {advice}")
    return found


def _fill(work: Work, own: Tickets, chosen: Sequence[Move], arms: Sequence[str]) -> None:
    """Trains the moved tickets and controls of one target that are missing."""
    with contextlib.ExitStack() as stack:
        stores: dict[tuple[str, int], Store] = {}
        jobs: list[tuple[Cell, Job]] = []
        # By job, because the same cell may be trained from several sources.
        of: dict[int, tuple[Store, dict[str, Any]]] = {}
        for move in chosen:
            source = move.source.run
            place = (source.name, move.source_seed)
            if place not in stores:
                told = {"folder": source.name, "words": described(source)}
                folders = ("transfer", f"from={source.name}", f"source_seed={move.source_seed}")
                stores[place] = stack.enter_context(kept(work.run, *folders, source=told))
            for cell, job, made_from in _missing(work, own, move, stores[place], arms):
                jobs.append((cell, job))
                of[id(job)] = (stores[place], made_from)
        if jobs:
            cells, steps = [cell for cell, _ in jobs], sum(job.stop - job.start for _, job in jobs)
            moved = counted(len(cells), "moved ticket or control", "moved tickets and controls")
            what = f"{moved} to be trained, {steps:,} steps in all"
            work.watch.say(f"{work.run.name}: {what}{work.time(cells, steps)}")
        for cell, job, trained in work.train(jobs):
            store, made_from = of[id(job)]
            work.write(store, cell, job, trained, made_from)


def made_otherwise(
    networks: tuple[Model, Model], inits: Sequence[str], granularity: str
) -> dict[str, dict[str, Any]]:
    """What tells an arm's cells from those that earlier versions made otherwise, which are trained again.

    They scaled carried values as Glorot's, whatever the networks were drawn by. They shuffled single weights
    whatever the source prunes, and later N:M patterns by single weights wherever any layer has another shape.
    """
    other = any(network.fans is not INITS["glorot"].fans for network in networks)
    shuffled: dict[str, Any] = {"granularity": granularity} if granularity != "weight" else {}
    if ":" in granularity and not transfer.same_shapes(*networks):
        shuffled["by_layer"] = True
    return {CARRIED: {"inits": [*inits]} if other else {}, "shuffled": shuffled}


def _missing(
    work: Work, own: Tickets, move: Move, store: Store, arms: Sequence[str]
) -> Iterator[tuple[Cell, Job, dict[str, Any]]]:
    """The jobs of a moved ticket that are missing, and what each is made from."""
    source, (chain, rewind, *_) = move.source.run, move.source.tickets
    networks = (source.network(), work.prepared.model)
    theirs, initial = source.state(move.source_seed, 0), work.run.variables_at(move.seed, 0)
    made_from = {
        "source": source.name,
        "source_seed": move.source_seed,
        "source_chain": chain,
        "source_level": move.level,
        "own_level": move.own_level,
        "shared_init": transfer.same_initial(*networks, theirs, initial.params),
    }
    granularity = source.study.prune.granularity
    more = made_otherwise(networks, [run.study.init for run in (source, work.run)], granularity)
    made = {arm: made_from | more.get(arm, {}) for arm in arms}
    cells = [Cell(move.seed, own.chain, move.level, arm) for arm in arms]
    absent = [c for c in cells if not (store.has(c) and store.result(c).get("made_from") == made[c.arm])]
    if not absent:
        return
    # Named by the fingerprint, because the rest of a folder's name changes no number.
    stream = f"transfer/{config.fingerprint(source.about['identity'])}/{chain}"
    mask_key, *keys = (
        rng.stream(move.seed, f"{stream}/{what}", move.source_seed, move.level)
        for what in ("mask", *(cell.arm for cell in absent))
    )
    ticket = source.mask(Cell(move.source_seed, chain, move.level, TICKET))
    values = source.variables_at(move.source_seed, rewind), work.run.variables_at(move.seed, own.rewind)
    ends = None
    if any(ARMS[cell.arm].matches for cell in absent):
        dense = (source, move.source_seed), (work.run, move.seed)
        ends = tuple(run.weights(Cell(seed, DENSE, 0, DENSE)) for run, seed in dense)
    mask = moved_mask(*networks, ticket, mask_key)
    moving = Moving(*networks, ticket, mask, *values, initial, ends, granularity)
    for cell, key in zip(absent, keys, strict=True):
        start = ARMS[cell.arm].start(moving, key)
        if start is not None:
            first, stop = own.rewind if start.rewound else 0, work.prepared.lengths.total
            job = Job(move.seed, move.own_level, first, stop, start.variables, start.mask)
            yield cell, job, made[cell.arm]


def _draw(runs: Iterable[Run], out: Path, watch: Watch) -> Path:
    """Draws all that was moved to some runs, by whatever calls: each run's arms, and the matrix of all."""
    moved = {run: load(run) for run in {os.path.abspath(run.path): run for run in runs}.values()}
    rows = [row for of_run in moved.values() for row in of_run]
    if not rows:
        nothing = f"nothing was moved to {next(iter(moved)).path} yet"
        raise UserError(f"--from: {nothing}; name a run to move tickets from.")
    images = {run.name: images_of(run.about) for run in moved}
    for run, of_run in moved.items():
        if of_run:
            said = names([run])
            _write(run.path, [arms(of_run, said), *permuted(of_run, said, images)], of_run)
    folder = _write(out, [matrix(rows, names(moved), images)], rows)
    for note in notes(rows):
        watch.say(note)
    return folder


def _write(folder: Path, drawn: Sequence[page.Drawn], rows: Sequence[TransferRow]) -> Path:
    table = {"transfer.csv": tables.of_rows(TransferRow, rows)}
    return page.write_folder(folder / "transfer", drawn, table)
