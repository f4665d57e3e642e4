"""Schedules at equal density: accuracies interpolated between levels, the best one chosen on validation."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lthjax.measures import stats
from lthjax.measures.stats import Alternative, mean_interval

from .. import words
from ..differences import floor, mean_accuracy
from ..page import Table
from ..record import LEAST_SEEDS, Said
from .entries import Entry, highest

_ALPHA = 0.05


class Apart(NamedTuple):
    """A schedule against the best one at a density.

    Attributes:
        entry: the schedule.
        values: it − the best in percentage points of test accuracy, one a seed; empty for the best itself.
        floor: the least standard deviation of a value: what the test set leaves open.
        p: two-sided, by t, adjusted by Holm over the schedules compared at the density; NaN for the best and
            for a single seed.
    """

    entry: Entry
    values: list[float]
    floor: float
    p: float

    @property
    def outcome(self) -> str:
        """Whether it is "worse" or "better" than the best, "undecided", or has "too few seeds"."""
        if len(self.values) < LEAST_SEEDS:
            return "too few seeds"
        return "undecided" if not self.p < _ALPHA else "worse" if sum(self.values) < 0 else "better"


def at(entry: Entry, density: float, validation: bool = False) -> dict[int, float]:
    """Seed -> accuracy in percent at a density, linear in log density between the two levels around it.

    Seeds that lack one of the two, as it diverged or is not trained, are left out: a line across levels is no
    measurement of them. A level within half a percent of the density is enough.
    """
    levels: dict[float, Mapping[int, float]] = {level: {} for level in entry.diverged}
    levels |= {point.density: point.validation if validation else point.accuracies for point in entry.tickets}
    levels[1.0] = entry.dense_validation if validation else entry.dense
    left = sorted(level for level in levels if level > 0)
    if left[0] > 1.005 * density:
        return {}
    sparser, denser = [of for of in left if of <= density], [of for of in left if of >= density]
    around = sorted({*sparser[-1:], *denser[:1]})
    needed = [level for level in around if abs(level - density) <= 0.005 * density][:1] or around
    found = {}
    for seed in levels[needed[0]]:
        curve = [(level, levels[level][seed]) for level in around if seed in levels[level]]
        if all(seed in levels[level] for level in needed):
            within = min(max(density, curve[0][0]), curve[-1][0])
            found[seed] = stats.interpolated(curve, within)
    return {seed: value for seed, value in found.items() if value is not None}


def compared(entries: Sequence[Entry], density: float) -> list[Apart]:
    """The schedules that reach a density, the best first: the `highest` by validation accuracy."""
    there = {entry.name: entry for entry in entries if at(entry, density) and at(entry, density, True)}
    if len(there) < 2:
        return []
    best = [*there][highest([at(of, density, True) for of in there.values()])]
    ours = at(there[best], density)
    others = [_apart(of, at(of, density), ours) for name, of in there.items() if name != best]
    tested = [one for one in others if not math.isnan(one.p)]
    adjusted = dict(zip((one.entry.name for one in tested), stats.holm([of.p for of in tested]), strict=True))
    found = [one._replace(p=adjusted.get(one.entry.name, math.nan)) for one in others]
    return [Apart(there[best], [], 0.0, math.nan), *found]


def _apart(entry: Entry, theirs: dict[int, float], ours: dict[int, float]) -> Apart:
    """The difference theirs − ours with its own p-value; of the schedule `entry` against the best one."""
    values, least = stats.paired(theirs, ours), floor(theirs, ours, entry.images)
    return Apart(entry, values, least, stats.t_p_value(values, floor=least))


class Contrast(NamedTuple):
    """The claim that one schedule is better than another at a density.

    Attributes:
        outcome: by one-sided p-values, adjusted by Holm over all claims made together.
        values: one − the other in percentage points, one a seed.
        floor: the least standard deviation of a value, as in `Apart`.
        p: the smaller of the two adjusted p-values.
        confidence: of the bound that decides: that at which Holm's step tests the claim.
    """

    outcome: Said
    values: list[float]
    floor: float
    p: float
    confidence: float

    def __str__(self) -> str:
        """The difference with the bound that decides, and the p-value."""
        found = stats.verdict(self.values, 0.0, self.confidence, floor=self.floor)
        decided = self.outcome in ("supported", "refuted")
        shown = words.decided(
            found if decided else found._replace(outcome="undecided"), "+.2f", " pp", rule=""
        )
        return f"{shown}, one-sided p (Holm) {words.p_value(self.p)}"


def contrasts(pairs: Sequence[tuple[Entry, Entry]], density: float) -> list[Contrast]:
    """The claims that the first of each pair is better at a density; all are adjusted together.

    Each direction is a family of its own, as supported and refuted are of a single claim. Of a claim that is
    decided the bound has the confidence of its step in Holm's order, else that of the first step.
    """
    apart = [_apart(other, at(one, density), at(other, density)) for one, other in pairs]
    sides: tuple[Alternative, ...] = ("greater", "less")
    by_t = [[stats.t_p_value(of.values, 0.0, side, of.floor) for of in apart] for side in sides]
    # A single seed has no p-value.
    known = [[1.0 if math.isnan(p) else p for p in of_side] for of_side in by_t]
    by_side = [stats.holm(of_side) for of_side in known]
    found = []
    for place, of in enumerate(apart):
        more, less = (adjusted[place] for adjusted in by_side)
        outcome: Said = "supported" if more < _ALPHA else "refuted" if less < _ALPHA else "undecided"
        steps = len(apart)
        if outcome != "undecided":
            side = known[0 if outcome == "supported" else 1]
            steps -= sorted(range(steps), key=lambda other: side[other]).index(place)
        few = len(of.values) < LEAST_SEEDS
        said = "too few seeds" if few else outcome
        found.append(Contrast(said, of.values, of.floor, min(more, less), 1 - _ALPHA / steps))
    return found


def table(entries: Sequence[Entry], densities: Sequence[float]) -> Table:
    """Every schedule against the best one at equal density."""
    lines = []
    for density in densities:
        for place, one in enumerate(compared(entries, density)):
            accuracy = mean_accuracy(at(one.entry, density))
            line = [f"{100 * density:.1f}", one.entry.name, words.percent(accuracy)]
            if place == 0:
                lines.append([*line, "best on validation", str(accuracy.n), "–", "–"])
            else:
                gap = mean_interval(one.values, floor=one.floor)
                lines.append([*line, words.points(gap), str(gap.n), words.p_value(one.p), one.outcome])
    header = ["weights (%)", "schedule", "accuracy (%)", "− best (pp)", "n", "p (Holm)", "than the best"]
    return Table("At equal density", header, lines, 2)
