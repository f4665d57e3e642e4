"""What a run's tickets are worth elsewhere: on another seed, data set, optimiser or architecture.

python -m analysis.transfer --from runs/quickstart-0123abcd --to configs/lenet5_mnist.py
python -m analysis.transfer --from runs/A runs/B --to runs/A runs/B --levels 7 10
python -m analysis.transfer --to runs/A runs/B                  # trains nothing, draws what there is

A target is a config, whose missing cells are trained first, or a run folder, which is taken as it is: its
dense networks and its own tickets are what a moved ticket is held against. How a mask goes from one
network to another: `lthjax.measures.transfer`. A target's seed gives it split, order of the data and initial
weights, a source's seed the mask. Where the two networks are alike and the seed is the same, the initial
weights are the same too, as the seed fixes them: mask and initialisation move together. With another seed the
mask moves alone. Between unlike networks the arm `transferred_init` carries the initial values along, too.

  TARGET/transfer/
    from=SOURCE/source_seed=3/seed=4/chain=C/level=07/ARM/    a trained cell; its level is the source's
    transfer.csv                                              `Row`: all that was moved here
    transfer_arms.png, .svg, .csv
  OUT/transfer/                                               the targets of the last call together
    transfer.csv
    transfer_matrix.png, .svg, .csv                           sources × targets
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis import cells, extra, figures, page
from analysis.entries import title
from analysis.page import Drawn
from analysis.verdicts import Finding
from lthjax import cli, config, fields, models, progress, prune, record, rng, settings, study, train
from lthjax.errors import UserError, shell, unknown
from lthjax.imp import DENSE, Cell
from lthjax.measures import stats, transfer
from lthjax.measures.stats import Interval, mean_interval
from lthjax.models import Model, Variables
from lthjax.store import Store, read_result, read_study

PyTree = Any
Pair = Literal["same", "other"]
MOVED, CARRIED, TICKET = "transferred", "transferred_init", "ticket"
ARMS = {
    MOVED: "the source's mask on the target's own weights at its rewind step",
    CARRIED: "the same mask on the source's weights at its rewind step, carried along",
    "transferred_reinit": "the same mask on fresh weights, trained from step 0",
    "shuffled": "the same mask shuffled within its layers: their densities alone",
    "random_uniform": "a random mask of the same density, the same in every layer",
}
_ORDER = (DENSE, TICKET, *ARMS)
_AGAINST = {TICKET: "the target's own ticket", "shuffled": "the mask shuffled within layers"}
_PAIRS = {"same": "mask of the same seed", "other": "mask of another seed"}
_NEAR = (0.1, 0.03)
_MADE_FROM: dict[str, fields.Check] = {
    "source": fields.text,
    "source_seed": fields.whole(0),
    "own_level": fields.whole(0),
    "shared_init": lambda value: isinstance(value, bool),
}
_shuffle = jax.jit(prune.shuffle)
_uniform = jax.jit(prune.uniform, static_argnums=2)
# Percentage points within which a moved ticket counts as good as the target's own.
MARGIN = 0.5
# A comparison with a ticket of a density further off than this is remarked on.
_FAR = 1.1


class Row(NamedTuple):
    """A moved ticket or what it is held against, as in transfer.csv.

    Attributes:
        source, target: names of the run folders.
        source_seed, seed: of the mask; of everything else.
        level: of the source's ticket.
        arm: a key of `ARMS`; "ticket", the target's own, or "dense".
        density: weights left / prunable weights, of this arm's mask.
        own_level: level of the target's own ticket, the nearest in density; the order of the data is
            this level's for all arms.
        shared_init: whether the target's initial weights are those that the mask was found on, but
            for an output layer of other classes.
        test_accuracy: a fraction, at the end; None where it diverged or is not there.
        early_stop_step: the step of the lowest validation loss; None likewise.
        status: "done" or "diverged".
    """

    source: str
    target: str
    source_seed: int
    seed: int
    level: int
    arm: str
    density: float
    own_level: int
    shared_init: bool
    test_accuracy: float | None
    early_stop_step: int | None
    status: str

    @property
    def pair(self) -> Pair:
        """Whether the mask is of the same seed."""
        return "same" if self.source_seed == self.seed else "other"


class Difference(NamedTuple):
    """A moved ticket against another arm, paired over the target's seeds.

    Attributes:
        source, target, pair, level: which ticket, moved where.
        density: mean of the moved masks'.
        arm: "transferred" or "transferred_init".
        other: the arm that is subtracted.
        values: percentage points, one a seed of the target.
    """

    source: str
    target: str
    pair: Pair
    level: int
    density: float
    arm: str
    other: str
    values: list[float]

    @property
    def interval(self) -> Interval:
        """Their mean and its 95 % interval."""
        return mean_interval(self.values)


class Source(NamedTuple):
    """A run whose tickets are moved.

    Attributes:
        run: its folder.
        about: its study.json.
        model: its network.
        chain: the tickets'.
        rewind: the step that they are rewound to.
        seeds: level -> those whose ticket is there and done.
    """

    run: Path
    about: dict[str, Any]
    model: Model
    chain: str
    rewind: int
    seeds: dict[int, list[int]]


class Move(NamedTuple):
    """A ticket to be moved: of a source's seed and level, to a seed of the target.

    Attributes:
        source, source_seed, level: the ticket.
        seed: of the target.
        own_level: of the target's own ticket, the nearest in density.
    """

    source: Source
    source_seed: int
    level: int
    seed: int
    own_level: int


class Target(NamedTuple):
    """A study that tickets are moved to.

    Attributes:
        prepared: the study.
        run: its folder.
        given: whether it is a run folder, taken as it is, or a config, trained first.
    """

    prepared: study.Prepared
    run: Path
    given: bool


def source_of(run: str | Path, chain: str | None = None, levels: Sequence[int] | None = None) -> Source:
    """A run and which of its tickets are moved.

    Args:
        run: the run folder.
        chain: the tickets' chain; by default that of the lowest rewind step.
        levels: by default those whose densities are nearest to 10 % and 3 %.

    Raises:
        UserError: the run has no such chain, level or ticket.
    """
    run = extra.named(run)
    about, name, rewind, _, tickets = _opened(run, chain)
    there = sorted({row.level for row in tickets})
    for level in levels or ():
        if level not in there:
            raise UserError(
                f"--levels: {level} has no trained ticket of {name} in {run}; it may be "
                f"{', '.join(map(str, there))}."
            )
    density = cells.densities(tickets)
    nearest = {cells.nearest(density, near) for near in _NEAR}
    seeds = {n: sorted(row.seed for row in cells.select(tickets, level=n)) for n in sorted(levels or nearest)}
    made = about["data"]
    model = models.build(about["config"]["model"], tuple(made["shape"]), made["classes"])
    return Source(run, about, model, name, rewind, seeds)


def targets_of(
    paths: Sequence[str | Path], out: str | Path = "runs", data_dir: str | Path = "data"
) -> list[Target]:
    """The studies that configs and run folders hold.

    Args:
        paths: config files and run folders.
        out: the folder of the run folders that configs fill.
        data_dir: the data folder.

    Raises:
        UserError: one is neither; or its data are not those that the run was trained on.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"--to: {str(path)!r} is not there; name a config file or a run folder.")
        if not path.is_dir():
            made = study.prepare_all(config.load_all(path), data_dir)
            found += [Target(one, Path(out) / one.folder, False) for one in made]
            continue
        path = extra.named(path)
        about = read_study(path)
        one = extra.prepared(about, about["config"]["seeds"], data_dir)
        found.append(Target(one, path, True))
    return found


def moves(
    source: Source, target: Target, pairs: Sequence[Pair] | None = None, chain: str | None = None
) -> list[Move]:
    """Which tickets go to which seeds of a target that is trained.

    Args:
        source: the source.
        target: the target; its run folder has dense networks and tickets.
        pairs: "same": from a seed to the same seed; "other": to every seed from the next higher one of the
            source, after the highest from the lowest. By default "same", within one run "other".
        chain: of the target's own tickets.

    Raises:
        UserError: the target has no ticket of its own, or no seed has a partner.
    """
    there = _opened(target.run, chain)
    rows, tickets = there.rows, there.tickets
    dense = {row.seed for row in cells.select(rows, arm=DENSE) if row.status == "done"}
    from_tickets = _opened(source.run, source.chain).tickets
    density = {(row.seed, row.level): row.density for row in from_tickets}
    own = {
        seed: {row.level: row.density for row in tickets if row.seed == seed}
        for seed in sorted({row.seed for row in tickets} & dense)
    }
    within: Pair = "other" if source.run.name == target.run.name else "same"
    pairs = list(dict.fromkeys(pairs or (within,)))
    found = []
    for level, seeds in source.seeds.items():
        for seed, levels in own.items():
            for pair in pairs:
                of = _partner(seed, seeds, pair)
                if of is None:
                    continue
                found.append(Move(source, of, level, seed, cells.nearest(levels, density[of, level])))
    if tickets and not own:
        raise UserError(
            f"{target.run}: no seed has both a ticket and a trained dense network, beside which moved ones "
            "are held; run its config first."
        )
    if not found:
        raise UserError(
            f"--pairs: {' '.join(pairs)} leaves nothing to move from {source.run.name}, with seeds "
            f"{sorted({s for of_level in source.seeds.values() for s in of_level})}, to {target.run.name}, "
            f"with seeds {sorted(own)}; train more seeds, or name the other of 'same' and 'other'."
        )
    return found


def _partner(seed: int, seeds: Sequence[int], pair: str) -> int | None:
    if pair == "same":
        return seed if seed in seeds else None
    others = [s for s in seeds if s != seed]
    return min((s for s in others if s > seed), default=min(others, default=None))


def _opened(run: Path, chain: str | None) -> extra.Opened:
    """A run, and of its chain's tickets those that are trained."""
    found = extra.opened(run, chain)
    done = [row for row in found.tickets if row.status == "done"]
    if not done:
        raise UserError(f"{run}: every ticket of {found.chain} diverged; there is nothing to move.")
    return found._replace(tickets=done)


@settings.pinned()
def build(
    sources: Sequence[Source],
    targets: Sequence[Target],
    out: str | Path = "runs",
    *,
    pairs: Sequence[Pair] | None = None,
    arms: Sequence[str] = tuple(ARMS),
    chain: str | None = None,
    quiet: bool = True,
    chunk: int | None = None,
) -> Path:
    """Trains what is missing of every source on every target, and draws all that was moved to the targets.

    May be stopped at any time: what is trained stays, and the same call goes on from there.

    Args:
        sources: at least one.
        targets: at least one.
        out: the folder of run folders.
        pairs, chain: as for `moves`.
        arms: keys of `ARMS`; "transferred" is always among them.
        quiet: whether nothing is said on standard error; if not, first what it will cost.
        chunk: replicates trained in one program.

    Returns:
        The folder of the matrix, OUT/transfer.

    Raises:
        UserError: a ticket cannot be moved, a file not be read or written, or a folder is in use.
    """
    for name in arms:
        if name not in ARMS:
            raise unknown("--arms", name, ARMS)
    sources, targets = _once("--from", sources), _once("--to", targets)
    # Before anything is trained.
    for source in sources:
        for target in targets:
            transfer.check(source.model, target.prepared.model)
    for target in targets:
        if not target.given:
            study.run(target.prepared, out, watch=progress.watch(quiet), chunk=chunk)
    for target in targets:
        asked = [move for source in sources for move in moves(source, target, pairs, chain)]
        left_out = {row.seed for row in _opened(target.run, chain).tickets} - {move.seed for move in asked}
        if left_out and not quiet:
            print(
                f"{target.run.name}: nothing is moved to seed {', '.join(map(str, sorted(left_out)))}, for "
                "want of a trained dense network or of a partner among the seeds of the sources.",
                file=sys.stderr,
            )
        _Work(target, asked, tuple(dict.fromkeys((MOVED, *arms))), chain, quiet, chunk).fill()
    return draw([target.run for target in targets], out, quiet=quiet)


_Of = TypeVar("_Of", Source, Target)


def _once(option: str, of: Sequence[_Of]) -> list[_Of]:
    """Every folder once; what is moved is kept under the folder's name.

    Raises:
        UserError: two folders have the same name.
    """
    found: dict[str, _Of] = {}
    for one in of:
        other = found.setdefault(one.run.name, one)
        if other.run.resolve() != one.run.resolve():
            raise UserError(
                f"{option}: {other.run} and {one.run} have the same name, under which results are kept; move "
                "tickets of the one and the other by two calls, and rename one before."
            )
    return list(found.values())


def draw(runs: Sequence[str | Path], out: str | Path = "runs", *, quiet: bool = True) -> Path:
    """Draws all that was moved to some runs, by whatever calls: each run's arms, and the matrix of all.

    Args:
        runs: run folders.
        out: the folder of run folders.
        quiet: whether nothing is said on standard error.

    Returns:
        The folder of the matrix, OUT/transfer.

    Raises:
        UserError: nothing was moved to them, or a file cannot be read or written.
    """
    moved = {extra.named(run): load(run) for run in runs}
    rows = [row for of_run in moved.values() for row in of_run]
    if not rows:
        raise UserError(f"--from: nothing was moved to {runs[0]} yet; name a run to move tickets from.")
    folder = Path(out) / "transfer"
    try:
        for run, of_run in moved.items():
            if of_run:
                page.show(run / "transfer", _arms_drawn(of_run, _names([run])))
                table = page.to_csv(Row._fields, of_run)
                extra.write_tables(run / "transfer", {"transfer.csv": table})
        folder.mkdir(parents=True, exist_ok=True)
        page.show(folder, _matrix_drawn(rows, _names(moved)))
        extra.write_tables(folder, {"transfer.csv": page.to_csv(Row._fields, rows)})
    except OSError as error:
        raise UserError(f"{folder}: it cannot be written ({error.strerror}).") from error
    if not quiet:
        for note in notes(rows):
            print(note, file=sys.stderr)
    return folder


class _Work:
    """One target's part in a call of `build`."""

    def __init__(
        self,
        target: Target,
        asked: Sequence[Move],
        arms: Sequence[str],
        chain: str | None,
        quiet: bool,
        chunk: int | None,
    ) -> None:
        self._target, self._moves, self._arms = target, asked, arms
        self._prepared, self._quiet, self._chunk = target.prepared, quiet, chunk
        self._model = target.prepared.model
        self._about, self._chain, self._rewind, _, _ = _opened(target.run, chain)
        self._store = Store(target.run, self._about["identity"], self._about)
        self._like = jax.eval_shape(self._model.init, jax.random.key(0))
        self._ones = prune.ones(self._like.params)
        self._total = target.prepared.lengths.total

    def fill(self) -> None:
        """Trains the moved tickets and controls that are missing."""
        with contextlib.ExitStack() as stack:
            stores: dict[tuple[str, int], Store] = {}
            for move in self._moves:
                key = (move.source.run.name, move.source_seed)
                if key not in stores:
                    stores[key] = stack.enter_context(self._kept(move))
            jobs = [
                (stores[move.source.run.name, move.source_seed], cell, job, basis)
                for move in self._moves
                for cell, job, basis in self._missing(move, stores[move.source.run.name, move.source_seed])
            ]
            if not jobs:
                return
            steps = sum(job.stop - job.start for _, _, job, _ in jobs)
            missing = [cell for _, cell, _, _ in jobs]
            todo = study.Plan(missing, [], missing, steps)
            self._announce(todo)
            seeds = sorted({move.seed for move in self._moves})
            trainer = study.make_trainer([self._prepared], self._chunk, seeds)
            # The same cell may be trained of several sources: a job tells them apart.
            of = {id(job): (kept, basis) for kept, _, job, basis in jobs}
            alike = [(cell, job) for _, cell, job, _ in jobs]
            with extra.watched(self._target.run.name, todo, self._quiet) as watch:
                for cell, job, trained in extra.in_chunks(trainer, alike, watch):
                    kept, basis = of[id(job)]
                    result = record.result(cell, job, trained, basis)
                    kept.write(cell, result, job.mask, None)
                    watch.finished(cell, result, "")

    def _announce(self, todo: study.Plan) -> None:
        if self._quiet:
            return
        cost = study.estimate([self._prepared], [todo], self._chunk)
        print(
            f"{self._target.run.name}: {len(todo.missing)} moved tickets and controls to be trained, "
            f"{todo.steps:,} steps in all (about {progress.duration(cost.seconds)})",
            file=sys.stderr,
        )

    def _kept(self, move: Move) -> Store:
        name = move.source.run.name
        where = self._target.run / "transfer" / f"from={name}" / f"source_seed={move.source_seed}"
        told = {
            "source": {"folder": name, "words": words(move.source.about)},
            "commands": [shell(*sys.argv)],
        }
        return Store(where, self._about["identity"], {**self._about, **told})

    def _missing(self, move: Move, kept: Store) -> Iterator[tuple[Cell, train.Job, dict[str, Any]]]:
        """What is to be trained of a ticket."""
        source, place = move.source, (move.source_seed, move.level, move.seed)
        shared = self._shared(move)
        basis = {
            "source": source.run.name,
            "source_seed": move.source_seed,
            "source_chain": source.chain,
            "source_level": move.level,
            "own_level": move.own_level,
            "shared_init": shared,
        }

        def there(arm: str) -> bool:
            cell = Cell(move.seed, self._chain, move.level, arm)
            return kept.has(cell) and kept.result(cell).get("made_from") == basis

        absent = [arm for arm in self._arms if not there(arm)]
        if not absent:
            return
        like = jax.eval_shape(source.model.init, jax.random.key(0))
        store = Store(source.run, source.about["identity"], source.about)
        ticket = store.mask(Cell(move.source_seed, source.chain, move.level, TICKET), prune.ones(like.params))
        # By the fingerprint, as what a folder is called besides changes no number.
        by = source.run.name.rpartition("-")[2]

        def key(what: str) -> jax.Array:
            return rng.stream(move.seed, f"transfer/{by}/{source.chain}/{what}", *place[:2])

        generator = np.random.default_rng(np.asarray(jax.random.key_data(key("mask"))))
        mask = transfer.mask(source.model, self._model, ticket, generator)
        own = self._store.state(move.seed, self._rewind, self._like)
        for arm in absent:
            kept_mask, variables, start = mask, own, self._rewind
            if arm == CARRIED:
                values = store.state(move.source_seed, source.rewind, like)
                variables = transfer.initial(source.model, self._model, ticket, values, own)
                if _same(*(jax.tree.map(np.multiply, mask, of.params) for of in (variables, own))):
                    continue  # the same bits as `transferred`
            elif arm == "transferred_reinit":
                fresh = jax.device_get(self._model.init(key(arm)).params)
                initial = self._store.state(move.seed, 0, self._like)
                variables, start = Variables(fresh, initial.stats), 0
            elif arm == "shuffled":
                kept_mask = jax.device_get(_shuffle(key(arm), mask))
            elif arm == "random_uniform":
                left, total = (sum(of) for of in zip(*_counts(mask), strict=True))
                kept_mask = jax.device_get(_uniform(key(arm), own.params, left / total))
            job = train.Job(move.seed, move.own_level, start, self._total, variables, kept_mask)
            yield Cell(move.seed, self._chain, move.level, arm), job, basis

    def _shared(self, move: Move) -> bool:
        """Whether source and target have the same weights at step 0, but for other classes."""
        source = move.source
        like = jax.eval_shape(source.model.init, jax.random.key(0))
        theirs = Store(source.run, source.about["identity"], source.about).state(move.source_seed, 0, like)
        ours = self._store.state(move.seed, 0, self._like)
        alike = source.model.classes == self._model.classes
        named = [
            {
                path: leaf
                for path, leaf in zip(prune.paths(params), jax.tree.leaves(params), strict=True)
                if alike or not path.startswith("output/")
            }
            for params in (theirs.params, ours.params)
        ]
        return _same(*named)


def _counts(mask: PyTree) -> list[tuple[int, int]]:
    """(left, weights) of every prunable leaf."""
    return [(int(m.sum()), m.size) for m in jax.tree.leaves(mask) if np.ndim(m)]


def _same(a: PyTree, b: PyTree) -> bool:
    """Whether two pytrees have the same names, shapes and values."""
    named = [
        dict(zip(prune.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True)) for tree in (a, b)
    ]
    first, second = named
    return first.keys() == second.keys() and all(np.array_equal(first[p], second[p]) for p in first)


def load(run: str | Path) -> list[Row]:
    """All that was moved to a run, by whatever calls, and what it is held against there.

    Raises:
        UserError: it is not a run folder, or a file cannot be read.
    """
    run = extra.named(run)
    own = {(row.seed, row.chain, row.level, row.arm): row for row in cells.load(run) if row.repeat == 1}
    rows: dict[tuple[Any, ...], Row] = {}
    for path in sorted(run.glob("transfer/from=*/source_seed=*/seed=*/chain=*/level=*/*/result.json")):
        result = read_result(path.parent)
        made = result.get("made_from") or {}
        known = {"arm": result["arm"] in ARMS, "density": isinstance(result.get("density"), float)}
        wrong = [name for name, fits in _MADE_FROM.items() if not fits(made.get(name))]
        wrong += [name for name, fits in known.items() if not fits]
        if wrong:
            raise UserError(
                f"{path}: it cannot be read ({wrong[0]} is missing or unknown); delete {path.parent} and run "
                "python -m analysis.transfer again."
            )
        where = (made["source"], run.name, made["source_seed"], result["seed"], result["level"])
        basis = (made["own_level"], made["shared_init"])
        seed, chain = result["seed"], result["chain"]
        for cell in (
            own.get((seed, DENSE, 0, DENSE)),
            own.get((seed, chain, made["own_level"], TICKET)),
            cells.Row(*(result.get(name) for name in cells.COLUMNS)),  # type: ignore[arg-type]
        ):
            if cell is not None:
                rows[*where, cell.arm] = Row(
                    *(*where, cell.arm, cell.density, *basis),
                    *(cell.test_accuracy, cell.early_stop_step, cell.status),
                )
    return sorted(rows.values(), key=lambda row: (*row[:5], _ORDER.index(row.arm)))


def differences(rows: Iterable[Row], others: Sequence[str] = (*_AGAINST, DENSE)) -> list[Difference]:
    """Moved ticket − other for every source, target, pairing and level, paired over the target's seeds."""
    of: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        place = (row.source, row.target, row.pair, row.level)
        of.setdefault(place, {}).setdefault(row.arm, []).append(row)
    found = []
    for place, arms in of.items():
        for arm in (MOVED, CARRIED):
            ours = arms.get(arm, [])
            for other in others:
                values = stats.paired(cells.accuracies(ours), cells.accuracies(arms.get(other, [])))
                if values:
                    density = float(np.mean([row.density for row in ours]))
                    found.append(Difference(*place, density, arm, other, values))
    return found


def words(about: Mapping[str, Any]) -> str:
    """A run in words: network, data, optimiser; from its study.json."""
    made = config.from_dict(about["config"])
    return f"{title(dict(about))}, {made.optim.name} {made.optim.lr:g}"


def _names(runs: Iterable[Path]) -> dict[str, str]:
    """Folder -> the words for it, of targets and their sources; with the folder where two have the same."""
    said: dict[str, str] = {}
    for run in runs:
        said[run.name] = words(read_study(run))
        for path in sorted(run.glob("transfer/from=*/source_seed=*/study.json")):
            source = read_study(path.parent).get("source")
            if source is None:
                raise UserError(
                    f"{path}: it names no source; delete {path.parent} and move its tickets again."
                )
            said[source["folder"]] = source["words"]
    twice = [name for name in said if list(said.values()).count(said[name]) > 1]
    return {name: f"{text}, {name}" if name in twice else text for name, text in said.items()}


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the rows must know."""
    found = []
    own = {(row.target, row.seed, row.own_level): row.density for row in rows if row.arm == TICKET}
    for row in rows:
        density = own.get((row.target, row.seed, row.own_level))
        if row.arm == MOVED and density and not 1 / _FAR < row.density / density < _FAR:
            found.append(
                f"{row.source} to {row.target}, level {row.level}: the moved mask has "
                f"{100 * row.density:.1f} % of the weights, the nearest own ticket {100 * density:.1f} %."
            )
    moved = [row for row in rows if row.arm in ARMS]
    bad = sum(row.status == "diverged" for row in moved)
    if bad:
        found.append(f"{bad} of the {len(moved)} trained cells diverged and are left out of means.")
    return list(dict.fromkeys(found))


def findings(run: str | Path) -> list[Finding]:
    """What was found of tickets moved to a run."""
    name = extra.named(run).name
    as_good = f"Tickets moved here are within {MARGIN:g} points of the run's own"
    beat = "Tickets moved here beat the same masks shuffled within layers"
    # A run's own ticket on its own seed is the ticket again.
    moved = [one for one in differences(load(run)) if (one.source, one.pair) != (name, "same")]
    if not moved:
        command = shell("python", "-m", "analysis.transfer", "--from", "RUN", "--to", run)
        return [
            Finding(claim, "not tested", "no ticket was moved here", 0, command) for claim in (as_good, beat)
        ]
    said, found = _names([extra.named(run)]), []
    for source, pair, arm in dict.fromkeys((one.source, one.pair, one.arm) for one in moved):
        own = [one for one in moved if (one.source, one.pair, one.arm) == (source, pair, arm)]
        along = ", its initial values carried along" if arm == CARRIED else ""
        for claim, other in ((as_good, TICKET), (beat, "shuffled")):
            against = [one for one in own if one.other == other]
            if not against:
                continue
            worst = min(against, key=lambda one: one.interval.mean)
            outcome = stats.conjunction(
                stats.noninferior(one.values, MARGIN).outcome
                if other == TICKET
                else stats.verdict(one.values).outcome
                for one in against
            )
            several = f", the least of {len(against)} levels" if len(against) > 1 else ""
            found.append(
                Finding(
                    f"{claim}: from {said[source]}, {_PAIRS[pair]}{along}",
                    outcome,
                    f"{page.points(worst.interval)} pp at {100 * worst.density:.1f} % of weights{several}",
                    min(len(one.values) for one in against),
                    page.Link("transfer", "#transfer"),
                )
            )
    return found


def written(run: Path) -> list[Path]:
    """The files that say that there is something to report."""
    return list(run.glob("transfer/transfer.csv"))


def section(run: Path) -> page.Section | None:
    """The report's section, where tickets were moved to the run."""
    return page.Section("transfer", "Transfer", figures=drawn(run)) if written(run) else None


def drawn(run: str | Path) -> list[Drawn]:
    """The figures of tickets moved to a run; none where there are none."""
    rows, run = load(run), extra.named(run)
    if not rows:
        return []
    return [_matrix_drawn(rows, _names([run])), _arms_drawn(rows, _names([run]))]


def _matrix_drawn(rows: Sequence[Row], said: Mapping[str, str]) -> Drawn:
    found = differences(rows)
    header = (*Difference._fields[:-1], "mean", "low", "high", "n")
    lines = [
        (*one[:-1], *(getattr(one.interval, name) for name in ("mean", "low", "high", "n"))) for one in found
    ]
    caption = (
        "Test accuracy of moved masks, on the target's own weights or with the source's initial values "
        "carried along (init), minus that of the target's own ticket of the nearest density, and of the same "
        "masks shuffled within layers, which have the densities of their layers alone. Mean over the "
        "target's seeds with its 95 % interval, paired; grey: not moved, or with init the same as without. "
        + " ".join(notes(rows))
    )
    return Drawn(
        "transfer_matrix", "Tickets elsewhere", matrix(found, said), caption.strip(), (header, lines)
    )


def matrix(found: Sequence[Difference], said: Mapping[str, str]) -> Figure:
    """Sources × targets: differences to the target's own ticket and to shuffled masks, in percentage points.

    A line of panels for every pairing, arm and level, of more than six six.

    Args:
        found: `differences`.
        said: folder -> words.
    """

    def line(one: Difference) -> tuple[Pair, str, int]:
        return one.pair, one.arm, one.level

    order = sorted(
        found, key=lambda one: (list(_PAIRS).index(one.pair), list(ARMS).index(one.arm), one.level)
    )
    lines = list(dict.fromkeys(map(line, order)))
    if len(lines) > 6:
        lines = [lines[round(i * (len(lines) - 1) / 5)] for i in range(6)]
    sources = list(dict.fromkeys(one.source for one in found))
    targets = list(dict.fromkeys(one.target for one in found))
    shown = [one for one in found if one.other in _AGAINST]
    most = max([abs(one.interval.mean) for one in shown], default=0.0) or 1.0
    wide, high = 1.5 + 1.6 * len(targets), 0.9 + 0.85 * len(sources)
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.0 + 2 * wide, 0.6 + (high + 0.5) * len(lines)), layout="constrained")
        grid = figure.subplots(len(lines), 2, squeeze=False)
        image = None
        for panels, place in zip(grid, lines, strict=True):
            pair, arm, level = place
            of_line = [one for one in shown if line(one) == place]
            share = 100 * float(np.mean([one.density for one in of_line])) if of_line else math.nan
            moved = "moved with init" if arm == CARRIED else "moved"
            for axes, (other, against) in zip(panels, _AGAINST.items(), strict=True):
                own = {(one.source, one.target): one.interval for one in of_line if one.other == other}
                values = np.array(
                    [[own[s, t].mean if (s, t) in own else np.nan for t in targets] for s in sources]
                )
                axes.set_facecolor("#EEEEEE")
                image = axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
                for (s, t), interval in own.items():
                    dark = abs(interval.mean) > 0.6 * most
                    axes.text(
                        *(targets.index(t), sources.index(s)),
                        _written_out(interval),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else "black",
                    )
                axes.set_title(
                    f"{moved} − {against}\nlevel {level}, {share:.1f} % of weights, {_PAIRS[pair]}",
                    loc="left",
                    fontsize=9,
                )
                axes.set_xticks(range(len(targets)), [_lines(said.get(t, t)) for t in targets], fontsize=8)
                labels = [_lines(said.get(s, s)) for s in sources] if axes is panels[0] else []
                axes.set_yticks(range(len(labels)), labels, fontsize=8)
                axes.tick_params(length=0)
                axes.set_xlabel("to", fontsize=9)
            panels[0].set_ylabel("from", fontsize=9)
        if image is not None:
            bar = figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.8, pad=0.01)
            bar.set_label("difference in test accuracy (pp)", fontsize=9)
        return figure


def _written_out(interval: Interval) -> str:
    text = f"{interval.mean:+.2f}"
    if interval.n > 1:
        text += f"\n[{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"{text}\nn = {interval.n}".replace("-", "−")


def _lines(text: str) -> str:
    return text.replace(", ", "\n").replace(" on ", "\non ")


def _arms_drawn(rows: Sequence[Row], said: Mapping[str, str]) -> Drawn:
    header = ("source", "pair", "level", "arm", "seed", "test_accuracy")
    lines = [(row.source, row.pair, row.level, row.arm, row.seed, row.test_accuracy) for row in rows]
    caption = (
        "Test accuracy at the end of training of every arm: the target's dense network and own ticket, the "
        "moved mask, and its controls. Small points are seeds, large ones their mean, lines its 95 % "
        "interval (of three seeds or more). There is no `transferred_init` where it is `transferred` bit for "
        "bit, because the initial weights are shared. " + " ".join(notes(rows))
    )
    figure = arms_figure(rows, said)
    return Drawn(
        "transfer_arms", "Moved tickets and their controls", figure, caption.strip(), (header, lines)
    )


def arms_figure(rows: Sequence[Row], said: Mapping[str, str]) -> Figure:
    """Test accuracy of a target's arms; a panel for every source, pairing and level, of more than six six.

    Args:
        rows: of one target.
        said: folder -> words.
    """
    places = list(dict.fromkeys((row.source, row.pair, row.level) for row in rows))
    if len(places) > 6:
        places = [places[round(i * (len(places) - 1) / 5)] for i in range(6)]
    names = [arm for arm in _ORDER if any(row.arm == arm for row in rows)]
    columns = min(max(len(places), 1), 3)
    lines = -(-max(len(places), 1) // columns)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(max(0.6 + 3.6 * columns, 6.0), 3.6 * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True).ravel()
        for axes in grid[len(places) :]:
            axes.set_visible(False)
        for axes, place in zip(grid, places, strict=False):
            own = [row for row in rows if (row.source, row.pair, row.level) == place]
            share = 100 * float(np.mean([row.density for row in own if row.arm in ARMS]))
            for at, arm in enumerate(names):
                of = cells.accuracies(row for row in own if row.arm == arm)
                if not of:
                    continue
                values, interval, colour = list(of.values()), cells.mean_accuracy(of), _LOOKS[arm][0]
                axes.plot([at + 0.2] * len(values), values, ".", color=colour, ms=4, alpha=0.7)
                axes.plot([at], [interval.mean], _LOOKS[arm][1], color=colour, ms=7)
                if interval.n >= figures.BAND_FROM:
                    axes.vlines(at, interval.low, interval.high, color=colour, lw=1.5, alpha=0.6)
            source, pair, level = place
            axes.set_title(
                f"from {said.get(source, source)}\nlevel {level}, {share:.1f} % of weights, {_PAIRS[pair]}",
                loc="left",
                fontsize=8,
            )
            axes.set_xticks(range(len(names)), [_LOOKS[name][2] for name in names], fontsize=7)
            axes.tick_params(labelbottom=True)
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.grid(axis="x", visible=False)
        figure.supylabel("test accuracy at the end (%)", fontsize=10)
        target = rows[0].target
        figure.suptitle(f"on {said.get(target, target)}", x=0.01, ha="left", fontsize=11)
        return figure


# Colour, marker, and what stands below.
_LOOKS = {
    DENSE: (figures.look(DENSE)[0], "_", "dense"),
    TICKET: (*figures.look(TICKET), "own\nticket"),
    MOVED: ("#CC79A7", "D", "moved"),
    CARRIED: ("#E69F00", "v", "moved\n+ init"),
    "transferred_reinit": (*figures.look("reinit"), "moved\nreinit"),
    "shuffled": (*figures.look("random"), "shuffled"),
    "random_uniform": ("#56B4E9", "P", "random\nuniform"),
}


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.transfer",
        description="Moves tickets of some runs to other studies, trains them there beside their controls, "
        "and draws the matrix of sources and targets; prints its folder.",
        epilog="Arms: " + "; ".join(f"{name}: {what}" for name, what in ARMS.items()) + ".",
    )
    parser.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        default=[],
        metavar="RUN",
        help="run folders; none: train nothing",
    )
    parser.add_argument(
        "--to", dest="targets", nargs="+", required=True, metavar="CONFIG",
        help="config files, of which what is missing is trained first, or run folders, taken as they are",
    )  # fmt: skip
    parser.add_argument(
        "--levels", type=int, nargs="+", help="by default those nearest to 10 and 3 %% density"
    )
    parser.add_argument(
        "--pairs", nargs="+", choices=["same", "other"],
        help="the mask's seed: the target's own, or another; by default same, within one run other",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help="by default all")
    parser.add_argument(
        "--chain", help="of all tickets; by default in every run that of the lowest rewind step"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    options = extra.parsed(parser, arguments)
    if not options.sources:
        configs = [path for path in options.targets if not Path(path).is_dir()]
        if configs:
            raise UserError(
                f"--from: it is missing, and {configs[0]} is no run folder to be drawn; name a run."
            )
        print(draw(options.targets, options.out, quiet=options.quiet))
        return
    sources = [source_of(run, options.chain, options.levels) for run in options.sources]
    targets = targets_of(options.targets, options.out, options.data_dir)
    folder = build(
        sources,
        targets,
        options.out,
        pairs=options.pairs,
        arms=options.arms,
        chain=options.chain,
        quiet=options.quiet,
        chunk=options.chunk,
    )
    print(folder)


if __name__ == "__main__":
    cli.run(main)
