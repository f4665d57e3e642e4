"""The figure: mask distance and overlap with the ticket along the dense training."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lthjax.measures.stats import SHARE

from .. import draw, tables, words
from ..page import Drawn
from .table import DrawRow, MaskRow


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any]) -> list[Drawn]:
    """The figure with its caption, from the tables by file."""
    rows: Sequence[MaskRow] = found["masks.csv"]
    draws: Sequence[DrawRow] = found["draws.csv"]
    n, rule = len({row.seed for row in rows}), draws[0]
    caption = (
        f"Masks of the largest weights, drawn every {rule.every:,} steps of the dense training. Left: the "
        f"largest distance of a mask to the others in a queue of {rule.queue}, as a share of the weights; "
        "dotted in its colour: of two random masks; dashed: the threshold, below which the Early-Bird ticket "
        f"is drawn (You et al. 2020). Right: overlap with the ticket that the run found later; dotted: by "
        f"chance. {words.seeds(n)}; bands are 95 % intervals over seeds (of three or more)."
    )
    data = (MaskRow._fields, rows)
    return [Drawn("earlybird", "When masks stop changing", _figure(rows, rule.threshold), caption, data)]


def _figure(rows: Sequence[MaskRow], threshold: float) -> Figure:
    figure, ((left, right),) = draw.panels("", (1, 2), (10.0, 4.2))
    for place, (level, own) in enumerate(tables.grouped((row.level, row) for row in rows).items()):
        colour, _ = draw.series(place)
        density = sum(row.density for row in own) / len(own)
        name = f"level {level}, {words.share(density)} of weights"
        for axes, column, chance in ((left, "largest", "chance"), (right, "iou", "iou_chance")):
            of_step = tables.grouped(
                (row.step, getattr(row, column)) for row in own if getattr(row, column) is not None
            )
            if of_step:
                look = (colour, "", "-")
                draw.curve(axes, [*of_step], [*of_step.values()], look, name, points=False, within=SHARE)
            at = sum(getattr(row, chance) for row in own) / len(own)
            axes.axhline(at, color=colour, ls=":", lw=1)
    left.axhline(threshold, **draw.CHANCE)
    left.set_ylabel("largest distance in the queue")
    right.set_ylabel("overlap with the ticket (in both / in either)")
    for axes in (left, right):
        axes.set_xlabel("step of the dense training")
        axes.set_ylim(0, None)
    draw.legend_below(figure, right)
    return figure
