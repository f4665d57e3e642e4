"""The opening of the report: one sentence, one figure, at most six verdicts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import words
from ..page import Section, Table
from ..record import LEAST_SEEDS, Finding
from ..rows import TICKET, Row, diverged, images_of, select, ticket_chains
from ..run import Run
from . import accuracy, until
from .paired import TOLERANCE, Level, differences, earliest, first_diverged

TITLE, ANCHOR = "In short", "short"
# Of a single one-sided test.
_ALPHA = 0.05
# The beginnings of the claims that the report opens with, where they are tested.
_FIRST = (
    f"Tickets at 80–90 % sparsity are within {TOLERANCE:g} points",
    "Tickets beat reinitialised ones at 80–90 %",
    "Tickets beat reinitialised ones by 10–15 points",
    "Tickets beat random pruning at 80–90 %",
    "5–10× fewer weights within",
    "Tickets learn faster than the dense network",
)


def section(run: Run, heading: str, found: Sequence[Finding]) -> Section:
    """The opening of a run's page, from its rows and all its findings."""
    header = ["claim", "verdict", "estimate, and the bound that decides"]
    lines = [[of.claim, of.outcome, f"{of.estimate}{_mark(of)}"] for of in chosen(found)]
    tables = [Table("", header, lines, 3)] if lines else []
    figures = [accuracy.overview(run.rows, heading)] if accuracy.measured(run.rows) else []
    lead = sentence(run.about, run.rows, until.read(run.path))
    return Section(ANCHOR, TITLE, figures=figures, tables=tables, lead=lead)


def chosen(found: Sequence[Finding]) -> list[Finding]:
    """The verdicts of the opening: one for each of its claims that was tested, the first of each."""
    tested = [of for of in found if of.outcome != "not tested"]
    own = [next((of for of in tested if of.claim.startswith(first)), None) for first in _FIRST]
    return [of for of in own if of is not None]


def _mark(of: Finding) -> str:
    """What must be known beside a verdict, in few words."""
    for said in of.beside.split("; "):
        if said.startswith("so the claim does not tell"):
            return f"; it holds for {said.rpartition(' from ')[2]}, too"
        if "is still learning" in said:
            return f"; {said.partition(' (')[0]}"
    return ""


def sentence(study: Any, rows: Sequence[Row], looks: Mapping[str, until.State]) -> str:
    """What the run found, in one plain sentence.

    The level is the sparsest down to which the tickets of every level are found to be as good as the dense
    network, within half a point; if those of the densest level are not, within two. Of these, it is one at
    which the same mask on fresh weights was trained, if there is any. Levels are tested from the densest on
    up to the first that fails, a fixed-sequence test without multiplicity correction. Of several
    rewind steps it is of the earliest. No level is taken at which a ticket diverged, nor a sparser one.

    Args:
        study: study.json.
        rows: of the run.
        looks: the states of the claims for which seeds were added, whose tests are of the level of the looks.
    """
    tickets = ticket_chains(rows)
    levels: list[Level] = []
    if tickets:
        every = differences(rows, tickets[0], TICKET, DENSE, images=images_of(study))
        levels = [level for level in every if level.density]
    if not levels:
        why = (
            diverged(rows)
            or first_diverged(rows)
            or "no ticket has been trained beside its dense network yet"
        )
        return f"{why[0].upper()}{why[1:]}."
    lost = [row for row in select(rows, chain=tickets[0], arm=TICKET) if row.status == "diverged"]
    if not lost:
        return _found(study, rows, tickets[0], levels, looks)
    # What the other seeds reach there is not what tickets reach.
    first, seeds = min(lost, key=lambda row: row.level), len({row.seed for row in lost})
    said = _found(study, rows, tickets[0], [of for of in levels if of.level < first.level], looks)
    where = f"from {words.share(first.density)} of the weights on"
    return f"{said} Tickets of {words.seeds(seeds)} diverged, {where}."


def _found(
    study: Any, rows: Sequence[Row], chain: str, levels: Sequence[Level], looks: Mapping[str, until.State]
) -> str:
    """The sentence on the levels of the first chain at which no ticket diverged."""
    which = f" {said}" if (said := earliest(rows)) else ""
    if not levels:
        return f"No level has the tickets{which} of all seeds."
    fresh = {of.level: of for of in differences(rows, chain, "reinit", DENSE)}
    enough = [level for level in levels if len(level.values) >= LEAST_SEEDS]
    if not enough:
        return _of_few(levels, fresh, which)
    level_of = {key: of.level for key, of in looks.items() if of.chain in ("", chain)}
    alpha = level_of.get(f"within-{TOLERANCE:g}", _ALPHA)
    good, same = _as_good(levels, TOLERANCE, alpha), "as good as the dense network (within half a point, {})"
    if not good:
        alpha = level_of.get("within-2", _ALPHA)
        good, same = _as_good(levels, 2.0, alpha), "within 2 points of the dense network ({})"
    if not good and any(_loses_less(level, 2.0, alpha) for level in enough):
        first, *sparser = sorted(levels, key=lambda of: -of.density)
        best = max([level for level in sparser if level in enough], key=lambda level: level.mean)
        return (
            f"The densest tickets{which}, with {_share(first)} of the weights, are not found to be within 2 "
            f"points of the dense network ({_seeds(first)}), and sparser ones were not tested for this "
            f"sentence; of these those with {_share(best)} come nearest, {best.mean:+.1f} points "
            f"({_seeds(best)})."
        )
    if not good:
        best = max(enough, key=lambda level: level.mean)
        low = stats.noninferior(best.values, 2.0, 1 - alpha, floor=best.floor).bounds.low
        return (
            f"No level's tickets{which} can be told to be within 2 points of the dense network: they come "
            f"nearest with {_share(best)} of its weights, {best.mean:+.1f} points, at least {low:+.1f} "
            f"(one-sided {100 * (1 - alpha):.3g} %, {_seeds(best)})."
        )
    gaps = {
        of.level: of
        for of in differences(rows, chain, TICKET, "reinit", images=images_of(study))
        if of.level in fresh and min(len(of.values), len(fresh[of.level].values)) >= LEAST_SEEDS
    }
    last = min([level for level in good if level.level in gaps] or good, key=lambda level: level.density)
    control = ""
    if last.level in gaps:
        alpha = level_of.get("beats-reinit", _ALPHA)
        control = _control(last, fresh[last.level], gaps[last.level], alpha)
    return f"With {_share(last)} of its weights the ticket{which} is {same.format(_seeds(last))}{control}."


def _as_good(levels: Sequence[Level], margin: float, alpha: float) -> list[Level]:
    """The levels from the densest on whose tickets are found to lose less than the margin."""
    densest_first = sorted(levels, key=lambda of: -of.density)
    return [*itertools.takewhile(lambda level: _loses_less(level, margin, alpha), densest_first)]


def _loses_less(level: Level, margin: float, alpha: float) -> bool:
    """Whether a level's tickets are found to lose less than the margin, by a test of level `alpha`."""
    found = stats.noninferior(level.values, margin, 1 - alpha, floor=level.floor)
    return len(level.values) >= LEAST_SEEDS and found.outcome == "supported"


def _control(ticket: Level, fresh: Level, gap: Level, alpha: float) -> str:
    """What the same mask on fresh weights is worth: beside the dense network, and behind the ticket."""
    lost, outcome = fresh.mean, stats.verdict(gap.values, confidence=1 - alpha, floor=gap.floor).outcome
    same = "; the same mask on fresh weights"
    fewer = len(gap.values) < len(ticket.values)
    of = f" ({_seeds(gap)})" if fewer else ""
    if outcome == "supported":
        more = f"loses {-lost:.1f} points" if lost < 0 else f"is {gap.mean:.1f} points behind the ticket"
        return f"{same} {more}{of}"
    if outcome == "refuted":
        return f"{same} is {-gap.mean:.1f} points better still{of}"
    return f"{same} is not found to be worse ({lost:+.1f} points{f', {_seeds(gap)}' if fewer else ''})"


def _of_few(levels: Sequence[Level], fresh: dict[int, Level], which: str) -> str:
    """The sentence of one or two seeds: what was seen, without a verdict; `which` tickets they are."""
    matching = [level for level in levels if level.mean >= -TOLERANCE]
    shown = matching or levels
    last = min([level for level in shown if level.level in fresh] or shown, key=lambda level: level.density)
    control = ""
    if last.level in fresh:
        control = f", the same mask on fresh weights {_apart(fresh[last.level])} it"
    return (
        f"With {_share(last)} of its weights the ticket{which} is {_apart(last)} the dense network{control}; "
        f"{_seeds(last)} {'is' if len(last.values) == 1 else 'are'} too few for a verdict."
    )


def _apart(level: Level) -> str:
    """How far a level's networks are from the dense one: `0.3 points below`."""
    if abs(level.mean) < 0.05:
        return "within 0.05 points of"
    return f"{abs(level.mean):.1f} points {'below' if level.mean < 0 else 'above'}"


def _seeds(level: Level) -> str:
    """Of how many seeds a level is."""
    return words.seeds(len(level.values))


def _share(level: Level) -> str:
    """A density in a sentence: `17 %`, `8.9 %`."""
    percent = 100 * level.density
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"
