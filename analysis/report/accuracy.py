"""The figures of a report that show accuracy: against weights left, against the controls, over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lthjax import imp
from lthjax.imp import DENSE

from .. import draw
from ..differences import FLOORED
from ..page import Drawn, Section
from ..rows import (
    TICKET,
    Row,
    arms,
    asked_levels,
    by_level,
    by_seed,
    chains,
    controlled,
    densities,
    grouped,
    images_of,
    select,
)
from ..run import Run
from . import figures, paired
from .figures import Curve, Curves

# Learning curves are shown at the levels nearest to these densities, and at the last, of those that have a
# control, for these arms.
_SHOWN = (0.2, 0.1)
_AT_MOST = ("ticket", "reinit", "random")
_ASIDE = " The arms of the only level stand beside one another."
# The figures of `drawn`, in words.
_FIGURES = {
    "accuracy": "accuracies",
    "gaps": "differences to controls",
    "early_stop": "early-stop steps",
    "learning": "learning curves",
}


def section(run: Run, heading: str) -> Section:
    """The report's section: the figures, and notes on what they lack."""
    rows, found = run.rows, drawn(run, heading)
    there = {one.name for one in found} | ({"accuracy"} if measured(rows) else set())
    absent = [words for name, words in _FIGURES.items() if name not in there]
    notes = []
    if absent:
        notes.append(f"Not shown, as no trained cells have what is needed: {', '.join(absent)}.")
    emptied = sorted({row.level for row in rows if not row.density})
    if emptied:
        several = f"levels {emptied[0]} to {emptied[-1]}" if len(emptied) > 1 else f"level {emptied[0]}"
        notes.append(
            f"Networks of {several} have no weight left. They have no place on the log scales of "
            "densities, nor in what is computed over log density; tables show them."
        )
    return Section("accuracy", "Accuracy", notes, found)


def drawn(run: Run, heading: str) -> list[Drawn]:
    """The figures for which a run has data, without the one that the report opens with."""
    rows = run.rows
    if not measured(rows):
        return []
    # "" where no ticket is trained yet; it has no rows.
    chain = next((chain for chain in chains(rows) if imp.leader(chain) == TICKET), "")
    controls = [arm for arm in arms(select(rows, chain=chain)) if arm != TICKET]
    images = images_of(run.about)
    gaps = {arm: paired.differences(rows, chain, TICKET, arm, images=images) for arm in controls}
    learning = _learning(run, rows, chain)
    of_chain = f" Tickets and controls are those {which}." if (which := paired.earliest(rows)) else ""
    found = []
    if any(gaps.values()):
        found.append(_gaps(gaps, heading, of_chain))
    if any(row.early_stop_step for row in rows):
        found.append(_early_stop(rows, heading))
    if learning:
        trained = arms([row for row in rows if row.status == "done" and row.steps])
        left_out = [arm for arm in trained if not any(arm in curves for curves in learning.values())]
        found.append(_curves(learning, heading, of_chain, left_out))
    return found


def measured(rows: Sequence[Row]) -> bool:
    """Whether any network has an accuracy; one that diverged has none."""
    return any(row.test_accuracy is not None for row in rows)


def overview(rows: Sequence[Row], heading: str) -> Drawn:
    """The figure that the report opens with: accuracy against weights left."""
    caption = (
        "Test accuracy at the end of training for every level and arm. Points are seeds (repeats averaged), "
        f"lines their mean, {draw.FIRST_BANDS} the 95 % interval of the mean by "
        "Student's t on the logit scale. The dense network is the horizontal line. Look for how far to the "
        "right the ticket stays at it, and where the controls leave it."
    )
    if figures.is_far(rows):
        caption += " The lower panel shows the same near the dense network."
    if figures.one_level(rows):
        caption += _ASIDE
    title, figure = "Test accuracy against weights left", figures.accuracy(rows, f"{heading}: accuracy")
    return Drawn("accuracy", title, figure, caption, _points(rows, "test_accuracy", 100))


def _points(rows: Sequence[Row], column: str, unit: float = 1) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """(header, rows): the points of a figure against weights left, one a seed; its repeats are averaged."""
    header = (
        "chain",
        "arm",
        "level",
        "weights_left_percent",
        "seed",
        f"{column}{'_percent' if unit > 1 else ''}",
    )
    lines: list[Sequence[Any]] = [
        (chain, arm, level, 100 * density, seed, unit * value)
        for chain in (DENSE, *chains(rows))
        for arm in ([DENSE] if chain == DENSE else arms(select(rows, chain=chain)))
        for level, own in by_level(select(rows, chain=chain, arm=arm)).items()
        for density in [sum(row.density for row in own) / len(own)]
        for seed, value in by_seed(own, column).items()
    ]
    return header, lines


def _early_stop(rows: Sequence[Row], heading: str) -> Drawn:
    caption = (
        "The step of the lowest validation loss, found after training, among the steps at which it was "
        "evaluated; a lower one means faster learning. Points, lines and bands as in the first figure."
    )
    trained = [row for row in rows if row.steps]
    if any((row.early_stop_step or 0) >= figures.last_step(trained) for row in trained):
        caption += (
            " A triangle is a seed whose loss was lowest at the last evaluation: its step is at least that. "
            "Means of such seeds are lower bounds, and their lines have no interval."
        )
    figure = figures.early_stop(rows, f"{heading}: early stopping")
    title = "Early-stop step against weights left"
    return Drawn("early_stop", title, figure, caption, _points(trained, "early_stop_step"))


def _gaps(gaps: Mapping[str, Sequence[paired.Level]], heading: str, of_chain: str) -> Drawn:
    """`of_chain` ends the caption: which tickets they are."""
    caption = (
        "Test accuracy of the ticket minus that of a control of the same seed and level, in percentage "
        "points, at the end of training. Points are seeds, lines their mean, "
        f"{draw.BANDS} the 95 % interval of the mean by Student's t, {FLOORED}. A grey band, where the "
        "axis reaches so far, is the gap of 10 to 15 points that is often claimed. Look for where a line "
        "leaves zero."
    )
    if len({level.level for levels in gaps.values() for level in levels}) == 1:
        caption += _ASIDE
    header = ("arm", "level", "density", "seed", "ticket_minus_arm_points")
    lines = [
        (arm, level.level, level.density, seed, value)
        for arm, levels in gaps.items()
        for level in levels
        for seed, value in zip(level.seeds, level.values, strict=True)
    ]
    figure = figures.gaps(gaps, f"{heading}: ticket − control")
    title = "How much better tickets are than their controls"
    return Drawn("gaps", title, figure, f"{caption}{of_chain}", (header, lines))


def _curves(
    learning: Mapping[str, Curves], heading: str, of_chain: str, left_out: Sequence[str] = ()
) -> Drawn:
    """`of_chain` as for `_gaps`; `left_out` are the trained arms that no panel shows."""
    caption = (
        "Test accuracy over training, mean over seeds (repeats averaged), with the band of the 95 % interval "
        "from three seeds on, cut off at the figure's edge; one panel a level, on shared axes. The dense "
        "network is in every panel. Look for which arm rises first, and which ends highest."
    )
    if left_out:
        caption += f" Not drawn: {', '.join(left_out)}."
    header = ("panel", "arm", "step", "seed", "test_accuracy_percent")
    lines = [
        (panel, arm, int(step), seed, float(value))
        for panel, curves in learning.items()
        for arm, (steps, values, seeds) in curves.items()
        for seed, of_seed in zip(seeds, values, strict=True)
        for step, value in zip(steps, of_seed, strict=True)
    ]
    figure = figures.learning(learning, f"{heading}: learning curves")
    return Drawn("learning", "Learning curves", figure, f"{caption}{of_chain}", (header, lines))


def _learning(run: Run, rows: Sequence[Row], chain: str) -> dict[str, Curves]:
    """Panel -> its curves."""
    tickets = [row for row in select(rows, chain=chain, arm="ticket") if row.status == "done"]
    dense, panels = _of_cells(run, select(rows, chain=DENSE)), {}
    left, controls = densities(tickets), controlled(rows, chain, _AT_MOST)
    for level in asked_levels(None, left, "", _SHOWN, beside=controls) if tickets else []:
        of_level = select(rows, chain=chain, level=level)
        name = f"{100 * left[level]:.1f} % of the weights"
        if name in panels:
            name = f"{name}, level {level}"
        shown = {arm: _of_cells(run, select(of_level, arm=arm)) for arm in _AT_MOST}
        panels[name] = {arm: curves for arm, curves in {DENSE: dense, **shown}.items() if curves.seeds}
    return panels


def _of_cells(run: Run, rows: Sequence[Row]) -> Curve:
    """The learning curves of an arm's cells; the seed is the unit, its repeats are averaged."""
    done = [row for row in rows if row.status == "done" and row.steps]
    curves = {row.cell: run.results[row.cell]["curves"] for row in done}
    steps = next((curve["step"] for curve in curves.values()), [])
    of_seeds = {
        seed: np.mean([np.multiply(100, curves[row.cell]["test_accuracy"]) for row in own], 0)
        for seed, own in sorted(grouped(done, "seed").items())
    }
    return Curve(np.array(steps), np.array([*of_seeds.values()]), [*of_seeds])
