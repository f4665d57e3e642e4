"""The figures of several runs side by side."""

import itertools
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lthjax.arms import ARMS
from lthjax.imp import DENSE
from lthjax.measures.stats import ANY, Range, paired

from .. import draw
from ..differences import difference
from .entries import Entry, Point, at_most

# Points below the dense network from which on the differences of a single arm get a second panel of those
# near 0, and how many it shows.
_FAR, _NEAR = 5.0, 2.0


@matplotlib.rc_context(draw.STYLE)
def compared(entries: Sequence[Entry], heading: str) -> Figure:
    """Every entry's difference to its dense network against weights left; one panel an arm.

    Where those of a single arm reach far below 0, a second panel shows those near it (`is_far`), and the
    first leaves out their points.
    """
    names, shown, far = _arms(entries), [ANY], is_far(entries)
    if far:
        figure, panels = draw.panels(heading, (2, 1), (7.2, 6.6), sharex=True)
        names, shown = names * 2, [(-math.inf, -_NEAR), (-_NEAR, math.inf)]
    else:
        figure, panels = draw.few_beside(heading, len(names))
    left, gains = set[float](), list[float]()
    for axes, arm, within in zip(panels.ravel(), names, itertools.cycle(shown), strict=False):
        axes.tick_params(labelbottom=True)
        axes.axhline(0, color=draw.look(DENSE)[0], lw=1)
        axes.set_title(arm, loc="left", fontsize=10)
        axes.set_xlabel(draw.WEIGHTS_LEFT)
        for entry, look in zip(entries, _looks(entries), strict=True):
            x, values = _differences(axes, entry, arm, look, within)
            left.update(x)
            gains += values
    if far:
        panels[0, 0].set_xlabel("")
        panels[1, 0].set_title(f"{names[0]}, near the dense network", loc="left", fontsize=10)
        panels[1, 0].set_ylim(-_NEAR, max(0.1, 1.1 * max(gains)))
    draw.weights_axis(panels[0, 0], left)
    figure.supylabel("test accuracy − dense (pp)", fontsize=10)
    draw.legend_below(figure, panels[0, 0])
    return figure


def is_far(entries: Sequence[Entry]) -> bool:
    """Whether `compared` has a panel for differences near 0: those of its only arm reach far below."""
    names = _arms(entries)
    # Without those of no weights, which are not drawn.
    points = [(e, point) for e in entries for arm in names for point in e.arms.get(arm, []) if point.density]
    gains = [gain for entry, point in points for gain in _gains(entry, point)]
    return len(names) == 1 and min(gains, default=0.0) < -_FAR


def _arms(entries: Sequence[Entry]) -> list[str]:
    """The arms of any entry, in the order of their table; moved tickets, which it lacks, last."""
    there = dict.fromkeys(arm for entry in entries for arm in entry.arms)
    return sorted(there, key=lambda arm: list(ARMS).index(arm) if arm in ARMS else len(ARMS))


def _gains(entry: Entry, point: Point) -> list[float]:
    """A point's differences to the dense network of the same seed, in percentage points."""
    return paired(point.accuracies, entry.dense)


def _differences(
    axes: Axes, entry: Entry, arm: str, look: tuple[str, str, str], within: Range
) -> tuple[list[float], list[float]]:
    """Draws an arm of an entry; returns percentages of weights left and the differences of all seeds.

    Points of seeds are drawn within a range.
    """
    colour, marker, line = look
    points = [point for point in entry.arms.get(arm, []) if point.density]
    x = [100 * point.density for point in points]
    gains = [_gains(entry, point) for point in points]
    intervals = [difference(point.accuracies, entry.dense, entry.images) for point in points]
    means = [interval.mean for interval in intervals]
    axes.plot(x, means, line, color=colour, marker=marker, ms=4, label=entry.name)
    values = [(left, gain) for left, of in zip(x, gains, strict=True) for gain in of]
    low, high = within
    dots = [(left, gain) for left, gain in values if low <= gain < high]
    axes.plot(*np.reshape(dots, (-1, 2)).T, ".", color=colour, ms=2.5, alpha=0.6)
    banded = [
        (left, of.low, of.high) for left, of in zip(x, intervals, strict=True) if of.n >= draw.BAND_FROM
    ]
    axes.vlines(*np.reshape(banded, (-1, 3)).T, color=colour, alpha=0.35, lw=1)
    return x, [value for _, value in values]


@matplotlib.rc_context(draw.STYLE)
def cost(entries: Sequence[Entry], densities: Sequence[float], heading: str) -> Figure:
    """Accuracy against trainings; one panel a density, on one axis of costs."""
    columns = min(max(len(densities), 1), 3)
    rows = -(-max(len(densities), 1) // columns)
    size = (3.6 * columns, 3.3 * rows + 1.0)
    figure, grid = draw.panels(heading, (rows, columns), size, sharex=True)
    panels = grid.ravel()
    for axes in panels[len(densities) :]:
        axes.set_visible(False)
    for axes, density in zip(panels, densities, strict=False):
        axes.set_title(f"≤ {100 * density:.1f} % of the weights", loc="left", fontsize=10)
        for entry, (colour, marker, _) in zip(entries, _looks(entries), strict=True):
            point = at_most(entry.tickets, density)
            if point is None:
                continue
            values, interval, x = list(point.accuracies.values()), point.accuracy, point.trainings
            filling = "none" if entry.variant.startswith("global") else colour
            axes.plot([x] * len(values), values, ".", color=colour, ms=3, alpha=0.6)
            if interval.n >= draw.BAND_FROM:
                axes.vlines(x, interval.low, interval.high, color=colour, alpha=0.4, lw=1)
            axes.plot(x, interval.mean, marker, color=colour, ms=7, mfc=filling, label=entry.name)
        axes.set_xscale("log")
        draw.plain_ticks(axes.xaxis, [1, 2, 3, 5, 10, 20, 30, 50, 100])
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("cost (trainings, log scale)")
    figure.supylabel("test accuracy at the end (%)", fontsize=10)
    draw.legend_below(figure, *panels)
    return figure


def _looks(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """(colour, marker, line) of every entry: colour and marker by `how`, line by `variant`.

    Where all have the same `how`, colour and marker are by `variant`.
    """
    if not entries:
        return []
    alike = len({entry.how for entry in entries}) == 1
    looks = [(e.variant, e.how) if alike else (e.how, e.variant) for e in entries]
    colours, lines = ([*dict.fromkeys(of)] for of in zip(*looks, strict=True))
    return [
        (*draw.series(colours.index(colour)), draw.LINES[lines.index(line) % len(draw.LINES)])
        for colour, line in looks
    ]
