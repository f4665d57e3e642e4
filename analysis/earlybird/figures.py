"""The figure: mask distance and overlap with the ticket along the dense training."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lthjax.measures.stats import SHARE

from .. import draw, tables, words
from ..page import Drawn
from .table import DrawRow, MaskRow, by_density

_AXES = ("largest distance in the queue", "overlap with the ticket (in both / in either)")


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any]) -> list[Drawn]:
    """The figure with its caption, from the tables by file."""
    rows: Sequence[MaskRow] = found["masks.csv"]
    draws: Sequence[DrawRow] = found["draws.csv"]
    n, rule = len({row.seed for row in rows}), draws[0]
    overlap = (
        ""
        if rule.level is None
        else ("Right: overlap with the ticket that the run found later; dotted: by chance. ")
    )
    random = "with that density in every layer" if rule.level is None else "of the same layer densities"
    caption = (
        f"Masks of the largest weights, drawn every {rule.every:,} steps of the dense training. "
        f"{'Left: the' if overlap else 'The'} largest distance of a mask to the others in a queue of "
        f"{rule.queue}, as a share of the weights; dotted in its colour: of two random masks {random}; "
        "dashed: the threshold, below which the Early-Bird ticket is drawn (You et al. 2020). "
        f"{overlap}{words.seeds(n)}; bands (a bar at a single step) are 95 % intervals over "
        "seeds (of three or more)."
    )
    data, figure = (MaskRow._fields, rows), _figure(rows, rule.threshold, rule.total)
    return [Drawn("earlybird", "When masks stop changing", figure, caption, data)]


def _figure(rows: Sequence[MaskRow], threshold: float, total: int) -> Figure:
    found = by_density(rows)
    columns = {"largest": "chance"} | ({} if rows[0].iou is None else {"iou": "iou_chance"})
    width = 5.6 if len(columns) == 1 else 10.0
    figure, (panels,) = draw.panels("", (1, len(columns)), (width, 4.2))
    for place, ((level, density), own) in enumerate(found.items()):
        colour, _ = draw.series(place)
        name = f"{'' if level is None else f'level {level}, '}{words.share(density)} of weights"
        for axes, (column, chance) in zip(panels, columns.items(), strict=True):
            of_step = tables.grouped(
                (row.step, getattr(row, column)) for row in own if getattr(row, column) is not None
            )
            if of_step:
                look = (colour, "", "-")
                draw.curve(axes, [*of_step], [*of_step.values()], look, name, points=False, within=SHARE)
            at = sum(getattr(row, chance) for row in own) / len(own)
            # Lines of two densities may coincide: the dots of one lie between those of the others.
            axes.axhline(at, color=colour, ls=(2 * place, (1, 2 * len(found) - 1)), lw=1.2)
    panels[0].axhline(threshold, **draw.CHANCE)
    for axes, name in zip(panels, _AXES, strict=False):
        # A queue may be full at one step alone, about which an axis would otherwise be centred.
        axes.set_xlim(0, 1.02 * total)
        axes.set(xlabel="step of the dense training", ylabel=name)
        axes.set_ylim(0, None)
    draw.legend_below(figure, panels[-1])
    return figure
