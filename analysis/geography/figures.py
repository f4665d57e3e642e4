"""The figures: overlap by layer, and maps of what the first layer reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lthjax.measures.geography import ALL, INPUTS, SHUFFLED, TICKET, mean_known
from lthjax.measures.stats import SHARE, mean_interval

from .. import draw
from ..page import Drawn
from .table import InputRow, OverlapRow, over_seeds, seeds_at

# Matching -> its name in the legend, colour and marker.
_MATCHINGS = {
    "none": ("as they are", "#444444", "o"),
    "masks": ("units matched by masks", "#0072B2", "s"),
    "magnitudes": ("units matched by magnitudes", "#D55E00", "^"),
}
_MOST_LEVELS = 4


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any]) -> list[Drawn]:
    """Both figures with their captions, from the tables by file."""
    rows, inputs = found["overlap.csv"], found["inputs.csv"]
    n = sorted({seeds_at(rows, row.level) for row in rows})
    seeds = f"{n[0]} to {n[-1]}" if len(n) > 1 else f"{n[0]}"
    overlaps = (
        "Overlap of the tickets of two seeds, connections in both divided by connections in either, layer by "
        f"layer and of all together. Small points are pairs of {seeds} seeds, large ones their mean, bars "
        "its 95 % interval over seeds (jackknife; of three seeds or more), dashes the same after both "
        "tickets were shuffled within their layers: matching finds agreement in noise, too. It finds a "
        "local optimum, so that a matched overlap is a lower bound."
    )
    maps = (
        "What the first layer reads: share of an input's connections that tickets keep, mean over seeds; "
        "and overlap of two seeds' readers of an input less that of readers drawn at random, mean over "
        "pairs; grey: no pair reads it."
    )
    overlaps += draw.left_out(len({row.level for row in rows}), _MOST_LEVELS, "levels")
    maps += draw.left_out(len({row.level for row in inputs}), _MOST_LEVELS, "levels")
    return [
        Drawn("geography_overlap", "Are tickets the same?", _overlaps(rows), overlaps,
              (OverlapRow._fields, rows)),
        Drawn("geography_inputs", "What tickets read", _inputs(inputs), maps, (InputRow._fields, inputs)),
    ]  # fmt: skip


def _overlaps(rows: Sequence[OverlapRow]) -> Figure:
    """Overlap by layer, unmatched and matched, with dashes at chance; a panel a level."""
    levels = draw.thinned(sorted({row.level for row in rows}), _MOST_LEVELS)
    rows = [row for row in rows if row.level in levels]
    layers = [layer for layer in dict.fromkeys(row.layer for row in rows) if layer != INPUTS]
    size = (0.8 + max(2.6, 0.75 * len(layers)) * len(levels), 4.2)
    figure, (panels,) = draw.panels("", (1, len(levels)), size, sharey=True)
    for axes, level in zip(panels, levels, strict=True):
        _panel(axes, level, layers, [row for row in rows if row.level == level])
    # By the points: intervals of few seeds are wide.
    panels[0].set_ylim(0, 1.05 * max(row.overlap or 0 for row in rows if row.layer != INPUTS) or 1)
    panels[0].set_ylabel("overlap (in both / in either)")
    draw.legend_below(figure, panels[0])
    return figure


def _panel(axes: Axes, level: int, layers: Sequence[str], rows: Sequence[OverlapRow]) -> None:
    """The overlaps of a level."""
    share = 100 * float(np.mean([row.density for row in rows if row.layer == ALL]))
    axes.set_title(f"level {level}, {share:.1f} % of weights", loc="left", fontsize=10)
    for offset, (matching, (name, colour, marker)) in zip((-0.26, 0, 0.26), _MATCHINGS.items(), strict=True):
        for at, layer in enumerate(layers):
            own = [row for row in rows if (row.layer, row.matching) == (layer, matching)]
            pairs, chance = (
                [row.overlap for row in own if row.mask == mask and row.overlap is not None]
                for mask in (TICKET, SHUFFLED)
            )
            interval = mean_interval(over_seeds(own, level, layer, matching), within=SHARE)
            label = None if at else name
            of = (pairs, interval, (colour, marker))
            draw.dots(axes, at + offset, *of, sizes=(3, 6), alphas=(0.6, 0.6), label=label)
            label = "chance: the same, shuffled" if (at, matching) == (0, "magnitudes") else ""
            dash: dict[str, Any] = {"color": colour, "lw": 1.6, "ls": (0, (2, 1)), "label": label}
            axes.hlines(np.mean(chance), at + offset - 0.12, at + offset + 0.12, **dash)
    axes.set_xticks(range(len(layers)), layers, fontsize=9)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("layer")


def _inputs(inputs: Sequence[InputRow]) -> Figure:
    """Maps of the inputs, channels averaged: what is kept, and overlap above chance; a column a level."""
    levels = draw.thinned(sorted({row.level for row in inputs}), _MOST_LEVELS)
    place = "tap" if max(row.y for row in inputs) < 7 else "pixel"
    maps = [_maps([row for row in inputs if row.level == level]) for level in levels]
    most = max((float(np.nanmax(abs(gain))) for _, gain in maps if (~np.isnan(gain)).any()), default=0)
    figure, grid = draw.panels("", (2, len(levels)), (1.2 + 2.6 * len(levels), 5.2))
    for axes in grid.flat:
        axes.grid(visible=False)
        axes.set_xlabel(place, fontsize=8)
        axes.tick_params(labelsize=7)
    for (upper, lower), level, (kept, gain) in zip(grid.T, levels, maps, strict=True):
        upper.set_title(f"level {level}", loc="left", fontsize=10)
        share = upper.imshow(100 * kept, cmap="viridis", vmin=0)
        figure.colorbar(share, ax=upper, shrink=0.8).set_label("connections kept (%)", fontsize=8)
        lower.set_facecolor("#CCCCCC")
        more = lower.imshow(gain, cmap="RdBu", vmin=-most or -1, vmax=most or 1)
        figure.colorbar(more, ax=lower, shrink=0.8).set_label("overlap − chance", fontsize=8)
    return figure


def _maps(inputs: Sequence[InputRow]) -> tuple[np.ndarray, np.ndarray]:
    """[height, width] of what is kept and of overlap above chance, channels averaged."""
    height, width = (max(getattr(row, axis) for row in inputs) + 1 for axis in ("y", "x"))
    # As floats, None is NaN.
    values = np.array([(row.kept, row.overlap, row.chance) for row in inputs], float)
    kept, overlap, chance = values.T.reshape(3, height, width, -1)
    return kept.mean(-1), mean_known(np.moveaxis(overlap - chance, -1, 0))
