"""The figures of moved tickets: sources × targets, and the arms of a target."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lthjax.imp import DENSE
from lthjax.measures.stats import Interval
from lthjax.measures.transfer_arms import ARMS, CARRIED, MOVED, PERMUTED

from .. import draw, tables, words
from ..differences import FLOORED, mean_accuracy
from ..page import Drawn
from ..rows import TICKET, accuracies, grouped
from .table import AGAINST, ORDER, PAIRS, Difference, TransferRow, chain_words, differences, notes

# (source, target) -> mean difference.
_Intervals = Mapping[tuple[str, str], Interval]
# Arm of a line of panels, in its titles.
_SAID = {MOVED: "moved", CARRIED: "moved with init", PERMUTED: "moved, units matched"}
# Panels, or lines of panels, that a figure has at most; letters of a line of a title that fits a panel.
_MOST, _FITTING = 6, 40
# Arm -> colour, marker, label.
_LOOKS: dict[str, tuple[str, str, str]] = {
    DENSE: (draw.look(DENSE)[0], "_", "dense"),
    TICKET: (*draw.look(TICKET), "own\nticket"),
    MOVED: ("#CC79A7", "D", "moved"),
    CARRIED: ("#E69F00", "v", "moved\n+ init"),
    "transferred_reinit": (*draw.look("reinit"), "moved\nreinit"),
    PERMUTED: ("#000000", "*", "moved,\nunits\nmatched"),
    "shuffled": (*draw.look("random"), "shuffled"),
    "random_uniform": ("#56B4E9", "P", "random\nuniform"),
}


@matplotlib.rc_context({**draw.STYLE, "axes.grid": False})
def matrix(rows: Sequence[TransferRow], said: Mapping[str, str], images: Mapping[str, int]) -> Drawn:
    """Sources × targets: differences to the target's own ticket and to shuffled masks, in percentage points.

    There is a line of panels for every pairing, arm, level and chain, at most six. `said` has run folders in
    words, `images` the sizes of the targets' test sets.
    """
    found = differences(rows, images=images)
    pairs, names = list(PAIRS), list(ARMS)
    order = sorted(found, key=lambda one: (pairs.index(one.pair), names.index(one.arm), one.level))
    # Targets of one chain each share a line, whatever the chains are.
    chains = chain_words(rows)
    by_line = tables.grouped(((one.pair, one.arm, one.level, chains[one.chain]), one) for one in order)
    lines = draw.thinned([*by_line.items()], _MOST)
    sources = list(dict.fromkeys(one.source for one in found))
    targets = list(dict.fromkeys(one.target for one in found))
    most = max((abs(one.interval.mean) for one in found if one.other in AGAINST), default=0.0) or 1.0
    # Where every training diverged there is no line; the panels stay empty.
    count = max(len(lines), 1)
    size = (6.0 + 3.2 * len(targets), 0.6 + (1.7 + 0.85 * len(sources)) * count)
    figure = Figure(figsize=size, layout="constrained")
    grid, image = figure.subplots(count, 2, squeeze=False), None
    for panels, ((pair, arm, level, chain), own) in zip(grid, lines, strict=False):
        known = [one.density for one in own if one.other in AGAINST]
        share = words.share(float(np.mean(known)) if known else math.nan)
        for axes, (other, against) in zip(panels, AGAINST.items(), strict=True):
            shown = {(one.source, one.target): one.interval for one in own if one.other == other}
            image = _heat(axes, shown, (sources, targets), most)
            left = f"level {level}, {share} of weights"
            _title(axes, f"{_SAID[arm]} − {against}", left, f"{PAIRS[pair]}{chain}")
            axes.set_xticks(range(len(targets)), [_broken(said.get(t, t)) for t in targets], fontsize=8)
            labels = [_broken(said.get(s, s)) for s in sources] if axes is panels[0] else []
            axes.set_yticks(range(len(labels)), labels, fontsize=8)
        panels[0].set_ylabel("from", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.8, pad=0.01)
        bar.set_label("difference in test accuracy (pp)", fontsize=9)
    caption = (
        "Test accuracy of moved masks, on the target's own weights or with the source's initial values "
        "carried along (init) or units matched first, minus that of the target's own ticket of the nearest "
        "density, and of the same masks shuffled within layers, which have the densities of their layers "
        "alone and are always on the target's own weights. "
        f"Mean over the target's seeds with its 95 % interval, paired, {FLOORED}; grey: not "
        f"moved, or with init the same as without.{draw.left_out(len(by_line), _MOST, 'lines of panels')} "
        + " ".join(notes(rows))
    )
    data = (*Difference._fields[:-1], *Interval._fields), [(*one[:-1], *one.interval) for one in found]
    return Drawn("transfer_matrix", "Tickets elsewhere", figure, caption.strip(), data)


def _heat(axes: Axes, own: _Intervals, ends: Sequence[list[str]], most: float) -> AxesImage:
    """Differences as colours, up to `most` in either direction, and in words."""
    sources, targets = ends
    values = np.array([[own[s, t].mean if (s, t) in own else np.nan for t in targets] for s in sources])
    axes.set_facecolor("#EEEEEE")
    image = axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for (s, t), interval in own.items():
        text = words.interval(interval, "+.2f", "\n") + f"\nn = {interval.n}"
        colour = "white" if abs(interval.mean) > 0.6 * most else "black"
        place = (targets.index(t), sources.index(s))
        axes.text(*place, text.replace("-", "−"), ha="center", va="center", fontsize=8, color=colour)
    axes.tick_params(length=0)
    axes.set_xlabel("to", fontsize=9)
    return image


def _title(axes: Axes, *lines: str) -> None:
    """The title of a panel, with its lines broken where they would reach into the next panel."""
    broken = (textwrap.fill(line, _FITTING, break_on_hyphens=False) for line in lines)
    axes.set_title("\n".join(broken), loc="left", fontsize=8)


def _broken(text: str) -> str:
    """A run's words in lines."""
    return text.replace(", ", "\n").replace(" on ", "\non ")


@matplotlib.rc_context(draw.STYLE)
def permuted(rows: Sequence[TransferRow], said: Mapping[str, str], images: Mapping[str, int]) -> list[Drawn]:
    """What matching the units of a moved mask changes: a panel for every source, pairing and chain.

    Nothing where no mask was moved in both ways. `said` and `images` as for `matrix`.
    """
    shown = ((PERMUTED, MOVED), (PERMUTED, TICKET), (MOVED, TICKET))
    # With the own ticket as the measure: only what was moved in both ways.
    found = [one for one in differences(rows, images=images) if (one.arm, one.other) in shown]
    both = {(*one[:4], one.chain) for one in found if one.other == MOVED}
    found = [one for one in found if (*one[:4], one.chain) in both]
    by_place = grouped(found, "source", "pair", "chain")
    places = draw.thinned([*by_place.items()], _MOST)
    if not places:
        return []
    names = ("matched −\nunmatched", "matched −\nown ticket", "unmatched −\nown ticket")
    chains = chain_words(rows)
    heading = f"Moved to {said.get(rows[0].target, rows[0].target)}"
    figure, grid = draw.panels(heading, (1, len(places)), (0.6 + 4.4 * len(places), 3.8), sharey=True)
    for axes, ((source, pair, chain), own) in zip(grid[0], places, strict=True):
        levels = draw.thinned([*dict.fromkeys(one.level for one in own)], _MOST)
        for number, level in enumerate(levels):
            look = draw.series(number)
            of_level = [one for one in own if one.level == level]
            label = f"level {level}, {words.share(of_level[0].density)} of weights"
            for one in of_level:
                at = shown.index((one.arm, one.other)) + 0.22 * (number - (len(levels) - 1) / 2)
                first = label if one is of_level[0] else None
                draw.dots(axes, at, one.values, one.interval, look, beside=0.07, label=first)
        axes.axhline(0, **draw.CHANCE)
        _title(axes, f"from {said.get(source, source)}", f"{PAIRS[pair]}{chains[chain]}")
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.legend(fontsize=7)
        axes.grid(axis="x", visible=False)
    figure.supylabel("difference in test accuracy (pp)", fontsize=10)
    deep = max(len({one.level for one in own}) for own in by_place.values())
    caption = (
        "Masks moved to another seed, with their units matched first or as they are: the order of the units "
        "is that in which the source's dense network comes nearest to the target's (Git Re-Basin). Small "
        "points are seeds of the target, large ones their mean, lines its 95 % interval (of three seeds or "
        f"more), {FLOORED}. Above 0 on the left matching helped; on the right is what is lost "
        f"without it.{draw.left_out(len(by_place), _MOST, 'panels')}{draw.left_out(deep, _MOST, 'levels')} "
        + " ".join(notes(rows))
    )
    data = (*Difference._fields[:-1], *Interval._fields), [(*one[:-1], *one.interval) for one in found]
    return [Drawn("transfer_permuted", "Moved masks with their units matched", figure, caption.strip(), data)]


@matplotlib.rc_context(draw.STYLE)
def arms(rows: Sequence[TransferRow], said: Mapping[str, str]) -> Drawn:
    """Test accuracy of one target's arms: a panel for every source, pairing, level and chain, at most six."""
    by_place = grouped(rows, "source", "pair", "level", "chain")
    places = draw.thinned([*by_place.items()], _MOST)
    chains = chain_words(rows)
    names = [arm for arm in ORDER if any(row.arm == arm for row in rows)]
    columns = min(len(places), 3)
    lines = -(-len(places) // columns)
    size = (max(0.6 + 3.6 * columns, 6.0), 3.6 * lines + 0.4)
    heading = f"Moved to {said.get(rows[0].target, rows[0].target)}"
    figure, grid = draw.panels(heading, (lines, columns), size, sharex=True, sharey=True)
    for axes in grid.ravel()[len(places) :]:
        axes.set_visible(False)
    for axes, ((source, pair, level, chain), own) in zip(grid.ravel(), places, strict=False):
        for at, arm in enumerate(names):
            of = accuracies(row for row in own if row.arm == arm)
            if of:
                draw.dots(axes, at, list(of.values()), mean_accuracy(of), _LOOKS[arm][:2], beside=0.2)
        share = words.share(float(np.mean([row.density for row in own if row.arm in ARMS])))
        left, paired = f"level {level}, {share} of weights", f"{PAIRS[pair]}{chains[chain]}"
        _title(axes, f"from {said.get(source, source)}", left, paired)
        axes.set_xticks(range(len(names)), [_LOOKS[arm][2] for arm in names], fontsize=7)
        axes.tick_params(labelbottom=True)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.grid(axis="x", visible=False)
    figure.supylabel("test accuracy at the end (%)", fontsize=10)
    caption = (
        "Test accuracy at the end of training of every arm: the target's dense network and own ticket, the "
        "moved mask, and its controls. Small points are seeds, large ones their mean, lines its 95 % "
        "interval (of three seeds or more). There is no `transferred_init` where it is `transferred` bit for "
        f"bit, because the initial weights are shared.{draw.left_out(len(by_place), _MOST, 'panels')} "
        + " ".join(notes(rows))
    )
    header = ("source", "pair", "level", "chain", "arm", "seed", "test_accuracy")
    data = header, [tuple(getattr(row, name) for name in header) for row in rows]
    return Drawn("transfer_arms", "Moved tickets and their controls", figure, caption.strip(), data)
