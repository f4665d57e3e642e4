"""Compares the tickets of every pair of a run's seeds."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lthjax.errors import UserError, counted
from lthjax.imp import Cell
from lthjax.measures import geography, wiring
from lthjax.study import Watch

from .. import page, record, tables
from ..rows import TICKET, asked_levels, densities
from ..run import Run
from . import figures
from .table import TABLES, InputRow, OverlapRow


@dataclass(frozen=True, kw_only=True)
class Options(record.Options):
    """Compares the tickets of a run's seeds by layer and by input, with and without matching hidden units."""

    chain: str | None = None
    """The tickets' chain; by default that of the lowest rewind step with a trained ticket."""
    levels: tuple[int, ...] = ()
    """Levels; by default those nearest to 20, 10 and 3 % of the weights, and the last."""
    draws: int = 5
    """Shuffled pairs for every pair of seeds."""


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Compares the tickets and writes RUN/geography.

    Raises:
        UserError: the run has no such chain or level, or no two tickets; its network is not the package's.
    """
    if not 1 <= options.draws <= 10_000:
        raise UserError(f"--draws: {options.draws} is not allowed; it must be from 1 to 10000.")
    model = run.network()
    layers = wiring.layers(model)
    if not layers:
        why = "is from outside the package, and which of its layers share units is not known"
        raise UserError(f"{run.path}: {model.name} {why}.")
    tickets = run.tickets(options.chain)
    several = [row for row in tickets.done if len(tickets.seeds(row.level)) > 1]
    if not several:
        raise UserError(
            f"{run.path}: no level has tickets of {tickets.chain} of two seeds that did not diverge, to "
            "be compared; train more."
        )
    chain, what = tickets.chain, f"two seeds' tickets in {tickets.chain}"
    found: dict[str, list[Any]] = {name: [] for name in TABLES}
    for level in asked_levels(options.levels, densities(several), what):
        cells = [Cell(seed, chain, level, TICKET) for seed in tickets.seeds(level)]
        watch.say(f"level {level}: {counted(len(cells) * (len(cells) - 1) // 2, 'pair')}")
        kernels = {c.seed: geography.ticket(layers, run.mask(c), run.weights(c)) for c in cells}
        for (seed, a), (other, b) in itertools.combinations(kernels.items(), 2):
            generator = np.random.default_rng([level, seed, other])
            how = (options.draws, generator)
            alike = geography.compare(layers, a, b, *how, granularity=run.study.prune.granularity)
            found["overlap.csv"] += [OverlapRow(chain, level, seed, other, *one) for one in alike]
        read = geography.inputs(model, [ticket.mask for ticket in kernels.values()])
        found["inputs.csv"] += [InputRow(chain, level, *one) for one in read]
    contents = {name: tables.of_rows(kind, found[name]) for name, kind in TABLES.items()}
    return page.write_folder(run.path / "geography", figures.drawn(found), contents)
