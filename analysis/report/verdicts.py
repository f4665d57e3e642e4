"""The claims about winning tickets, tested on a run: supported, refuted, equivalent, undecided.

Claims and rules do not depend on a run's data: "at 80 to 90 % sparsity" means at every level of that range,
bounds are one-sided at 95 %, seeds are the unit and pair the arms. Three seeds are the fewest that give a
verdict. A claim without data is not tested, and names the command that tests it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lthjax import home, imp
from lthjax.errors import counted
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Ratio, Verdict

from .. import commands, ends, words
from ..claims import NON_INFERIOR, SAME, SAME_FACTOR, SUPERIOR, TIMES, At, Judged, beside, everywhere, named
from ..page import Link
from ..record import LEAST_SEEDS, Finding, settled, untested
from ..rows import TICKET, Row, accuracies, diverged, images_of, select, ticket_chains
from . import speed
from .paired import (
    TOLERANCE,
    Level,
    Other,
    against,
    all_stopped,
    at_some,
    curves,
    differences,
    earliest,
    first_diverged,
    in_range,
    levels_there,
    of_those_left,
    stopped,
)

# The arms that pass for tickets if a claim does not tell them apart.
CONTROLS = ("reinit", "random")
_ALPHA = 0.05
# Points of accuracy that tickets may lose to the dense network.
_MARGINS = (2, 0.5, 0.2)
_LEVELS, _GAPS = Link("levels", "#levels"), Link("gaps", "#gaps")
_FORM, _UNIT = "+.2f", " pp"
# How a claim that is searched for over all levels ends.
_SOMEWHERE = " at some density"
_RANGE = "between 10 and 20 % of the weights"


def findings(study: Mapping[str, Any], rows: Sequence[Row], run: Path | None = None) -> list[Finding]:
    """The claims about the accuracies of a run, from its study.json and its cells.

    Commands that test others fill the folder `run`; without it, the one that the run's own command names.
    """
    return [settled(finding) for finding in _tested(study, rows, run)]


def _tested(study: Mapping[str, Any], rows: Sequence[Row], run: Path | None) -> list[Finding]:
    tickets = ticket_chains(rows)
    # The command of the run, quoted as for a shell; with further options it adds cells.
    again = commands.of_all(study, {row.seed for row in rows}, run)
    exist, stuck = "Winning tickets exist", diverged(rows)
    if stuck or not tickets:
        return [untested(exist, stuck, "") if stuck else untested(exist, "no ticket is trained yet", again)]
    chain = tickets[0]
    deeper, reached = commands.deeper(again, study, rows, chain)
    controlled = commands.controlled(again, deeper, study, reached)
    images, beyond = images_of(study), _beyond(study, rows, chain, reached)
    found = _all_within(rows, chain, images, deeper, beyond)
    end, every = ends.total(study, rows), ends.spacing(study)
    for control, others in (("reinit", "reinitialised ones"), ("random", "random pruning")):
        gaps = differences(rows, chain, TICKET, control, images=images)
        own, start = select(rows, chain=chain, arm=control), len(found)
        there = against(rows, chain, own, control, beyond)
        command = commands.extended(controlled, "--arms", TICKET, control)
        beat = f"Tickets beat {others}"
        if control == "reinit":
            found += [
                _by_ten(gaps, command, there),
                _somewhere(f"{beat} by 10 points or more{_SOMEWHERE}", gaps, 10, command, there),
            ]
        found += [
            _better(f"{beat} at 80–90 % sparsity", gaps, command, _GAPS, there),
            _somewhere(f"{beat}{_SOMEWHERE}", gaps, 0, command, there),
        ]
        found[start:] = [_marked(finding, gaps, own, control, end, every) for finding in found[start:]]
    by_other = {DENSE: deeper, "reinit": controlled}
    faster = [_faster(rows, chain, other, end, command, beyond) for other, command in by_other.items()]
    found += [_saved(rows, chain), _iso_accuracy(rows, chain, again), *faster]
    found = [_of_the_first(finding, rows) for finding in found]
    # Beside those of the first chain; the other claims are of that one alone.
    found[len(_MARGINS) : len(_MARGINS)] = [
        finding._replace(claim=f"{finding.claim}: {words.rewound(later)}")
        for later in tickets[1:]
        if levels_there(rows, later)
        for finding in _all_within(rows, later, images, deeper, beyond)
    ]
    late = commands.rewound(again, study, imp.rewind_of(chain))
    found += _late(rows, tickets, late, deeper, images, beyond)
    if stuck := first_diverged(rows):
        found = [untested(one.claim, stuck, "") if one.outcome == "not tested" else one for one in found]
    schedules = "Which pruning rate and schedule is best"
    command = home.command("run", "--config", home.config("rates_lenet5"))
    return [*found, untested(schedules, "a run has one schedule", command)]


def _beyond(study: Mapping[str, Any], rows: Sequence[Row], chain: str, reached: Sequence[int]) -> str:
    """Why a chain has no level in the range where no command makes one; "" if one does."""
    if commands.is_pattern(study) and not reached:
        return f"no level {_RANGE}, and an N:M pattern has one density"
    if not all_stopped(rows, chain):
        return ""
    which = f", {said}," if (said := earliest(rows)) else ""
    return f"the ticket of every seed{which} diverged {_RANGE} or before; lower the learning rate (optim.lr)"


def _everywhere(
    claim: str,
    levels: Sequence[Level],
    say: Callable[[Level], At],
    command: str,
    where: Link,
    test: str,
    other: Other,
) -> Finding:
    """A claim about every level of the range, with the estimate of the least favourable one."""
    levels = in_range(levels)
    if not levels:
        return _none_there(claim, other, command)
    tested = everywhere([say(level) for level in levels])
    n, said = min(len(level.values) for level in levels), tested.said(_FORM, _UNIT)
    estimate = f"{said}{at_some(len(levels), other)}"
    return Finding(claim, of_those_left(tested.outcome, other), estimate, n, where, named(tested, test))


def _none_there(claim: str, other: Other, command: str) -> Finding:
    """A claim about the range that is not tested, as no level has both; no command adds what diverged."""
    if not other.tickets:
        return untested(claim, other.beyond or f"no level {_RANGE}", "" if other.beyond else command)
    if other.diverged == other.tickets:
        return untested(claim, other.gone(_RANGE), "")
    at_these = f"at {other.diverged} of the tickets' {other.tickets} levels "
    how = f"diverged {at_these}" if other.diverged else "was not trained "
    return untested(claim, f"{other.name} {how}{_RANGE}", command)


def _of_the_first(finding: Finding, rows: Sequence[Row]) -> Finding:
    """A finding on the first chain of tickets; where there are several, its estimate says so."""
    which = earliest(rows) if finding.outcome != "not tested" else ""
    return finding._replace(estimate=f"{finding.estimate}; {which}") if which else finding


def _all_within(rows: Sequence[Row], chain: str, images: int, command: str, beyond: str) -> list[Finding]:
    """`_within` of a chain, for all margins."""
    to_dense = {arm: differences(rows, chain, arm, DENSE, images=images) for arm in (TICKET, *CONTROLS)}
    other = Other(DENSE, len(in_range(to_dense[TICKET])), stopped=len(stopped(rows, chain)), beyond=beyond)
    return [_within(to_dense, margin, command, other) for margin in _MARGINS]


def _within(to_dense: Mapping[str, Sequence[Level]], margin: float, command: str, other: Other) -> Finding:
    """The claim that tickets lose less than a margin to the dense network; the same of controls beside it."""
    claim = f"Tickets at 80–90 % sparsity are within {margin:g} points of the dense network"

    def say(level: Level) -> At:
        return At(at(level), stats.noninferior(level.values, margin, floor=level.floor))

    test = f"{NON_INFERIOR}, margin {margin:g}{_UNIT}"
    found = _everywhere(claim, to_dense[TICKET], say, command, _LEVELS, test, other)
    controls = {
        arm: everywhere([say(level) for level in of_arm])
        for arm in CONTROLS
        if (of_arm := in_range(to_dense[arm]))
    }
    return found._replace(beside=beside(settled(found).outcome, controls, _FORM, _UNIT, levels=other.tickets))


def _better(claim: str, levels: Sequence[Level], command: str, where: Link, other: Other) -> Finding:
    """A claim that a difference is above 0 at every level of the range."""
    return _everywhere(claim, levels, _against_zero, command, where, SUPERIOR, other)


def _against_zero(level: Level) -> At:
    """Whether a difference is above 0, or next to 0."""
    better = stats.verdict(level.values, floor=level.floor)
    return At(at(level), better, stats.equivalent(level.values, SAME, floor=level.floor))


def _marked(
    finding: Finding, gaps: Sequence[Level], control: Sequence[Row], arm: str, end: int, every: int
) -> Finding:
    """A finding about the gap to a control, marked where the control is still learning."""
    if finding.outcome == "not tested":
        return finding
    if not finding.claim.endswith(_SOMEWHERE):
        control = [row for row in control if in_range([Level(row.level, row.density, [])])]
        gaps = in_range(gaps)
    behind = max((gap.mean for gap in gaps), default=0.0)
    return finding._replace(beside=ends.mark(control, arm, end, every, behind))


def _by_ten(levels: Sequence[Level], command: str, other: Other) -> Finding:
    """The claim of 10 to 15 points: 10 or more decides, and whether it is 15 or less is said."""
    claim = "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity"

    def least(level: Level) -> At:
        return At(at(level), stats.verdict(level.values, 10, floor=level.floor))

    test = f"{SUPERIOR}, by 10{_UNIT} or more"
    found = _everywhere(claim, levels, least, command, _GAPS, test, other)
    return found._replace(estimate=f"{found.estimate}{at_most_15(levels)}")


def at_most_15(levels: Sequence[Level], alpha: float = _ALPHA) -> str:
    """What must be said of the claim of 10 to 15 points: whether the gap is 15 or less.

    It has no outcome below three seeds, nor where no level is in the range.

    Args:
        levels: of the gap to `reinit`.
        alpha: the level of the one-sided test.
    """
    levels = in_range(levels)
    if not levels or min(len(level.values) for level in levels) < LEAST_SEEDS:
        return ""
    found = stats.conjunction(
        stats.verdict([-value for value in level.values], -15, 1 - alpha, floor=level.floor).outcome
        for level in levels
    )
    return f"; 15{_UNIT} or less: {found}"


def _somewhere(
    claim: str, levels: Sequence[Level], threshold: float, command: str, other: Other, where: Link = _GAPS
) -> Finding:
    """A claim about any level, by the p-values of t with Holm's correction for the search.

    It is refuted only where the gap is refuted at every level. Levels of fewer than three seeds are not
    searched, and leave a claim undecided that no other level supports. A bound is shown at the confidence at
    which Holm's step tests its level, so that it is above the threshold where the claim is supported there.
    """
    test = f"{SUPERIOR}{f', by {threshold:g}{_UNIT} or more' if threshold else ''}"
    tested = [level for level in levels if len(level.values) >= LEAST_SEEDS] or [
        level for level in levels if len(level.values) > 1
    ]
    few = len(levels) - len(tested)
    out = f"; {counted(few, 'level')} of fewer seeds left out" if few else ""
    if not levels and other.everywhere:
        return untested(claim, other.gone("wherever it was trained"), "")
    if not levels:
        return untested(claim, "no such cells", command)
    if not tested:
        return Finding(claim, "undecided", "one seed", 1, where, test)
    p_values = [stats.t_p_value(of.values, threshold, "greater", of.floor) for of in tested]
    ranked = sorted(range(len(tested)), key=lambda place: p_values[place])
    adjusted = stats.holm(p_values)
    n, several = min(len(level.values) for level in tested), f"{len(tested)} levels by Holm"
    rule = f"one-sided 95 %{f' over {several}' if len(tested) > 1 else ''}"
    searched = f"{test}, {several}" if len(tested) > 1 else test

    def shown(place: int, alpha: float) -> tuple[str, Verdict]:
        level = tested[place]
        return at(level), stats.verdict(level.values, threshold, 1 - alpha, floor=level.floor)

    clear = [place for place in ranked if adjusted[place] < _ALPHA]
    if clear:
        first = max(clear, key=lambda place: tested[place].density)
        place, verdict = shown(first, _ALPHA / (len(tested) - ranked.index(first)))
        said = words.decided(verdict._replace(outcome="supported"), _FORM, _UNIT, rule=rule)
        return Finding(claim, "supported", f"first {place}: {said}{out}", n, where, searched)
    if not few and all(
        stats.verdict(of.values, threshold, floor=of.floor).outcome == "refuted" for of in tested
    ):
        every = [shown(place, _ALPHA) for place in range(len(tested))]
        place, verdict = max(every, key=lambda one: one[1].bounds.high)
        said = words.decided(verdict, _FORM, _UNIT)
        return Finding(claim, "refuted", f"highest bound {place}: {said}", n, where, searched)
    equal = everywhere([_against_zero(level) for level in tested])
    if not few and not threshold and equal.outcome == "equivalent":
        return Finding(claim, "equivalent", equal.said(_FORM, _UNIT), n, where, named(equal, test))
    place, verdict = shown(max(ranked, key=lambda place: tested[place].mean), _ALPHA / len(tested))
    said = words.decided(verdict._replace(outcome="undecided"), _FORM, _UNIT, rule=rule)
    return Finding(claim, "undecided", f"most {place}: {said}{out}", n, where, searched)


def _saved(rows: Sequence[Row], chain: str) -> Finding:
    claim = f"5–10× fewer weights within {TOLERANCE:g} points of the dense network"
    found = {arm: _factors(rows, chain, arm) for arm in (TICKET, *CONTROLS)}
    if not found[TICKET]:
        return untested(claim, "no ticket is trained yet", "")
    why = "still match at the last level"
    said = _times(claim, found[TICKET], 5, why, f"{SUPERIOR}, 5× or more")
    tested = {arm: stats.geometric_verdict(found[arm], 5) for arm in CONTROLS if found[arm]}
    controls = {arm: Judged(of.outcome, At("", of), 1) for arm, of in tested.items()}
    return said._replace(beside=beside(settled(said).outcome, controls, ".1f", "×"))


def _factors(rows: Sequence[Row], chain: str, arm: str) -> list[Ratio]:
    """Dense weights over those of the sparsest network of an arm that matches, one a seed, or its bounds.

    At levels of the tickets at which a control was not trained it may have matched. What diverged does not.
    """
    dense, tickets = accuracies(select(rows, chain=DENSE)), curves(rows, chain, TICKET, diverged=True)
    return [
        stats.match_ratio(curve, dense[seed], TOLERANCE, [density for density, _ in tickets.get(seed, [])])
        for seed, curve in curves(rows, chain, arm, diverged=True).items()
        if seed in dense
    ]


def _iso_accuracy(rows: Sequence[Row], chain: str, again: str) -> Finding:
    claim = f"Reinitialised masks need more weights than tickets {TOLERANCE:g} points below dense"
    dense = accuracies(select(rows, chain=DENSE))
    tickets, controls = (curves(rows, chain, arm) for arm in (TICKET, "reinit"))
    ratios = stats.iso_accuracy(tickets, controls, dense, TOLERANCE).ratios
    there = against(rows, chain, select(rows, chain=chain, arm="reinit"), "reinit")
    if not ratios and there.everywhere:
        return untested(claim, there.gone("wherever it was trained"), "")
    if not ratios:
        return untested(claim, "no such cells", commands.extended(again, "--arms", TICKET, "reinit"))
    unfallen = {
        TICKET: {seed for seed, ratio in ratios.items() if math.isinf(ratio.high)},
        "reinit": {seed for seed, ratio in ratios.items() if not ratio.low},
    }
    both = [(seeds, _ended(rows, chain, arm)) for arm, seeds in unfallen.items()]
    unmeasured = any(0 < ratio.low < ratio.high < math.inf for ratio in ratios.values())
    reasons = {
        "do not fall that low": any(seeds - ended for seeds, ended in both),
        "diverged before they fell": any(seeds & ended for seeds, ended in both),
        "fall between levels without a control": unmeasured,
    }
    why = " or ".join(reason for reason, there in reasons.items() if there)
    return _times(claim, [*ratios.values()], 1, why, SUPERIOR)


def _ended(rows: Sequence[Row], chain: str, arm: str) -> set[int]:
    """The seeds whose sparsest network of an arm diverged."""
    known, every = curves(rows, chain, arm), curves(rows, chain, arm, diverged=True)
    return {seed for seed, curve in every.items() if curve[-1:] != known.get(seed, [])[-1:]}


def _faster(rows: Sequence[Row], chain: str, other: str, end: int, deeper: str, beyond: str) -> Finding:
    """The claim that tickets reach their lowest validation loss in fewer steps than another arm."""
    others = "the dense network" if other == DENSE else "reinitialised ones"
    claim = f"Tickets learn faster than {others} at 80–90 % sparsity"
    there = against(rows, chain, select(rows, chain=chain, arm=other), other, beyond)
    levels = [
        of for of in speed.slower(rows, chain, other, end) if in_range([Level(of.level, of.density, [])])
    ]
    if not levels:
        if other == DENSE:
            return _none_there(claim, there._replace(tickets=0), deeper)
        return _none_there(claim, there, commands.extended(deeper, "--arms", TICKET, other))
    tests = []
    for of in levels:
        some = f"{of.censored} of {len(of.ratios)} seeds " if len(of.ratios) > 1 else ""
        known = f", {some}known by bounds alone" if of.censored else ""
        place = f"at {100 * of.density:.1f} % of the weights{known}"
        equal = stats.geometric_equivalent(of.ratios, SAME_FACTOR)
        tests.append(At(place, stats.geometric_verdict(of.ratios, 1), equal))
    tested = everywhere(tests, same=1)
    n, where = min(len(of.ratios) for of in levels), Link("learning speed", "#speed")
    said = f"steps of {other} / ticket: {tested.said('.2f', '×')}{at_some(len(levels), there)}"
    outcome = of_those_left(tested.outcome, there)
    return Finding(claim, outcome, said, n, where, named(tested, SUPERIOR, TIMES))


def _late(
    rows: Sequence[Row], tickets: Sequence[str], late: str, deeper: str, images: int, beyond: str
) -> list[Finding]:
    """Each later rewind step against the first; `late` is the command with a second one."""
    claim = "Late rewinding helps at 80–90 % sparsity"
    first, *later = tickets
    if not later:
        return [untested(claim, "one rewind step", late)]
    found = []
    for chain in later:
        named, theirs = f"the ticket {words.rewound(chain)}", select(rows, chain=chain, arm=TICKET)
        lost, before = stopped(rows, chain).keys(), stopped(rows, first).keys()
        there = against(rows, first, theirs, named, beyond)
        other = there._replace(ticket=named, stopped=len(lost), first=len(before - lost))
        steps = f"to step {imp.rewind_of(chain)} against {imp.rewind_of(first)}"
        gaps = differences(rows, chain, TICKET, TICKET, first, images)
        if not in_range(gaps) and other.tickets and all_stopped(rows, chain):
            better = untested(f"{claim}: {steps}", f"{named} diverged {_RANGE} or before", "")
        else:
            better = _better(f"{claim}: {steps}", gaps, deeper, _LEVELS, other)
        found += [
            better,
            _somewhere(f"Late rewinding helps{_SOMEWHERE}: {steps}", gaps, 0, deeper, other, _LEVELS),
        ]
    return found


def at(level: Level) -> str:
    """Where a level is, in words."""
    return f"at {100 * level.density:.1f} % of the weights"


def _times(claim: str, ratios: Sequence[Ratio], threshold: float, why: str, test: str) -> Finding:
    """A claim about the geometric mean of ratios; for censored ones, with the reason."""
    found = stats.geometric_verdict(ratios, threshold)
    equal = stats.geometric_equivalent(ratios, SAME_FACTOR) if threshold == 1 else None
    tested = everywhere([At("", found, equal)], same=1)
    said = _ratio(ratios, tested, why)
    return Finding(claim, tested.outcome, said, len(ratios), _LEVELS, named(tested, test, TIMES))


def _ratio(ratios: Sequence[Ratio], tested: Judged, why: str) -> str:
    """The geometric mean with the bound that decides; with censored seeds its bounds, and the reason."""
    censored = [ratio for ratio in ratios if ratio.low != ratio.high]
    found = tested.decides.verdict
    if not censored:
        return tested.said(".2f" if tested.outcome == "equivalent" else ".1f", "×")
    # A single seed has only its own bounds.
    _, low, high, n = found.bounds
    low, high = (low, high) if n > 1 else censored[0]
    known = ([f"≥ {low:.1f}×"] if low > 0 else []) + ([f"≤ {high:.1f}×"] if math.isfinite(high) else [])
    by = ", one-sided 95 % bound of the mean" if known and n > 1 else ""
    least = min(ratio.low for ratio in censored)
    each = f", each ≥ {least:.1f}×" if n > 1 and least > 0 else ""
    share = f"{len(censored)} of {n} seeds ({100 * len(censored) / n:.0f} %)"
    several = f"{share if n > 1 else 'its networks'} {why}{each}"
    return f"{' and '.join(known) or 'no bound of the mean is known'}{by}; {several}"
