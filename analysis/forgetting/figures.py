"""The figure: how often images are forgotten, and whether they are the dense network's."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lthjax.imp import DENSE
from lthjax.measures.stats import POSITIVE

from .. import draw, words
from ..page import Drawn
from .table import TRAIN, EventRow, alike, arms, levels, of, rate

_CORRELATION = (-1.0, 1.0)


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any]) -> list[Drawn]:
    """The figure with its caption, from the tables by file."""
    rows: Sequence[EventRow] = found["events.csv"]
    own = [row for row in rows if row.part == TRAIN]
    images, evaluations = (f"{own[0].images:,}", own[0].evaluations) if own else ("no", 0)
    caption = (
        f"Of {images} train images, looked at {evaluations} times along a training, how often one goes from "
        "right to wrong (left), and Spearman's rank correlation of the images' events with those of the "
        "seed's dense network (right): 1 if the same images are forgotten, 0 if they are unrelated. "
        f"{words.seeds(len({row.seed for row in own}))}; points are seeds, lines their means, {draw.BANDS} "
        "the 95 % interval over seeds (the dense network's of three or more)."
    )
    data = (EventRow._fields, rows)
    return [Drawn("forgetting", "What networks forget along their training", _figure(own), caption, data)]


def _figure(rows: Sequence[EventRow]) -> Figure:
    figure, ((left, right),) = draw.panels("", (1, 2), (10.0, 4.2))
    places = {
        n: 100 * sum(row.density for row in rows if row.level == n) / sum(row.level == n for row in rows)
        for n in levels(rows)
    }
    for arm in arms(rows):
        style = draw.style(arm)
        if arm == DENSE:
            values = [rate(row) for row in of(rows, TRAIN, 0, DENSE).values()]
            x = [100.0, *places.values()]
            draw.curve(left, x, [values] * len(x), style, arm, points=False, within=POSITIVE)
            continue
        for axes, by_level in (
            (left, {n: [rate(row) for row in of(rows, TRAIN, n, arm).values()] for n in places}),
            (right, {n: [*alike(rows, TRAIN, n, arm).values()] for n in places}),
        ):
            within = POSITIVE if axes is left else _CORRELATION
            draw.over_levels(axes, places, by_level, style, arm, within=within)
    left.set_ylabel("forgetting events an image")
    right.set_ylabel("rank correlation with the dense network")
    right.axhline(0, **draw.CHANCE)
    for axes in (left, right):
        draw.weights_axis(axes, {*places.values()})
        axes.set_xlabel("weights left (%, log scale)")
    left.set_ylim(0, None)
    draw.legend_below(figure, left)
    return figure
