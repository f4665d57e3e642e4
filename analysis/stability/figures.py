"""The figures: barrier and distance against the step of the state, and barriers between levels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lthjax.imp import DENSE
from lthjax.measures.stats import ANY, PERCENT, POSITIVE, Range

from .. import draw, words
from ..barriers import LIMIT
from ..differences import FLOORED
from ..page import Drawn
from ..rows import by_seed, grouped, percent
from .table import MATCHING, LevelRow, PairRow, density, gap_floor, gaps, own_starts, subjects

_MOST_LEVELS = 4
# Rows of the first figure: label, values of a seed, their range, whether there is a line at 2 points.
_Values = Callable[[Sequence[Any]], dict[int, float]]
_ROWS: tuple[tuple[str, _Values, Range, bool], ...] = (
    ("barrier, test error (pp)", lambda rows: percent(rows, "barrier_test_error"), PERCENT, True),
    ("barrier, train error (pp)", lambda rows: percent(rows, "barrier_train_error"), PERCENT, True),
    ("distance of the ends", lambda rows: by_seed(rows, "distance"), POSITIVE, False),
)


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any], images: int) -> list[Drawn]:
    """Both figures with their captions, from the tables by file; `images` of the test set."""
    rows, levels = found["stability.csv"], found["levels.csv"]
    pairs = len({row.pair for row in rows})
    several = f", mean of {pairs} pairs" if pairs > 1 else ""
    start = ", tickets and controls being those rewound to step k," if own_starts(rows) else ""
    lines = f"Each line is one seed{several}. "
    if _most_seeds(rows, "arm", "level", "k") > 1:
        lines = (
            f"Lines are means over seeds{several}, small points seeds, bands (bars for two seeds or a single "
            "k) 95 % intervals. "
        )
    curve = (
        f"Two copies of the weights at step k{start} are trained to the end with other orders of the data; "
        "the barrier is that of the error on the straight path between their ends "
        f"({rows[0].alphas} points, {rows[0].images:,} train and as many test images). {lines}Below "
        f"{LIMIT:g} points (dashed) the training counts as stable from k on; dotted (open markers for a "
        "single k): the barrier after the hidden units are matched. Look at the step from which a line stays "
        "below."
    )
    sparse = {row.level for row in rows if row.arm != DENSE}
    curve += draw.left_out(len(sparse), _MOST_LEVELS, "levels")
    lines = "Each line is one seed. "
    if _most_seeds(levels, "level", "other") > 1:
        lines = f"Small points are seeds, {draw.BANDS} 95 % intervals, on the right {FLOORED}. "
    between = (
        "Left: barrier of the test error on the straight path from a ticket to the one of the level before "
        "it, and to the dense network, in the union of their masks. Right: the ticket's accuracy less the "
        f"dense network's; dashed {MATCHING:g} points below it, down to which a ticket matches. {lines}"
        "Successive levels would be connected just as long as the sparser one matches (Paul et al. 2023)."
    )
    return [
        Drawn("stability_curve", "Stability to the order of the data", _curves(rows), curve,
              (PairRow._fields, rows)),
        Drawn("stability_levels", "Paths between levels", _levels(levels, images), between,
              (LevelRow._fields, levels)),
    ]  # fmt: skip


def _most_seeds(rows: Sequence[PairRow | LevelRow], *by: str) -> int:
    """The most seeds at one place of a line; of one seed there are no intervals."""
    return max(len({row.seed for row in of}) for of in grouped(rows, *by).values())


def _curves(rows: Sequence[PairRow]) -> Figure:
    """Barriers and distance against k; a column a level, the dense network in all."""
    sparse = sorted({row.level for row in rows if row.arm != DENSE})
    levels = draw.thinned(sparse, _MOST_LEVELS) or [0]
    size = (1.4 + 3.6 * len(levels), 7.6)
    figure, grid = draw.panels("", (len(_ROWS), len(levels)), size, sharex=True)
    for column, level in zip(grid.T, levels, strict=True):
        own = [row for row in rows if row.level in (0, level)]
        of_level = [row for row in rows if row.level == level]
        title = f"level {level}, {words.share(density(of_level))} of weights" if level else "dense network"
        column[0].set_title(title, loc="left", fontsize=10)
        for axes, (label, values, within, limit) in zip(column, _ROWS, strict=True):
            _panel(axes, own, values, within)
            axes.set_ylabel(label if axes in grid[:, 0] else "", fontsize=9)
            if limit:
                axes.axhline(LIMIT, **draw.CHANCE)
        _matched(column[0], own)
        _steps(column[-1], sorted({row.k for row in own}))
    for panels, (_, _, _, limit) in zip(grid, _ROWS, strict=True):
        top = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(-0.04 * top if limit else 0, top)
    draw.legend_below(figure, *grid.ravel())
    return figure


def _panel(axes: Axes, rows: Sequence[PairRow], values: _Values, within: Range) -> None:
    """One line an arm."""
    for (_, arm), steps in subjects(rows).items():
        each = [[*values(of).values()] for of in steps.values()]
        draw.curve(axes, [*steps], each, draw.style(arm), arm, within=within)
    # By the values: intervals of few seeds are wide.
    most = max(value for of in grouped(rows, "arm", "level", "k").values() for value in values(of).values())
    axes.set_ylim(0, 1.15 * max(most, LIMIT))


def _matched(axes: Axes, rows: Sequence[PairRow]) -> None:
    """The barriers after matching, as thin dotted lines of means, or open markers; they may be higher."""
    for (_, arm), steps in subjects(rows).items():
        known = {k: [*percent(of, "matched_test_error").values()] for k, of in steps.items()}
        known = {k: of for k, of in known.items() if of}
        means = [float(np.mean(of)) for of in known.values()]
        colour, marker, line = draw.style(arm)
        # Of the arms of one colour all but the first have their markers here, too.
        mark, inside = "" if line == "-" else marker, colour
        if len(known) == 1:
            # A line of one place has no length.
            mark, inside = marker or "o", "none"
        axes.plot([*known], means, ":", color=colour, lw=1.6, marker=mark, ms=4, mfc=inside)
        axes.set_ylim(0, max([axes.get_ylim()[1], *(1.15 * mean for mean in means)]))


def _steps(axes: Axes, steps: Sequence[int]) -> None:
    """Steps on the x axis: linear up to the first after 0, then logarithmic."""
    later = [k for k in steps if k]
    if later:
        axes.set_xscale("symlog", linthresh=later[0], linscale=0.5)
        axes.set_xlim(-0.1 * later[0], 1.1 * later[-1])
    draw.plain_ticks(axes.xaxis, steps)
    axes.set_xlabel("k, step of the common state")


def _levels(rows: Sequence[LevelRow], images: int) -> Figure:
    """Barriers to the level before and to the dense network, and accuracy, against weights left."""
    figure, ((barriers, accuracy),) = draw.panels("", (1, 2), (9.6, 4.2))
    kinds = {
        "to the level before": [row for row in rows if row.other == row.level - 1],
        "to the dense network": [row for row in rows if not row.other],
    }
    for place, (name, own) in enumerate(kinds.items()):
        _along(barriers, own, lambda of: percent(of, "barrier_test_error"), draw.series(place), name, PERCENT)
    barriers.axhline(LIMIT, **draw.CHANCE)
    most = max(100 * row.barrier_test_error for row in rows)
    barriers.set_ylim(-0.04 * max(most, LIMIT), 1.15 * max(most, LIMIT))
    barriers.set_ylabel("barrier of the test error (pp)")
    _along(accuracy, kinds["to the dense network"], gaps, draw.look("ticket"), "ticket − dense", ANY, images)
    accuracy.axhline(-MATCHING, **draw.CHANCE)
    accuracy.set_ylabel("accuracy − dense (pp)")
    for axes in (barriers, accuracy):
        draw.weights_axis(axes, {100 * row.density for row in rows})
        axes.set_xlabel(draw.WEIGHTS_LEFT)
        axes.legend(fontsize=8)
    return figure


def _along(
    axes: Axes,
    rows: Sequence[LevelRow],
    values: _Values,
    look: tuple[str, str],
    name: str,
    within: Range,
    images: int = 0,
) -> None:
    """A line against weights left; of differences of accuracies `images` of the test set give the floor."""
    levels = dict(sorted(grouped(rows, "level").items()))
    x = [100 * density(of) for of in levels.values()]
    each = [[*values(of).values()] for of in levels.values()]
    floors = [gap_floor(of, images) for of in levels.values()]
    draw.curve(axes, x, each, (*look, "-"), name, within=within, floors=floors)
