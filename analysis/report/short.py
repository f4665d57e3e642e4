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
_UNTESTED = "sparser ones were not tested for this sentence"
# The beginnings of the claims that the report opens with, where they are tested; the first is of a margin.
_FIRST = (
    "Tickets at 80–90 % sparsity are within {:g} points",
    "Tickets beat reinitialised ones at 80–90 %",
    "Tickets beat reinitialised ones by 10–15 points",
    "Tickets beat random pruning at 80–90 %",
    "5–10× fewer weights within",
    "Tickets learn faster than the dense network",
)


def section(run: Run, heading: str, found: Sequence[Finding]) -> Section:
    """The opening of a run's page, from its rows and all its findings."""
    header, looks = ["claim", "verdict", "estimate, and the bound that decides"], until.read(run.path)
    shown = chosen(found, margin(run.about, run.rows, looks))
    lines = [[of.claim, of.outcome, f"{of.estimate}{_mark(of)}"] for of in shown]
    tables = [Table("", header, lines, 3)] if lines else []
    figures = [accuracy.overview(run.rows, heading)] if accuracy.measured(run.rows) else []
    lead = sentence(run.about, run.rows, looks)
    return Section(ANCHOR, TITLE, figures=figures, tables=tables, lead=lead)


def chosen(found: Sequence[Finding], margin: float) -> list[Finding]:
    """The verdicts of the opening: one for each of its claims that was tested, the first of each.

    `margin` is that of the sentence, in points: the table has the claim of the same.
    """
    tested, firsts = [of for of in found if of.outcome != "not tested"], [of.format(margin) for of in _FIRST]
    own = [next((of for of in tested if of.claim.startswith(first)), None) for first in firsts]
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
    up to the first that fails, a fixed-sequence test without multiplicity correction; where a sparser one
    would pass, the sentence says that it was not tested. Of several rewind steps it is of the earliest. No
    level is taken at which a ticket diverged, nor a sparser one.

    Args:
        study: study.json.
        rows: of the run.
        looks: the states of the claims for which seeds were added, whose tests are of the level of the looks.
    """
    tickets, levels = ticket_chains(rows), _levels(study, rows)
    if not levels:
        why = (
            diverged(rows)
            or first_diverged(rows)
            or "no ticket has been trained beside its dense network yet"
        )
        return f"{why[0].upper()}{why[1:]}."
    said = _found(study, rows, tickets[0], _whole(rows, levels), looks)
    if not (lost := _lost(rows)):
        return said
    first, seeds = min(lost, key=lambda row: row.level), len({row.seed for row in lost})
    where = f"from {words.share(first.density)} of the weights on"
    return f"{said} Tickets of {words.seeds(seeds)} diverged, {where}."


def margin(study: Any, rows: Sequence[Row], looks: Mapping[str, until.State]) -> float:
    """The points that the sentence's tickets may lose to the dense network; its arguments are the same."""
    levels = _whole(rows, _levels(study, rows))
    if not any(len(level.values) >= LEAST_SEEDS for level in levels):
        return TOLERANCE
    return _test(levels, _alphas(ticket_chains(rows)[0], looks))[0]


def _levels(study: Any, rows: Sequence[Row]) -> list[Level]:
    """The levels of the first chain at which tickets stand beside their dense network."""
    tickets, images = ticket_chains(rows), images_of(study)
    every = differences(rows, tickets[0], TICKET, DENSE, images=images) if tickets else []
    return [level for level in every if level.density]


def _lost(rows: Sequence[Row]) -> list[Row]:
    """The tickets of the first chain that diverged."""
    tickets = select(rows, chain=ticket_chains(rows)[0], arm=TICKET)
    return [row for row in tickets if row.status == "diverged"]


def _whole(rows: Sequence[Row], levels: Sequence[Level]) -> list[Level]:
    """Those before the first at which a ticket diverged: what other seeds reach there tickets do not."""
    end = min((row.level for row in _lost(rows)), default=None) if levels else None
    return [level for level in levels if end is None or level.level < end]


def _alphas(chain: str, looks: Mapping[str, until.State]) -> dict[str, float]:
    """Claim -> the level of its looks, of those that are of a chain."""
    return {key: of.level for key, of in looks.items() if of.chain in ("", chain)}


def _test(levels: Sequence[Level], alphas: Mapping[str, float]) -> tuple[float, float, list[Level]]:
    """The margin of the sentence, the level of its test, and the levels that pass it from the densest on.

    It is half a point if the densest level passes that, else two.
    """
    for points in (TOLERANCE, 2.0):
        alpha = alphas.get(f"within-{points:g}", _ALPHA)
        if good := _as_good(levels, points, alpha):
            break
    return points, alpha, good


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
    alphas = _alphas(chain, looks)
    points, alpha, good = _test(levels, alphas)
    # From the first that fails on; it may be that a sparser one does not.
    failing = sorted(levels, key=lambda of: -of.density)[len(good) :]
    torn = any(_loses_less(level, points, alpha) for level in failing)
    if not good and torn:
        first, *sparser = failing
        best = max([level for level in sparser if level in enough], key=lambda level: level.mean)
        return (
            f"The densest tickets{which}, with {_share(first)} of the weights, are not found to be within 2 "
            f"points of the dense network ({_seeds(first)}), and {_UNTESTED}; of these those with "
            f"{_share(best)} come nearest, {best.mean:+.1f} points ({_seeds(best)})."
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
        control = _control(last, fresh[last.level], gaps[last.level], alphas.get("beats-reinit", _ALPHA))
    within, same = (
        "within half a point",
        f"as good as the dense network (within half a point, {_seeds(last)})",
    )
    if points != TOLERANCE:
        within, same = "within 2 points", f"within 2 points of the dense network ({_seeds(last)})"
    said = f"With {_share(last)} of its weights the ticket{which} is {same}{control}."
    if torn:
        said += f" The ticket with {_share(failing[0])} is not found to be {within}, and {_UNTESTED}."
    return said


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
