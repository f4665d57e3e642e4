"""The figures of accuracy, each a function from rows to a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lthjax import imp
from lthjax.errors import counted
from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, Range, Ratio, mean_interval

from .. import draw, tables
from ..retraining.table import named
from ..rows import Row, arms, by_level, by_seed, chains, select


class Curve(NamedTuple):
    """The learning curves of an arm.

    Attributes:
        steps: [S].
        values: test accuracies in percent, the repeats of a seed averaged [seeds, S].
        seeds: whose these are.
    """

    steps: np.ndarray
    values: np.ndarray
    seeds: list[int]


Curves = dict[str, Curve]
"""Arm -> its learning curves."""
# Points below the dense network from which on accuracies near it get a panel of their own, and how many it
# shows.
_FAR, _NEAR = 20.0, 4.0
# The mark of a seed whose value is known by a bound: it is at least that.
_BOUND: dict[str, Any] = {"marker": "^", "ms": 8, "mfc": "none", "mew": 0.8, "ls": ""}


def accuracy(rows: Sequence[Row], heading: str) -> Figure:
    """Test accuracy at the end of training against weights left.

    Where accuracies reach far below the dense network, a second panel shows those near it, which would lie in
    one line.
    """
    label = "test accuracy at the end (%)"
    near = _NEAR if is_far(rows) else 0.0
    return _against_weights(rows, heading, "test_accuracy", label, 100.0, PERCENT, near)


def is_far(rows: Sequence[Row]) -> bool:
    """Whether the figure of accuracies has a panel for those near the dense network."""
    dense = [*by_seed(select(rows, chain=DENSE), "test_accuracy").values()]
    lowest = min((row.test_accuracy for row in rows if row.test_accuracy is not None), default=0.0)
    return bool(dense) and 100 * (float(np.mean(dense)) - lowest) > _FAR


def early_stop(rows: Sequence[Row], heading: str) -> Figure:
    """The step of the lowest validation loss against weights left."""
    trained, last = [row for row in rows if row.steps], last_step(rows)
    label = "early-stop step (steps of training)"
    return _against_weights(trained, heading, "early_stop_step", label, 1.0, (0.0, float(last)), end=last)


def last_step(rows: Sequence[Row]) -> int:
    """The last step of any training: a validation loss that is lowest there might have gone on falling."""
    trained = [row for row in rows if row.steps]
    return max([1, *(row.steps for row in trained), *(row.early_stop_step or 0 for row in trained)])


@matplotlib.rc_context(draw.STYLE)
def gaps(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Ticket − control against weights left; `levels` are `paired.Level`s by arm."""
    figure, axes = draw.single(heading)
    axes.axhline(0, color=draw.look(DENSE)[0], lw=1)
    drawn = {arm: [level for level in of_arm if level.density] for arm, of_arm in levels.items()}
    drawn = {arm: of_arm for arm, of_arm in drawn.items() if of_arm}
    every = [level for of_arm in drawn.values() for level in of_arm]
    shown = [0.0, *(value for level in every for value in level.values)]
    left = {100 * level.density for level in every}
    for place, (arm, of_arm) in enumerate(drawn.items()):
        aside = _aside(len({level.level for level in every}) == 1, place, len(drawn))
        x, values = [100 * level.density * aside for level in of_arm], [level.values for level in of_arm]
        floors, style = [level.floor for level in of_arm], draw.style(arm)
        intervals = draw.curve(axes, x, values, style, f"ticket − {arm}", floors=floors)
        # Whether they reach 0 is what one looks for; those of two seeds would leave nothing else to see.
        shown += [end for of in intervals if of.n >= draw.BAND_FROM for end in (of.low, of.high)]
    # The claim, where the axis reaches it.
    if max(shown) > 10:
        axes.axhspan(10, 15, color="#999999", alpha=0.25, lw=0, label="10–15 points")
    _finish(axes, left, shown)
    axes.set_ylabel("difference in test accuracy (pp)")
    draw.legend(figure, axes, "upper left")
    return figure


@matplotlib.rc_context(draw.STYLE)
def speed(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Steps over the ticket's against weights left; `levels` are `speed.Level`s by arm."""
    figure, axes = draw.single(heading)
    axes.axhline(1, color=draw.look("ticket")[0], lw=1, label="ticket")
    shown, left, unknown = [1.0], set[float](), 0
    for place, (arm, of_arm) in enumerate(levels.items()):
        colour, marker, line = draw.style(arm)
        there = [level for level in of_arm if level.density]
        known = [level for level in there if not level.censored]
        aside = draw.beside(place, len(levels))
        # The bar of a single level stands with its points.
        shift = aside if len(known) == 1 else 1.0
        x, values = [100 * of.density * shift for of in known], [[r.low for r in of.ratios] for of in known]
        if known:
            draw.curve(axes, x, values, (colour, marker or "D", line), arm, points=False, geometric=True)
        for level in there:
            left.add(100 * level.density)
            for ratio in level.ratios:
                mark, value = _bound(ratio)
                if value is None:
                    unknown += 1
                    continue
                axes.plot([100 * level.density * aside], [value], mark, color=colour, ms=4, alpha=0.6)
                shown.append(value)
        if not known and there:
            label = f"{arm}: no level is known for all seeds"
            axes.plot([], [], marker=marker or "D", ls=line, color=colour, label=label)
    for mark, said in (("^", "at least this"), ("v", "at most this")):
        axes.plot([], [], mark, color="#777777", ms=4, ls="", label=said)
    if unknown:
        axes.plot([], [], ls="", label=f"{counted(unknown, 'ratio')} not shown, without a bound")
    axes.set_yscale("log")
    low, high = min(shown), max(shown)
    axes.set_ylim(low / 1.2, high * 1.2)
    steps = [m * 10.0**e for e in range(-4, 5) for m in (1, 1.5, 2, 3, 5, 7)]
    draw.plain_ticks(axes.yaxis, [tick for tick in steps if low / 1.2 <= tick <= high * 1.2])
    draw.weights_axis(axes, left)
    axes.set_xlabel(draw.WEIGHTS_LEFT)
    axes.set_ylabel("early-stop step / the ticket's (log scale)")
    draw.legend(figure, axes)
    return figure


def _bound(ratio: Ratio) -> tuple[str, float | None]:
    """The marker and place of a seed's ratio: a point, or a triangle at its bound; None where it has none."""
    if ratio.low == ratio.high:
        return ".", ratio.low
    if ratio.low > 0:
        return "^", ratio.low
    return "v", ratio.high if math.isfinite(ratio.high) else None


@matplotlib.rc_context(draw.STYLE)
def learning(panels: Mapping[str, Curves], heading: str) -> Figure:
    """Accuracy over training, by the name of the panel."""
    figure, grid = draw.few_beside(heading, len(panels))
    ends: list[float] = []
    # An arm that one panel lacks has the same line in the others.
    drawn = [*dict.fromkeys(arm for curves in panels.values() for arm in curves)]
    for axes, (name, curves) in zip(grid.ravel(), panels.items(), strict=False):
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("step of training")
        axes.tick_params(labelbottom=True)
        for arm, (steps, values, _) in curves.items():
            style = (draw.look(arm)[0], "", draw.LINES[drawn.index(arm) % len(draw.LINES)])
            draw.curve(axes, list(steps), values.T.tolist(), style, arm, points=False, within=PERCENT)
            ends += values.mean(0)[len(steps) // 4 :].tolist()
    _fit(grid[0, 0], ends, 0.1, PERCENT[1])
    figure.supylabel("test accuracy (%)", fontsize=10)
    draw.legend_below(figure, *grid.ravel())
    return figure


@matplotlib.rc_context(draw.STYLE)
def _against_weights(
    rows: Sequence[Row],
    heading: str,
    column: str,
    label: str,
    unit: float,
    within: Range,
    near: float = 0.0,
    end: float = math.inf,
) -> Figure:
    """A column against weights left; with `near`, a second panel of what is so close to the dense network.

    Seeds with a network whose value is `end` are marked as bounds.
    """
    if near:
        figure, grid = draw.panels(heading, (2, 1), (7.2, 7.4), sharex=True)
        first, second = grid[:, 0]
    else:
        figure, first = draw.single(heading)
    left, shown = _lines(first, rows, column, unit, within, end)
    # No accuracy is above 100 %; steps at the last evaluation need room for their marks.
    most = PERCENT[1] if within == PERCENT else math.inf
    _finish(first, left, shown, most)
    first.set_ylabel(label)
    if near:
        first.set_xlabel("")
        dense = float(
            np.mean([unit * value for value in by_seed(select(rows, chain=DENSE), column).values()])
        )
        close = [value for value in _lines(second, rows, column, unit, within)[1] if value >= dense - near]
        _finish(second, left, [dense - near, *close], most)
        second.set_ylabel(f"{label},\nnear the dense network")
    if math.isfinite(end):
        first.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    # Beside the lines of several chains there is no room for their names.
    (draw.legend_below if len(chains(rows)) > 1 else draw.legend)(figure, first)
    return figure


def _lines(
    axes: Axes, rows: Sequence[Row], column: str, unit: float, within: Range, end: float = math.inf
) -> tuple[set[float], list[float]]:
    """Draws seeds as points, their mean as a line with its 95 % interval; returns densities and values.

    A line with a seed that is known by a bound has no interval.
    """
    dense = select(rows, chain=DENSE)
    shown, colour = [unit * value for value in by_seed(dense, column).values()], draw.look(DENSE)[0]
    bounds = [(100.0, value, colour) for value in _bounds(dense, column, end)]
    if shown:
        interval = mean_interval(shown, within=within)
        axes.axhline(interval.mean, color=colour, lw=1, label=f"dense (n = {interval.n})")
        if interval.n >= draw.BAND_FROM and not bounds:
            axes.axhspan(interval.low, interval.high, color=colour, alpha=0.12, lw=0)
    there, placed, alone = chains(rows), _placed(rows, column), one_level(rows)
    names = _names([*placed])
    for place, ((chain, arm), levels) in enumerate(placed.items()):
        x = [share * _aside(alone, place, len(placed)) for share, _ in levels]
        values = [[unit * value for value in by_seed(of, column).values()] for _, of in levels]
        known = [_bounds(of, column, end) for _, of in levels]
        style = draw.style(arm, chain, there)
        draw.curve(axes, x, values, style, names[place], interval=not any(known), within=within)
        bounds += [(at, value, style[0]) for at, of in zip(x, known, strict=True) for value in of]
        shown += [value for of in values for value in of]
    for colour, of in tables.grouped((colour, (at, value)) for at, value, colour in bounds).items():
        axes.plot(*zip(*of, strict=True), color=colour, **_BOUND)
    if bounds:
        axes.plot([], [], color="#777777", label="at least this", **_BOUND)
    return {share for levels in placed.values() for share, _ in levels}, shown


def _placed(rows: Sequence[Row], column: str) -> dict[tuple[str, str], list[tuple[float, list[Row]]]]:
    """(chain, arm) -> weights left in percent, and the rows, of every level that has values."""
    placed = {}
    for chain in chains(rows):
        for arm in arms(rows):
            levels = by_level(select(rows, chain=chain, arm=arm)).values()
            shares = [(100 * float(np.mean([row.density for row in of])), of) for of in levels]
            # A density of 0 has no place on a log scale.
            if found := [(share, of) for share, of in shares if share and by_seed(of, column)]:
                placed[chain, arm] = found
    return placed


def _bounds(rows: Sequence[Row], column: str, end: float) -> list[float]:
    """The values of the seeds that have a network whose value is `end`, the highest that can be seen."""
    seeds = {row.seed for row in rows if (getattr(row, column) or 0) >= end}
    return [value for seed, value in by_seed(rows, column).items() if seed in seeds]


def _names(drawn: Sequence[tuple[str, str]]) -> list[str]:
    """The names of (chain, arm) in a legend, with the rewind step where arms alone do not tell them apart."""
    steps, different = {imp.rewind_of(chain) for chain, _ in drawn}, {arm for _, arm in drawn}
    several = len(steps) > 1 or len(different) < len(drawn)
    return [named(chain, arm) if several else arm for chain, arm in drawn]


def one_level(rows: Sequence[Row]) -> bool:
    """Whether all networks but the dense one are of one level: arms then stand beside one another."""
    return len({row.level for row in rows if row.chain != DENSE}) == 1


def _aside(alone: bool, place: int, count: int) -> float:
    """The factor of an arm's place on the axis: arms of a run's only level do not hide one another."""
    return draw.beside(place, count, 1.06 ** (2 / count)) if alone else 1.0


def _finish(axes: Axes, left: set[float], shown: Sequence[float], most: float = math.inf) -> None:
    """The axes of a figure against weights left, in percent."""
    draw.weights_axis(axes, left)
    _fit(axes, shown, 0.08, most)
    axes.set_xlabel(draw.WEIGHTS_LEFT)


def _fit(axes: Axes, shown: Sequence[float], margin: float, most: float = math.inf) -> None:
    """Fits the y axis to the points; the interval of two seeds can be far wider. It ends at `most`.

    Its numbers are whole ones, not differences to one of them.
    """
    axes.ticklabel_format(axis="y", useOffset=False)
    if shown:
        low, high = min(shown), max(shown)
        room = margin * (high - low) or 0.025 * abs(high) or margin
        axes.set_ylim(low - room, max(high, min(high + room, most)))
