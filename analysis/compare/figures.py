"""The figures of several runs side by side."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from lthjax.arms import ARMS
from lthjax.imp import DENSE
from lthjax.measures.stats import mean_interval, paired

from .. import draw
from .entries import Entry, at_most


@matplotlib.rc_context(draw.STYLE)
def compared(entries: Sequence[Entry], heading: str) -> Figure:
    """Every entry's difference to its dense network against weights left; one panel an arm."""
    there = dict.fromkeys(arm for entry in entries for arm in entry.arms)
    names = sorted(there, key=lambda arm: list(ARMS).index(arm) if arm in ARMS else len(ARMS))
    figure, panels = draw.few_beside(heading, len(names))
    densities: set[float] = set()
    for axes, arm in zip(panels.ravel(), names, strict=False):
        axes.tick_params(labelbottom=True)
        axes.axhline(0, color=draw.look(DENSE)[0], lw=1)
        axes.set_title(arm, loc="left", fontsize=10)
        axes.set_xlabel(draw.WEIGHTS_LEFT)
        for entry, (colour, marker, line) in zip(entries, _looks(entries), strict=True):
            points = [point for point in entry.arms.get(arm, []) if point.density]
            x = [100 * point.density for point in points]
            densities.update(x)
            gains = [paired(point.accuracies, entry.dense) for point in points]
            intervals = [mean_interval(gain) for gain in gains]
            means = [interval.mean for interval in intervals]
            axes.plot(x, means, line, color=colour, marker=marker, ms=4, label=entry.name)
            for left, gain, interval in zip(x, gains, intervals, strict=True):
                axes.plot([left] * len(gain), gain, ".", color=colour, ms=2.5, alpha=0.6)
                if interval.n >= draw.BAND_FROM:
                    axes.vlines(left, interval.low, interval.high, color=colour, alpha=0.35, lw=1)
    draw.weights_axis(panels[0, 0], densities)
    figure.supylabel("test accuracy − dense (pp)", fontsize=10)
    draw.legend_below(figure, panels[0, 0])
    return figure


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
