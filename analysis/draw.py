"""The house style of figures, and the plots that they share."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lthjax.arms import SHIPPED
from lthjax.imp import DENSE
from lthjax.measures.stats import ANY, Interval, Range, mean_interval

from . import tables

_Of = TypeVar("_Of")
# A line style, as matplotlib takes it.
Line = str | tuple[float, tuple[float, ...]]
# The colours of Okabe & Ito, for the colour-blind; markers tell arms apart in grey print.
_COLOURS = {"ticket": "#0072B2", "reinit": "#D55E00", "random": "#009E73", DENSE: "#444444"}
_MARKERS = {"ticket": "o", "reinit": "s", "random": "^"}
# Taken by an arm's place in `SHIPPED`; as the numbers of both have no common divisor, 45 places differ.
_OTHER_COLOURS = ("#882255", "#999933", "#56B4E9", "#CC79A7", "#E69F00")
_OTHER_MARKERS = ("D", "v", "P", "X", "<", ">", "*", "p", "h")
_PALETTE = (*list(_COLOURS.values())[:3], "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SERIES_MARKERS = (*_MARKERS.values(), *_OTHER_MARKERS)
LINES = ("-", "--", ":", "-.")
# Of chains, which the line alone tells apart, and of arms that share a colour.
_CHAIN_LINES: tuple[Line, ...] = (
    *LINES, (0, (9, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 4)), (0, (3, 4)), (0, (9, 2, 3, 2))
)  # fmt: skip
# The interval of two seeds is so wide (t = 12.7) that a band would hide the curves: they get thin bars.
BAND_FROM = 3
# How the caption of a page's first figure names the intervals of `curve`, and how later ones do.
FIRST_BANDS = "bands (bars for two seeds or a single level; cut off where they reach beyond the figure)"
BANDS = "bands (as in the first figure)"
# How far an axis of densities reaches beyond them, and how many numbers it has at least.
_BEYOND, _LEAST_TICKS = 1.08, 3
# The most entries of a legend inside a panel; the lines of a legend below for which figures have room, and
# the height of every further one in inches.
_INSIDE, _ROOM, _LINE = 6, 2, 0.17
WEIGHTS_LEFT = "weights left (% of prunable weights, log scale)"
# The style of the line of chance.
CHANCE: dict[str, Any] = {"color": "#444444", "ls": "--", "lw": 1.2, "zorder": 3}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
}


def single(heading: str) -> tuple[Figure, Axes]:
    """A figure of one panel with its heading."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(heading, loc="left", fontsize=11)
    return figure, axes


def panels(
    heading: str,
    shape: tuple[int, int],
    size: tuple[float, float],
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of panels under one heading, and its Axes [rows, columns].

    Args:
        heading: the figure's; "" for none.
        shape: (rows, columns).
        size: of the figure, in inches.
        sharex, sharey: whether all panels have the same axis.
    """
    figure = Figure(figsize=size, layout="constrained")
    if heading:
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    return figure, figure.subplots(*shape, squeeze=False, sharex=sharex, sharey=sharey)


def few_beside(heading: str, count: int) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels on shared axes, at most two beside each other: wider ones are not legible
    on a telephone. The Axes are [rows, columns]; those that are left over are not seen.
    """
    columns = min(max(count, 1), 2)
    rows = -(-max(count, 1) // columns)
    figure, grid = panels(heading, (rows, columns), (7.2, 2.9 * rows + 1.2), sharex=True, sharey=True)
    for axes in grid.ravel()[max(count, 1) :]:
        axes.set_visible(False)
    return figure, grid


def over_levels(
    axes: Axes,
    places: Mapping[int, float],
    values: Mapping[int, Sequence[float]],
    style: tuple[str, str, Line],
    name: str,
    **how: Any,
) -> None:
    """The `curve` of level -> values over level -> place, of the levels that have values, if any."""
    known = {level: of for level, of in values.items() if of}
    if known:
        curve(axes, [places[level] for level in known], [*known.values()], style, name, **how)


def by_level(points: Iterable[tuple[int, float, float]]) -> tuple[list[float], list[list[float]]]:
    """(level, x, value) -> the mean x of every level, and its values; for `curve`."""
    found = tables.grouped((level, (x, value)) for level, x, value in points)
    ordered = [found[level] for level in sorted(found)]
    return [float(np.mean([x for x, _ in at])) for at in ordered], [[v for _, v in at] for at in ordered]


def averaged(points: Iterable[tuple[int, int, float, float]]) -> Iterable[tuple[int, float, float]]:
    """(level, seed, x, value) -> (level, x, value), the repeats of a seed averaged; for `by_level`."""
    found = tables.grouped(((level, seed), (x, value)) for level, seed, x, value in points)
    for (level, _), at in found.items():
        x, value = np.mean(at, axis=0).tolist()
        yield level, x, value


def chance(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], name: str) -> None:
    """The level of chance: the mean of the values as a dashed line, or as a dash at a single place."""
    means = [float(np.mean(at)) for at in values]
    axes.plot(x, means, marker="_" if len(x) == 1 else "", ms=14, label=name, **CHANCE)


def curve(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    style: tuple[str, str, Line],
    name: str,
    *,
    interval: bool = True,
    points: bool = True,
    geometric: bool = False,
    within: Range = ANY,
    floors: Sequence[float] = (),
) -> list[Interval]:
    """A line of means with their 95 % intervals, which are returned, and every value as a point.

    Intervals are a band, or bars at a single place and of two seeds.

    Args:
        axes: the panel.
        x: the places.
        values: at every place, one a seed, at least one.
        style: colour, marker and line.
        name: in the legend, where n is added, of the places with least and most values.
        interval: whether to draw it; it would mislead for values that are not independent.
        points: whether to draw every value, and the bars of two seeds.
        geometric: whether to draw geometric means with the intervals of the logarithms; for a log scale.
        within: the range of the values, and of the intervals.
        floors: the least standard deviation of a value at every place; none of geometric means.
    """
    colour, marker, line = style
    intervals = [
        _geometric(at) if geometric else mean_interval(at, within=within, floor=floor)
        for at, floor in zip(values, floors or [0.0] * len(values), strict=True)
    ]
    counts = sorted({i.n for i in intervals}) or [0]
    n = counts[-1]
    label = f"{name} (n = {f'{counts[0]}–{n}' if len(counts) > 1 else n})"
    alone = len(x) == 1
    # A line of one place has no length.
    marker = marker or ("o" if alone else "")
    axes.plot(x, [i.mean for i in intervals], ls=line, color=colour, marker=marker, ms=5, label=label)
    lows, highs = [i.low for i in intervals], [i.high for i in intervals]
    if interval and n >= BAND_FROM and not alone:
        axes.fill_between(x, lows, highs, color=colour, alpha=0.15, lw=0)
    elif interval and n > 1 and (points or (alone and n >= BAND_FROM)):
        axes.vlines(x, lows, highs, color=colour, alpha=0.35, lw=1)
    for place, at in zip(x, values, strict=True) if points else ():
        axes.plot([place] * len(at), at, ".", color=colour, ms=3, alpha=0.7)
    return intervals


def beside(place: int, count: int, step: float = 1.015) -> float:
    """The factor that sets the nth of several arms aside on an axis of weights left, the first leftmost, so
    that none hides another.
    """
    return float(step ** ((count - 1) / 2 - place))


def _geometric(values: Sequence[float]) -> Interval:
    """The geometric mean, with the 95 % interval of the logarithms."""
    logs = mean_interval(np.log(values).tolist())
    with np.errstate(over="ignore"):
        mean, low, high = np.exp(logs[:3]).tolist()
    return Interval(mean, low, high, logs.n)


def weights_axis(axes: Axes, densities: set[float]) -> None:
    """Weights left in percent on the x axis, on a log scale from 100 down to the lowest density above 0."""
    densities = {100.0, *(density for density in densities if density)}
    # Before the scale, which would look for limits of its own and warn of a single place.
    axes.set_xlim(max(densities) * _BEYOND, min(densities) / _BEYOND)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis, ticks(min(densities)))


def shares_axis(axes: Axes, lowest: float, whole: float) -> None:
    """Shares of a whole on the y axis, on a log scale from the lowest up."""
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.15, 1.15 * whole)
    plain_ticks(axes.yaxis, [tick * whole / 100 for tick in ticks(100 * lowest / whole)])


def plain_ticks(axis: Axis, places: Sequence[float]) -> None:
    """Ticks at these places of a log scale alone, with plain numbers."""
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def look(arm: str) -> tuple[str, str]:
    """The colour and marker of an arm's `style`."""
    return style(arm)[:2]


def style(arm: str, chain: str = "", several: Sequence[str] = ()) -> tuple[str, str, Line]:
    """An arm's colour, marker and line, for `curve`, the same in every figure.

    Arms that share a colour have other markers and lines. Of several chains the line is the chain's.
    """
    if arm in _COLOURS:
        colour, marker, line = _COLOURS[arm], _MARKERS.get(arm, ""), 0
    else:
        places, shipped = len(_OTHER_COLOURS) * len(_OTHER_MARKERS), len(SHIPPED)
        if arm in SHIPPED:
            place = SHIPPED.index(arm)
            line = (place - len(_MARKERS)) // len(_OTHER_COLOURS)
        else:
            # By its name, as a report need not load the config file that adds it: one of the other places.
            line, left = divmod(zlib.crc32(arm.encode()), max(places - shipped, 1))
            place = shipped + left
        colour = _OTHER_COLOURS[place % len(_OTHER_COLOURS)]
        marker = _OTHER_MARKERS[place % len(_OTHER_MARKERS)]
    return colour, marker, chain_line(several.index(chain) if len(several) > 1 else line)


def series(place: int) -> tuple[str, str]:
    """Colour and marker of the nth of several things other than arms."""
    return _PALETTE[place % len(_PALETTE)], _SERIES_MARKERS[place % len(_SERIES_MARKERS)]


def chain_line(place: int) -> Line:
    """The line of the nth chain of a run."""
    return _CHAIN_LINES[place % len(_CHAIN_LINES)]


def ticks(lowest: float) -> list[float]:
    """100, 50, 20, 10, ... down to the lowest; over more than four decades powers of ten only.

    Where fewer than three of them are on the axis, multiples of 20, 10, 5, ... take their place.
    """
    if lowest < 0.01:
        return [10.0**e for e in range(2, math.floor(math.log10(lowest / 1.5)), -1)]
    ticks = [m * 10.0**e for e in range(2, -4, -1) for m in (5, 2, 1)]
    coarse = [tick for tick in ticks if lowest / 1.5 <= tick <= 100]
    end = lowest / _BEYOND
    if sum(tick >= end for tick in coarse) >= _LEAST_TICKS:
        return coarse
    fine = (
        [100 - step * i for i in range(int((100 - end) / step) + 1)] for step in (20.0, 10.0, 5.0, 2.0, 1.0)
    )
    return next((of for of in fine if len(of) >= _LEAST_TICKS), coarse)


def thinned(of: Sequence[_Of], most: int) -> list[_Of]:
    """At most so many of several things, evenly from the first to the last."""
    if len(of) <= most:
        return list(of)
    return [of[round(i * (len(of) - 1) / (most - 1))] for i in range(most)]


def left_out(count: int, most: int, what: str) -> str:
    """What a caption says of things of which `thinned` leaves some out: "Shown are 6 of 8 levels; ..."."""
    return f" Shown are {most} of {count} {what}; the CSV has all." if count > most else ""


def dots(
    axes: Axes,
    place: float,
    values: Sequence[float],
    interval: Interval,
    look: tuple[str, str],
    *,
    beside: float = 0.0,
    sizes: tuple[float, float] = (4.0, 7.0),
    alphas: tuple[float, float] = (0.7, 0.6),
    label: str | None = None,
) -> None:
    """Seeds as small points, their mean as a large one, the interval of three or more seeds as a bar.

    Args:
        axes: the panel.
        place: on the x axis.
        values: one a seed.
        interval: of their mean.
        look: colour and marker.
        beside: distance of the small points to the right of the mean.
        sizes, alphas: of the small points, and of the mean or the bar.
        label: in the legend.
    """
    colour, marker = look
    axes.plot([place + beside] * len(values), values, ".", color=colour, ms=sizes[0], alpha=alphas[0])
    axes.plot([place], [interval.mean], marker=marker, ls="", color=colour, ms=sizes[1], label=label)
    if interval.n >= BAND_FROM:
        axes.vlines(place, interval.low, interval.high, color=colour, lw=1.5, alpha=alphas[1])


def legend(figure: Figure, axes: Axes, loc: Literal["best", "upper left"] = "best") -> None:
    """A legend inside a panel, or below it where it has so many entries that they would hide the curves."""
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > _INSIDE:
        legend_below(figure, axes)
    elif entries:
        axes.legend(fontsize=9, loc=loc)


def legend_below(figure: Figure, *panels: Axes) -> None:
    """One legend below all panels, with the entries of these; of an entry in several the first is taken.

    The figure grows by what a long legend needs, so that the panels keep their height.
    """
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        handles, labels = list(entries.values()), list(entries)
        # About twelve characters of this size fit an inch.
        fitting = int(12 * figure.get_figwidth() / (max(map(len, labels)) + 7))
        columns = max(1, min(len(handles), 3, fitting))
        lines = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + _LINE * max(0, lines - _ROOM))
        # Keys of three letters' width show dashes.
        how: dict[str, Any] = {"ncols": columns, "fontsize": 8, "handlelength": 3}
        figure.legend(handles, labels, loc="outside lower center", **how)
