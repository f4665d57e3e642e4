"""The tables of a run's landscape: networks, what is measured of them, the numbers that come out."""

import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from analysis import tables, words
from analysis.run import TICKET, Run
from lthjax import files, imp
from lthjax.errors import DAMAGED
from lthjax.imp import DENSE, Cell
from lthjax.measures import programs, quantities, stats
from lthjax.measures.programs import Settings
from lthjax.measures.stats import mean_interval
from lthjax.store import folder

NAME, TABLE, MARKER = "landscape", "landscape.csv", "about.json"
ARMS = (TICKET, "reinit", "random")
CONTROLS = ARMS[1:]
END = "end"
SIBLING: Final = "sibling"
MATCHED: Final = "matched"
# Percentage points of error below which a path counts as without a barrier (Frankle et al. 2020).
CONNECTED = 2.0


class Number(NamedTuple):
    """One number, as in landscape.csv.

    Attributes:
        seed, chain, level, arm: which network; the dense one is chain "dense" and level 0.
        where: "end" of training; "matched reinit" and "matched random", where ticket and that control
            have the same train loss: the one that ends lower at the step of its training that is
            nearest to the other's end; or "path to OTHER".
        quantity: a key of `QUANTITIES`, or "eigenvalue_N".
        value: of the quantity.
        error: its standard error (traces); or the residual of its Ritz vector, which but for float32's
            rounding bounds its distance to an eigenvalue; else None.
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
        cell: the run's cell that it is, or goes back to.
        role: "own", the cell itself; "sibling", a training with another data order; "matched", a replay
            of the cell up to the step at which its train loss is nearest to another arm's end.
        other: that arm, of a replay.
    """

    cell: Cell
    role: Literal["own", "sibling", "matched"] = "own"
    other: str = ""

    @property
    def stored(self) -> Cell:
        """The cell under which it is stored: in the run if it is its own, else in RUN/landscape."""
        if self.role == "own":
            return self.cell
        added = SIBLING if self.role == SIBLING else f"{MATCHED}_{self.other}"
        return self.cell._replace(arm=f"{self.cell.arm}_{added}")

    @property
    def control(self) -> str:
        """The control in the pair of ticket and control that a replay matches."""
        return self.other if self.cell.arm == TICKET else self.cell.arm


class Item(NamedTuple):
    """A measurement: its kind (a key of `programs.PROGRAMS`), its network, and of a path the other end."""

    kind: str
    network: Network
    end: Network | None = None

    @property
    def to(self) -> str:
        """Where a path leads: "sibling" or an arm; "" of anything else."""
        if self.end is None:
            return ""
        return SIBLING if self.end.role == SIBLING else self.end.cell.arm

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.kind}_{self.to}" if self.to else self.kind


class Scope(NamedTuple):
    """Which networks are measured, and how much.

    Attributes:
        chain: the chain's name.
        rewind: the step that its tickets are rewound to.
        level: the level.
        arms: arm -> seeds whose cell is there and done; "dense" among them.
        planes: the seeds of which surfaces are measured.
        settings: how much.
    """

    chain: str
    rewind: int
    level: int
    arms: dict[str, list[int]]
    planes: list[int]
    settings: Settings

    def network(self, seed: int, arm: str) -> Network:
        """The run's network of an arm."""
        dense = Cell(seed, DENSE, 0, DENSE)
        return Network(dense if arm == DENSE else Cell(seed, self.chain, self.level, arm))

    def networks(self) -> list[Network]:
        """All of them, by arm and seed."""
        return [self.network(seed, arm) for arm, seeds in self.arms.items() for seed in seeds]

    def siblings(self) -> list[Network]:
        """Those that siblings are trained of, as siblings."""
        return [one._replace(role=SIBLING) for one in self.networks() if one.cell.arm != DENSE]


class Found(NamedTuple):
    """Contents of a folder RUN/landscape/chain=C/level=LL.

    Attributes:
        scope: which networks were measured, and how much.
        density: weights left / prunable weights, the mean of the tickets.
        rows: the table.
        notes: sentences for a reader of the rows.
    """

    scope: Scope
    density: float
    rows: list[Number]
    notes: list[str]


Arrays = dict[str, np.ndarray]


def items(scope: Scope, replays: Iterable[Network] = ()) -> list[Item]:
    """All that is measured, the cheap before the expensive.

    Args:
        scope: of what.
        replays: those that are there; they are measured as points and spectra.
    """
    own, replays = scope.networks(), list(replays)
    found = [Item("point", one) for one in (*own, *replays)]
    found += [Item("lines", one) for one in own]
    found += [Item("spectrum", one) for one in (*own, *replays)]
    found += [Item("path", one._replace(role="own"), one) for one in scope.siblings()]
    for other in (DENSE, "reinit"):
        both = [seed for seed in scope.arms[TICKET] if seed in scope.arms[other]]
        found += [Item("path", scope.network(seed, TICKET), scope.network(seed, other)) for seed in both]
    return found + [Item("plane", one) for one in own if one.cell.seed in scope.planes]


def _file(run: Path, item: Item) -> Path:
    return folder(run / NAME, item.network.stored) / f"{item.name}.npz"


def read(run: Path, item: Item, settings: Settings) -> Arrays | None:
    """An item's arrays; None where there are none, or of another basis, or damaged."""
    try:
        with _file(run, item).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if json.loads(str(arrays["basis"])) == programs.basis(item.kind, settings):
                return {name: arrays[name] for name in arrays.files if name != "basis"}
    except DAMAGED:
        pass
    return None


def write_arrays(run: Path, item: Item, settings: Settings, arrays: Arrays) -> None:
    """Writes an item's arrays, whole or not at all."""
    contents = io.BytesIO()
    np.savez_compressed(contents, basis=json.dumps(programs.basis(item.kind, settings)), **arrays)  # type: ignore[arg-type]
    path = _file(run, item)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, contents.getvalue())


def matched_with(control: str) -> str:
    """What rows call the place at which ticket and control have the same train loss."""
    return f"{MATCHED} {control}"


def path_to(other: str) -> str:
    """What rows call a path to another network."""
    return f"path to {other}"


def numbers(item: Item, arrays: Arrays) -> list[Number]:
    """An item's rows."""
    where = path_to(item.to) if item.to else END
    if item.network.role == MATCHED:
        where = matched_with(item.network.control)
    values = quantities.values(item.kind, arrays)
    return [Number(*item.network.cell[:4], where, name, *value) for name, value in values.items()]


def place_of(row: Number) -> tuple[Any, ...]:
    """The key that rows are sorted by."""
    place = (DENSE, *ARMS).index(row.arm)
    return row.seed, place, row.where != END, row.where, quantities.order(row.quantity)


def differences(rows: Sequence[Number]) -> list[ArmDifference]:
    """Ticket − every other arm, of all that both have in a seed, with 95 % intervals."""
    found = []
    for other in (*CONTROLS, DENSE):
        for where, quantity in dict.fromkeys((row.where, row.quantity) for row in rows):
            ours, theirs = (values_of(rows, arm, where, quantity) for arm in (TICKET, other))
            values = stats.paired(ours, theirs)
            if values:
                found.append(ArmDifference(other, where, quantity, *mean_interval(values)))
    return found


def values_of(rows: Iterable[Number], arm: str, where: str, quantity: str) -> dict[int, float]:
    """Seed -> value."""
    wanted = (arm, where, quantity)
    return {row.seed: row.value for row in rows if (row.arm, row.where, row.quantity) == wanted}


def level_folder(run: Path, chain: str, level: int) -> Path:
    """Where a level's tables and figures lie in a run folder."""
    return run / NAME / f"chain={chain}" / f"level={level:02d}"


def load(run: Run) -> list[Found]:
    """What was measured, by chain and level, of the chains and levels of the run's tickets.

    Raises:
        UserError: a file cannot be read.
    """
    chosen = sorted(
        {(imp.rewind_of(row.chain), row.chain, row.level) for row in run.rows if row.arm == TICKET}
    )
    return [
        found_at(run, chain, level)
        for _, chain, level in chosen
        if (level_folder(run.path, chain, level) / MARKER).is_file()
    ]


def found_at(run: Run, chain: str, level: int) -> Found:
    """What was measured at a level; raises as `load`."""
    where = level_folder(run.path, chain, level)
    try:
        about = json.loads(tables.read_text(where / MARKER))
        told, arms = about["settings"], about["arms"]
        lacking = sorted({field.name for field in dataclasses.fields(Settings)} - {*told})
        if lacking or not (isinstance(arms, dict) and arms):
            raise ValueError(f"{MARKER} lacks {', '.join(lacking) or 'arms'}")
        rows = tables.read_rows(where / TABLE, Number)
        if len(rows) != about.get("rows", len(rows)):
            raise ValueError(f"{TABLE} has not as many rows as were written")
        named = {name: about[name] for name in ("chain", "rewind", "level", "arms", "planes")}
        scope = Scope(**named, settings=Settings(**told))
        return Found(scope, about["density"], rows, [*about["notes"]])
    except tables.DAMAGED as error:
        raise tables.unreadable(where, error, command(run, level, chain)) from error


def command(run: Run, level: int | str, chain: str = "") -> str:
    """The command that measures a level; of the first chain where none is named."""
    return words.command(NAME, run.path, "--level", level, *(["--chain", chain] if chain else []))


def texts(found: Found) -> dict[str, str]:
    """The files of a level: name -> text; the last one says that the others are there."""
    scope = found.scope
    about = {
        "chain": scope.chain,
        "level": scope.level,
        "density": found.density,
        "rewind": scope.rewind,
        "arms": scope.arms,
        "planes": scope.planes,
        "settings": dataclasses.asdict(scope.settings),
        "notes": found.notes,
        "rows": len(found.rows),
    }
    return {
        TABLE: tables.of_rows(Number, found.rows),
        "differences.csv": tables.of_rows(ArmDifference, differences(found.rows)),
        MARKER: json.dumps(about, indent=1) + "\n",
    }


def arrays(run: Run, found: Found) -> dict[Item, Arrays]:
    """What was measured at the end of training, as arrays; those that are there."""
    there = {item: read(run.path, item, found.scope.settings) for item in items(found.scope)}
    return {item: of for item, of in there.items() if of is not None}
