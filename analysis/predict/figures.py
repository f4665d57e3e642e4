"""The figures of `analysis.predict`, with their captions."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lthjax.measures.predict import ALONE, LOGISTIC, MEAN
from lthjax.measures.scores import PIXEL_VARIANCE, SCORES
from lthjax.measures.stats import POSITIVE, SHARE, mean_interval

from .. import draw, words
from ..differences import mean_accuracy
from ..page import Drawn
from ..rows import TICKET, accuracies
from .table import PREDICTED, RANDOM, SHUFFLED, TWIN, Loaded, Scored, Trial

_COLOURS = ("#E69F00", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#999999", "#8A6D00")
# Label, colour, marker; a score that is added to the table takes the first ones again.
_SCORES = {
    name: (score.label, colour, marker)
    for (name, score), colour, marker in zip(SCORES.items(), cycle(_COLOURS), cycle("Dv<s>PX"), strict=False)
} | {
    PIXEL_VARIANCE: ("pixel variance (first layer)", "#000000", "h"),
    ALONE: ("logistic on |θ₀| alone", "#7F3C8D", "d"),
    LOGISTIC: ("logistic, held-out seed", draw.look(TICKET)[0], "o"),
}
_MASKS = {
    TICKET: ("ticket", draw.look(TICKET)[0], "o"),
    PREDICTED: ("predicted", "#E69F00", "D"),
    TWIN: ("shuffled\npredicted", "#CC79A7", "v"),
    RANDOM: ("random", draw.look(RANDOM)[0], "^"),
}
# Column of the table, chance, label and range.
_MEASURES = (("auroc", 0.5, "AUROC within layers", SHARE), ("lift", 1.0, "precision@k / density", POSITIVE))
_PANELS = 4
_CHANCE = "#444444"


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Loaded) -> list[Drawn]:
    """The figures, with their captions."""
    rows, trials, _, density = found
    more = draw.left_out(len({row.level for row in rows}), _PANELS, "levels")
    of_bars = (
        "AUROC within layers, and precision at the mask's own number of weights over its density, each "
        "averaged over the layers; one panel a level. Points are seeds, bars their mean, lines the 95 % "
        "interval (of three seeds or more), dashes chance. The logistic predictor is tested on a seed "
        "that it has not seen, beside the nested one that sees |θ₀| alone; hatched is the same on masks "
        "shuffled within layers, which must lie at chance. Look for how far the best bar is from chance, and "
        "from 1."
    )
    of_curve = (
        "AUROC within layers of every score, taken at a step of the dense network's training; lines are "
        "means over seeds, points seeds, the band the 95 % interval of the logistic predictor (of three "
        "seeds or more). Look for the step at which the lines leave their level at step 0."
    )
    of_functional = (
        "Test accuracy at the end of training from the weights that the ticket starts from: the ticket's "
        "mask, the mask that the other seeds' predictor gives, the same shuffled within layers, and random "
        "masks, all of the ticket's layer-wise densities. Small points are seeds, large ones their mean, "
        "lines the 95 % interval (of three seeds or more). Look for whether predicted lies above its "
        "shuffled twin, and how far below the ticket."
    )
    start = (Scored._fields, [row for row in rows if row.step == 0])
    title = "How well scores at initialisation find the ticket's mask"
    made = [Drawn("predict_bars", title, _bars(rows, density), of_bars + more, start)]
    means = (Scored._fields, [row for row in rows if row.layer == MEAN])
    title = "When in training the ticket's mask becomes predictable"
    made.append(Drawn("predict_curve", title, _curve(rows, density), of_curve + more, means))
    if of_predicted := {trial.level for trial in trials if trial.mask == PREDICTED}:
        of_functional += draw.left_out(len(of_predicted), _PANELS, "levels")
        title, worth = "What predicted masks are worth, trained", _functional(trials, density)
        made.append(Drawn("predict_functional", title, worth, of_functional, (Trial._fields, trials)))
    return made


def _bars(rows: Sequence[Scored], density: Mapping[int, float]) -> Figure:
    """Every score at initialisation: AUROC and lift, averaged over layers; a column a level."""
    rows = [row for row in rows if row.step == 0 and row.layer == MEAN]
    there = {(row.score, row.mask) for row in rows}
    shown = {(name, TICKET): label for name, (label, _, _) in _SCORES.items()}
    shown[LOGISTIC, SHUFFLED] = "the same, shuffled masks"
    shown = {of: label for of, label in shown.items() if of in there}
    figure, grid, levels = _panels(rows, density, 2, (2.9, 0.3 * len(shown) + 0.9))
    for line, (measure, chance, name, within) in zip(grid, _MEASURES, strict=True):
        for axes, level in zip(line, levels, strict=True):
            for place, (score, mask) in enumerate(shown):
                own = [r for r in rows if (r.level, r.score, r.mask) == (level, score, mask)]
                colour, hatch = _SCORES[score][1], "////" if mask == SHUFFLED else None
                if own:
                    values = [float(getattr(row, measure)) for row in own]
                    mean, low, high, n = mean_interval(values, within=within)
                    axes.barh(place, mean - chance, 0.7, chance, color=colour, alpha=0.45, hatch=hatch)
                    if n >= draw.BAND_FROM:
                        axes.hlines(place, low, high, color=colour, lw=1.5)
                    axes.plot(values, [place] * n, ".", color=colour, ms=4)
            axes.axvline(chance, color=_CHANCE, lw=1, ls="--")
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(f"{name} (chance {chance:g})")
        line[0].set_yticks(range(len(shown)), [*shown.values()])
        line[0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def _curve(rows: Sequence[Scored], density: Mapping[int, float]) -> Figure:
    """AUROC within layers of every score against the step of the dense training; a panel a level."""
    rows = [row for row in rows if row.layer == MEAN and row.mask == TICKET]
    last = max((row.step for row in rows), default=0)
    figure, (panels,), levels = _panels(rows, density, 1, (2.9, 4.2))
    for axes, level in zip(panels, levels, strict=True):
        for name, (label, colour, marker) in _SCORES.items():
            points: dict[int, list[float]] = {}
            for row in rows:
                if (row.level, row.score) == (level, name) and row.auroc is not None:
                    points.setdefault(row.step, []).append(row.auroc)
            if not points:
                continue
            means, lows, highs, n = zip(
                *(mean_interval(of, within=SHARE) for of in points.values()), strict=True
            )
            wide = 2.2 if name == LOGISTIC else 1.2
            axes.plot([*points], means, color=colour, lw=wide, marker=marker, ms=4, label=label)
            for step, of_step in points.items():
                axes.plot([step] * len(of_step), of_step, ".", color=colour, ms=2.5, alpha=0.6)
            if name == LOGISTIC and n[0] >= draw.BAND_FROM:
                axes.fill_between([*points], lows, highs, color=colour, alpha=0.15, lw=0)
        axes.axhline(0.5, color=_CHANCE, lw=1, ls="--")
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xlim(-0.2, 1.4 * max(last, 1))
        if not last:
            axes.set_xticks([0])
        axes.set_xlabel("step of the dense training")
    panels[0].set_ylabel("AUROC within layers (chance 0.5)")
    draw.legend_below(figure, *panels)
    return figure


def _functional(trials: Sequence[Trial], density: Mapping[int, float]) -> Figure:
    """Test accuracy of predicted masks, trained, beside the ticket and random masks; a panel a level."""
    predicted = [trial for trial in trials if trial.mask == PREDICTED]
    figure, (panels,), levels = _panels(predicted, density, 1, (2.6, 3.6))
    for axes, level in zip(panels, levels, strict=True):
        for place, (mask, (_, colour, marker)) in enumerate(_MASKS.items()):
            own = accuracies(t for t in trials if (t.level, t.mask) == (level, mask))
            if own:
                at = place, [*own.values()], mean_accuracy(own), (colour, marker)
                draw.dots(axes, *at, beside=0.15, sizes=(5.0, 8.0))
        axes.set_xticks(range(len(_MASKS)), [name for name, _, _ in _MASKS.values()], fontsize=8)
        axes.set_xlim(-0.6, len(_MASKS) - 0.4)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("test accuracy at the end (%)")
    return figure


def _panels(
    rows: Sequence[Scored | Trial], density: Mapping[int, float], lines: int, size: tuple[float, float]
) -> tuple[Figure, np.ndarray, list[int]]:
    """A figure, its Axes [lines, levels], and the levels of its columns: at most four, the densest first."""
    levels = draw.thinned(sorted({row.level for row in rows}), _PANELS)
    figure = Figure(
        figsize=(2.2 + size[0] * max(len(levels), 1), size[1] * lines + 0.3), layout="constrained"
    )
    grid = figure.subplots(lines, max(len(levels), 1), squeeze=False, sharey="row")
    for axes, level in zip(grid[0], levels, strict=False):
        n = len({row.seed for row in rows if row.level == level})
        axes.set_title(
            f"{words.share(density[level])} of weights ({words.seeds(n)})", loc="left", fontsize=11
        )
    return figure, grid, levels
