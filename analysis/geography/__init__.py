"""Lottery geography: how much the tickets of a run's seeds overlap, by layer and by input, matched and not.

    python -m analysis.geography runs/quickstart-0123abcd
    python -m analysis.geography runs/quickstart-0123abcd --levels 4 8 11 --draws 10

Are two seeds' tickets the same up to the order of their hidden units? Every pair of seeds is compared as it
is, after its units are matched by their masks, and after they are matched by the magnitudes of their trained
weights (`lthjax.measures.geography`). The same comparison of tickets shuffled within their layers is chance.
Trains nothing. Writes RUN/geography:

    overlap.csv     `OverlapRow`: the overlap of every pair, layer and way of matching
    inputs.csv      `InputRow`: how every pixel (of a convolution every tap) is read
    geography_overlap, geography_inputs      figures, as PNG, SVG and CSV
"""

from collections.abc import Mapping
from typing import Any

from lthjax.measures import stats
from lthjax.measures.geography import ALL, INPUTS, SHUFFLED

from .. import words
from ..claims import SUPERIOR, At, everywhere, named
from ..page import Link, Section
from ..record import Analysis, Finding, may_be_wired, untested
from ..run import Run
from . import figures
from .table import TABLES, load, over_seeds, seeds_at, whole_units
from .work import Options, work

# Overlap from which on two tickets would be called the same.
SAME = 0.9
_OUTSIDE = "of a Flax module of one's own it is not known which of its layers share units"
_UNITS = "whole units are pruned: matched by masks, any two tickets with as many units agree"
# Overlap, and correlation, that counts as chance where none above it is found.
_NONE = {"overlap": 0.01, "correlation": 0.1}
# Claim -> matching, layer, the mask whose overlap is subtracted, and the threshold.
_CLAIMS = {
    "Tickets of different seeds overlap by more than chance": ("none", ALL, SHUFFLED, 0.0),
    "… after matching their units by masks": ("masks", ALL, SHUFFLED, 0.0),
    "… after matching their units by magnitudes": ("magnitudes", ALL, SHUFFLED, 0.0),
    f"Tickets are the same up to the order of their units (overlap of {SAME:g} or more)":
        ("masks", ALL, "", SAME),
    "Tickets of different seeds read the same inputs": ("none", INPUTS, SHUFFLED, 0.0),
}  # fmt: skip


def section(run: Run, found: Mapping[str, Any]) -> Section:
    """The report's section."""
    return Section("geography", "Tickets of different seeds", figures=figures.drawn(found))


def findings(run: Run, found: Mapping[str, Any] | None) -> list[Finding]:
    """How alike the tickets of a run's seeds are. A claim is one about every level that was compared."""
    if found is None:
        if not may_be_wired(run):
            return [untested(claim, _OUTSIDE, "") for claim in _CLAIMS]
        command = words.command("geography", run.path)
        return [untested(claim, "tickets were not compared", command) for claim in _CLAIMS]
    rows = found["overlap.csv"]
    levels = sorted({row.level for row in rows})
    said = []
    where = Link("tickets of different seeds", "#geography")
    for claim, (matching, layer, above, threshold) in _CLAIMS.items():
        if matching == "masks" and whole_units(run):
            said.append(untested(claim, _UNITS, where))
            continue
        every = ((n, over_seeds(rows, n, layer, matching, above=above)) for n in levels)
        values = {n: of_level for n, of_level in every if of_level}
        if not values:
            continue
        # A difference from chance, and a correlation, may be below 0.
        within = stats.ANY if above or layer == INPUTS else stats.SHARE
        kind = "correlation" if layer == INPUTS else "overlap"
        margin = _NONE[kind]
        # Two seeds have one pair: nothing is known of how it varies.
        tested = everywhere(
            [
                At(
                    f"{'above chance ' if above else ''}at level {level}",
                    stats.verdict(of_level, threshold, within=within),
                    stats.equivalent(of_level, margin) if above else None,
                )
                for level, of_level in values.items()
            ]
        )
        n = min(seeds_at(rows, level) for level in values)
        test = named(tested, f"{SUPERIOR}{f' to {threshold:g}' if threshold else ''}", f"±{margin:g}")
        estimate = f"{kind} {tested.said('+.3f')}"
        said.append(Finding(claim, tested.outcome, estimate, n, where, test))
    return said


ANALYSIS = Analysis(
    "geography", "Tickets of different seeds", Options, work, TABLES, section, findings, load=load
)
