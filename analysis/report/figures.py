"""The figures of accuracy, each a function from rows to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import draw
from analysis.run import Row, arms, by_seed, chains, select
from lthjax import imp
from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, Range, mean_interval


def accuracy(rows: Sequence[Row], heading: str) -> Figure:
    """Test accuracy at the end of training against weights left."""
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.single(heading)
        _against_weights(axes, rows, "test_accuracy", 100.0, PERCENT)
        axes.set_ylabel("test accuracy at the end (%)")
        return figure


def early_stop(rows: Sequence[Row], heading: str) -> Figure:
    """The step of the lowest validation loss against weights left."""
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.single(heading)
        trained = [row for row in rows if row.steps]
        last = max([1, *(row.steps for row in trained), *(row.early_stop_step or 0 for row in trained)])
        _against_weights(axes, trained, "early_stop_step", 1.0, (0.0, float(last)))
        axes.set_ylabel("early-stop step (steps of training)")
        return figure


def gaps(levels: Mapping[str, Sequence[Any]], heading: str) -> Figure:
    """Ticket − control against weights left; `levels` are `verdicts.Level`s by arm."""
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.single(heading)
        axes.axhline(0, color=draw.look(DENSE)[0], lw=1)
        densities: set[float] = set()
        shown: list[float] = []
        for arm, of_all in levels.items():
            of_arm = [level for level in of_all if level.density]
            if not of_arm:
                continue
            x = [100 * level.density for level in of_arm]
            densities.update(x)
            shown += [value for level in of_arm for value in level.values]
            draw.curve(axes, x, [level.values for level in of_arm], (*draw.look(arm), "-"), f"ticket − {arm}")
        draw.weights_axis(axes, densities)
        low, high = min([0.0, *shown]), max([0.0, *shown])
        # The claim, where the axis reaches it.
        if high > 10:
            axes.axhspan(10, 15, color="#999999", alpha=0.25, lw=0, label="10–15 points")
        axes.set_ylim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
        axes.set_xlabel(draw.WEIGHTS_LEFT)
        axes.set_ylabel("difference in test accuracy (pp)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, loc="upper left")
        return figure


def learning(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], heading: str) -> Figure:
    """Accuracy over training; panel -> arm -> (steps [S], accuracies in percent [cells, S])."""
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(max(7.2, 3.3 * len(panels)), 3.9), layout="constrained")
        grid = figure.subplots(1, max(len(panels), 1), sharex=True, sharey=True, squeeze=False)[0]
        ends = []
        for axes, (name, curves) in zip(grid, panels.items(), strict=False):
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_xlabel("step of training")
            for place, (arm, (steps, values)) in enumerate(curves.items()):
                style = (draw.look(arm)[0], "", draw.LINES[place % len(draw.LINES)])
                draw.curve(axes, list(steps), values.T.tolist(), style, arm, points=False, within=PERCENT)
                ends += values.mean(0)[len(steps) // 4 :].tolist()
        if ends:
            spread = max(ends) - min(ends) or 1.0
            grid[0].set_ylim(min(ends) - 0.1 * spread, max(ends) + 0.1 * spread)
        grid[0].set_ylabel("test accuracy (%)")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        draw.legend_below(figure, grid[0])
        return figure


def _against_weights(axes: Axes, rows: Sequence[Row], column: str, unit: float, within: Range) -> None:
    """Every seed as a point; the mean as a line with its 95 % interval."""
    shown: list[float] = []
    dense = by_seed(select(rows, chain=DENSE), column)
    if dense:
        values = [unit * v for v in dense.values()]
        shown += values
        interval = mean_interval(values, within=within)
        axes.axhline(interval.mean, color=draw.look(DENSE)[0], lw=1, label=f"dense (n = {interval.n})")
        if interval.n >= draw.BAND_FROM:
            axes.axhspan(interval.low, interval.high, color=draw.look(DENSE)[0], alpha=0.12, lw=0)
    several = len(chains(rows)) > 1
    densities: set[float] = set()
    for line, chain in zip(draw.LINES * 9, chains(rows), strict=False):
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
            draw.curve(axes, x, seeds, (*draw.look(arm), line), name, within=within)
    draw.weights_axis(axes, densities)
    if shown:
        # By the points: an interval of two seeds can be wider than the figure.
        spread = max(shown) - min(shown) or 1.0
        axes.set_ylim(min(shown) - 0.08 * spread, max(shown) + 0.08 * spread)
    axes.set_xlabel(draw.WEIGHTS_LEFT)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


def _point(rows: Sequence[Row], column: str, unit: float) -> tuple[float, tuple[float, ...]]:
    """(weights left in percent, a value a seed) of one level and arm."""
    left = 100 * float(np.mean([row.density for row in rows]))
    return left, tuple(unit * value for value in by_seed(rows, column).values())


def _rewound(chain: str) -> str:
    return f"rewound to {imp.rewind_of(chain)}"
