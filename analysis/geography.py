"""Lottery geography: how much the tickets of a run's seeds overlap, by layer and by input, matched and not.

python -m analysis.geography runs/quickstart-0123abcd
python -m analysis.geography runs/quickstart-0123abcd --levels 4 8 11 --draws 10

Are two seeds' tickets the same up to the order of their hidden units? Every pair of seeds is compared
as it is, after its units are matched by their masks, and after they are matched by the magnitudes of
their trained weights (`lthjax.measures.geography`); and so is every pair after either ticket was
shuffled within its layers, which is chance. Trains nothing. Writes RUN/geography:

  overlap.csv     `Row`: the overlap of every pair, layer and way of matching
  inputs.csv      `Input`: what is read, pixel by pixel (of a convolution tap by tap)
  geography_overlap, geography_inputs      figures, as PNG, SVG and CSV
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis import cells, extra, figures, page
from analysis.page import Drawn
from analysis.verdicts import Finding
from lthjax import cli, config, models, prune, settings
from lthjax.errors import UserError, shell
from lthjax.imp import Cell
from lthjax.measures import geography, stats, transfer
from lthjax.measures.stats import Interval, mean_interval
from lthjax.models import Model
from lthjax.store import Store, read_study

Kernels = list[np.ndarray]
ALL, INPUTS = "all", "inputs"
TICKET, SHUFFLED = "ticket", "shuffled"
MATCHINGS = {
    "none": "as they are",
    "masks": "units matched by masks",
    "magnitudes": "units matched by magnitudes",
}
# Overlap from which on two tickets would be called the same.
SAME = 0.9
_NEAR = (0.2, 0.1, 0.03)
_COLOURS = {"none": "#444444", "masks": "#0072B2", "magnitudes": "#D55E00"}
_MARKERS = {"none": "o", "masks": "s", "magnitudes": "^"}


class Row(NamedTuple):
    """How alike the tickets of two seeds are, as in overlap.csv.

    Attributes:
        chain, level: which tickets.
        seed, other: the two seeds.
        layer: its name; "all" together; "inputs", for the number of connections that leave each.
        matching: a key of `MATCHINGS`; of "inputs" always "none", as no matching changes them.
        mask: "ticket", or "shuffled": chance, the mean over draws.
        density: weights left / weights, mean of both; of "inputs" the first layer's.
        overlap: connections in both / in either; of "inputs" the correlation of the two maps, None
            where one is even.
    """

    chain: str
    level: int
    seed: int
    other: int
    layer: str
    matching: str
    mask: str
    density: float
    overlap: float | None


class Input(NamedTuple):
    """What is read of an input, mean over seeds and over pairs, as in inputs.csv.

    Attributes:
        chain, level: which tickets.
        y, x, channel: the pixel, or of a convolution the tap.
        kept: connections that leave it, of those that there were; a share.
        overlap: connections in both tickets / in either, as they are; None where no pair reads it.
        chance: the same if the readers were drawn at random, as many as there are.
    """

    chain: str
    level: int
    y: int
    x: int
    channel: int
    kept: float
    overlap: float | None
    chance: float | None


class Ticket(NamedTuple):
    """A trained ticket.

    Attributes:
        mask: bool kernels.
        magnitudes: of its final weights, 0 where pruned.
    """

    mask: Kernels
    magnitudes: Kernels


@settings.pinned()
def build(
    run: str | Path,
    *,
    chain: str | None = None,
    levels: Sequence[int] | None = None,
    draws: int = 5,
    quiet: bool = True,
) -> Path:
    """Compares the tickets of a run and writes RUN/geography.

    Args:
        run: the run folder.
        chain: the tickets'; by default that of the lowest rewind step.
        levels: by default those whose densities are nearest to 20 %, 10 % and 3 %, and the last.
        draws: shuffled pairs for every pair of seeds.
        quiet: whether nothing is said on standard error.

    Returns:
        The folder.

    Raises:
        UserError: the run has no such chain or level, fewer than two seeds have a ticket there, its
            network is no sequence of layers, or a file cannot be read or written.
    """
    run = Path(run)
    if not 1 <= draws <= 10_000:
        raise UserError(f"--draws: {draws} is not allowed; it must be from 1 to 10000.")
    about = read_study(run)
    made = about["data"]
    model = models.build(config.from_dict(about["config"]).model, tuple(made["shape"]), made["classes"])
    if not model.layers:
        raise UserError(f"{run}: {model.name} is no sequence of layers, whose units could be matched.")
    name, seeds = _asked(run, chain, levels)
    store = Store(run, about["identity"], about)
    like = jax.eval_shape(model.init, jax.random.key(0))
    whole = prune.ones(like.params)
    rows: list[Row] = []
    inputs: list[Input] = []
    for level, of_level in seeds.items():
        if not quiet:
            print(f"level {level}: {len(of_level) * (len(of_level) - 1) // 2} pairs", file=sys.stderr)
        tickets = {}
        for seed in of_level:
            cell = Cell(seed, name, level, TICKET)
            mask = transfer.kernels(model.layers, store.mask(cell, whole))
            final = transfer.kernels(model.layers, store.variables(cell, like).params)
            tickets[seed] = Ticket(mask, [abs(w) * m for w, m in zip(final, mask, strict=True)])
        for seed, other in itertools.combinations(of_level, 2):
            place = (name, level, seed, other)
            rows += compare(model, place, tickets[seed], tickets[other], draws)
        inputs += _inputs(model, name, level, [ticket.mask for ticket in tickets.values()])
    folder = run / "geography"
    try:
        folder.mkdir(exist_ok=True)
        for one in _drawn(rows, inputs):
            page.show(folder, one)
        contents = {"inputs.csv": page.to_csv(Input._fields, inputs)}
        extra.write_tables(folder, contents | {"overlap.csv": page.to_csv(Row._fields, rows)})
    except OSError as error:
        raise UserError(f"{folder}: it cannot be written ({error.strerror}).") from error
    return folder


def _asked(run: Path, chain: str | None, levels: Sequence[int] | None) -> tuple[str, dict[int, list[int]]]:
    """The chain, and level -> seeds that have a trained ticket there."""
    opened = extra.opened(run, chain)
    name, done = opened.chain, [row for row in opened.tickets if row.status == "done"]
    seeds: dict[int, list[int]] = {}
    for row in sorted(done, key=lambda row: (row.level, row.seed)):
        seeds.setdefault(row.level, []).append(row.seed)
    several = [level for level, of_level in seeds.items() if len(of_level) > 1]
    if not several:
        raise UserError(
            f"{run}: no level has trained tickets of two seeds, which could be compared; train more."
        )
    for level in levels or ():
        if level not in several:
            raise UserError(
                f"--levels: {level} has no two seeds' tickets in {name}; it may be "
                f"{', '.join(map(str, several))}."
            )
    density = cells.densities(row for row in done if row.level in several)
    nearest = {cells.nearest(density, near) for near in _NEAR}
    return name, {level: seeds[level] for level in sorted({*levels} if levels else {*nearest, several[-1]})}


def compare(model: Model, place: tuple[str, int, int, int], a: Ticket, b: Ticket, draws: int) -> list[Row]:
    """The overlap of two tickets, and of as many shuffled pairs as asked, by every way of matching.

    Args:
        model: their network, sequential.
        place: (chain, level, seed, other).
        a, b: the tickets.
        draws: shuffled pairs.
    """
    generator = np.random.default_rng([*place[1:]])
    shuffles = []
    for _ in range(draws):
        x, y = (Ticket(*geography.shuffled(generator, *ticket)) for ticket in (a, b))
        shuffles.append(_overlaps(x, y))
    ours = _overlaps(a, b)
    layers = [layer.name for layer in model.layers]
    density = {
        name: float(x.mean() + y.mean()) / 2 for name, x, y in zip(layers, a.mask, b.mask, strict=True)
    }
    both = np.concatenate([m.ravel() for m in (*a.mask, *b.mask)])
    density |= {ALL: float(both.mean()), INPUTS: density[layers[0]]}
    rows = []
    for matching, layer in ours:
        null = [s[matching, layer] for s in shuffles]
        told = [value for value in null if value is not None]
        named = layer if isinstance(layer, str) else [*layers, ALL][layer]
        chance = float(np.mean(told)) if told else None
        rows += [
            Row(*place, named, matching, TICKET, density[named], ours[matching, layer]),
            Row(*place, named, matching, SHUFFLED, density[named], chance),
        ]
    return rows


def _overlaps(a: Ticket, b: Ticket) -> dict[tuple[str, int | str], float | None]:
    """(matching, index of the layer, the last of all) -> overlap; ("none", "inputs") -> correlation."""
    orders = {
        "none": None,
        "masks": geography.align(a.mask, b.mask).units,
        "magnitudes": geography.align(a.magnitudes, b.magnitudes).units,
    }
    found: dict[tuple[str, int | str], float | None] = {}
    for matching, units in orders.items():
        theirs = b.mask if units is None else geography.permuted(b.mask, units)
        for layer, overlap in enumerate(geography.iou(a.mask, theirs)):
            found[matching, layer] = overlap.iou
    found["none", INPUTS] = geography.agreement(geography.readers(a.mask), geography.readers(b.mask))
    return found


def _inputs(model: Model, chain: str, level: int, masks: Sequence[Kernels]) -> list[Input]:
    """Every input of the first layer: what is kept of it, and how alike the pairs are there."""
    first = model.layers[0]
    shape = (first.size, first.size, model.input_shape[2]) if first.size else model.input_shape
    kept = np.mean([geography.readers(mask) / mask[0].shape[-1] for mask in masks], axis=0).reshape(shape)
    pairs = [geography.by_input(a, b) for a, b in itertools.combinations(masks, 2)]
    overlap, chance = (_mean_where(np.array(of)).reshape(shape) for of in zip(*pairs, strict=True))
    found = []
    for y, x, channel in np.ndindex(*shape):
        at = (y, x, channel)
        found.append(Input(chain, level, *at, float(kept[at]), _told(overlap[at]), _told(chance[at])))
    return found


def _mean_where(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not nan; nan where all are."""
    there = ~np.isnan(values)
    counts = there.sum(0)
    return np.where(counts, np.where(there, values, 0).sum(0) / np.maximum(counts, 1), np.nan)


def _told(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


class Loaded(NamedTuple):
    """What RUN/geography holds."""

    rows: list[Row]
    inputs: list[Input]


def load(run: str | Path) -> Loaded:
    """What was found of a run's geography.

    Raises:
        UserError: nothing was, or a file cannot be read.
    """
    where = Path(run) / "geography"
    if not (where / "overlap.csv").is_file():
        raise UserError(f"{run}: its geography is not known yet; run {_command(run)} first.")
    try:
        found = Loaded(
            extra.read_rows(where / "overlap.csv", Row), extra.read_rows(where / "inputs.csv", Input)
        )
        of_level: dict[int, list[tuple[int, int, int]]] = {row.level: [] for row in found.rows}
        for row in found.inputs:
            of_level[row.level].append((row.y, row.x, row.channel))
        for level, places in of_level.items():
            if len(places) != math.prod(max(axis) + 1 for axis in zip(*places, strict=True)) or not places:
                raise ValueError(f"inputs.csv has not every input of level {level}")
        return found
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: it cannot be read ({error}); run {_command(run)} again.") from error


def _command(run: str | Path) -> str:
    return shell("python", "-m", "analysis.geography", run)


def over_seeds(
    rows: Iterable[Row], level: int, layer: str, matching: str, mask: str = TICKET, above: str = ""
) -> list[float]:
    """A value a seed of one overlap, or, `above` named, of its difference to that mask's; from all pairs.

    Pairs share seeds: `geography.over_pairs` says what is done about it.
    """
    own: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows:
        if (row.level, row.layer, row.matching) == (level, layer, matching) and row.overlap is not None:
            own.setdefault((row.seed, row.other), {})[row.mask] = row.overlap
    return geography.over_pairs(
        {
            pair: values[mask] - (values[above] if above else 0)
            for pair, values in own.items()
            if mask in values and (not above or above in values)
        }
    )


def findings(run: str | Path) -> list[Finding]:
    """What was found of how alike the tickets of a run's seeds are; claims hold at every level looked at."""
    run = Path(run)
    claims = {
        "Tickets of different seeds overlap by more than chance": ("none", ALL, SHUFFLED, 0.0),
        "… after matching their units by masks": ("masks", ALL, SHUFFLED, 0.0),
        "… after matching their units by magnitudes": ("magnitudes", ALL, SHUFFLED, 0.0),
        f"Tickets are the same up to the order of their units (overlap of {SAME:g} or more)": (
            "masks",
            ALL,
            "",
            SAME,
        ),
        "Tickets of different seeds read the same inputs": ("none", INPUTS, SHUFFLED, 0.0),
    }
    if not (run / "geography" / "overlap.csv").is_file():
        command = _command(run)
        return [Finding(claim, "not tested", "tickets were not compared", 0, command) for claim in claims]
    rows = load(run).rows
    levels = sorted({row.level for row in rows})
    found = []
    for claim, (matching, layer, above, threshold) in claims.items():
        values = {n: over_seeds(rows, n, layer, matching, above=above) for n in levels}
        values = {n: of_level for n, of_level in values.items() if of_level}
        if not values:
            continue
        worst = min(values, key=lambda n: float(np.mean(values[n])))
        kind = "correlation" if layer == INPUTS else "overlap"
        # What is above chance is a difference, and a correlation no share.
        within = stats.ANY if above or layer == INPUTS else stats.SHARE
        interval = mean_interval(values[worst], within=within)
        said = f"{kind} {_written_out(interval)}{' above chance' if above else ''} at level {worst}"
        several = f", the least of {len(values)} levels" if len(values) > 1 else ""
        # Two seeds have one pair: nothing is known of how it varies.
        outcome = stats.conjunction(
            stats.verdict(of_level, threshold, within=within).outcome for of_level in values.values()
        )
        n = min(_seeds(rows, level) for level in values)
        found.append(
            Finding(claim, outcome, said + several, n, page.Link("tickets of different seeds", "#geography"))
        )
    return found


def _seeds(rows: Iterable[Row], level: int) -> int:
    return len({seed for row in rows if row.level == level for seed in (row.seed, row.other)})


def _written_out(interval: Interval) -> str:
    if interval.n < 2:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def written(run: Path) -> list[Path]:
    """The files that say that there is something to report."""
    return list(run.glob("geography/overlap.csv"))


def section(run: Path) -> page.Section | None:
    """The report's section, where tickets were compared."""
    return (
        page.Section("geography", "Tickets of different seeds", figures=drawn(run)) if written(run) else None
    )


def drawn(run: str | Path) -> list[Drawn]:
    """The figures of a run's geography; none where it is not known."""
    if not (Path(run) / "geography" / "overlap.csv").is_file():
        return []
    return _drawn(*load(run))


def _drawn(rows: Sequence[Row], inputs: Sequence[Input]) -> list[Drawn]:
    n = _seeds(rows, rows[0].level)
    overlaps = (
        "Overlap of the tickets of two seeds, connections in both divided by connections in either, layer by "
        f"layer and of all together. Small points are pairs of the {n} seeds, large ones their mean, bars "
        "its 95 % interval over seeds (jackknife; of three seeds or more), dashes the same after both "
        "tickets were shuffled within their layers: matching finds agreement in noise, too. It finds a "
        "local optimum, so that a matched overlap is a lower bound."
    )
    maps = (
        "What the first layer reads: share of an input's connections that tickets keep, mean over seeds; "
        "and overlap of two seeds' readers of an input less that of readers drawn at random, mean over "
        "pairs; grey: no pair reads it."
    )
    return [
        Drawn("geography_overlap", "Are tickets the same?", figure(rows), overlaps, (Row._fields, rows)),
        Drawn("geography_inputs", "What tickets read", inputs_figure(inputs), maps, (Input._fields, inputs)),
    ]


def _levels(rows: Sequence[Row] | Sequence[Input]) -> list[int]:
    """Of more than four four, from first to last."""
    levels = sorted({row.level for row in rows})
    return levels if len(levels) <= 4 else [levels[round(i * (len(levels) - 1) / 3)] for i in range(4)]


def figure(rows: Sequence[Row]) -> Figure:
    """Overlap by layer, unmatched and matched, with dashes at chance; a panel a level."""
    levels = _levels(rows)
    highest = max(row.overlap or 0 for row in rows if row.level in levels and row.layer != INPUTS)
    layers = [layer for layer in dict.fromkeys(row.layer for row in rows) if layer != INPUTS]
    with matplotlib.rc_context(figures.STYLE):
        panel = max(2.6, 0.75 * len(layers))
        made = Figure(figsize=(0.8 + panel * len(levels), 4.2), layout="constrained")
        grid = made.subplots(1, len(levels), squeeze=False, sharey=True)[0]
        for axes, level in zip(grid, levels, strict=True):
            of_level = [row for row in rows if row.level == level]
            share = 100 * float(np.mean([row.density for row in of_level if row.layer == ALL]))
            axes.set_title(f"level {level}, {share:.1f} % of weights", loc="left", fontsize=10)
            for offset, (matching, words) in zip((-0.26, 0, 0.26), MATCHINGS.items(), strict=True):
                colour = _COLOURS[matching]
                for at, layer in enumerate(layers):
                    own = [row for row in of_level if (row.layer, row.matching) == (layer, matching)]
                    pairs = [row.overlap for row in own if row.mask == TICKET and row.overlap is not None]
                    chance = [row.overlap for row in own if row.mask == SHUFFLED and row.overlap is not None]
                    shares = over_seeds(own, level, layer, matching)
                    x, interval = at + offset, mean_interval(shares, within=stats.SHARE)
                    axes.plot([x] * len(pairs), pairs, ".", color=colour, ms=3, alpha=0.6)
                    label = words if at == 0 else None
                    axes.plot([x], [interval.mean], _MARKERS[matching], color=colour, ms=6, label=label)
                    if interval.n >= figures.BAND_FROM:
                        axes.vlines(x, interval.low, interval.high, color=colour, lw=1.5, alpha=0.6)
                    label = "chance: the same, shuffled" if (at, matching) == (0, "magnitudes") else None
                    axes.hlines(
                        np.mean(chance), x - 0.12, x + 0.12, color=colour, lw=1.6, ls=(0, (2, 1)), label=label
                    )
            axes.set_xticks(range(len(layers)), layers, fontsize=9)
            axes.grid(axis="x", visible=False)
            axes.set_ylim(0, 1.05 * highest or 1)  # by the points: intervals of few seeds are wide
            axes.set_xlabel("layer")
        grid[0].set_ylabel("overlap (in both / in either)")
        figures.legend_below(made, grid[0])
        return made


def inputs_figure(inputs: Sequence[Input]) -> Figure:
    """Maps of the inputs, channels averaged: what is kept, and overlap above chance; a column a level."""
    levels = _levels(inputs)
    taps = max(row.y for row in inputs) < 7
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        made = Figure(figsize=(1.2 + 2.6 * len(levels), 5.2), layout="constrained")
        grid = made.subplots(2, len(levels), squeeze=False)
        maps = [_maps([row for row in inputs if row.level == level]) for level in levels]
        most = max(
            (float(np.nanmax(abs(gain), initial=0)) for _, gain in maps if (~np.isnan(gain)).any()), default=0
        )
        for column, (level, (kept, gain)) in enumerate(zip(levels, maps, strict=True)):
            upper, lower = grid[:, column]
            upper.set_title(f"level {level}", loc="left", fontsize=10)
            share = upper.imshow(100 * kept, cmap="viridis", vmin=0)
            made.colorbar(share, ax=upper, shrink=0.8).set_label("connections kept (%)", fontsize=8)
            lower.set_facecolor("#CCCCCC")
            more = lower.imshow(gain, cmap="RdBu", vmin=-most or -1, vmax=most or 1)
            made.colorbar(more, ax=lower, shrink=0.8).set_label("overlap − chance", fontsize=8)
            for axes in (upper, lower):
                axes.set_xlabel("tap" if taps else "pixel", fontsize=8)
                axes.tick_params(labelsize=7)
        return made


def _maps(inputs: Sequence[Input]) -> tuple[np.ndarray, np.ndarray]:
    """[height, width] of what is kept and of overlap above chance, channels averaged."""
    shape = (max(row.y for row in inputs) + 1, max(row.x for row in inputs) + 1, -1)
    gains = [
        np.nan if row.overlap is None or row.chance is None else row.overlap - row.chance for row in inputs
    ]
    kept = np.array([row.kept for row in inputs]).reshape(shape).mean(-1)
    return kept, _mean_where(np.moveaxis(np.array(gains).reshape(shape), -1, 0))


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.geography",
        description="Compares the tickets of a run's seeds, layer by layer and input by input, with and "
        "without matching their hidden units; prints the folder of what it finds.",
    )
    parser.add_argument("run", help="a run folder, for example runs/quickstart-0123abcd")
    parser.add_argument("--chain", help="the tickets' chain; by default that of the lowest rewind step")
    parser.add_argument(
        "--levels", type=int, nargs="+",
        help="by default those nearest to 20, 10 and 3 %% density and the last",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=5, help="shuffled pairs for every pair of seeds (5)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    print(
        build(
            options.run,
            chain=options.chain,
            levels=options.levels,
            draws=options.draws,
            quiet=options.quiet,
        )
    )


if __name__ == "__main__":
    cli.run(main)
