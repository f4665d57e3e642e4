"""Finds the test images that networks of a run get right, and compares them within and between seeds."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lthjax import data
from lthjax.errors import UserError, counted
from lthjax.imp import DENSE
from lthjax.measures import examples
from lthjax.models import Model
from lthjax.study import Watch

from .. import page, record, tables
from ..rows import TICKET, Row, asked_levels, densities, select
from ..run import Run, Tickets
from . import figures
from .table import (
    ERRORS,
    FORGOTTEN,
    LOSSES,
    TABLES,
    AgreementRow,
    ForgettingRow,
    ImageRow,
    PairRow,
)

# Images that are listed of every level, half of them won and half lost.
_LISTED = 40
# The largest difference, in points, between the accuracies found here and those of the run.
_TOLERANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class Options(record.Options):
    """Says which test images tickets win and lose against the dense network and the controls."""

    data_dir: Path = Path("data")
    """Folder of the data sets."""
    chain: str | None = None
    """The tickets' chain; by default that of the lowest rewind step with a trained ticket."""
    levels: tuple[int, ...] = ()
    """Levels; by default those nearest to 20, 10 and 3 % of the weights, and the last."""


class _Seen(NamedTuple):
    """A network and the test images that it gets right."""

    row: Row
    right: np.ndarray


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Passes the test images through the networks, and writes RUN/examples.

    Raises:
        UserError: the run has no such chain or level; the data are not the run's; a network does not have the
            accuracy of its result.
    """
    tickets = run.tickets(options.chain)
    dense_seeds = {row.seed for row in run.rows if row.arm == DENSE and row.status == "done"}
    there = densities(row for row in tickets.done if row.seed in dense_seeds)
    if not there:
        both = f"both a dense network and a ticket of {tickets.chain} that did not diverge"
        raise UserError(f"{run.path}: no seed has {both}.")
    levels = asked_levels(options.levels, there, f"trained ticket in {tickets.chain}")
    done = [row for row in run.rows if row.status == "done"]
    chosen = select(done, chain=DENSE) + [
        row for level in levels for row in select(done, chain=tickets.chain, level=level)
    ]
    dataset = run.dataset(options.data_dir)
    watch.say(f"{counted(len(chosen), 'network')}, {len(dataset.test_images):,} test images each")
    found = list(_seen(run, run.network(), dataset, chosen, watch))
    dense = {one.row.seed: one.right for one in found if one.row.arm == DENSE}
    contents: dict[str, list[tuple[object, ...]]] = {name: [] for name in TABLES}
    for level in levels:
        own = [one for one in found if one.row.level == level and one.row.arm != DENSE]
        contents["pairs.csv"] += _pairs(own, dense)
        contents["agreement.csv"] += _agreements(tickets, level, own, dense)
        contents["images.csv"] += _images(tickets, level, own, dense, dataset.test_labels)
    forgotten = _forgotten(tickets, levels, found, dense)
    contents["forgetting.csv"] += [row for row, _ in forgotten]
    for (one, ours), (other, theirs) in itertools.combinations(forgotten, 2):
        if (one.networks, one.last) == (other.networks, other.last):
            pair = (TICKET, one.seed, TICKET, other.seed, examples.kappa(ours, theirs))
            contents["agreement.csv"].append(AgreementRow(tickets.chain, one.last, FORGOTTEN, *pair))
    texts = {name: tables.of_rows(kind, contents[name]) for name, kind in TABLES.items()}
    return page.write_folder(run.path / "examples", figures.drawn(contents), texts)


def _seen(run: Run, model: Model, dataset: data.Dataset, rows: list[Row], watch: Watch) -> Iterator[_Seen]:
    splits = data.splits(dataset, {row.seed for row in rows}, run.study.data.validation)
    for row in rows:
        split = splits[row.seed]
        watch.say(f"level {row.level}, seed {row.seed}, {row.arm}")
        how = (dataset.test_images, split.mean, split.std)
        right = examples.predictions(model, run.variables(row.cell), *how) == dataset.test_labels
        accuracy = float(right.mean())
        if row.test_accuracy is not None and abs(accuracy - row.test_accuracy) > _TOLERANCE / 100:
            raise UserError(
                f"{run.path}: the {row.arm} network of seed {row.seed} at level {row.level} has "
                f"{100 * accuracy:.2f} % here and {100 * row.test_accuracy:.2f} % in its result; the network "
                "or the data are not those that it was trained with."
            )
        yield _Seen(row, right)


def _pairs(own: list[_Seen], dense: Mapping[int, np.ndarray]) -> Iterator[PairRow]:
    """Every network beside its seed's dense network, and the ticket beside its controls."""
    tickets = {one.row.seed: one for one in own if one.row.arm == TICKET}
    for one in sorted(own, key=lambda one: one.row.arm != TICKET):
        if one.row.seed in dense:
            yield _pair(one.row, one.right, dense[one.row.seed], DENSE)
    for one in own:
        ticket = tickets.get(one.row.seed)
        if one.row.arm != TICKET and ticket is not None:
            # The repeats are the control's.
            row = ticket.row._replace(repeat=one.row.repeat)
            yield _pair(row, ticket.right, one.right, one.row.arm)


def _pair(row: Row, ours: np.ndarray, theirs: np.ndarray, other: str) -> PairRow:
    of = examples.discordant(ours, theirs)
    mean, low, high, _ = examples.difference(of)
    place = (row.chain, row.level, row.seed, row.repeat, row.arm, other, row.density)
    return PairRow(*place, *of, 100 * mean, 100 * low, 100 * high, examples.p_value(of))


def _agreements(
    tickets: Tickets, level: int, own: list[_Seen], dense: Mapping[int, np.ndarray]
) -> Iterator[AgreementRow]:
    """κ of errors: within an arm between seeds, and of an arm and the dense networks; and κ of losses."""
    wrong = {(one.row.arm, one.row.seed): ~one.right for one in own if one.row.repeat == 1}
    wrong |= {(DENSE, seed): ~right for seed, right in dense.items()}
    lost = {at: of & ~wrong[DENSE, at[1]] for at, of in wrong.items() if at[0] != DENSE and at[1] in dense}
    for kind, judged in ((ERRORS, wrong), (LOSSES, lost)):
        for (arm, seed), (other, theirs) in itertools.product(judged, judged):
            alone = arm == other and seed < theirs
            beside = arm != DENSE and other == DENSE
            if alone or beside:
                agreed = examples.kappa(judged[arm, seed], judged[other, theirs])
                yield AgreementRow(tickets.chain, level, kind, arm, seed, other, theirs, agreed)


def _forgotten(
    tickets: Tickets, levels: list[int], found: list[_Seen], dense: Mapping[int, np.ndarray]
) -> list[tuple[ForgettingRow, np.ndarray]]:
    """What the tickets of a seed forget over its levels, and whether an image is forgotten: bool [N]."""
    right = {(one.row.seed, one.row.level): one.right for one in found if one.row.arm == TICKET}
    made = []
    for seed in sorted(dense):
        own = [level for level in levels if (seed, level) in right]
        if not own:
            continue
        sequence = np.stack([dense[seed], *(right[seed, level] for level in own)])
        events = examples.forgetting(sequence)
        counts = [int(of.sum()) for of in (sequence.all(0), ~sequence.any(0), events > 0, events)]
        place = (tickets.chain, seed, len(sequence), 0, own[-1], len(events))
        made.append((ForgettingRow(*place, *counts), events > 0))
    return made


def _images(
    tickets: Tickets, level: int, own: list[_Seen], dense: Mapping[int, np.ndarray], labels: np.ndarray
) -> Iterator[ImageRow]:
    """The images of the largest differences between tickets and dense networks, lost ones first."""
    pairs = [
        (one.right, dense[one.row.seed]) for one in own if one.row.arm == TICKET and one.row.seed in dense
    ]
    if not pairs:
        return
    wrong, dense_wrong = (np.sum([~right for right in of], axis=0) for of in zip(*pairs, strict=True))
    order = np.argsort(dense_wrong - wrong, kind="stable")
    half = min(_LISTED // 2, len(order) // 2)
    for image in (*order[:half].tolist(), *order[len(order) - half :][::-1].tolist()):
        counts = int(wrong[image]), int(dense_wrong[image])
        yield ImageRow(tickets.chain, level, image, int(labels[image]), len(pairs), *counts)
