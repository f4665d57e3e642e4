"""The figures of accuracy, each a function from rows to a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lthjax.errors import counted
from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, Range, Ratio, mean_interval

from .. import draw
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
    trained = [row for row in rows if row.steps]
    last = max([1, *(row.steps for row in trained), *(row.early_stop_step or 0 for row in trained)])
    label = "early-stop step (steps of training)"
    return _against_weights(trained, heading, "early_stop_step", label, 1.0, (0.0, float(last)))


@matplotlib.rc_context(draw.STYLE)
def gaps(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Ticket − control against weights left; `levels` are `paired.Level`s by arm."""
    figure, axes = draw.single(heading)
    axes.axhline(0, color=draw.look(DENSE)[0], lw=1)
    drawn = {arm: [level for level in of_arm if level.density] for arm, of_arm in levels.items()}
    for arm, of_arm in drawn.items():
        if of_arm:
            x, values = [100 * level.density for level in of_arm], [level.values for level in of_arm]
            floors = [level.floor for level in of_arm]
            draw.curve(axes, x, values, (*draw.look(arm), "-"), f"ticket − {arm}", floors=floors)
    every = [level for of_arm in drawn.values() for level in of_arm]
    shown = [0.0, *(value for level in every for value in level.values)]
    # The claim, where the axis reaches it.
    if max(shown) > 10:
        axes.axhspan(10, 15, color="#999999", alpha=0.25, lw=0, label="10–15 points")
    _finish(axes, {100 * level.density for level in every}, shown, "upper left")
    axes.set_ylabel("difference in test accuracy (pp)")
    return figure


@matplotlib.rc_context(draw.STYLE)
def speed(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Steps over the ticket's against weights left; `levels` are `speed.Level`s by arm."""
    figure, axes = draw.single(heading)
    axes.axhline(1, color=draw.look("ticket")[0], lw=1, label="ticket")
    shown, left, unknown = [1.0], set[float](), 0
    for place, (arm, of_arm) in enumerate(levels.items()):
        colour, marker = draw.look(arm)
        there = [level for level in of_arm if level.density]
        known = [level for level in there if not level.censored]
        x, values = [100 * of.density for of in known], [[r.low for r in of.ratios] for of in known]
        if known:
            draw.curve(axes, x, values, (colour, marker or "D", "-"), arm, points=False, geometric=True)
        # Beside one another, so that the arms' points do not hide each other.
        aside = 1.015 ** (place - (len(levels) - 1) / 2)
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
            axes.plot(
                [], [], marker or "D", ls="-", color=colour, label=f"{arm}: no level is known for all seeds"
            )
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
    axes.legend(fontsize=9)
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
    for axes, (name, curves) in zip(grid.ravel(), panels.items(), strict=False):
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("step of training")
        axes.tick_params(labelbottom=True)
        for place, (arm, (steps, values, _)) in enumerate(curves.items()):
            style = (draw.look(arm)[0], "", draw.LINES[place % len(draw.LINES)])
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
) -> Figure:
    """A column against weights left; with `near`, a second panel of what is so close to the dense network."""
    if near:
        figure, grid = draw.panels(heading, (2, 1), (7.2, 7.4), sharex=True)
        first, second = grid[:, 0]
    else:
        figure, first = draw.single(heading)
    left, shown = _lines(first, rows, column, unit, within)
    # No accuracy is above 100 %; steps at the last evaluation need room for their marks.
    most = PERCENT[1] if within == PERCENT else math.inf
    # Beside the lines of several chains there is no room for their names.
    several = len(chains(rows)) > 1
    _finish(first, left, shown, None if several else "best", most)
    first.set_ylabel(label)
    if near:
        first.set_xlabel("")
        dense = float(
            np.mean([unit * value for value in by_seed(select(rows, chain=DENSE), column).values()])
        )
        close = [value for value in _lines(second, rows, column, unit, within)[1] if value >= dense - near]
        _finish(second, left, [dense - near, *close], None, most)
        second.set_ylabel(f"{label},\nnear the dense network")
    if several:
        draw.legend_below(figure, first)
    return figure


def _lines(
    axes: Axes, rows: Sequence[Row], column: str, unit: float, within: Range
) -> tuple[set[float], list[float]]:
    """Draws seeds as points, their mean as a line with its 95 % interval; returns densities and values."""
    shown = [unit * value for value in by_seed(select(rows, chain=DENSE), column).values()]
    if shown:
        interval, colour = mean_interval(shown, within=within), draw.look(DENSE)[0]
        axes.axhline(interval.mean, color=colour, lw=1, label=f"dense (n = {interval.n})")
        if interval.n >= draw.BAND_FROM:
            axes.axhspan(interval.low, interval.high, color=colour, alpha=0.12, lw=0)
    there, left = chains(rows), set[float]()
    for place, chain in enumerate(there):
        for arm in arms(rows):
            levels = by_level(select(rows, chain=chain, arm=arm)).values()
            density = [100 * float(np.mean([row.density for row in of])) for of in levels]
            seeds = [[unit * value for value in by_seed(of, column).values()] for of in levels]
            # A density of 0 has no place on a log scale.
            points = [(share, of) for share, of in zip(density, seeds, strict=True) if share and of]
            if points:
                x, values = zip(*points, strict=True)
                left.update(x)
                shown += [value for of_level in values for value in of_level]
                name = named(chain, arm) if len(there) > 1 else arm
                style = (*draw.look(arm), draw.chain_line(place))
                draw.curve(axes, x, values, style, name, within=within)
    return left, shown


def _finish(
    axes: Axes,
    left: set[float],
    shown: Sequence[float],
    legend: Literal["best", "upper left"] | None = "best",
    most: float = math.inf,
) -> None:
    """The axes of a figure against weights left, in percent, and its legend unless that is elsewhere."""
    draw.weights_axis(axes, left)
    _fit(axes, shown, 0.08, most)
    axes.set_xlabel(draw.WEIGHTS_LEFT)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, loc=legend)


def _fit(axes: Axes, shown: Sequence[float], margin: float, most: float = math.inf) -> None:
    """Fits the y axis to the points; the interval of two seeds can be far wider. It ends at `most`."""
    if shown:
        low, high = min(shown), max(shown)
        top = high + margin * (high - low or 1.0)
        axes.set_ylim(low - margin * (high - low or 1.0), max(high, min(top, most)))
