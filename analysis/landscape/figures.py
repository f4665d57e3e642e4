"""The figures of a run's landscape."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lthjax.imp import DENSE
from lthjax.measures import hessian
from lthjax.measures.quantities import BESIDE, FLATNESS
from lthjax.measures.stats import ANY, PERCENT, POSITIVE, mean_interval

from .. import draw, words
from ..barriers import LIMIT
from ..page import Drawn
from ..rows import TICKET
from ..run import Run
from . import table
from .table import ARMS, CONTROLS, END, SIBLING, Arrays, Found, values_of

# (arm, other end) -> line.
_PATHS = {(DENSE, SIBLING): "-.", (TICKET, SIBLING): "-", ("reinit", SIBLING): "--", ("random", SIBLING): ":",
          (TICKET, "reinit"): "-", (TICKET, DENSE): "--"}  # fmt: skip
# Place on the x axis of sharpness, arm, where.
_PLACES = [(float(place), arm, END) for place, arm in enumerate(ARMS)] + [
    (3.8 + 2.8 * pair + place, arm, table.MATCHED_WITH.format(control))
    for pair, control in enumerate(CONTROLS)
    for place, arm in enumerate((TICKET, control))
]
_SURFACES = ("train_loss", "test_loss")


@matplotlib.rc_context(draw.STYLE)
def drawn_of(run: Run, found: Found) -> list[Drawn]:
    """The figures of one level."""
    made = [_profiles(run, found), _spectra(run, found), _barriers(run, found), _sharpness(found)]
    return [*_surfaces(run, found), *(one for one in made if one is not None)]


def file_name(found: Found, kind: str) -> str:
    """The name of a level's figure."""
    return f"landscape_{kind}_level_{found.scope.level:02d}_{found.scope.chain}"


def is_figure(found: Found, name: str) -> bool:
    """Whether a name without its suffix is one that `drawn_of` gives a figure of this level."""
    kinds = ("contours", "surfaces", "profiles", "spectra", "barriers", "sharpness")
    marks = r"(_seed_\d+)?(_draw_\d+)?"
    return any(re.fullmatch(re.escape(file_name(found, kind)) + marks, name) for kind in kinds)


def _about_level(found: Found) -> str:
    rewound = f", rewound to step {found.scope.rewind}" if found.scope.rewind else ""
    return f"level {found.scope.level} ({words.share(found.scope.density)} of the weights{rewound})"


def _bands(seeds: int) -> str:
    if seeds >= draw.BAND_FROM:
        return ", bands their 95 % interval"
    return ", without bands, as an interval takes three seeds" if seeds > 1 else ""


def _of_kind(run: Run, found: Found, kind: str, to: str = "") -> dict[str, dict[int, Arrays]]:
    """Arm -> seed -> arrays of a kind, for paths of those that lead to an end; the dense network first."""
    by_arm: dict[str, dict[int, Arrays]] = {arm: {} for arm in (DENSE, *ARMS)}
    for item in table.items(found.scope):
        arrays = (
            table.read(run.path, item, found.scope.settings) if (item.kind, item.to) == (kind, to) else None
        )
        if arrays is not None:
            by_arm[item.network.cell.arm][item.network.cell.seed] = arrays
    return {arm: seeds for arm, seeds in by_arm.items() if seeds}


def _rows(first: tuple[str, ...], at: Sequence[float], by_seed: Mapping[int, Sequence[float]]) -> list[tuple]:
    """Rows of a figure's data: the first columns, seed, place, value."""
    return [(*first, seed, *of) for seed, values in by_seed.items() for of in zip(at, values, strict=True)]


def _surfaces(run: Run, found: Found) -> list[Drawn]:
    """Contours and a 3-D view of every seed that has surfaces, and every draw."""
    every = _of_kind(run, found, "plane")
    made: list[Drawn] = []
    for seed in sorted({seed for seeds in every.values() for seed in seeds}):
        planes = {arm: seeds[seed] for arm, seeds in every.items() if seed in seeds}
        made += _surfaces_of(found, seed, planes, f"_seed_{seed}" if made else "")
    return made


def _surfaces_of(found: Found, seed: int, planes: Mapping[str, Arrays], mark: str) -> list[Drawn]:
    """Those of one seed; `mark` is added to the names of their files."""
    settings, made = found.scope.settings, []
    losses = [x[name] for x in planes.values() for name in _SURFACES]
    norm = LogNorm(max(float(np.nanmin(losses)), 1e-6), float(np.nanmax(losses)))
    for number in range(settings.plane_draws):
        of_draw = {arm: {**x, **{name: x[name][number] for name in _SURFACES}} for arm, x in planes.items()}
        rows = [
            (seed, number, arm, *(float(x["steps"][k]) for k in at), *(float(x[n][at]) for n in _SURFACES))
            for arm, x in of_draw.items()
            for at in np.ndindex(x["train_loss"].shape)
        ]
        which = f"draw {number + 1} of {settings.plane_draws}" if settings.plane_draws > 1 else "one draw"
        what = (
            f"{_about_level(found)}, seed {seed}, {which} of two orthogonal directions inside the mask, "
            f"normalised by filters, {settings.plane_images:,} train and {settings.plane_test_images:,} test "
            "images; n = 1"
        )
        of_contours = (
            f"Train loss (above) and test loss (below) around the trained networks (cross): {what}. Colours "
            "and level lines are the same in all panels, on a log scale. Steps are in lengths of every "
            "filter, so panels compare by shape. Look at how wide the same line is in each."
        )
        of_surfaces = (
            f"Train loss around the trained networks: {what}. One height and colour scale, logarithmic. Look "
            "at the depth and width of the bowl."
        )
        for kind, title, figure, caption in (
            ("contours", "Loss around the trained networks", _contours(of_draw, norm), of_contours),
            ("surfaces", "The same train losses as surfaces", _relief(of_draw, norm), of_surfaces),
        ):
            name = file_name(found, kind) + mark + (f"_draw_{number + 1}" if number else "")
            data = (("seed", "draw", "arm", "a", "b", *_SURFACES), rows)
            made.append(Drawn(name, title, figure, caption, data, raster=True))
    return made


def _contours(planes: Mapping[str, Arrays], norm: LogNorm) -> Figure:
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    levels = np.geomspace(low, high, 17)
    size = (1.2 + 2.6 * len(planes), 5.4)
    figure, grid = draw.panels("", (2, len(planes)), size, sharex=True, sharey=True)
    for column, (arm, x) in zip(grid.T, planes.items(), strict=True):
        for axes, name in zip(column, _SURFACES, strict=True):
            plane = (x["steps"], x["steps"], np.clip(x[name], low, high).T)
            shown = axes.contourf(*plane, levels, norm=norm, cmap="viridis")
            axes.contour(*plane, levels[::2], colors="white", linewidths=0.6)
            axes.plot(0, 0, "+", color="white", ms=8)
            axes.set_aspect("equal")
            axes.grid(visible=False)
        column[0].set_title(arm, loc="left", fontsize=11)
        column[1].set_xlabel("first direction")
    grid[0, 0].set_ylabel("train loss\nsecond direction")
    grid[1, 0].set_ylabel("test loss\nsecond direction")
    ticks = _decades(low, high)
    bar = figure.colorbar(shown, ax=grid, ticks=ticks, label="loss (nats, log scale)", shrink=0.8)
    bar.ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    return figure


def _relief(planes: Mapping[str, Arrays], norm: LogNorm) -> Figure:
    low, high = np.log10(float(norm.vmin or 1)), np.log10(float(norm.vmax or 1))
    ticks = [tick for tick in _decades(10**low, 10**high) if f"{tick:e}"[0] == "1"]
    figure = Figure(figsize=(3.1 * len(planes) + 0.4, 3.3))
    figure.subplots_adjust(0.0, 0.04, 0.95, 0.96, 0.06)
    for place, (arm, x) in enumerate(planes.items(), 1):
        axes: Any = figure.add_subplot(1, len(planes), place, projection="3d", computed_zorder=False)
        a, b = np.meshgrid(x["steps"], x["steps"], indexing="ij")
        height = np.clip(np.log10(np.maximum(x["train_loss"], 1e-12)), low, high)
        shade = colormaps["viridis"]((height - low) / (high - low or 1))
        flat = {"rstride": 1, "cstride": 1, "lw": 0, "antialiased": False, "shade": False}
        axes.plot_surface(a, b, height, facecolors=shade, **flat)
        axes.set_zlim(low, high)
        axes.set_zticks([np.log10(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        reach = float(x["steps"][-1])
        axes.set(xticks=[-reach, 0, reach], yticks=[-reach, 0, reach])
        axes.tick_params(pad=-1, labelsize=8)
        axes.set_xlabel("first direction", fontsize=8, labelpad=-4)
        axes.set_ylabel("second direction", fontsize=8, labelpad=-4)
        axes.set_box_aspect((4, 4, 3), zoom=0.96)
        axes.view_init(34, -55)
        axes.set_title(arm, fontsize=11, y=0.98)
    axes.set_zlabel("train loss (nats, log)", fontsize=8, labelpad=2)
    return figure


def _decades(low: float, high: float) -> list[float]:
    ticks = [round(m * 10.0**e, 9) for e in range(-6, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return ticks or [low, high]


def _profiles(run: Run, found: Found) -> Drawn | None:
    """1-D profiles of train and test loss."""
    every = _of_kind(run, found, "lines")
    if not every:
        return None
    rows: list[tuple] = []
    figure, (panels,) = draw.panels("", (1, 2), (9.2, 4.0), sharex=True, sharey=True)
    for axes, part in zip(panels, ("train", "test"), strict=True):
        for (arm, own), line in zip(every.items(), draw.LINES, strict=False):
            steps = next(iter(own.values()))["steps"].tolist()
            means = {seed: x[f"{part}_loss"].mean(0).tolist() for seed, x in own.items()}
            rows += _rows((part, arm), steps, means)
            # A loss of 0, as float32 may have it, has no logarithm.
            columns = [[max(x, 1e-12) for x in at] for at in zip(*means.values(), strict=True)]
            style = (draw.look(arm)[0], "", line)
            draw.curve(axes, steps, columns, style, arm, points=False, geometric=True)
        axes.set_yscale("log")
        axes.set_title(f"{part} loss", loc="left", fontsize=10)
        axes.set_xlabel("step along a random direction (lengths of the filters)")
    shown = [row[-1] for row in rows]
    panels[0].set_ylim(max(min(shown), 1e-6) / 1.4, max(shown) * 1.4)
    panels[0].set_ylabel("loss (nats, log scale)")
    draw.legend_below(figure, panels[0])
    seeds, settings = len({row[2] for row in rows}), found.scope.settings
    return Drawn(
        file_name(found, "profiles"),
        "Loss along random directions",
        figure,
        f"Loss on {settings.images:,} train and test images along {settings.draws} random directions inside "
        f"the mask, normalised by filters, averaged over draws: {_about_level(found)}; "
        f"lines are {f'geometric means over {seeds} seeds' if seeds > 1 else 'one seed'}{_bands(seeds)}. "
        "Look at how fast the loss rises beside its lowest point.",
        (("part", "arm", "seed", "step", "loss"), rows),
    )


def _spectra(run: Run, found: Found) -> Drawn | None:
    """Spectral densities on shared axes, and the largest eigenvalues by rank."""
    own = _of_kind(run, found, "spectrum")
    if not own:
        return None
    every = [x for of_arm in own.values() for x in of_arm.values()]
    grid, sigma = hessian.grid_over([x["nodes"] for x in every])
    rank = np.arange(1, len(every[0]["largest"]) + 1)
    rows: list[tuple] = []
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    density, ranks = figure.subplots(1, 2, width_ratios=(3, 2))
    for (arm, seeds), line in zip(own.items(), draw.LINES, strict=False):
        colour, marker = draw.look(arm)
        curves = [hessian.smoothed(x["nodes"], x["weights"], grid, sigma) for x in seeds.values()]
        tops = np.stack([x["largest"] for x in seeds.values()])
        density.semilogy(grid, np.transpose(curves), color=colour, lw=0.7, alpha=0.3)
        label = f"{arm} (n = {len(seeds)})"
        density.semilogy(grid, np.mean(curves, 0), line, color=colour, lw=1.8, label=label)
        ranks.semilogy(rank, tops.T, ".", color=colour, ms=3, alpha=0.6)
        ranks.semilogy(rank, tops.mean(0), line, marker=marker, color=colour, ms=5)
        drawn = [curve[::4].tolist() for curve in curves]
        rows += _rows(("density", arm), grid[::4].tolist(), dict(zip(seeds, drawn, strict=True)))
        rows += _rows(("eigenvalue", arm), rank.tolist(), dict(zip(seeds, tops.tolist(), strict=True)))
    # One eigenvalue of the largest space is as high as this.
    one = 1 / (max(float(x["dimension"]) for x in every) * sigma * np.sqrt(2 * np.pi))
    density.set_ylim(0.2 * one, 3 * max(row[-1] for row in rows if row[0] == "density"))
    density.set(xlabel="eigenvalue", ylabel="density (log scale)")
    ranks.set(xlabel="rank", xticks=rank[:: max(len(rank) // 5, 1)], ylabel="largest eigenvalues (log scale)")
    draw.legend_below(figure, density)
    n, how = len({row[2] for row in rows}), found.scope.settings
    return Drawn(
        file_name(found, "spectra"),
        "Spectra of the Hessian inside the mask",
        figure,
        "Left: density of the eigenvalues of the train loss's Hessian inside the mask, by stochastic "
        f"Lanczos quadrature ({how.probes} probes of {how.probe_steps} steps, {how.spectrum_images:,} "
        f"images), smoothed by a Gaussian of width {sigma:.2g}; thick lines are means over seeds, thin ones "
        f"seeds. Right: the {how.eigenvalues} largest eigenvalues ({how.steps} Lanczos steps), points seeds, "
        f"lines their mean. {_about_level(found).capitalize()}, n = {n}. Every density is over its own "
        "space: a sparse network has fewer dimensions. Look at how far the right tails reach; the networks' "
        "train losses, on which that depends, are in the table.",
        (("what", "arm", "seed", "at", "value"), rows),
    )


def _barriers(run: Run, found: Found) -> Drawn | None:
    """Test error on straight paths: siblings, and other networks of the seed."""
    rows: list[tuple] = []
    figure, (panels,) = draw.panels("", (1, 2), (9.6, 4.2), sharex=True)
    for (arm, other), line in _PATHS.items():
        own = _of_kind(run, found, "path", other).get(arm)
        if not own:
            continue
        # From the arm to the other end.
        x = (1 - next(iter(own.values()))["alphas"]).tolist()
        errors = {s: (100 * (1 - y["test_accuracy"].astype(np.float64))).tolist() for s, y in own.items()}
        rows += _rows((arm, other), x, errors)
        if other == SIBLING:
            axes, colour, label = panels[0], draw.look(arm)[0], f"{arm}, other data order"
        else:
            axes, colour, label = panels[1], draw.look(other)[0], f"{arm} to {other}"
        barrier = np.mean(
            [*values_of(found.rows, arm, table.PATH_TO.format(other), "barrier_test_error").values()]
        )
        named = f"{label}: barrier {100 * barrier:.1f} pp"
        columns = [*zip(*errors.values(), strict=True)]
        draw.curve(axes, x, columns, (colour, "", line), named, points=False, within=PERCENT)
        axes.plot(x, columns, color=colour, lw=0.6, alpha=0.3)
    if not rows:
        return None
    titles = {"same mask and start": True, "other mask or start": False}
    for axes, (title, siblings) in zip(panels, titles.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("share of the way")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False)
        top = max((row[-1] for row in rows if (row[1] == SIBLING) == siblings), default=1.0)
        axes.set_ylim(0, min(1.2 * top, 100))
    panels[0].set_ylabel("test error (%)")
    seeds, settings = len({row[2] for row in rows}), found.scope.settings
    return Drawn(
        file_name(found, "barriers"),
        "Error on straight paths between networks",
        figure,
        f"Test error on {settings.images:,} images at {settings.alphas} points of the straight "
        f"path between two trained networks: {_about_level(found)}; the panels have scales of their own. "
        "Left, pairs with the same seed, mask and start weights and another data order; the path stays in "
        "the mask. Right, the ticket and another network of its seed; with the dense network the masks "
        f"differ, and the path lies in their union. Lines are means over {words.seeds(seeds)}, thin ones "
        f"seeds{_bands(seeds)}. The barrier is the highest point over the mean of the ends; below "
        f"{LIMIT:g} points two networks count as linearly connected.",
        (("arm", "other", "seed", "share", "test_error"), rows),
    )


def _sharpness(found: Found) -> Drawn | None:
    """Measures of sharpness a seed, at the end and at matched train loss."""
    measures = {**FLATNESS, **BESIDE}
    there = {row.quantity for row in found.rows}
    if not there & measures.keys():
        return None
    rows: list[tuple] = []
    shown = {"train_loss": "train loss (nats)", **{x: of for x, of in measures.items() if x in there}}
    figure, (panels,) = draw.panels("", (1, len(shown)), (0.6 + 2.6 * len(shown), 3.8))
    for axes, (quantity, heading) in zip(panels, shown.items(), strict=True):
        # Eigenvalues, and the rise of the loss, may be negative.
        within = POSITIVE if quantity == "train_loss" else ANY
        for place, arm, where in _PLACES:
            values = values_of(found.rows, arm, where, quantity)
            rows += [(quantity, where, arm, seed, value) for seed, value in values.items()]
            if values:
                seen, label = [*values.values()], arm if where == END else None
                at = (axes, place, seen, mean_interval(seen, within=within), draw.look(arm))
                draw.dots(*at, beside=0.2, sizes=(5, 7), alphas=(0.7, 0.5), label=label)
        for between in (2.9, 5.7):
            axes.axvline(between, color="#999999", lw=0.8, ls=":")
        axes.set_xticks([1.1, 4.3, 7.1], ["end", *(f"matched\nto {control}" for control in CONTROLS)])
        axes.set_xlim(-0.6, 8.4)
        axes.grid(axis="x", visible=False)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    draw.legend_below(figure, panels[0])
    seeds = len({row[3] for row in rows})
    return Drawn(
        file_name(found, "sharpness"),
        "Sharpness, and at matched train loss",
        figure,
        "Train loss; two measures that do not change with the scale of the layers, the rise of the loss on a "
        f"step of {found.scope.settings.adaptive_rho:g} up the gradient in units of the weights (ASAM) and "
        "the curvature along random directions inside the mask in lengths of the filters; and the largest "
        f"and mean eigenvalue of the Hessian, which do: {_about_level(found)}; large points are means over "
        f"{words.seeds(seeds)}, small ones seeds"
        f"{', lines the 95 % interval' if seeds >= draw.BAND_FROM else ''}. First in every panel the end "
        "of training; then ticket and reinit, then ticket and random, at matched train loss: the one that "
        "ends lower is taken at the step of its training at which its loss reached the other's end. "
        "Compare there, but bear in mind that a point within one training is then held against the end of "
        "another; the table has the steps.",
        (("quantity", "where", "arm", "seed", "value"), rows),
    )
