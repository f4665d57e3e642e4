"""The figures of what survives, and which networks each of them is known for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lthjax import imp
from lthjax.imp import DENSE
from lthjax.measures import structure
from lthjax.measures.stats import PERCENT, POSITIVE, SHARE, mean_interval

from .. import draw, words
from ..draw import by_level, curve, look, series
from ..page import Drawn
from ..rows import TICKET, Row, grouped, select
from . import table
from .table import Survivors

_POINTS = (
    f"Points are seeds, lines their mean, {draw.BANDS} the 95 % interval of the mean by Student's t, on a "
    "scale that keeps it within what is possible"
)
# Letters of a title that takes more than a third of a figure.
_LONG = 22
# Of the first convolution, at most so many are shown.
_FILTERS = 16
_Share = Callable[[Any], float]
# Figure, caption, header and rows of its CSV.
_Made = tuple[Figure, str, Sequence[str], Sequence[Sequence[Any]]]


class _Kind(NamedTuple):
    """A figure: `find` looks up what `make` draws; `need`, a key of `_HOLDS`, says for which networks."""

    title: str
    find: Callable[[Survivors], Any]
    make: Callable[[Survivors, Any], _Made]
    need: str = ""
    raster: bool = False


@matplotlib.rc_context(draw.STYLE)
def drawn(of: Survivors) -> list[Drawn]:
    """The figures of a run, without those that its network or its cells have nothing for."""
    made = []
    for name, kind in FIGURES.items():
        found = kind.find(of) if _HOLDS[kind.need](of) else None
        if found:
            figure, caption, header, rows = kind.make(of, found)
            made.append(Drawn(name, kind.title, figure, caption, (header, rows), kind.raster))
    return made


def left_out(of: Survivors) -> str:
    """The figures that a network lacks because it is no plain sequence, and why; "" if it is one."""
    lacking = [need for need, holds in _HOLDS.items() if not holds(of)]
    if of.ends is None or not lacking:
        return ""
    titles = {need: [kind.title for kind in FIGURES.values() if kind.need == need] for need in lacking}
    said = "; ".join(f"{', '.join(of_need)} ({need})" for need, of_need in titles.items())
    form = "form no" if of.ends else "are not known to form a"
    return f"The layers of this network {form} plain sequence. Not shown: {said}."


def _line(axes: Axes, rows: Iterable[Any], of: _Share, look: tuple[str, str], name: str, **how: Any) -> None:
    """A share of every row, in percent, against the weights left; the repeats of a seed are averaged."""
    points = draw.averaged((row.level, row.seed, 100 * row.density, 100 * of(row)) for row in rows)
    curve(axes, *by_level(points), (*look, "-"), name, **how)


def _layer_density(of: Survivors, rows: Sequence[table.LayerDensity]) -> _Made:
    lowest = 100 * min(row.density for row in rows)
    figure, axes = draw.single(f"{of.heading}: density of every layer")
    axes.plot([100, lowest], [100, lowest], label="all layers alike", **draw.CHANCE)
    for place, (layer, own) in enumerate(grouped(rows, "layer").items()):
        # A density of 0 has no place on a log scale.
        left = [row for row in own if row.left]
        _line(axes, left, lambda row: row.left / row.weights, series(place), layer, interval=False)
    draw.weights_axis(axes, {100 * row.density for row in rows})
    draw.shares_axis(axes, min(100 * row.left / row.weights for row in rows if row.left), 100)
    axes.set(xlabel=draw.WEIGHTS_LEFT, ylabel="layer's weights left (%, log scale)")
    draw.legend_below(figure, axes)
    emptied = sorted({row.layer for row in rows if not row.left})
    left_out = f" Not shown where nothing is left of a layer: {', '.join(emptied)}." if emptied else ""
    caption = (
        f"How much of every layer the ticket keeps ({of.chain}), against how much it keeps of all. Lines "
        "are means over seeds, points the seeds (n in the legend). On the dashed line a layer is as dense as "
        "the whole; layers above it are spared, layers below it give more than their share. With layer-wise "
        "pruning the rates decide this, with global pruning the network. Layers that are as dense as each "
        f"other lie on one line, on which the last of them is seen.{left_out}"
    )
    return figure, caption, table.LayerDensity._fields, rows


def _input_pixels(of: Survivors, found: Mapping[int, Mapping[int, np.ndarray]]) -> _Made:
    images = {level: np.mean(list(of_seeds.values()), axis=0) for level, of_seeds in found.items()}
    heading, size = f"{of.heading}: connections of every pixel", (7.2, 3.8 if len(images) > 2 else 4.2)
    figure, (panels,) = draw.panels(heading, (1, len(images)), size)
    for axes, (level, image) in zip(panels, images.items(), strict=True):
        shown = axes.imshow(image, cmap="cividis", vmin=0)
        axes.set_title(f"level {level}: {words.share(of.levels[level])} left", loc="left", fontsize=10)
        _bare(axes)
        bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8, label="survivors a pixel")
        bar.ax.xaxis.set_major_locator(MaxNLocator(4))
    rows = [
        (level, of.levels[level], i, j, float(image[i, j]))
        for level, image in images.items()
        for i, j in np.ndindex(image.shape)
    ]
    fewest, most = (which(map(len, found.values())) for which in (min, max))
    n = words.seeds(most) if fewest == most else f"{fewest} to {words.seeds(most)}"
    caption = (
        "Weights from every pixel into the first layer that the ticket keeps "
        f"({of.chain}; channels summed, mean over {n}), each level on a scale of its own from 0; brighter "
        "is more. A mask that knows nothing of the images would be even, but for noise."
    )
    return figure, caption, ("level", "density", "row", "column", "survivors_mean"), rows


def _input_rings(of: Survivors, rows: Sequence[table.Ring]) -> _Made:
    ratios = [row.survivors_a_pixel_over_mean for row in rows]
    figure, axes = draw.single(f"{of.heading}: connections a pixel, border to centre")
    axes.axhline(1, label="even share", **draw.CHANCE)
    for place, own in enumerate(grouped(rows, "level").values()):
        points = by_level((row.ring, row.ring, row.survivors_a_pixel_over_mean) for row in own)
        name = f"{words.share(own[0].density)} left"
        curve(axes, *points, (*series(place), "-"), name, within=POSITIVE)
    axes.set_ylim(max(0.0, min(0.9, *ratios) - 0.05), max(1.1, *ratios) + 0.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance to the image's border (pixels)")
    axes.set_ylabel("survivors a pixel / mean of all pixels")
    axes.legend(fontsize=9)
    images = [image for image in of.pixels[rows[-1].level].values() if image.any()]
    half, parts = structure.border_and_centre(*of.shape[:2])
    over = [[structure.over_mean(image, part) for image in images] for part in parts]
    border, centre = (words.percent(mean_interval(values, within=POSITIVE)) for values in over)
    caption = (
        f"Surviving weights a pixel ({of.chain}) in the ring of pixels at every distance to the border, "
        f"divided by the mean of all pixels of the same seed. {_POINTS}. On the dashed line a ring has its "
        f"even share. At {words.share(rows[-1].density)} of the weights: the outer two rings have "
        f"{border} times the mean, the pixels {half + 1} or more inside have {centre} times the mean."
    )
    return figure, caption, table.Ring._fields, rows


def _first_kernels(of: Survivors, tickets: Sequence[Row]) -> _Made:
    row = min(tickets, key=lambda row: (row.density, row.seed))
    path = structure.first(of.network, of.run.network().order)
    kept, final, layer = of.mask(row)[path], of.final(row)[path], table.layer(path)
    height, width, channels, filters = kept.shape
    shown = min(filters, _FILTERS)
    own, left = final[..., :shown], kept[..., :shown]
    image, pruned = (structure.side_by_side(np.where(part, own, np.nan)) for part in (left, ~left))
    side = min((7.0 if channels == 1 else 6.2) / image.shape[1], 0.3)
    limit = float(np.abs(own[left]).max(initial=0.0)) or 1.0
    place = f"{layer} of seed {row.seed} at {words.share(row.density)} of the weights"
    figure, axes = draw.single(f"{of.heading}: {place}")
    figure.set_size_inches(7.2, side * image.shape[0] + 1.4)
    axes.imshow(pruned, cmap=ListedColormap(["#e2e2e2"]))
    drawn = axes.imshow(image, cmap="cividis", vmin=-limit, vmax=limit)
    size = 72 * side * 0.45
    axes.plot(*np.nonzero(~np.isnan(pruned))[::-1], "x", color="#555555", ms=size, mew=max(0.5, size / 9))
    _bare(axes)
    axes.set_xticks(np.arange(shown) * (width + 1) + (width - 1) / 2, [str(f + 1) for f in range(shown)])
    if channels > 1:
        centres = np.arange(channels) * (height + 1) + (height - 1) / 2
        axes.set_yticks(centres, [f"channel {c + 1}" for c in range(channels)])
    axes.tick_params(length=0)
    axes.set_xlabel("filter")
    figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, aspect=30, label="final weight")
    of_all = f"the first {shown} of {filters}" if shown < filters else f"all {shown}"
    caption = (
        f"Final weights of {layer} in the ticket of seed {row.seed} at level {row.level} "
        f"({of.chain}, the sparsest): {of_all} filters; {int(kept.sum()):,} of the layer's {kept.size:,} "
        "weights are left. Pruned weights are crossed; of the others bright ones are positive, dark ones "
        "negative. This is one ticket; others look different. A filter with no weight left gives a constant."
    )
    rows = [
        (f + 1, c + 1, i, j, bool(kept[i, j, c, f]), float(final[i, j, c, f]))
        for f, c, i, j in np.ndindex(shown, channels, height, width)
    ]
    return figure, caption, ("filter", "channel", "row", "column", "kept", "weight"), rows


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _degrees(of: Survivors, found: tuple[list[table.Degree], table.Ratios]) -> _Made:
    (rows, ratios), level = found, of.shown_level
    heading = f"{of.heading}: survivors of every unit, {words.share(of.levels[level])} left"
    # One row of panels a layer: output units left, input units right; cumulative shares of units.
    shape, size = (len(ratios) // 2, 2), (7.2, 0.9 * len(ratios) + 1.0)
    figure, panels = draw.panels(heading, shape, size, sharey=True)
    for ((layer, side), of_seeds), axes in zip(ratios.items(), panels.ravel(), strict=True):
        axes.set_title(f"{layer}, {side}", loc="left", fontsize=9)
        axes.set_ylim(-4, 104)
        own = [row for row in rows if (row.layer, row.side) == (layer, side)]
        if not of_seeds:
            axes.text(0.5, 0.5, "nothing can vary", transform=axes.transAxes, ha="center", color="#666666")
            axes.set_xticks([])
            axes.grid(visible=False)
            continue
        lowest = min(row.survivors for row in own) - 1
        at = [row.survivors - lowest for row in own]
        units = np.bincount(at, [row.units for row in own])
        expected = np.bincount(at, [row.units_expected_by_chance for row in own])
        x, percent = lowest + np.arange(len(units)), 100 / units.sum()
        axes.step(x, percent * np.cumsum(units), where="post", color=look(TICKET)[0], lw=1.6, label="ticket")
        axes.step(x, percent * np.cumsum(expected), where="post", label="shuffled", **draw.CHANCE)
        ratio = float(np.mean(of_seeds))
        text = f"variance × {ratio:.{0 if ratio >= 9.95 else 1}f}"
        axes.text(0.98, 0.08, text, transform=axes.transAxes, ha="right", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in panels[-1]:
        axes.set_xlabel("surviving weights of a unit")
    figure.supylabel("units with at most so many (%)", fontsize=10)
    draw.legend_below(figure, *panels.ravel())
    seeds = words.seeds(len(select(of.tickets, level=level)))
    caption = (
        f"Share of units with at most so many surviving weights at level {level} ({of.chain}; "
        f"{seeds} pooled): left the weights into a layer's output units (filters), right "
        "those out of its input units (channels). The dashed line is what shuffling the mask within its "
        f"layer gives, exactly ({_shuffled(of) or 'hypergeometric'}). Where the ticket's is flatter, it "
        "crowds survivors on some units and starves others; the number is its variance over units, as a "
        "multiple of a shuffled mask's (mean over seeds; of few units it is noisy)."
    )
    return figure, caption, table.Degree._fields, rows


def _shuffled(of: Survivors) -> str:
    """What is shuffled where it is not single weights."""
    if of.granularity == "weight":
        return ""
    return f"shuffled are {words.parts(of.granularity)}, as the study prunes these"


def _dead_units(of: Survivors, rows: Sequence[table.DeadUnits]) -> _Made:
    # The ticket against random masks; where there are none, against chance.
    alone = all(row.arm == TICKET for row in rows)
    layers = grouped(rows, "layer")
    titles = {name: f"{name} ({own[0].units} units)" for name, own in layers.items()}
    # Three long titles would not fit beside one another.
    most = 2 if len(layers) in (2, 4) or max(map(len, titles.values())) > _LONG else 3
    columns = min(len(layers), most)
    shape = -(-len(layers) // columns), columns
    heading, size = f"{of.heading}: units that are cut off", (7.2, 2.5 * shape[0] + 1.0)
    figure, grid = draw.panels(heading, shape, size, sharex=True, sharey=True)
    panels = grid.ravel()
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    for axes, (name, own) in zip(panels, layers.items(), strict=False):
        axes.set_title(titles[name], loc="left", fontsize=10)
        for arm, of_arm in grouped(own, "arm").items():
            _line(axes, of_arm, lambda row: row.either / row.units, look(arm), arm, within=PERCENT)
        if alone:
            expected = by_level((r.level, 100 * r.density, 100 * r.either_share_by_chance) for r in own)
            draw.chance(axes, *expected, "shuffled, expected")
    draw.weights_axis(panels[0], {100 * row.density for row in rows})
    chance = (100 * row.either_share_by_chance for row in rows if alone)
    top = max(5.0, *(100 * row.either / row.units for row in rows), *chance)
    panels[0].set_ylim(-0.03 * top, 1.06 * top)
    for axes in panels[len(layers) - columns : len(layers)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("weights left (%, log scale)")
    figure.supylabel("units cut off (%)", fontsize=10)
    draw.legend_below(figure, panels[0])
    against = "the random mask of the arm random"
    if alone:
        how = f" ({_shuffled(of)})" if _shuffled(of) else ""
        against = f"a mask shuffled within its layers, on average{how}"
    caption = (
        "Share of a hidden layer's units (filters) with no surviving weight in, or none out, in the ticket "
        f"({of.chain}), against {against}. {_POINTS} (repeats averaged). Such units could be removed "
        "without any change of what the network can compute, but for a constant. Units that lead only to "
        "such units, or are fed only by them, are not counted."
    )
    if of.ends:
        caption += (
            " All layers that write to a residual stream count as one, by the name of the first; its units "
            "are cut off where none writes to them, or none reads them."
        )
    return figure, caption, table.DeadUnits._fields, rows


def _initial_final(of: Survivors, found: tuple[Row, Row]) -> _Made:
    (row, parent), level, step = found, of.shown_level, imp.rewind_of(of.chain)
    weights = of.origin(row.seed), of.final(parent)
    counts, edges = structure.histograms(*weights, of.mask(row), of.mask(parent))
    heading = f"{of.heading}: initial and final weights, {words.share(row.density)} left, seed {row.seed}"
    figure, (panels,) = draw.panels(heading, (1, len(counts)), (7.2, 4.0), sharex=True, sharey=True)
    norm = LogNorm(1, max(2, *(int(n.max()) for n in counts.values())))
    for axes, (name, n) in zip(panels, counts.items(), strict=True):
        filled = np.ma.masked_equal(n.T, 0)
        shown = axes.pcolormesh(*edges, filled, cmap="cividis_r", norm=norm, rasterized=True)
        axes.grid(visible=False)
        axes.axline((0, 0), slope=1, **draw.CHANCE)
        axes.axhline(0, color="#999999", lw=0.6)
        axes.axvline(0, color="#999999", lw=0.6)
        axes.set_title(f"{name} ({int(n.sum()):,})", loc="left", fontsize=10)
        axes.set_xlabel(f"weight at step {step}")
    panels[0].set_ylabel("weight at the end of training")
    figure.colorbar(shown, ax=panels, label="weights (log scale)")
    caption = (
        f"Every weight of seed {row.seed} that level {level} ({of.chain}) decided on: across at step "
        f"{step}, upwards at the end of the training from which the mask was made (level {level - 1}); left "
        "those that stay, right those that go in this round. Darker is more weights (log scale, the same in "
        "both). On the dashed line a weight has not moved; in the upper left and the lower right quarter its "
        "sign has changed. All layers are pooled; unless pruning is global, each has a threshold of its own."
    )
    x, y = (((edge[:-1] + edge[1:]) / 2).tolist() for edge in edges)
    rows = [(part, x[i], y[j], int(n[i, j])) for part, n in counts.items() for i, j in np.argwhere(n)]
    return figure, caption, ("part", "initial", "final", "weights"), rows


def _sign_changes(of: Survivors, rows: Sequence[table.SignChanges]) -> _Made:
    figure, axes = draw.single(f"{of.heading}: survivors that change sign")
    for arm in table.REWOUND:
        if any(row.arm == arm for row in rows):
            # The dense network is level 0 of every arm.
            own = [row for row in rows if row.arm in (arm, DENSE)]
            _line(axes, own, lambda row: row.changed / row.survivors, look(arm), arm, within=PERCENT)
    draw.weights_axis(axes, {100 * row.density for row in rows})
    axes.set_ylim(0, 110 * max(row.changed / row.survivors for row in rows) or 1.0)
    axes.set(xlabel=draw.WEIGHTS_LEFT, ylabel="survivors whose sign changed (%)")
    axes.legend(fontsize=9)
    caption = (
        "Share of surviving weights that have another sign at the end of training than at step "
        f"{imp.rewind_of(of.chain)}, where they start ({of.chain}; all layers pooled). {_POINTS} (repeats "
        "averaged); at 100 % stands the dense network, from the same step on. Arms that start from fresh "
        "weights are not shown, as these are not kept. What survives magnitude pruning also tends to start "
        "large, and so changes its sign less easily than random weights do."
    )
    return figure, caption, table.SignChanges._fields, rows


def _mask_overlap(of: Survivors, rows: Sequence[table.MaskOverlap]) -> _Made:
    said = {
        "seeds": f"Between seeds: the tickets of two seeds at one level ({of.chain}); points are pairs, the "
        "line their mean; pairs share seeds, so no interval is given. Two seeds start from other weights, "
        "and unit 3 of one has nothing to do with unit 3 of the other: overlap near chance does not say that "
        "their structures differ, overlap above it shows what inputs and layers force upon every ticket. ",
        "levels": "Between levels: a ticket and that of the level before, of which it is a part; so the "
        f"overlap is the share of weights that stayed. {_POINTS}. ",
        "chains": f"Between chains: the masks of one seed and level in {of.chain} and in another chain. "
        f"{_POINTS}. ",
    }
    of_kind = grouped(rows, "between")
    kinds = [kind for kind in said if kind in of_kind]
    heading, size = f"{of.heading}: overlap of masks", (max(7.2, 3.6 * len(kinds)), 4.4)
    figure, (panels,) = draw.panels(heading, (1, len(kinds)), size, sharex=True, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        own, pairs = of_kind[kind], kind == "seeds"
        title = f"{of.chain} with" if kind == "chains" else f"between {kind}"
        axes.set_title(title, loc="left", fontsize=10)
        draw.chance(axes, *by_level((r.level, 100 * r.density, r.iou_by_chance) for r in own), "chance")
        lines = {"pairs of seeds": own} if pairs else grouped(own, "which")
        for place, (other, of_line) in enumerate(lines.items()):
            points = by_level((r.level, 100 * r.density, r.iou) for r in of_line)
            curve(axes, *points, (*series(place), "-"), other, interval=not pairs, within=SHARE)
        axes.set_xlabel("weights left (%, log scale)")
        axes.legend(fontsize=8)
    draw.weights_axis(panels[0], {100 * row.density for row in rows})
    shares = [value for row in rows for value in (row.iou, row.iou_by_chance) if value]
    draw.shares_axis(panels[0], min(shares, default=0.1), 1)
    panels[0].set_ylabel("intersection over union (log scale)")
    unseen = " Masks that share nothing have no place on a log scale." if any(not r.iou for r in rows) else ""
    caption = (
        "Weights that two masks share, divided by the weights that either keeps, over all layers. "
        f"{''.join(said[kind] for kind in kinds)}The dashed line is chance: random masks with the same "
        "number of survivors in every layer, which is ρ / (2 − ρ) where every layer has density ρ." + unseen
    )
    return figure, caption, table.MaskOverlap._fields, rows


_PIXELS = "the first layer must be known to be dense and to read the pixels"
_KERNELS = "the first layer must be a convolution of the image"
_WIRED = "it must be known which layers feed which"
# What a figure asks of a network, in words -> whether it holds.
_HOLDS: dict[str, Callable[[Survivors], bool]] = {
    "": lambda of: True,
    _PIXELS: lambda of: structure.reads_pixels(of.network, of.shape),
    _KERNELS: lambda of: structure.convolves_pixels(of.network, of.shape, of.run.network().order),
    _WIRED: lambda of: of.ends != {},
}
FIGURES = {
    "layer_density": _Kind("Density of every layer", table.layer_densities, _layer_density),
    "input_pixels": _Kind(
        "Surviving connections of every input pixel", lambda of: of.pixels, _input_pixels, _PIXELS
    ),
    "input_rings": _Kind(
        "Surviving connections from the border of the image to its centre", table.rings, _input_rings, _PIXELS
    ),
    "first_kernels": _Kind(
        "Kernels of the first convolution", lambda of: of.tickets, _first_kernels, _KERNELS
    ),
    "degrees": _Kind("Survivors of every unit", table.degrees, _degrees),
    "dead_units": _Kind("Units that are cut off", table.dead_units, _dead_units, _WIRED),
    "initial_final": _Kind("Initial against final weights", table.last_round, _initial_final, raster=True),
    "sign_changes": _Kind("Survivors that change sign in training", table.sign_changes, _sign_changes),
    "mask_overlap": _Kind("Overlap of masks", table.overlaps, _mask_overlap),
}
"""The figures by name, in the order of the section; all but those with a need are known for any network."""
