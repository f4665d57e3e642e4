"""The tables of a run's landscape: networks, what is measured of them, the numbers that come out."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from lthjax.folder.places import folder
from lthjax.imp import DENSE, Cell
from lthjax.measures import programs, quantities, stats
from lthjax.measures.programs import Settings

from .. import origins, tables, words
from ..rows import TICKET, chains, densities, select
from ..run import Run

NAME, TABLE, MARKER = "landscape", "landscape.csv", "about.json"
ARMS = (TICKET, "reinit", "random")
CONTROLS = ARMS[1:]
# The places of the table: the end of training, where ticket and control have the same loss, paths.
END, MATCHED_WITH, PATH_TO = "end", "matched {}", "path to {}"
SIBLING: Final = "sibling"
MATCHED: Final = "matched"
Arrays = dict[str, np.ndarray]


class Number(NamedTuple):
    """One number, as in landscape.csv.

    Attributes:
        seed, chain, level, arm: which network; the dense one is chain "dense" and level 0.
        where: "end" of training; "matched CONTROL", where ticket and control have the same train loss;
            or "path to OTHER".
        quantity: a key of `QUANTITIES`, or "eigenvalue_N".
        value: of the quantity.
        error: as in `lthjax.measures.quantities.values`.
    """

    seed: int
    chain: str
    level: int
    arm: str
    where: str
    quantity: str
    value: float
    error: float | None


class ArmDifference(NamedTuple):
    """Ticket − another arm, paired over seeds, as in differences.csv: the mean and its 95 % interval."""

    other: str
    where: str
    quantity: str
    mean: float
    low: float
    high: float
    n: int


class Network(NamedTuple):
    """A network that is measured.

    Attributes:
        cell: the run's cell that it is, or that it trains again.
        role: "own", the cell itself; "sibling", a training with another data order; "matched", a replay
            of the cell up to the step at which its train loss reaches another arm's end.
        other: of a replay, that arm.
    """

    cell: Cell
    role: Literal["own", "sibling", "matched"] = "own"
    other: str = ""

    @property
    def stored(self) -> Cell:
        """The cell under which it is stored: in the run if it is its own, else in RUN/landscape."""
        added = {"own": "", SIBLING: f"_{SIBLING}", MATCHED: f"_{MATCHED}_{self.other}"}[self.role]
        return self.cell._replace(arm=self.cell.arm + added)

    @property
    def where(self) -> str:
        """The place in the table: the end of training, or of a replay the loss matched with a control."""
        control = self.other if self.cell.arm == TICKET else self.cell.arm
        return MATCHED_WITH.format(control) if self.other else END


class Item(NamedTuple):
    """A measurement: its kind (a key of `programs.PROGRAMS`), its network, and of a path the other end."""

    kind: str
    network: Network
    end: Network | None = None

    @property
    def to(self) -> str:
        """Where a path leads: "sibling" or an arm; "" of anything else."""
        end = self.end
        return "" if end is None else SIBLING if end.role == SIBLING else end.cell.arm

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.kind}_{self.to}" if self.to else self.kind


class Scope(NamedTuple):
    """Which networks are measured, and how much.

    Attributes:
        chain, level, density, rewind: of the tickets; their mean density and their rewind step.
        arms: arm -> seeds whose cell is there and done; "dense" among them.
        planes: the seeds of which surfaces are measured.
        settings: how much.
    """

    chain: str
    level: int
    density: float
    rewind: int
    arms: dict[str, list[int]]
    planes: list[int]
    settings: Settings

    def network(self, seed: int, arm: str) -> Network:
        """The run's network of an arm."""
        place = (DENSE, 0) if arm == DENSE else (self.chain, self.level)
        return Network(Cell(seed, *place, arm))

    def networks(self) -> list[Network]:
        """All of them, by arm and seed."""
        return [self.network(seed, arm) for arm, seeds in self.arms.items() for seed in seeds]

    def siblings(self) -> list[Network]:
        """The siblings of all of them; those of the dense networks are the same for all levels."""
        return [one._replace(role=SIBLING) for one in self.networks()]

    def replays(self) -> list[tuple[Network, ...]]:
        """Of every pair of ticket and control the ticket's and the control's; one of them is trained."""
        pairs = [(seed, control) for control in CONTROLS for seed in self.arms[control]]
        return [
            tuple(Network(self.network(seed, a).cell, MATCHED, b) for a, b in ((TICKET, of), (of, TICKET)))
            for seed, of in pairs
        ]


class MatchedPair(NamedTuple):
    """A ticket and a control of one seed where their train losses are matched.

    Attributes:
        seed, control: which pair.
        steps: of the ticket and of the control, at which they are measured.
        losses: their train losses there, nats.
    """

    seed: int
    control: str
    steps: tuple[int, int]
    losses: tuple[float, float]

    @property
    def off(self) -> float:
        """The ratio of the losses, of the larger to the smaller, less 1."""
        return quantities.off(*self.losses)


class Found(NamedTuple):
    """The contents of RUN/landscape/chain=C/level=LL; notes are sentences for a reader of the rows."""

    scope: Scope
    rows: list[Number]
    notes: list[str]


def items(scope: Scope, replays: Sequence[Network] = ()) -> list[Item]:
    """All that is measured, the cheap before the expensive; replays as points and spectra."""
    own = scope.networks()
    found = [Item("point", one) for one in (*own, *replays)]
    found += [Item("lines", one) for one in own]
    found += [Item(kind, one) for kind in ("spectrum", "curvature") for one in (*own, *replays)]
    found += [Item("gauss_newton", one) for one in own]
    found += [Item("path", one._replace(role="own"), one) for one in scope.siblings()]
    for other in (DENSE, "reinit"):
        both = [seed for seed in scope.arms[TICKET] if seed in scope.arms[other]]
        found += [Item("path", scope.network(seed, TICKET), scope.network(seed, other)) for seed in both]
    return found + [Item("plane", one) for one in own if one.cell.seed in scope.planes]


def _file(run: Path, item: Item, basis: Mapping[str, Any] | None = None) -> Path:
    """The file of an item's arrays, with a basis that of these settings alone."""
    where, mark = folder(run / NAME, item.network.stored), ""
    if basis is not None:
        mark = "-" + hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:8]
    return where / f"{item.name}{mark}.npz"


def place(run: Path, network: Network) -> Path:
    """The folder of a network's cell."""
    return folder(run if network.role == "own" else run / NAME, network.stored)


def _cells(run: Path, item: Item) -> list[Path]:
    return [place(run, one) for one in (item.network, item.end) if one is not None]


def read(run: Path, item: Item, settings: Settings) -> Arrays | None:
    """An item's arrays; None where they are not there, damaged, of other settings, or of other networks."""
    basis, cells = programs.basis(item.kind, settings), _cells(run, item)
    if item.network.cell.arm == DENSE:
        found = origins.read_arrays(_file(run, item, basis), basis, cells)
        # An earlier version had one file for all settings.
        return origins.read_arrays(_file(run, item), basis, cells) if found is None else found
    return origins.read_arrays(_file(run, item), basis, cells)


def write_arrays(run: Path, item: Item, settings: Settings, arrays: Arrays) -> None:
    """Writes an item's arrays, whole or not at all; other levels have use for the dense network's."""
    basis = programs.basis(item.kind, settings)
    shared = item.network.cell.arm == DENSE
    path = _file(run, item, basis if shared else None)
    tables.write_arrays(path, origins.named(basis, _cells(run, item)), arrays)


def numbers(item: Item, arrays: Arrays) -> list[Number]:
    """An item's rows."""
    where = PATH_TO.format(item.to) if item.to else item.network.where
    values = quantities.values(item.kind, arrays)
    return [Number(*item.network.cell[:4], where, name, *value) for name, value in values.items()]


def place_of(row: Number) -> tuple[Any, ...]:
    """The key that rows are sorted by."""
    place = (DENSE, *ARMS).index(row.arm)
    return row.seed, place, row.where != END, row.where, quantities.order(row.quantity)


def differences(rows: Sequence[Number]) -> list[ArmDifference]:
    """Ticket − every other arm, of every quantity and place that both have in a seed."""
    places = dict.fromkeys((row.where, row.quantity) for row in rows)
    return [
        ArmDifference(other, *place, *stats.mean_interval(values))  # type: ignore[arg-type]
        for other in (*CONTROLS, DENSE)
        for place in places
        if (values := stats.paired(values_of(rows, TICKET, *place), values_of(rows, other, *place)))
    ]


def matched_pairs(rows: Sequence[Number]) -> list[MatchedPair]:
    """The pairs whose train losses were matched, by control and seed."""
    made = []
    for control in CONTROLS:
        where = MATCHED_WITH.format(control)
        both = [
            [values_of(rows, arm, where, name) for arm in (TICKET, control)]
            for name in ("step", "train_loss")
        ]
        (a, b), (ours, theirs) = both
        made += [
            MatchedPair(seed, control, (int(a[seed]), int(b[seed])), (ours[seed], theirs[seed]))
            for seed in sorted(ours.keys() & theirs.keys() & a.keys() & b.keys())
        ]
    return made


def values_of(rows: Iterable[Number], arm: str, where: str, quantity: str) -> dict[int, float]:
    """Seed -> value."""
    wanted = (arm, where, quantity)
    return {row.seed: row.value for row in rows if (row.arm, row.where, row.quantity) == wanted}


def level_folder(run: Path, chain: str, level: int) -> Path:
    """Where a level's tables and figures lie in a run folder."""
    return run / NAME / f"chain={chain}" / f"level={level:02d}"


def load(run: Run) -> list[Found]:
    """All levels of the run's tickets that were measured, by chain and level.

    Raises:
        UserError: a file cannot be read.
    """
    tickets = select(run.rows, arm=TICKET)
    places = [(one, level) for one in chains(tickets) for level in densities(select(tickets, one))]
    return [_found_at(run, *of) for of in places if (level_folder(run.path, *of) / MARKER).is_file()]


def _found_at(run: Run, chain: str, level: int) -> Found:
    where = level_folder(run.path, chain, level)
    with tables.reading(where, command(run, level, chain)):
        about = json.loads(tables.read_text(where / MARKER))
        told, arms = about["settings"], about["arms"]
        lacking = sorted({field.name for field in dataclasses.fields(Settings)} - {*told})
        if lacking or not (isinstance(arms, dict) and arms):
            raise ValueError(f"{MARKER} lacks {', '.join(lacking) or 'arms'}")
        rows = tables.read_rows(where / TABLE, Number, about.get("rows"))
        scope = Scope(*(about[name] for name in Scope._fields))
        return Found(scope._replace(settings=Settings(**told)), rows, [*about["notes"]])


def command(run: Run, level: int | str, chain: str = "") -> str:
    """The command that measures a level; of the first chain where none is named."""
    return words.command(NAME, run.path, "--level", level, *(["--chain", chain] if chain else []))
