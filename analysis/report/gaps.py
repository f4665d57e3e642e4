"""The report's tables of differences: level by level, over all densities, and collapsed runs."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import words
from ..page import Table
from ..rows import TICKET, Row, accuracies, arms, densities, select
from .paired import TOLERANCE, curves, differences

# Sign flips are counted one by one up to so many seeds.
_FLIPPED = 20


class Compared(NamedTuple):
    """Ticket − another arm at a level, over seeds, as in differences.csv.

    Attributes:
        chain, level: of the ticket.
        density: mean over seeds of weights left / prunable weights.
        arm, other: arm − other; "dense" is the network before pruning.
        n: seeds.
        difference_points, low, high: mean in percentage points, with its 95 % interval.
        p_t, p_holm, p_sign_flips: two-sided p-values: by t, the same by Holm within the control, by exact
            sign flips (up to 20 seeds).
        hedges_gz, gz_low, gz_high: effect size with its 95 % interval; None for two seeds, or where all
            agree and there is no floor.
    """

    chain: str
    level: int
    density: float
    arm: str
    other: str
    n: int
    difference_points: float
    low: float
    high: float
    p_t: float | None
    p_holm: float | None
    p_sign_flips: float | None
    hedges_gz: float | None
    gz_low: float | None
    gz_high: float | None


def compared(rows: Sequence[Row], chain: str, images: int = 0) -> list[Compared]:
    """Ticket against the dense network and every control at every level with two seeds or more.

    `images` of the test set give the floor of the spread, 0 none.
    """
    found = []
    for other in (DENSE, *(arm for arm in arms(select(rows, chain=chain)) if arm != TICKET)):
        levels = [
            level for level in differences(rows, chain, TICKET, other, images=images) if len(level.values) > 1
        ]
        by_t = [stats.t_p_value(level.values, floor=level.floor) for level in levels]
        for level, p, adjusted in zip(levels, by_t, stats.holm(by_t), strict=True):
            interval = stats.mean_interval(level.values, floor=level.floor)
            n = len(level.values)
            flips = stats.sign_flip_p_value(level.values) if n <= _FLIPPED else None
            p_values = [_known(value) for value in (p, adjusted, flips)]
            effect = [_known(value) for value in stats.hedges_gz(level.values, floor=level.floor)[:3]]
            where = (chain, level.level, level.density, TICKET, other)
            found.append(Compared(*where, n, *interval[:3], *p_values, *effect))
    return found


def words_of(of: Compared) -> list[str]:
    """A difference as a line of a table: weights, difference, points, n, three p-values, effect size."""
    interval = stats.Interval(of.difference_points, of.low, of.high, of.n)
    effect = f"{of.hedges_gz:+.1f} [{of.gz_low:+.1f}, {of.gz_high:+.1f}]" if of.hedges_gz is not None else "–"
    p_values = ["–" if p is None else words.p_value(p) for p in (of.p_t, of.p_holm, of.p_sign_flips)]
    return [
        f"{100 * of.density:.1f}",
        f"{of.arm} − {of.other}",
        words.points(interval),
        str(of.n),
        *p_values,
        effect,
    ]


def gaps(rows: Sequence[Row], chain: str, images: int = 0) -> Table:
    """The table of `compared`, with p-values and effect sizes."""
    lines = [words_of(one) for one in compared(rows, chain, images)]
    header = ["weights (%)", "difference", "pp", "n", "p (t)", "p (Holm)", "p (sign flips)", "Hedges' g_z"]
    return Table(words.rewound(chain).capitalize(), header, lines, 2)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def summaries(rows: Sequence[Row], chain: str, images: int = 0) -> Table:
    """Every arm over all densities: how sparse it matches the dense network, and its area to the ticket.

    `images` of the test set give the floor of the area's spread, 0 none.
    """
    dense = accuracies(select(rows, chain=DENSE))
    tickets, lines = curves(rows, chain, TICKET), []
    for arm in arms(select(rows, chain=chain)):
        # A network that diverged matches nothing, and has no area.
        of_arm, with_failed = curves(rows, chain, arm), curves(rows, chain, arm, diverged=True)
        matches = [
            ", ".join(
                "none" if least is None else f"{'≤ ' if last else ''}{100 * least:.1f}"
                for least, last in stats.sparsest_matches(with_failed, dense, margin).values()
            )
            for margin in (0.0, TOLERANCE, 2.0)
        ]
        both = [seed for seed in of_arm if seed in tickets and seed in dense]
        areas = [stats.area_between(tickets[seed], of_arm[seed]) for seed in both]
        known, floor = [area for area in areas if area is not None], _floor(rows, chain, arm, images)
        area = words.points(stats.mean_interval(known, floor=floor))
        lines.append([arm, *matches, "" if arm == TICKET else area])
    header = ["arm", "matches dense down to (%), each seed", f"within {TOLERANCE:g} pp", "within 2 pp",
              "ticket − arm, mean over log density (pp)"]  # fmt: skip
    return Table(f"Over all densities, {words.rewound(chain)}", header, lines, 4)


def _floor(rows: Sequence[Row], chain: str, arm: str, images: int) -> float:
    """The floor of a seed's mean of ticket − arm over log density: the same mean of its levels' floors.

    The standard deviation of a weighted mean is at most the weighted mean of those of its terms, however
    these are correlated, as the levels are by their test images.
    """
    levels = differences(rows, chain, TICKET, arm, images=images)
    floors = {level.density: level.floor for level in levels if level.density}
    return stats.area_between(floors.items(), dict.fromkeys(floors, 0.0).items()) or 0.0


def collapsed(rows: Sequence[Row], classes: int) -> Table | None:
    """The share of runs below twice chance; None where there are none, and for less than three classes.

    Every repeat counts. Repeats of a seed are not independent, so that their share has no interval.
    """
    if classes < 3:
        return None
    lines = []
    for chain, level, arm in dict.fromkeys((row.chain, row.level, row.arm) for row in rows):
        of_cell = select(rows, chain=chain, level=level, arm=arm)
        known = [(row.seed, row.test_accuracy) for row in of_cell if row.test_accuracy is not None]
        fractions = [fraction for _, fraction in known]
        share = stats.collapse_share(fractions, classes)
        if share.collapsed:
            repeated = len(dict(known)) < len(known)
            bounds = "–" if repeated else f"{100 * share.low:.0f}–{100 * share.high:.0f} %"
            median = f"{100 * statistics.median(fractions):.2f}"
            cell = [chain, f"{100 * densities(of_cell)[level]:.1f}", arm]
            lines.append([*cell, f"{share.collapsed} of {share.n}", bounds, median])
    header = ["chain", "weights (%)", "arm", "collapsed", "95 % interval", "median accuracy (%)"]
    return Table("Collapsed runs", header, lines, 3) if lines else None
