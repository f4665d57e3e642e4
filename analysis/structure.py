"""What survives: a run's masks layer by layer, at the input, unit by unit, and against its weights.

All of it is of the first chain that rewinds, unless a figure says otherwise. Cells that diverged are left
out.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy import stats

from analysis import page
from analysis.cells import Row, chains, densities, load, nearest, select
from analysis.entries import title
from analysis.figures import STYLE, WEIGHTS_LEFT, curve, legend_below, look, series, ticks, weights_axis
from analysis.page import Drawn, Section
from lthjax import config, imp, models, prune, settings
from lthjax.imp import DENSE, Cell
from lthjax.measures.stats import PERCENT, POSITIVE, SHARE, mean_interval
from lthjax.models import Variables
from lthjax.store import Store, read_study

PyTree = Any
# Path -> array of a leaf that may be pruned, in the order of the network.
Layers = dict[str, np.ndarray]

# Where one level is shown, it is the one nearest to this density.
_SHOWN = 0.1
_FILTERS = 16
# Arms that start at the chain's rewind state, so that what they started from is known.
_REWOUND = ("ticket", "random")
# Layers of a network that is a single row of them, as `lthjax.models` names them.
_IN_A_ROW = re.compile(r"(conv|fc)\d+/kernel|output/kernel")
_CHANCE: dict[str, Any] = {"color": "#444444", "ls": "--", "lw": 1.2, "zorder": 3}
_POINTS = (
    "Points are seeds, lines their mean, bands (bars for two seeds or a single level) the 95 % interval of "
    "the mean by Student's t, on a scale that keeps it within what is possible"
)
_overlap = jax.jit(prune.overlap)


class Dead(NamedTuple):
    """Units of a hidden layer that are cut off.

    Attributes:
        units: of the layer.
        no_input: those with no surviving incoming weight.
        no_output: those with no surviving outgoing weight.
        either: those with one of the two.
    """

    units: int
    no_input: int
    no_output: int
    either: int


class _Density(NamedTuple):
    seed: int
    level: int
    density: float
    layer: str
    weights: int
    left: int


class _Ring(NamedTuple):
    seed: int
    level: int
    density: float
    ring: int
    pixels: int
    survivors: int
    survivors_a_pixel_over_mean: float


class _Tap(NamedTuple):
    filter: int
    channel: int
    row: int
    column: int
    kept: bool
    weight: float


class _Degree(NamedTuple):
    seed: int
    layer: str
    side: str
    survivors: int
    units: int
    units_expected_by_chance: float


class _CutOff(NamedTuple):
    arm: str
    seed: int
    repeat: int
    level: int
    density: float
    layer: str
    units: int
    no_input: int
    no_output: int
    either: int
    either_share_by_chance: float


class _Signs(NamedTuple):
    arm: str
    seed: int
    repeat: int
    level: int
    density: float
    changed: int
    survivors: int


class _Overlap(NamedTuple):
    between: str
    which: str
    seed: int | None
    level: int
    density: float
    iou: float
    iou_by_chance: float


class _Run(NamedTuple):
    """A run folder, open for reading; `rows` are the cells that have weights left and did not diverge."""

    rows: list[Row]
    store: Store
    like: Variables
    ones: PyTree
    shape: tuple[int, int, int]
    heading: str
    chain: str

    @property
    def tickets(self) -> list[Row]:
        """The leader's cells of the chain."""
        return select(self.rows, chain=self.chain, arm="ticket")

    @property
    def levels(self) -> dict[int, float]:
        """Level -> mean density of its tickets."""
        return densities(self.tickets)

    def mask(self, row: Row) -> Layers:
        """A cell's mask."""
        mask = self.store.mask(_cell(row), self.ones)
        return layers(mask, mask)

    def final(self, row: Row) -> Layers:
        """A cell's weights at the end of training."""
        return layers(self.store.variables(_cell(row), self.like).params, self.ones)

    def origin(self, seed: int) -> Layers:
        """The weights that the chain rewinds to."""
        return layers(self.store.state(seed, _step(self.chain), self.like).params, self.ones)

    def parent(self, row: Row) -> Row | None:
        """The ticket, or the dense network, from which a ticket's mask was made."""
        found = select(self.rows, DENSE) if row.level == 1 else select(self.tickets, level=row.level - 1)
        return next((other for other in found if other.seed == row.seed), None)


@settings.pinned()
def figures(run: Path) -> list[Drawn]:
    """The figures of what survives in a run folder; those that it has nothing for are left out.

    Raises:
        UserError: it is not a run folder, or a cell in it cannot be read.
    """
    opened = _open(run)
    return [] if isinstance(opened, str) else _figures(opened)


def section(run: Path) -> Section:
    """The report's section, which says why where it has nothing to show.

    Raises:
        UserError: as `figures`.
    """
    opened = _open(run)
    notes, drawn = ([opened], []) if isinstance(opened, str) else ([], _figures(opened))
    return Section("structure", "What survives", notes, drawn)


def _figures(opened: _Run) -> list[Drawn]:
    makers = (
        _layer_density,
        _input_pixels,
        _input_rings,
        _first_kernels,
        _unit_degrees,
        _dead_units,
        _initial_final,
        _sign_changes,
        _mask_overlap,
    )
    return [drawn for make in makers if (drawn := make(opened)) is not None]


def layers(tree: PyTree, mask: PyTree) -> Layers:
    """The leaves of a tree that its mask says may be pruned, by path, `conv2` before `conv10`."""
    leaves = zip(prune.paths(tree), jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    found = {path: np.asarray(leaf) for path, leaf, m in leaves if np.ndim(m)}
    return {path: found[path] for path in sorted(found, key=_by_number)}


def incoming(mask: np.ndarray) -> np.ndarray:
    """Surviving weights into every unit (filter) of a layer.

    Args:
        mask: bool [..., in, out].

    Returns:
        int [out].
    """
    return mask.reshape(-1, mask.shape[-1]).sum(0)


def outgoing(mask: np.ndarray, units: int) -> np.ndarray:
    """Surviving weights out of every unit (channel) that feeds a layer.

    Args:
        mask: bool [..., in, out] of the layer that is fed. In a dense layer after a convolution, channel c
            feeds the inputs c, c + units, c + 2 units, ...: images are flattened with the channel last.
        units: units of the layer before.

    Returns:
        int [units].
    """
    return mask.reshape(-1, units, mask.shape[-1]).sum((0, 2))


def in_a_row(mask: Layers) -> bool:
    """Whether every layer feeds the next one and no other, as names and shapes have it."""
    fits = (
        after.shape[-2] == before.shape[-1]
        or (after.ndim == 2 < before.ndim and after.shape[0] % before.shape[-1] == 0)
        for before, after in itertools.pairwise(mask.values())
    )
    return all(_IN_A_ROW.fullmatch(path) for path in mask) and all(fits)


def dead(mask: Layers) -> dict[str, Dead]:
    """The units of every hidden layer that are cut off; of layers in a row."""
    found = {}
    for (path, own), (_, following) in itertools.pairwise(mask.items()):
        units = own.shape[-1]
        no_input, no_output = incoming(own) == 0, outgoing(following, units) == 0
        either = no_input | no_output
        found[path] = Dead(units, int(no_input.sum()), int(no_output.sum()), int(either.sum()))
    return found


def dead_by_chance(mask: Layers) -> dict[str, float]:
    """The share of every hidden layer's units expected to be cut off if the mask is shuffled within layers.

    Of n weights with k survivors, the d of one unit are all pruned with probability C(n − d, k) / C(n, k),
    and the shuffles of two layers are independent.
    """
    found = {}
    for (path, own), (_, following) in itertools.pairwise(mask.items()):
        alive = [1 - float(by_chance(leaf, own.shape[-1], [0])[0]) for leaf in (own, following)]
        found[path] = 1 - alive[0] * alive[1]
    return found


def by_chance(mask: np.ndarray, units: int, survivors: Sequence[int]) -> np.ndarray:
    """How likely a unit has so many survivors if the mask is shuffled within its layer: hypergeometric.

    Args:
        mask: bool, of a layer.
        units: among which its weights are divided equally, on the side of inputs or of outputs.
        survivors: of a unit.

    Returns:
        float [len(survivors)], probabilities.
    """
    return stats.hypergeom.pmf(survivors, mask.size, int(mask.sum()), mask.size // units)


def variance_by_chance(mask: np.ndarray, units: int) -> float:
    """The variance of the survivors of one unit if the mask is shuffled within its layer; as `by_chance`."""
    n, fan, share = mask.size, mask.size // units, float(mask.mean())
    return fan * share * (1 - share) * (n - fan) / max(n - 1, 1)


def pixels(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Surviving connections of every input pixel, channels summed.

    Args:
        mask: bool [height · width · channels, units], of a dense first layer.
        shape: (height, width, channels) of an image.

    Returns:
        int [height, width].
    """
    return mask.sum(1).reshape(shape).sum(2)


def rings(height: int, width: int) -> np.ndarray:
    """Every pixel's distance to the nearest border, 0 at the border; int [height, width]."""
    down, across = np.ogrid[:height, :width]
    return np.minimum(np.minimum(down, height - 1 - down), np.minimum(across, width - 1 - across))


def sign_changes(before: Layers, after: Layers, mask: Layers) -> tuple[int, int]:
    """(survivors whose sign differs, survivors); a weight of exactly 0 has a sign of its own."""
    changed = sum(int((np.sign(before[path]) != np.sign(after[path]))[m].sum()) for path, m in mask.items())
    return changed, sum(int(m.sum()) for m in mask.values())


def _layer_density(run: _Run) -> Drawn:
    rows = [
        _Density(row.seed, row.level, row.density, _layer(path), leaf.size, int(leaf.sum()))
        for row in [*select(run.rows, chain=DENSE), *run.tickets]
        for path, leaf in run.mask(row).items()
    ]
    emptied = sorted({row.layer for row in rows if not row.left})
    left_out = f" Not shown where nothing is left of a layer: {', '.join(emptied)}." if emptied else ""
    return Drawn(
        "layer_density",
        "Density of every layer",
        _draw_densities(rows, f"{run.heading}: density of every layer"),
        f"How much of every layer the ticket keeps ({run.chain}), against how much it keeps of all. Lines "
        "are means over seeds, points the seeds (n in the legend). On the dashed line a layer is as dense as "
        "the whole; layers above it are spared, layers below it give more than their share. With layer-wise "
        f"pruning the rates decide this, with global pruning the network.{left_out}",
        (_Density._fields, rows),
    )


def _draw_densities(rows: Sequence[_Density], heading: str) -> Figure:
    shares = [100 * row.left / row.weights for row in rows if row.left]
    lowest = 100 * min(row.density for row in rows)
    with matplotlib.rc_context(STYLE):
        figure, axes = _single(heading)
        axes.plot([100, lowest], [100, lowest], label="all layers alike", **_CHANCE)
        for place, layer in enumerate(dict.fromkeys(row.layer for row in rows)):
            # A density of 0 has no place on a log scale.
            own = [row for row in rows if row.layer == layer and row.left]
            x, values = _by_level((r.level, 100 * r.density, 100 * r.left / r.weights) for r in own)
            curve(axes, x, values, (*series(place), "-"), layer, interval=False)
        weights_axis(axes, {100 * row.density for row in rows})
        _log_shares(axes, min(shares), 100)
        axes.set_xlabel(WEIGHTS_LEFT)
        axes.set_ylabel("layer's weights left (%, log scale)")
        legend_below(figure, axes)
        return figure


def _input_pixels(run: _Run) -> Drawn | None:
    if not _first_is_dense(run):
        return None
    levels = _some_levels(run.levels)
    images = {level: np.mean(list(_pixels_at(run, level).values()), axis=0) for level in levels}
    rows = [
        (level, run.levels[level], i, j, float(image[i, j]))
        for level, image in images.items()
        for i, j in np.ndindex(image.shape)
    ]
    titles = [f"level {level}: {_percent(run.levels[level])} left" for level in levels]
    seeds = sorted({len(select(run.tickets, level=level)) for level in levels})
    n = _seeds(seeds[-1]) if len(seeds) == 1 else f"{seeds[0]} to {_seeds(seeds[-1])}"
    return Drawn(
        "input_pixels",
        "Surviving connections of every input pixel",
        _draw_pixels(list(images.values()), titles, f"{run.heading}: connections of every pixel"),
        "Weights from every pixel into the first layer that the ticket keeps "
        f"({run.chain}; channels summed, mean over {n}), each level on a scale of its own from 0; brighter "
        "is more. A mask that knows nothing of the images would be even, but for noise.",
        (("level", "density", "row", "column", "survivors_mean"), rows),
    )


def _draw_pixels(images: Sequence[np.ndarray], titles: Sequence[str], heading: str) -> Figure:
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.2, 3.3 if len(images) > 2 else 4.2), layout="constrained")
        panels = figure.subplots(1, len(images), squeeze=False)[0]
        for axes, image, text in zip(panels, images, titles, strict=True):
            shown = axes.imshow(image, cmap="cividis", vmin=0)
            axes.set_title(text, loc="left", fontsize=10)
            _bare(axes)
            bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8, label="survivors a pixel")
            bar.ax.xaxis.set_major_locator(MaxNLocator(4))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        return figure


def _input_rings(run: _Run) -> Drawn | None:
    if not _first_is_dense(run):
        return None
    ring = rings(*run.shape[:2])
    rows = [
        _Ring(
            seed, level, run.levels[level], r, int((ring == r).sum()), int(image[ring == r].sum()),
            float(image[ring == r].mean() / image.mean()),
        )
        for level in _some_levels(run.levels)
        for seed, image in _pixels_at(run, level).items()
        for r in range(int(ring.max()) + 1)
        if image.any()
    ]  # fmt: skip
    if not rows:
        return None
    deepest = [row for row in rows if row.level == rows[-1].level]
    return Drawn(
        "input_rings",
        "Surviving connections from the border of the image to its centre",
        _draw_rings(rows, f"{run.heading}: connections a pixel, border to centre"),
        f"Surviving weights a pixel ({run.chain}) in the ring of pixels at every distance to the border, "
        f"divided by the mean of all pixels of the same seed. {_POINTS}. On the dashed line a ring has its "
        f"even share. At {_percent(rows[-1].density)} of the weights: {_border_and_centre(deepest)}.",
        (_Ring._fields, rows),
    )


def _border_and_centre(rows: Sequence[_Ring]) -> str:
    """The outer two rings and the inner half of them against the mean, with intervals over seeds."""
    half = max(row.ring for row in rows) // 2
    ratios: dict[str, list[float]] = {"the outer two rings": [], f"the pixels {half + 1} or more inside": []}
    for seed in dict.fromkeys(row.seed for row in rows):
        own = [row for row in rows if row.seed == seed]
        outer = [row for row in own if row.ring < 2]
        inner = [row for row in own if row.ring > half]
        for values, part in zip(ratios.values(), (outer, inner), strict=True):
            values.append(_a_pixel(part) / _a_pixel(own))
    words = [
        f"{name} have {page.percent(mean_interval(at, within=POSITIVE))} times the mean"
        for name, at in ratios.items()
    ]
    return ", ".join(words)


def _a_pixel(rows: Sequence[_Ring]) -> float:
    return sum(row.survivors for row in rows) / max(sum(row.pixels for row in rows), 1)


def _draw_rings(rows: Sequence[_Ring], heading: str) -> Figure:
    ratios = [row.survivors_a_pixel_over_mean for row in rows]
    with matplotlib.rc_context(STYLE):
        figure, axes = _single(heading)
        axes.axhline(1, label="even share", **_CHANCE)
        for place, level in enumerate(dict.fromkeys(row.level for row in rows)):
            own = [row for row in rows if row.level == level]
            x, values = _by_level((row.ring, row.ring, row.survivors_a_pixel_over_mean) for row in own)
            curve(axes, x, values, (*series(place), "-"), f"{_percent(own[0].density)} left", within=POSITIVE)
        axes.set_ylim(max(0.0, min(0.9, *ratios) - 0.05), max(1.1, *ratios) + 0.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("distance to the image's border (pixels)")
        axes.set_ylabel("survivors a pixel / mean of all pixels")
        axes.legend(fontsize=9)
        return figure


def _first_kernels(run: _Run) -> Drawn | None:
    row = min(run.tickets, key=lambda row: (row.density, row.seed))
    path, kept = next(iter(run.mask(row).items()))
    if kept.ndim != 4 or kept.shape[2] != run.shape[2]:
        return None
    final = run.final(row)[path]
    shown = min(kept.shape[3], _FILTERS)
    taps = [
        _Tap(f + 1, c + 1, i, j, bool(kept[i, j, c, f]), float(final[i, j, c, f]))
        for f, c, i, j in np.ndindex(shown, kept.shape[2], *kept.shape[:2])
    ]
    of_all = f"the first {shown} of {kept.shape[3]}" if shown < kept.shape[3] else f"all {shown}"
    where = f"{_layer(path)} of seed {row.seed} at {_percent(row.density)} of the weights"
    return Drawn(
        "first_kernels",
        "Kernels of the first convolution",
        _draw_kernels(taps, f"{run.heading}: {where}"),
        f"Final weights of {_layer(path)} in the ticket of seed {row.seed} at level {row.level} "
        f"({run.chain}, the sparsest): {of_all} filters; {int(kept.sum()):,} of the layer's {kept.size:,} "
        "weights are left. Pruned weights are crossed; of the others bright ones are positive, dark ones "
        "negative. This is one ticket; others look different. A filter with no weight left gives a constant.",
        (_Tap._fields, taps),
    )


def _draw_kernels(taps: Sequence[_Tap], heading: str) -> Figure:
    """Filters side by side, one row a channel."""
    filters, channels = taps[-1].filter, taps[-1].channel
    height, width = taps[-1].row + 1, taps[-1].column + 1
    canvas = np.full((channels * (height + 1) - 1, filters * (width + 1) - 1), np.nan)
    pruned = canvas.copy()
    for tap in taps:
        place = (tap.channel - 1) * (height + 1) + tap.row, (tap.filter - 1) * (width + 1) + tap.column
        (canvas if tap.kept else pruned)[place] = tap.weight
    side = min((7.0 if channels == 1 else 6.2) / canvas.shape[1], 0.3)
    limit = max((abs(tap.weight) for tap in taps if tap.kept), default=1.0) or 1.0
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.2, side * canvas.shape[0] + 1.4), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(pruned, cmap=ListedColormap(["#e2e2e2"]))
        shown = axes.imshow(canvas, cmap="cividis", vmin=-limit, vmax=limit)
        y, x = np.nonzero(~np.isnan(pruned))
        size = 72 * side * 0.45
        axes.plot(x, y, "x", color="#555555", ms=size, mew=max(0.5, size / 9))
        _bare(axes)
        axes.set_xticks(
            [f * (width + 1) + (width - 1) / 2 for f in range(filters)], [str(f + 1) for f in range(filters)]
        )
        if channels > 1:
            centres = [c * (height + 1) + (height - 1) / 2 for c in range(channels)]
            axes.set_yticks(centres, [f"channel {c + 1}" for c in range(channels)])
        axes.tick_params(length=0)
        axes.set_xlabel("filter")
        axes.set_title(heading, loc="left", fontsize=11)
        figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=30, label="final weight")
        return figure


def _unit_degrees(run: _Run) -> Drawn:
    level = nearest(run.levels, _SHOWN)
    tickets = select(run.tickets, level=level)
    rows: list[_Degree] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in tickets:
        for path, leaf in run.mask(row).items():
            names = ("output units", "input units") if leaf.ndim == 2 else ("filters", "input channels")
            for side, found in zip(names, (incoming(leaf), outgoing(leaf, leaf.shape[-2])), strict=True):
                rows += [_Degree(row.seed, _layer(path), side, *counted) for counted in _degrees(found, leaf)]
                expected = variance_by_chance(leaf, len(found))
                ratio = [float(found.var() / expected)] if expected else []
                ratios.setdefault((_layer(path), side), []).extend(ratio)
    return Drawn(
        "degrees",
        "Survivors of every unit",
        _draw_degrees(
            rows, ratios, f"{run.heading}: survivors of every unit, {_percent(run.levels[level])} left"
        ),
        f"Share of units with at most so many surviving weights at level {level} ({run.chain}; "
        f"{_seeds(len(tickets))} pooled): left the weights into a layer's output units (filters), right "
        "those out of its input units (channels). The dashed line is what shuffling the mask within its "
        "layer gives, exactly (hypergeometric). Where the ticket's is flatter, it crowds survivors on some "
        "units and starves others; the number is its variance over units, as a multiple of a shuffled "
        "mask's (mean over seeds; of few units it is noisy).",
        (_Degree._fields, rows),
    )


def _degrees(found: np.ndarray, mask: np.ndarray) -> list[tuple[int, int, float]]:
    """(survivors, units that have so many, units expected to) wherever either is not next to nothing."""
    far = 4 * variance_by_chance(mask, len(found)) ** 0.5
    low = max(0, min(int(found.min()), int(found.mean() - far)))
    high = min(mask.size // len(found), max(int(found.max()), int(found.mean() + far) + 1))
    counts = range(low, high + 1)
    units = np.bincount(found, minlength=high + 1)
    expected = len(found) * by_chance(mask, len(found), counts)
    return [(k, int(units[k]), float(n)) for k, n in zip(counts, expected, strict=True)]


def _draw_degrees(
    rows: Sequence[_Degree], ratios: dict[tuple[str, str], list[float]], heading: str
) -> Figure:
    """One row of panels a layer: output units left, input units right."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 * len(ratios) + 1.0), layout="constrained")
        panels = figure.subplots(len(ratios) // 2, 2, sharey=True, squeeze=False)
        for (layer, side), axes in zip(ratios, panels.ravel(), strict=True):
            own = [row for row in rows if (row.layer, row.side) == (layer, side)]
            axes.set_title(f"{layer}, {side}", loc="left", fontsize=9)
            axes.set_ylim(-4, 104)
            if not ratios[layer, side]:
                axes.text(
                    0.5, 0.5, "nothing can vary", transform=axes.transAxes, ha="center", color="#666666"
                )
                axes.set_xticks([])
                axes.grid(visible=False)
                continue
            x = np.arange(min(row.survivors for row in own) - 1, max(row.survivors for row in own) + 1)
            units, expected = np.zeros((2, len(x)))
            for row in own:
                units[row.survivors - x[0]] += row.units
                expected[row.survivors - x[0]] += row.units_expected_by_chance
            percent = 100 / units.sum()
            colour, _ = look("ticket")
            axes.step(x, percent * np.cumsum(units), where="post", color=colour, lw=1.6, label="ticket")
            axes.step(x, percent * np.cumsum(expected), where="post", label="shuffled", **_CHANCE)
            ratio = float(np.mean(ratios[layer, side]))
            text = f"variance × {ratio:.{0 if ratio >= 9.95 else 1}f}"
            axes.text(0.98, 0.08, text, transform=axes.transAxes, ha="right", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for axes in panels[-1]:
            axes.set_xlabel("surviving weights of a unit")
        figure.supylabel("units with at most so many (%)", fontsize=10)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        legend_below(figure, panels[-1][0])
        return figure


def _dead_units(run: _Run) -> Drawn | None:
    if not in_a_row(layers(run.ones, run.ones)):
        return None
    random = select(run.rows, chain=run.chain, arm="random")
    rows = []
    for row in [*random, *run.tickets]:
        mask = run.mask(row)
        chance = dead_by_chance(mask)
        rows += [
            _CutOff(row.arm, row.seed, row.repeat, row.level, row.density, _layer(path), *units, chance[path])
            for path, units in dead(mask).items()
        ]
    if not rows:
        return None
    against = "the random mask of the arm random" if random else "a mask shuffled within its layers, exactly"
    return Drawn(
        "dead_units",
        "Units that are cut off",
        _draw_dead(rows, f"{run.heading}: units that are cut off"),
        "Share of a hidden layer's units (filters) with no surviving weight in, or none out, in the ticket "
        f"({run.chain}), against {against}. {_POINTS} (repeats averaged). Such units could be removed "
        "without any change of what the network can compute, but for a constant. Units that lead only to "
        "such units, or are fed only by them, are not counted.",
        (_CutOff._fields, rows),
    )


def _draw_dead(rows: Sequence[_CutOff], heading: str) -> Figure:
    """One panel a hidden layer: the ticket against random, or against chance where there is no random."""
    names = list(dict.fromkeys(row.layer for row in rows))
    columns = 2 if len(names) in (2, 4) else min(len(names), 3)
    alone = all(row.arm == "ticket" for row in rows)
    shown = [100 * row.either / row.units for row in rows]
    shown += [100 * row.either_share_by_chance for row in rows if alone]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.5 * -(-len(names) // columns) + 1.0), layout="constrained")
        panels = figure.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True, squeeze=False)
        panels = panels.ravel()
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(panels, names, strict=False):
            own = [row for row in rows if row.layer == name]
            axes.set_title(f"{name} ({own[0].units} units)", loc="left", fontsize=10)
            for arm in dict.fromkeys(row.arm for row in own):
                of_arm = [row for row in own if row.arm == arm]
                points = ((r.level, r.seed, 100 * r.density, 100 * r.either / r.units) for r in of_arm)
                curve(axes, *_by_level(_averaged(points)), (*look(arm), "-"), arm, within=PERCENT)
            if alone:
                by_level = _by_level((r.level, 100 * r.density, 100 * r.either_share_by_chance) for r in own)
                _draw_chance(axes, *by_level, "shuffled, expected")
        weights_axis(panels[0], {100 * row.density for row in rows})
        top = max(5.0, *shown)
        panels[0].set_ylim(-0.03 * top, 1.06 * top)
        for axes in panels[len(names) - columns : len(names)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("weights left (%, log scale)")
        figure.supylabel("units cut off (%)", fontsize=10)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        legend_below(figure, panels[0])
        return figure


def _initial_final(run: _Run) -> Drawn | None:
    level = nearest(run.levels, _SHOWN)
    pairs = ((row, run.parent(row)) for row in select(run.tickets, level=level))
    row, parent = next(((row, parent) for row, parent in pairs if parent is not None), (None, None))
    if row is None or parent is None:
        return None
    before, after, own, was = run.origin(row.seed), run.final(parent), run.mask(row), run.mask(parent)
    x, y, stays, there = (
        np.concatenate([part[p].ravel() for p in own]) for part in (before, after, own, was)
    )
    limits = [float(np.abs(values[there]).max()) or 1.0 for values in (x, y)]
    edges = [np.linspace(-limit, limit, 82) for limit in limits]
    parts = {"survivors": stays, "pruned": there & ~stays}
    counts = {name: np.histogram2d(x[at], y[at], edges)[0].astype(int) for name, at in parts.items()}
    centres = [(edge[:-1] + edge[1:]) / 2 for edge in edges]
    step = _step(run.chain)
    return Drawn(
        "initial_final",
        "Initial against final weights",
        _draw_counts(
            counts,
            edges,
            step,
            f"{run.heading}: initial and final weights, {_percent(row.density)} left, seed {row.seed}",
        ),
        f"Every weight of seed {row.seed} that level {level} ({run.chain}) decided on: across at step "
        f"{step}, upwards at the end of the training from which the mask was made (level {level - 1}); left "
        "those that stay, right those that go in this round. Darker is more weights (log scale, the same in "
        "both). On the dashed line a weight has not moved; in the upper left and the lower right quarter its "
        "sign has changed. All layers are pooled; unless pruning is global, each has a threshold of its own.",
        (
            ("part", "initial", "final", "weights"),
            [
                (name, float(centres[0][i]), float(centres[1][j]), int(n[i, j]))
                for name, n in counts.items()
                for i, j in np.argwhere(n)
            ],
        ),
        raster=True,
    )


def _draw_counts(
    counts: dict[str, np.ndarray], edges: Sequence[np.ndarray], step: int, heading: str
) -> Figure:
    """Two-dimensional histograms side by side on one scale."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        panels = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
        norm = LogNorm(1, max(2, *(int(n.max()) for n in counts.values())))
        for axes, (name, n) in zip(panels, counts.items(), strict=True):
            filled = np.ma.masked_equal(n.T, 0)
            shown = axes.pcolormesh(*edges, filled, cmap="cividis_r", norm=norm, rasterized=True)
            axes.axline((0, 0), slope=1, **_CHANCE)
            axes.axhline(0, color="#999999", lw=0.6)
            axes.axvline(0, color="#999999", lw=0.6)
            axes.set_title(f"{name} ({int(n.sum()):,})", loc="left", fontsize=10)
            axes.set_xlabel(f"weight at step {step}")
        panels[0].set_ylabel("weight at the end of training")
        figure.colorbar(shown, ax=panels, label="weights (log scale)")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        return figure


def _sign_changes(run: _Run) -> Drawn:
    rows = []
    for seed in dict.fromkeys(row.seed for row in run.tickets):
        before = run.origin(seed)
        arms = [row for arm in _REWOUND for row in select(run.rows, chain=run.chain, arm=arm)]
        for row in [*select(run.rows, chain=DENSE), *arms]:
            if row.seed == seed:
                counted = sign_changes(before, run.final(row), run.mask(row))
                rows.append(_Signs(row.arm, seed, row.repeat, row.level, row.density, *counted))
    step = _step(run.chain)
    return Drawn(
        "sign_changes",
        "Survivors that change sign in training",
        _draw_signs(rows, f"{run.heading}: survivors that change sign"),
        "Share of surviving weights that have another sign at the end of training than at step "
        f"{step}, where they start ({run.chain}; all layers pooled). {_POINTS} (repeats averaged); at 100 % "
        "stands the dense network, from the same step on. Arms that start from fresh weights are not shown, "
        "as these are not kept. What survives magnitude pruning also tends to start large, and so changes "
        "its sign less easily than random weights do.",
        (_Signs._fields, rows),
    )


def _draw_signs(rows: Sequence[_Signs], heading: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure, axes = _single(heading)
        for arm in _REWOUND:
            if any(row.arm == arm for row in rows):
                # The dense network is level 0 of every arm.
                own = [row for row in rows if row.arm in (arm, DENSE)]
                points = ((r.level, r.seed, 100 * r.density, 100 * r.changed / r.survivors) for r in own)
                curve(axes, *_by_level(_averaged(points)), (*look(arm), "-"), arm, within=PERCENT)
        weights_axis(axes, {100 * row.density for row in rows})
        axes.set_ylim(0, 110 * max(row.changed / row.survivors for row in rows) or 1.0)
        axes.set_xlabel(WEIGHTS_LEFT)
        axes.set_ylabel("survivors whose sign changed (%)")
        axes.legend(fontsize=9)
        return figure


def _mask_overlap(run: _Run) -> Drawn | None:
    rows = []
    others = [chain for chain in chains(run.rows) if chain != run.chain]
    before: dict[int, Layers] = {}
    for level, density in run.levels.items():
        masks = {row.seed: run.mask(row) for row in select(run.tickets, level=level)}
        for seed in masks.keys() & before.keys():
            both = map(float, _overlap(masks[seed], before[seed]))
            rows.append(_Overlap("levels", "the level before", seed, level, density, *both))
        before = masks
        for a, b in itertools.combinations(masks, 2):
            both = map(float, _overlap(masks[a], masks[b]))
            rows.append(_Overlap("seeds", f"{a} and {b}", None, level, density, *both))
        for chain in others:
            for row in select(run.rows, chain=chain, level=level, arm=imp.leader(chain)):
                if row.seed in masks:
                    both = map(float, _overlap(masks[row.seed], run.mask(row)))
                    rows.append(_Overlap("chains", chain, row.seed, level, density, *both))
    if not rows:
        return None
    said = {
        "seeds": f"Between seeds: the tickets of two seeds at one level ({run.chain}); points are pairs, the "
        "line their mean; pairs share seeds, so no interval is given. Two seeds start from other weights, "
        "and unit 3 of one has nothing to do with unit 3 of the other: overlap near chance does not say that "
        "their structures differ, overlap above it shows what inputs and layers force upon every ticket. ",
        "levels": "Between levels: a ticket and that of the level before, of which it is a part; so the "
        f"overlap is the share of weights that stayed. {_POINTS}. ",
        "chains": f"Between chains: the masks of one seed and level in {run.chain} and in another chain. "
        f"{_POINTS}. ",
    }
    words = "".join(text for kind, text in said.items() if any(row.between == kind for row in rows))
    nothing = any(row.iou == 0 for row in rows)
    return Drawn(
        "mask_overlap",
        "Overlap of masks",
        _draw_overlaps(rows, run.chain, f"{run.heading}: overlap of masks"),
        "Weights that two masks share, divided by the weights that either keeps, over all layers. "
        f"{words}The dashed line is chance: random masks with the same number of survivors in every layer, "
        "which is ρ / (2 − ρ) where every layer has density ρ."
        + (" Masks that share nothing have no place on a log scale." if nothing else ""),
        (_Overlap._fields, rows),
    )


def _draw_overlaps(rows: Sequence[_Overlap], chain: str, heading: str) -> Figure:
    """Overlap between seeds, levels and chains, each with its chance."""
    kinds = [kind for kind in ("seeds", "levels", "chains") if any(row.between == kind for row in rows)]
    titles = {"seeds": "between seeds", "levels": "between levels", "chains": f"{chain} with"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 3.6 * len(kinds)), 4.4), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            own = [row for row in rows if row.between == kind]
            axes.set_title(titles[kind], loc="left", fontsize=10)
            _draw_chance(axes, *_by_level((r.level, 100 * r.density, r.iou_by_chance) for r in own), "chance")
            pairs = kind == "seeds"
            for place, other in enumerate(
                ["pairs of seeds"] if pairs else dict.fromkeys(r.which for r in own)
            ):
                points = _by_level(
                    (r.level, 100 * r.density, r.iou) for r in own if pairs or r.which == other
                )
                curve(axes, *points, (*series(place), "-"), other, interval=not pairs, within=SHARE)
            axes.set_xlabel("weights left (%, log scale)")
            axes.legend(fontsize=8)
        weights_axis(panels[0], {100 * row.density for row in rows})
        shares = [value for row in rows for value in row[-2:] if value]
        _log_shares(panels[0], min(shares, default=0.1), 1)
        panels[0].set_ylabel("intersection over union (log scale)")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
        return figure


def _open(path: Path) -> _Run | str:
    """A run folder for reading; a sentence where no chain has a ticket or the network is not known."""
    about = read_study(path)
    rows = [row for row in load(path) if row.status == "done" and row.weights_left]
    led = [chain for chain in chains(rows) if select(rows, chain=chain, arm="ticket")]
    if not led:
        return "Not shown: no ticket that has weights left is trained yet."
    study = config.from_dict(about["config"])
    if study.model not in models.MODELS:
        return f"Not shown: the network {study.model!r} is from outside the package, and is not loaded here."
    height, width, channels = about["data"]["shape"]
    model = models.build(study.model, (height, width, channels), about["data"]["classes"])
    like = jax.eval_shape(model.init, jax.random.key(0))
    store = Store(path, about["identity"], about)
    return _Run(rows, store, like, prune.ones(like.params), model.input_shape, title(about), led[0])


def _cell(row: Row) -> Cell:
    return Cell(row.seed, row.chain, row.level, row.arm, row.repeat)


def _step(chain: str) -> int:
    return int(chain.rpartition("-")[2])


def _by_number(path: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _layer(path: str) -> str:
    return path.removesuffix("/kernel")


def _percent(density: float) -> str:
    return f"{100 * density:.1f} %"


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _some_levels(levels: dict[int, float]) -> list[int]:
    """Up to three: near half of the weights, near a tenth, and the sparsest."""
    sparsest = min(levels, key=lambda level: levels[level])
    return sorted({nearest(levels, 0.5), nearest(levels, _SHOWN), sparsest})


def _first_is_dense(run: _Run) -> bool:
    """Whether the first layer sees the pixels of an image, flattened."""
    path, leaf = next(iter(layers(run.ones, run.ones).items()))
    return bool(_IN_A_ROW.fullmatch(path)) and leaf.ndim == 2 and leaf.shape[0] == np.prod(run.shape)


def _pixels_at(run: _Run, level: int) -> dict[int, np.ndarray]:
    """Seed -> surviving connections of every pixel."""
    tickets = select(run.tickets, level=level)
    return {row.seed: pixels(next(iter(run.mask(row).values())), run.shape) for row in tickets}


def _by_level(points: Iterable[tuple[int, float, float]]) -> tuple[list[float], list[list[float]]]:
    """(level, x, value) -> every level's mean x, and its values."""
    found: dict[int, list[tuple[float, float]]] = {}
    for level, x, value in points:
        found.setdefault(level, []).append((x, value))
    ordered = [found[level] for level in sorted(found)]
    return [float(np.mean([x for x, _ in at])) for at in ordered], [[v for _, v in at] for at in ordered]


def _averaged(points: Iterable[tuple[int, int, float, float]]) -> list[tuple[int, float, float]]:
    """(level, seed, x, value) -> (level, x, value) with a seed's repeats averaged."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for level, seed, x, value in points:
        found.setdefault((level, seed), []).append((x, value))
    means = {key: np.mean(at, axis=0) for key, at in found.items()}
    return [(level, float(x), float(value)) for (level, _), (x, value) in means.items()]


def _single(heading: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(heading, loc="left", fontsize=11)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_chance(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], name: str) -> None:
    """The mean as a dashed line; a single point as a dash."""
    means = [float(np.mean(at)) for at in values]
    axes.plot(x, means, marker="_" if len(x) == 1 else "", ms=14, label=name, **_CHANCE)


def _log_shares(axes: Axes, lowest: float, whole: float) -> None:
    """A log y axis of shares of a whole, from the lowest up."""
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.15, 1.15 * whole)
    axes.yaxis.set_major_locator(FixedLocator([tick * whole / 100 for tick in ticks(100 * lowest / whole)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
