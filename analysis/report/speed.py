"""Learning speed: the early-stop step of the dense network and of controls over the ticket's.

The early-stop step is the one of the lowest validation loss. Where that is the last evaluation, the network
might have gone on learning: its step is at least that, and the ratio is known by a bound.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Ratio

from .. import words
from ..ends import total
from ..page import Drawn, Section, Table
from ..rows import TICKET, Row, arms, by_level, densities, select, ticket_chains
from ..run import Run
from . import figures
from .paired import earliest

TITLE, ANCHOR = "Learning speed", "speed"
# The bounds of a mean of which nothing is known.
_NOTHING = (0.0, math.inf)


class Level(NamedTuple):
    """How many times as many steps an arm takes as the ticket, at one level.

    Attributes:
        level: of the chain.
        density: weights left / prunable weights.
        ratios: one a seed, or its bounds.
        seeds: whose the ratios are.
    """

    level: int
    density: float
    ratios: list[Ratio]
    seeds: list[int]

    @property
    def censored(self) -> int:
        """How many seeds are known only by bounds."""
        return sum(ratio.low != ratio.high for ratio in self.ratios)


def slower(rows: Sequence[Row], chain: str, other: str, end: int) -> list[Level]:
    """The steps of an arm, or of the dense network, over those of the ticket, level by level.

    Args:
        rows: of the run.
        chain: of the tickets.
        other: the arm, or "dense".
        end: the step at which every training ends.
    """
    dense, found = _steps(select(rows, chain=DENSE)), []
    others = by_level(select(rows, chain=chain, arm=other))
    tickets = by_level(select(rows, chain=chain, arm=TICKET))
    for level, density in densities(select(rows, chain=chain, arm=TICKET)).items():
        ours = _steps(tickets[level])
        theirs = dense if other == DENSE else _steps(others.get(level, []))
        both = sorted(ours.keys() & theirs.keys())
        if both:
            ratios = [stats.step_ratio(theirs[seed], ours[seed], end) for seed in both]
            found.append(Level(level, density, ratios, both))
    return found


def _steps(rows: Sequence[Row]) -> dict[int, list[int]]:
    """Seed -> the early-stop steps of its repeats; without untrained and diverged networks."""
    found: dict[int, list[int]] = {}
    for row in rows:
        if row.steps and row.early_stop_step:
            found.setdefault(row.seed, []).append(row.early_stop_step)
    return found


def section(run: Run, heading: str) -> list[Section]:
    """The report's section; none where no ticket has a network to be compared with."""
    end, lines, unknown, mean = total(run.about, run.rows), [], [], "the ratio"
    tickets = ticket_chains(run.rows)
    for chain in tickets:
        for other in _others(run.rows, chain):
            levels = slower(run.rows, chain, other, end)
            known = [level for level in levels if _bounds(level) != _NOTHING]
            lines += [_line(chain, other, level) for level in known]
            if len(known) < len(levels):
                which = f"{other} ({chain})" if len(tickets) > 1 else other
                unknown.append(f"{which} {_at(len(levels) - len(known), len(levels))}")
                mean = "the mean" if any(len(level.ratios) > 1 for level in levels) else mean
    if not (lines or unknown):
        return []
    header = [
        "chain",
        "steps of",
        "weights (%)",
        "times the ticket's",
        "one-sided bounds",
        "n",
        "known by a bound",
    ]
    tables = [Table("", header, lines, 2)] if lines else []
    which = f"of {', of '.join(unknown)}; these have no row" if lines else "at any level; there is no table"
    notes = [_UNKNOWN.format(mean, which)] if unknown else []
    shown = {other: slower(run.rows, tickets[0], other, end) for other in _others(run.rows, tickets[0])}
    return [Section(ANCHOR, TITLE, notes, [_drawn(shown, heading, run)], tables, _REMARK if lines else "")]


def _others(rows: Sequence[Row], chain: str) -> list[str]:
    return [DENSE, *(arm for arm in arms(select(rows, chain=chain)) if arm != TICKET)]


def _at(some: int, levels: int) -> str:
    """At how many of the levels: `at 9 of 11 levels`."""
    return f"at {some} of {levels} levels" if levels > 1 else "at the only level"


def _bounds(level: Level) -> tuple[float, float]:
    """The one-sided bounds of the mean; of a single seed its own."""
    _, low, high, n = stats.geometric_bounds(level.ratios)
    return (low, high) if n > 1 else (level.ratios[0].low, level.ratios[0].high)


def _line(chain: str, other: str, level: Level) -> list[str]:
    (low, high), n = _bounds(level), len(level.ratios)
    interval = "–"
    if not level.censored:
        interval = words.times(stats.geometric_interval([ratio.low for ratio in level.ratios]))
    bounds = f"{low:.2f} to {high:.2f}"
    if not (low and math.isfinite(high)):
        bounds = f"at least {low:.2f}" if low else f"at most {high:.2f}"
    bounds = bounds if n > 1 else "–"
    share = f"{level.censored} ({100 * level.censored / n:.0f} %)" if level.censored else "0"
    return [chain, other, f"{100 * level.density:.1f}", interval, bounds, str(n), share]


def _drawn(shown: Mapping[str, Sequence[Level]], heading: str, run: Run) -> Drawn:
    caption = (
        "Early-stop step (the one of the lowest validation loss) of the dense network and of the controls "
        "over that of the ticket of the same seed; above 1 the ticket learns faster. Small points are seeds. "
        "Where a network's loss was lowest at the last evaluation, its ratio is known by a bound: a triangle "
        "that points to where it may lie. Lines are geometric means over seeds with the band of the 95 % "
        "interval of Student's t on logarithms, at levels where every seed is known. Steps are those of "
        f"evaluations, {run.lengths.evaluate:,} apart. Look for where a line leaves 1."
    )
    if which := earliest(run.rows):
        caption += f" Tickets and controls are those {which}."
    header = ("arm", "level", "density", "seed", "at_least", "at_most")
    rows = [
        (other, level.level, level.density, seed, ratio.low, ratio.high)
        for other, levels in shown.items()
        for level in levels
        for seed, ratio in zip(level.seeds, level.ratios, strict=True)
    ]
    figure = figures.speed(shown, f"{heading}: learning speed")
    return Drawn(
        "speed", "How many times the ticket's steps the others take", figure, caption, (header, rows)
    )


_UNKNOWN = (
    "No bound of {} is known {}. Too many of the networks, or of their tickets, have their lowest validation "
    "loss at the last evaluation; a longer training (train.steps) may tell more."
)
_REMARK = (
    "Geometric means with the 95 % interval of Student's t on logarithms; bounds of the mean one by one, "
    "each at 95 %. A network whose validation loss is lowest at the last evaluation may not have learned all "
    "that it would: its step is a lower bound, there is no mean over bounds, and the share of such seeds is "
    "given."
)
