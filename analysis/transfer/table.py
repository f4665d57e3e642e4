"""The table of moved tickets: rows, read from the cells that were trained, and differences between arms."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from lthjax import fields, home
from lthjax.errors import UserError
from lthjax.folder.verified import read_result, read_study
from lthjax.imp import DENSE, Cell
from lthjax.measures.stats import Interval, mean_interval, paired
from lthjax.measures.transfer_arms import ARMS, CARRIED, MOVED, PERMUTED

from .. import words
from ..differences import floor
from ..rows import TICKET, Row, accuracies, by_number, grouped, row_of
from ..run import Run

Pair = Literal["same", "other"]
PAIRS: dict[Pair, str] = {"same": "mask of the same seed", "other": "mask of another seed"}
# In tables and figures, from left to right.
ORDER = (DENSE, TICKET, *ARMS)
# Controls of a moved ticket: its weights or its mask are chance's.
CONTROLS = ("transferred_reinit", "shuffled", "random_uniform")
# What a moved ticket is compared with.
AGAINST = {TICKET: "the target's own ticket", "shuffled": "the mask shuffled within layers"}
# A ticket whose density is further off than this factor is no measure of a moved one.
FAR = 1.1
# The status of a cell that is not comparable with "transferred": see `load`.
LEFT_OUT = "left out"


class TransferRow(NamedTuple):
    """A moved ticket, or an arm that it is compared with, as in transfer.csv.

    Attributes:
        source, target: names of the run folders.
        source_seed, level: of the ticket in its source.
        seed: the seed of the training: split, order of the data, initial weights.
        arm: a key of `ARMS`; "ticket", the target's own, or "dense".
        density: weights left / prunable weights, of this arm's mask.
        own_level: level of the target's own ticket of the nearest density; all arms take its data order.
        shared_init: whether the mask was found on the target's initial weights, up to an output layer of
            other classes.
        test_accuracy, early_stop_step, status: as in `analysis.rows.Row`; a cell that is not comparable with
            "transferred" is "left out" and has no measurements: see `load`.
        chain: of the target's own ticket, at whose rewind step all arms but fresh weights start; "" in tables
            of earlier versions, which do not name it.
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
    chain: str = ""

    @property
    def pair(self) -> Pair:
        """Whether the mask is of the same seed."""
        return "same" if self.source_seed == self.seed else "other"


class Difference(NamedTuple):
    """A moved ticket minus another arm, paired over the target's seeds.

    Attributes:
        source, target, pair, level: as in `TransferRow`.
        density: mean over the moved masks.
        arm, other: "transferred", "transferred_init" or "transferred_permuted" (or a control), and the arm
            that is subtracted; "transferred" is subtracted from the permuted one alone.
        values: percentage points, one a seed of the target.
        floor: the least standard deviation of a value, as `analysis.differences.floor`.
        chain: as in `TransferRow`.
        other_density: mean over the masks of the other arm.
    """

    source: str
    target: str
    pair: Pair
    level: int
    density: float
    arm: str
    other: str
    values: list[float]
    floor: float = 0.0
    chain: str = ""
    other_density: float = 0.0

    @property
    def far(self) -> bool:
        """Whether the two arms' densities are apart by more than the factor `FAR`."""
        return _far(self.density, self.other_density)

    @property
    def interval(self) -> Interval:
        """Their mean and its 95 % interval, with the floor."""
        return mean_interval(self.values, floor=self.floor)


def load(run: Run) -> list[TransferRow]:
    """All that was moved to a run, and the arms that it is compared with; raises if a file is damaged.

    A target that has got further levels has another own ticket of the nearest density, and a source that has
    got further chains another ticket of a level. A call trains `transferred` anew then, but of the other arms
    those it names alone: the rest stay as they were, and are left out.
    """
    own = {row.cell: row for row in run.rows}
    places: dict[tuple[Any, ...], dict[str, tuple[Row, dict[str, Any]]]] = {}
    for path in sorted(run.path.glob("transfer/from=*/source_seed=*/seed=*/chain=*/level=*/*/result.json")):
        result = read_result(path.parent)
        if wrong := fields.moved(result, ARMS):
            again = f"delete {path.parent} and run {home.command('transfer')} again."
            raise UserError(f"{path}: it cannot be read ({wrong} is missing or unknown); {again}")
        made: dict[str, Any] = result["made_from"] or {}
        moved = row_of(result)
        place = (made["source"], made["source_seed"], moved.seed, moved.level, moved.chain)
        places.setdefault(place, {})[moved.arm] = moved, made
    rows: list[TransferRow] = []
    for (source, source_seed, seed, level, chain), cells in places.items():
        _, basis = next(cells[arm] for arm in ORDER if arm in cells)
        beside = Cell(seed, DENSE, 0, DENSE), Cell(seed, chain, basis["own_level"], TICKET)
        for row, made in [*((own[cell], basis) for cell in beside if cell in own), *cells.values()]:
            before = (source, run.name, source_seed, seed, level, row.arm, row.density, made["own_level"])
            measured = (row.test_accuracy, row.early_stop_step, row.status)
            if any(made.get(name) != basis.get(name) for name in ("own_level", "source_chain")):
                measured = (None, None, LEFT_OUT)
            rows.append(TransferRow(*before, made["shared_init"], *measured, chain))
    return sorted(rows, key=lambda row: (*row[:5], by_number(row.chain), ORDER.index(row.arm)))


def differences(
    rows: Iterable[TransferRow],
    others: Sequence[str] = (*AGAINST, DENSE),
    images: Mapping[str, int] = MappingProxyType({}),
    of: Sequence[str] = (MOVED, CARRIED, PERMUTED),
) -> list[Difference]:
    """Moved ticket − other for every source, target, pairing, level and chain, paired by the target's seeds.

    `images` of a target's test set give the floor of the spread; a target that it lacks has none. From the
    arms `of` the others are subtracted.
    """
    found = []
    places = grouped(rows, "source", "target", "pair", "level", "chain")
    for (source, target, pair, level, chain), own in places.items():
        arms = grouped((row for row in own if row.status != LEFT_OUT), "arm")
        pairs = [*itertools.product(of, others), (PERMUTED, MOVED)]
        for arm, other in pairs:
            ours, theirs = arms.get(arm, []), arms.get(other, [])
            both = accuracies(ours), accuracies(theirs)
            if values := paired(*both):
                density, beside = (float(np.mean([row.density for row in side])) for side in (ours, theirs))
                place = (source, target, pair, level, density)
                least = floor(*both, images.get(target, 0))
                found.append(Difference(*place, arm, other, values, least, chain, beside))
    return found


def chain_words(rows: Iterable[TransferRow]) -> dict[str, str]:
    """Chain -> a comma and its name, for titles and claims; "" unless a target has tickets of several."""
    of_target = grouped(rows, "target", "chain")
    several = len(of_target) > len({target for target, _ in of_target})
    return {chain: f", {chain}" if several else "" for _, chain in of_target}


def _far(density: float, other: float) -> bool:
    return not density / FAR < other < density * FAR


def described(run: Run) -> str:
    """A run in words: network, data, optimiser."""
    return f"{words.title(run.about)}, {run.study.optim.name} {run.study.optim.lr:g}"


def names(runs: Iterable[Run]) -> dict[str, str]:
    """Folder -> its words, of targets and their sources; with the folder where two have the same words."""
    said: dict[str, str] = {}
    for run in runs:
        said[run.name] = described(run)
        for path in sorted(run.path.glob("transfer/from=*/source_seed=*/study.json")):
            source = read_study(path.parent).get("source")
            if source is None:
                why = f"it names no source; delete {path.parent} and move its tickets again."
                raise UserError(f"{path}: {why}")
            said[source["folder"]] = source["words"]
    twice = [name for name in said if list(said.values()).count(said[name]) > 1]
    return {name: f"{text}, {name}" if name in twice else text for name, text in said.items()}


def notes(rows: Sequence[TransferRow]) -> list[str]:
    """Moved masks that differ in density from the ticket beside them; trainings that are left out."""
    found, chains = [], chain_words(rows)
    own = {(row.target, row.chain, row.seed, row.own_level): row for row in rows if row.arm == TICKET}
    for row in rows:
        ticket = own.get((row.target, row.chain, row.seed, row.own_level))
        place = f"{row.source} to {row.target}, level {row.level}{chains[row.chain]}"
        if row.arm == MOVED and ticket and _far(row.density, ticket.density):
            found.append(
                f"{place}: the moved mask has {words.share(row.density)} of the weights, the nearest own "
                f"ticket {words.share(ticket.density)}."
            )
        if row.status == LEFT_OUT:
            found.append(
                f"{place}: {row.arm} is left out where it was trained beside another own ticket, or from "
                f"another chain, than {MOVED}; move it again with --arms {row.arm}."
            )
    moved = [row.status for row in rows if row.arm in ARMS and row.status != LEFT_OUT]
    if bad := moved.count("diverged"):
        found.append(f"{bad} of the {len(moved)} trained cells diverged and are left out of means.")
    return list(dict.fromkeys(found))
