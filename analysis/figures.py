"""The figures of a report, each a function from rows to a matplotlib Figure, in one house style."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.cells import Row, arms, by_seed, chains, mean_accuracy, select
from analysis.entries import Entry, at_most
from lthjax.arms import ARMS
from lthjax.imp import DENSE
from lthjax.measures.stats import ANY, PERCENT, Interval, Range, mean_interval

# Okabe & Ito's colours, told apart by the colour-blind; markers tell arms apart in grey print.
_COLOURS = {"ticket": "#0072B2", "reinit": "#D55E00", "random": "#009E73", DENSE: "#444444"}
_MARKERS = {"ticket": "o", "reinit": "s", "random": "^"}
_OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9")
_OTHER_MARKERS = ("D", "v", "P", "X", "<", ">", "*", "p", "h")
_PALETTE = (*list(_COLOURS.values())[:3], *_OTHER_COLOURS, "#000000")
_SERIES_MARKERS = (*_MARKERS.values(), *_OTHER_MARKERS)
_LINES = ("-", "--", ":", "-.")
# The interval of two seeds is so wide (t = 12.7) that bands would hide what they lie behind: thin bars.
BAND_FROM = 3
WEIGHTS_LEFT = "weights left (% of prunable weights, log scale)"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
}


def accuracy(rows: Sequence[Row], heading: str) -> Figure:
    """Test accuracy at the end of training against weights left."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(heading)
        _against_weights(axes, rows, "test_accuracy", 100.0, PERCENT)
        axes.set_ylabel("test accuracy at the end (%)")
        return figure


def early_stop(rows: Sequence[Row], heading: str) -> Figure:
    """The step of the lowest validation loss against weights left."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(heading)
        trained = [row for row in rows if row.steps]
        last = max([1, *(row.steps for row in trained), *(row.early_stop_step or 0 for row in trained)])
        _against_weights(axes, trained, "early_stop_step", 1.0, (0.0, float(last)))
        axes.set_ylabel("early-stop step (steps of training)")
        return figure


def gaps(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Ticket − control against weights left; `levels` are `verdicts.Level`s by arm."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(heading)
        axes.axhline(0, color=_COLOURS[DENSE], lw=1)
        densities: set[float] = set()
        shown: list[float] = []
        for arm, of_all in levels.items():
            of_arm = [level for level in of_all if level.density]
            if not of_arm:
                continue
            x = [100 * level.density for level in of_arm]
            densities.update(x)
            shown += [value for level in of_arm for value in level.values]
            curve(axes, x, [level.values for level in of_arm], (*look(arm), "-"), f"ticket − {arm}")
        weights_axis(axes, densities)
        low, high = min([0.0, *shown]), max([0.0, *shown])
        # The claim, where the axis reaches it.
        if high > 10:
            axes.axhspan(10, 15, color="#999999", alpha=0.25, lw=0, label="10–15 points")
        axes.set_ylim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
        axes.set_xlabel(WEIGHTS_LEFT)
        axes.set_ylabel("difference in test accuracy (pp)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, loc="upper left")
        return figure


def learning(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], heading: str) -> Figure:
    """Accuracy over training; panel -> arm -> (steps [S], accuracies in percent [cells, S])."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 3.3 * len(panels)), 3.9), layout="constrained")
        grid = figure.subplots(1, max(len(panels), 1), sharex=True, sharey=True, squeeze=False)[0]
        ends = []
        for axes, (name, curves) in zip(grid, panels.items(), strict=False):
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_xlabel("step of training")
            for place, (arm, (steps, values)) in enumerate(curves.items()):
                style = (look(arm)[0], "", _LINES[place % len(_LINES)])
                curve(axes, list(steps), values.T.tolist(), style, arm, points=False, within=PERCENT)
                ends += values.mean(0)[len(steps) // 4 :].tolist()
        if ends:
            spread = max(ends) - min(ends) or 1.0
            grid[0].set_ylim(min(ends) - 0.1 * spread, max(ends) + 0.1 * spread)
        grid[0].set_ylabel("test accuracy (%)")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        legend_below(figure, grid[0])
        return figure


def _figure(heading: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(heading, loc="left", fontsize=11)
    return figure, axes


def _against_weights(axes: Axes, rows: Sequence[Row], column: str, unit: float, within: Range) -> None:
    """Every seed as a point; the mean as a line with its 95 % interval."""
    shown: list[float] = []
    dense = by_seed(select(rows, chain=DENSE), column)
    if dense:
        values = [unit * v for v in dense.values()]
        shown += values
        interval = mean_interval(values, within=within)
        axes.axhline(interval.mean, color=_COLOURS[DENSE], lw=1, label=f"dense (n = {interval.n})")
        if interval.n >= BAND_FROM:
            axes.axhspan(interval.low, interval.high, color=_COLOURS[DENSE], alpha=0.12, lw=0)
    several = len(chains(rows)) > 1
    densities: set[float] = set()
    for line, chain in zip(_LINES * 9, chains(rows), strict=False):
        for arm in arms(rows):
            own = select(rows, chain=chain, arm=arm)
            levels = sorted({row.level for row in own})
            points = [_point(select(own, level=level), column, unit) for level in levels]
            # Without weights there is no place on a log scale.
            points = [(left, of_level) for left, of_level in points if left and of_level]
            if not points:
                continue
            x = [left for left, _ in points]
            densities.update(x)
            shown += [value for _, of_level in points for value in of_level]
            name = f"{arm}, {_rewound(chain)}" if several else arm
            seeds = [of_level for _, of_level in points]
            curve(axes, x, seeds, (*look(arm), line), name, within=within)
    weights_axis(axes, densities)
    if shown:
        # By the points: an interval of two seeds can be wider than the figure.
        spread = max(shown) - min(shown) or 1.0
        axes.set_ylim(min(shown) - 0.08 * spread, max(shown) + 0.08 * spread)
    axes.set_xlabel(WEIGHTS_LEFT)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


def curve(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    style: tuple[str, str, str],
    name: str,
    *,
    interval: bool = True,
    points: bool = True,
    geometric: bool = False,
    within: Range = ANY,
) -> None:
    """A line of means with their 95 % intervals, and every value as a point.

    Intervals are a band, or bars where there is but one place or two seeds.

    Args:
        axes: where.
        x: the places.
        values: those at every place, one a seed, at least one.
        style: colour, marker and line.
        name: in the legend, with the largest n.
        interval: whether it is drawn; of values that are not independent it would mislead.
        points: whether every value is drawn.
        geometric: whether the means are geometric, with the intervals of logarithms; for positive values
            on a log scale, on which an interval about their mean may well reach below 0.
        within: the values' range, in which intervals stay.
    """
    colour, marker, line = style
    intervals = [_geometric(at) if geometric else mean_interval(at, within=within) for at in values]
    n = max((i.n for i in intervals), default=0)
    label = f"{name} (n = {n})"
    axes.plot(x, [i.mean for i in intervals], line, color=colour, marker=marker, ms=5, label=label)
    lows, highs = [i.low for i in intervals], [i.high for i in intervals]
    if interval and n >= BAND_FROM and len(x) > 1:
        axes.fill_between(x, lows, highs, color=colour, alpha=0.15, lw=0)
    elif interval and n > 1 and points:
        axes.vlines(x, lows, highs, color=colour, alpha=0.35, lw=1)
    for place, at in zip(x, values, strict=True) if points else ():
        axes.plot([place] * len(at), at, ".", color=colour, ms=3, alpha=0.7)


def _geometric(values: Sequence[float]) -> Interval:
    """The geometric mean with the 95 % interval that the logarithms have."""
    logs = mean_interval(np.log(values).tolist())
    with np.errstate(over="ignore"):
        mean, low, high = np.exp(logs[:3]).tolist()
    return Interval(mean, low, high, logs.n)


def weights_axis(axes: Axes, densities: set[float]) -> None:
    """Weights left in percent on the x axis, on a log scale from 100 down to the lowest density above 0."""
    densities = {100.0, *(density for density in densities if density)}
    # Before the scale, which would look for limits of its own and warn of a single place.
    axes.set_xlim(max(densities) * 1.08, min(densities) / 1.08)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks(min(densities))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def look(arm: str) -> tuple[str, str]:
    """An arm's colour and marker, the same in every figure."""
    if arm == DENSE:
        return _COLOURS[DENSE], ""
    place = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
    others = (_OTHER_COLOURS[place % len(_OTHER_COLOURS)], _OTHER_MARKERS[place % len(_OTHER_MARKERS)])
    return _COLOURS.get(arm, others[0]), _MARKERS.get(arm, others[1])


def series(place: int) -> tuple[str, str]:
    """Colour and marker of the nth of several things that are no arms."""
    return _PALETTE[place % len(_PALETTE)], _SERIES_MARKERS[place % len(_SERIES_MARKERS)]


def _point(rows: Sequence[Row], column: str, unit: float) -> tuple[float, tuple[float, ...]]:
    """(weights left in percent, a value a seed) of one level and arm."""
    left = 100 * float(np.mean([row.density for row in rows]))
    return left, tuple(unit * value for value in by_seed(rows, column).values())


def ticks(lowest: float) -> list[float]:
    """100, 50, 20, 10, ... down to the lowest; of more than four decades whole powers of ten."""
    if lowest < 0.01:
        return [10.0**e for e in range(2, math.floor(math.log10(lowest / 1.5)), -1)]
    ticks = [m * 10.0**e for e in range(2, -4, -1) for m in (5, 2, 1)]
    return [tick for tick in ticks if lowest / 1.5 <= tick <= 100]


def _rewound(chain: str) -> str:
    return f"rewound to {chain.rpartition('-')[2]}"


def compared(entries: Sequence[Entry], heading: str) -> Figure:
    """Every entry's difference to its dense network against weights left; one panel an arm."""
    there = dict.fromkeys(arm for entry in entries for arm in entry.arms)
    names = sorted(there, key=lambda arm: list(ARMS).index(arm) if arm in ARMS else len(ARMS))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 4.2 * len(names)), 4.8), layout="constrained")
        panels = figure.subplots(1, max(len(names), 1), sharex=True, sharey=True, squeeze=False)[0]
        densities: set[float] = set()
        for axes, arm in zip(panels, names, strict=False):
            axes.axhline(0, color=_COLOURS[DENSE], lw=1)
            axes.set_title(arm, loc="left", fontsize=10)
            axes.set_xlabel(WEIGHTS_LEFT)
            for entry, (colour, marker, line) in zip(entries, _looks(entries), strict=True):
                points = [point for point in entry.arms.get(arm, []) if point.density]
                x = [100 * point.density for point in points]
                densities.update(x)
                gains = [
                    [value - entry.dense[seed] for seed, value in p.accuracies.items() if seed in entry.dense]
                    for p in points
                ]
                intervals = [mean_interval(gain) for gain in gains]
                axes.plot(
                    x, [i.mean for i in intervals], line, color=colour, marker=marker, ms=4, label=entry.name
                )
                for left, gain, interval in zip(x, gains, intervals, strict=True):
                    axes.plot([left] * len(gain), gain, ".", color=colour, ms=2.5, alpha=0.6)
                    if interval.n >= BAND_FROM:
                        axes.vlines(left, interval.low, interval.high, color=colour, alpha=0.35, lw=1)
        weights_axis(panels[0], densities)
        panels[0].set_ylabel("test accuracy − dense (pp)")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        legend_below(figure, panels[0])
        return figure


def cost(entries: Sequence[Entry], densities: Sequence[float], heading: str) -> Figure:
    """Accuracy against trainings; one panel a density, on one axis of costs."""
    columns = min(max(len(densities), 1), 3)
    rows = -(-max(len(densities), 1) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 3.3 * rows + 1.0), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes in panels[len(densities) :]:
            axes.set_visible(False)
        for axes, density in zip(panels, densities, strict=False):
            axes.set_title(f"≤ {100 * density:.1f} % of the weights", loc="left", fontsize=10)
            for entry, (colour, marker, _) in zip(entries, _looks(entries), strict=True):
                point = at_most(entry.arms.get("ticket", []), density)
                if point is None:
                    continue
                values = list(point.accuracies.values())
                interval = mean_accuracy(point.accuracies)
                axes.plot([point.trainings] * len(values), values, ".", color=colour, ms=3, alpha=0.6)
                if interval.n >= BAND_FROM:
                    axes.vlines(point.trainings, interval.low, interval.high, color=colour, alpha=0.4, lw=1)
                axes.plot(
                    point.trainings,
                    interval.mean,
                    marker,
                    color=colour,
                    ms=7,
                    mfc="none" if entry.variant.startswith("global") else colour,
                    label=entry.name,
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 30, 50, 100]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("cost (trainings, log scale)")
        figure.supylabel("test accuracy at the end (%)", fontsize=10)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        legend_below(figure, panels[0])
        return figure


def _looks(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """(colour, marker, line) of every entry: colour and marker by `how`, line by `variant`."""
    if not entries:
        return []
    hows, variants = ([*dict.fromkeys(values)] for values in zip(*(e[:2] for e in entries), strict=True))
    if len(hows) == 1:
        hows, of_entry = variants, [(e.variant, e.how) for e in entries]
        variants = [entries[0].how]
    else:
        of_entry = [(e.how, e.variant) for e in entries]
    return [
        (*series(hows.index(how)), _LINES[variants.index(variant) % len(_LINES)]) for how, variant in of_entry
    ]


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, below them; the entries are those of one."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # About twelve characters of this size fit an inch.
        fitting = int(12 * figure.get_figwidth() / (max(map(len, labels)) + 6))
        columns = max(1, min(len(handles), 3, fitting))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
