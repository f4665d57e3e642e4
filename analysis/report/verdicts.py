"""The claims about winning tickets, tested on a run: supported, refuted, equivalent, undecided.

Claims and rules do not depend on a run's data: "at 80 to 90 % sparsity" means at every level of that range,
bounds are one-sided at 95 %, seeds are the unit and pair the arms. Three seeds are the fewest that give a
verdict. A claim without data is not tested, and names the command that tests it.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lthjax import config, home, imp, shorthand
from lthjax.config import Study
from lthjax.errors import counted
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Ratio, Verdict

from .. import ends, words
from ..claims import NON_INFERIOR, SAME, SAME_FACTOR, SUPERIOR, TIMES, At, Judged, beside, everywhere, named
from ..page import Link
from ..record import LEAST_SEEDS, Finding, settled
from ..run import TICKET, Row, accuracies, chains, densities, images_of, select
from . import speed
from .paired import TOLERANCE, Level, curves, differences

# Densities of 80 to 90 % sparsity.
RANGE = (0.1, 0.2)
# The mean of equal densities differs from them by rounding.
_ROUNDING = 1e-9
# A last density in the range. One of 0.1 may fall below it, as numbers of weights are whole.
_AIM = 0.11
# The arms that pass for tickets if a claim does not tell them apart.
CONTROLS = ("reinit", "random")
_ALPHA = 0.05
_LEVELS, _GAPS = Link("levels", "#levels"), Link("gaps", "#gaps")
_FORM, _UNIT = "+.2f", " pp"


def findings(study: Mapping[str, Any], rows: Sequence[Row]) -> list[Finding]:
    """The claims about the accuracies of a run, from its study.json and its cells."""
    return [settled(finding) for finding in _tested(study, rows)]


def _tested(study: Mapping[str, Any], rows: Sequence[Row]) -> list[Finding]:
    tickets = [chain for chain in chains(rows) if imp.leader(chain) == TICKET]
    # The command of the run, quoted as for a shell; with further options it adds cells.
    again = _of_all(study, {row.seed for row in rows})
    if not tickets:
        return [Finding("Winning tickets exist", "not tested", "no ticket is trained yet", 0, again)]
    chain = tickets[0]
    deeper, reached = _deeper(again, study, rows, chain)
    controlled = _controlled(again, deeper, study, reached)
    images = images_of(study)
    to_dense = {arm: differences(rows, chain, arm, DENSE, images=images) for arm in (TICKET, *CONTROLS)}
    found = [_within(to_dense, margin, deeper) for margin in (2, 0.5, 0.2)]
    there = len(in_range(to_dense[TICKET]))
    end = ends.total(study, rows)
    for control, others in (("reinit", "reinitialised ones"), ("random", "random pruning")):
        gaps = differences(rows, chain, TICKET, control, images=images)
        own, start = select(rows, chain=chain, arm=control), len(found)
        command = _with(controlled, "--arms", TICKET, control)
        if control == "reinit":
            found += [
                _by_ten(gaps, command, there),
                _somewhere("… by 10 points or more at some density", gaps, 10, command),
            ]
        claim = f"Tickets beat {others} at 80–90 % sparsity"
        found += [
            _better(claim, gaps, command, _GAPS, there),
            _somewhere("… at some density", gaps, 0, command),
        ]
        found[start:] = [_marked(finding, own, control, end) for finding in found[start:]]
    by_other = {DENSE: deeper, "reinit": controlled}
    faster = [_faster(rows, chain, other, end, command) for other, command in by_other.items()]
    found += [
        _saved(rows, chain),
        _iso_accuracy(rows, chain, again),
        *faster,
        *_late(rows, tickets, again, deeper, images),
    ]
    schedules = "Which pruning rate and schedule is best"
    command = home.command("run", "--config", home.config("rates_lenet5"))
    return [*found, Finding(schedules, "not tested", "a run has one schedule", 0, command)]


def _of_all(study: Mapping[str, Any], seeds: Collection[int]) -> str:
    """The first command of a run, for all its seeds; a process may have trained a part of them.

    It adds no seeds by itself: what it is changed for is no look of the claim that it named.
    """
    commands = study.get("commands")
    if not commands:
        return home.command("run", "--config", "CONFIG")
    command = _without(commands[0], "--shard", "--until-decided", "--budget")
    named, every = {*_numbers(command, "--seeds")}, {*seeds}
    if not named:
        # Other commands may have added seeds to those of the config file, which study.json need not have.
        last = {*study.get("config", {}).get("seeds", every)}
        options = {one[0] for of in commands for one in _options(of) if one}
        if not last >= every or options & {"--seeds", "--until-decided"}:
            command = _with(command, "--seeds", *map(str, sorted(every | last)))
    elif named and named != every:
        command = _with(command, "--seeds", *map(str, sorted(every)))
    return home.again(command)


def _numbers(command: str, option: str) -> list[int]:
    """The whole numbers that a command gives an option; none where it does not have it."""
    given = next((one[1:] for one in _options(command) if one[:1] == [option]), [])
    return [int(word) for word in shorthand.expanded(Study, [option, *given])[1:] if word.isdecimal()]


def _with(command: str, option: str, *values: str) -> str:
    """A command with an option, in place of the same one where the command has it: given twice it is refused.

    Arms are added to the command's own. With more levels its choice of control levels is left out, so that
    the new levels have controls.
    """
    given = _options(command)
    if option == "--levels":
        given = [one for one in given if one[:1] != ["--control-levels"]]
    for one in given[1:]:
        if one[0] == option:
            own = one[1:] if option == "--arms" else []
            one[1:] = dict.fromkeys((*own, *values))
            break
    else:
        given.append([option, *values])
    return shlex.join(word for one in given for word in one)


def _without(command: str, *options: str) -> str:
    """A command without some options, if it has them."""
    kept = [one for one in _options(command) if not {*one[:1]} & {*options}]
    return shlex.join(word for one in kept for word in one)


def _options(command: str) -> list[list[str]]:
    """The words of a command: before its first option, then of every option its name and values."""
    given: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            name, *value = word.split("=", 1)
            given.append([f"--{name[2:].replace('_', '-')}", *value])
        else:
            given[-1].append(word)
    return given


def _deeper(again: str, study: Mapping[str, Any], rows: Sequence[Row], chain: str) -> tuple[str, list[int]]:
    """The run's command with levels in the range, and which levels these will be.

    It has as many levels as pass the range, or rounds that do not pass over it; where the config names the
    last density, a density in the range.
    """
    left = densities(row for row in select(rows, chain=chain, arm=TICKET) if row.level)
    prune = study.get("config", {}).get("prune", {})
    if prune.get("density") is not None:
        return _dense_enough(again, config.from_dict(study["config"]), left)
    last, rates = max(left, default=0), prune.get("rates")
    if last and left[last] < 1:
        share, enough = left[last] ** (1 / last), last
        if left[last] > RANGE[0]:
            # Rounds go on to keep the same share of what is left.
            enough = math.ceil(last * math.log(RANGE[0]) / math.log(left[last]))
        enough = min(enough, len(rates)) if rates else enough
        if reached := [n for n in range(1, enough + 1) if _is_in_range(left.get(n, share**n))]:
            return _with(again, "--levels", str(enough)), reached
    plain = _with(again, "--prune.rates") if rates else again
    at_rate = _with(plain, "--prune.rate", "0.2") if last or rates else plain
    return _with(at_rate, "--levels", "11"), [n for n in range(1, 12) if _is_in_range(0.8**n)]


def _dense_enough(again: str, study: Study, left: Mapping[int, float]) -> tuple[str, list[int]]:
    """As `_deeper`, of a study that names its last density, which stays where a level is in the range."""

    def reached(of: Study, known: Mapping[int, float]) -> list[int]:
        every = range(1, of.levels + 1)
        return [n for n in every if _is_in_range(known.get(n) or imp.schedule_at(of, n)["density"])]

    if levels := reached(study, left):
        return again, levels
    aimed = dataclasses.replace(study, prune=dataclasses.replace(study.prune, density=_AIM))
    return _with(again, "--prune.density", f"{_AIM:g}"), reached(aimed, {})


def _controlled(again: str, deeper: str, study: Mapping[str, Any], reached: Sequence[int]) -> str:
    """The deeper command, with controls in the range where the run's own control levels are all outside."""
    own = {*(study.get("config", {}).get("control_levels") or _numbers(again, "--control-levels"))}
    last = _numbers(deeper, "--levels")[:1]
    # A last level that the command names gets controls by itself, unless it names their levels, too.
    by_itself = [] if _numbers(deeper, "--control-levels") else last
    if not own or {*own, *by_itself} & {*reached}:
        return deeper
    allowed = [n for n in {*own, *reached} if not last or n <= last[0]]
    return _with(deeper, "--control-levels", *map(str, sorted(allowed)))


def _is_in_range(density: float) -> bool:
    return RANGE[0] - _ROUNDING <= density <= RANGE[1] + _ROUNDING


def in_range(levels: Sequence[Level]) -> list[Level]:
    """The levels of 80 to 90 % sparsity."""
    return [level for level in levels if _is_in_range(level.density)]


def _everywhere(
    claim: str,
    levels: Sequence[Level],
    say: Callable[[Level], At],
    command: str,
    where: Link,
    test: str,
    of: int,
) -> Finding:
    """A claim about every level of the range, with the estimate of the least favourable one.

    Of the tickets' `of` levels there, the control may have been trained at some only.
    """
    levels = in_range(levels)
    if not levels:
        return Finding(claim, "not tested", "no level between 10 and 20 % of the weights", 0, command)
    tested = everywhere([say(level) for level in levels])
    n, said = min(len(level.values) for level in levels), tested.said(_FORM, _UNIT)
    estimate = f"{said}{at_some(len(levels), of)}"
    return Finding(claim, tested.outcome, estimate, n, where, named(tested, test))


def at_some(levels: int, of: int) -> str:
    """What must be said where a claim about a range is tested at some of the tickets' levels only."""
    return f"; both were trained at {levels} of the tickets' {of} levels there" if levels < of else ""


def _within(to_dense: Mapping[str, Sequence[Level]], margin: float, command: str) -> Finding:
    """The claim that tickets lose less than a margin to the dense network; the same of controls beside it."""
    claim = f"Tickets at 80–90 % sparsity are within {margin:g} points of the dense network"

    def say(level: Level) -> At:
        return At(at(level), stats.noninferior(level.values, margin, floor=level.floor))

    test = f"{NON_INFERIOR}, margin {margin:g}{_UNIT}"
    of = len(in_range(to_dense[TICKET]))
    found = _everywhere(claim, to_dense[TICKET], say, command, _LEVELS, test, of)
    controls = {
        arm: everywhere([say(level) for level in of_arm])
        for arm in CONTROLS
        if (of_arm := in_range(to_dense[arm]))
    }
    return found._replace(beside=beside(settled(found).outcome, controls, _FORM, _UNIT, levels=of))


def _better(claim: str, levels: Sequence[Level], command: str, where: Link, of: int) -> Finding:
    """A claim that a difference is above 0 at every level of the range; `of` as in `_everywhere`."""
    return _everywhere(claim, levels, _against_zero, command, where, SUPERIOR, of)


def _against_zero(level: Level) -> At:
    """Whether a difference is above 0, or next to 0."""
    better = stats.verdict(level.values, floor=level.floor)
    return At(at(level), better, stats.equivalent(level.values, SAME, floor=level.floor))


def _marked(finding: Finding, control: Sequence[Row], arm: str, end: int) -> Finding:
    """A finding about the gap to a control, marked where the control is still learning."""
    if finding.outcome == "not tested":
        return finding
    if not finding.claim.startswith("…"):
        control = [row for row in control if in_range([Level(row.level, row.density, [])])]
    return finding._replace(beside=ends.mark(control, arm, end))


def _by_ten(levels: Sequence[Level], command: str, of: int) -> Finding:
    """The claim of 10 to 15 points: 10 or more decides, and whether it is 15 or less is said."""
    claim = "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity"

    def least(level: Level) -> At:
        return At(at(level), stats.verdict(level.values, 10, floor=level.floor))

    test = f"{SUPERIOR}, by 10{_UNIT} or more"
    found = _everywhere(claim, levels, least, command, _GAPS, test, of)
    most = stats.conjunction(
        stats.verdict([-value for value in level.values], -15, floor=level.floor).outcome
        for level in in_range(levels)
    )
    more = f"; 15{_UNIT} or less: {most}" if found.outcome != "not tested" else ""
    return found._replace(estimate=f"{found.estimate}{more}")


def _somewhere(
    claim: str, levels: Sequence[Level], threshold: float, command: str, where: Link = _GAPS
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
    if not levels:
        return Finding(claim, "not tested", "no such cells", 0, command)
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
        return Finding(claim, "not tested", "no ticket is trained yet", 0, "")
    why = "still match at the last level"
    said = _times(claim, found[TICKET], 5, why, f"{SUPERIOR}, 5× or more")
    tested = {arm: stats.geometric_verdict(found[arm], 5) for arm in CONTROLS if found[arm]}
    controls = {arm: Judged(of.outcome, At("", of), 1) for arm, of in tested.items()}
    return said._replace(beside=beside(settled(said).outcome, controls, ".1f", "×"))


def _factors(rows: Sequence[Row], chain: str, arm: str) -> list[Ratio]:
    """Dense weights over those of the sparsest network of an arm that matches, one a seed."""
    dense = accuracies(select(rows, chain=DENSE))
    matches = stats.sparsest_matches(curves(rows, chain, arm), dense, TOLERANCE)
    known = [(1 / (smallest or 1.0), last) for smallest, last in matches.values()]
    return [Ratio(factor, math.inf if last else factor) for factor, last in known]


def _iso_accuracy(rows: Sequence[Row], chain: str, again: str) -> Finding:
    claim = f"Reinitialised masks need more weights than tickets {TOLERANCE:g} points below dense"
    dense = accuracies(select(rows, chain=DENSE))
    tickets, controls = (curves(rows, chain, arm) for arm in (TICKET, "reinit"))
    ratios = [*stats.iso_accuracy(tickets, controls, dense, TOLERANCE).ratios.values()]
    if not ratios:
        return Finding(claim, "not tested", "no such cells", 0, _with(again, "--arms", TICKET, "reinit"))
    unmeasured = any(0 < ratio.low < ratio.high < math.inf for ratio in ratios)
    unfallen = any(not ratio.low or math.isinf(ratio.high) for ratio in ratios)
    why = ["do not fall that low"] * unfallen + ["fall between levels without a control"] * unmeasured
    return _times(claim, ratios, 1, " or ".join(why), SUPERIOR)


def _faster(rows: Sequence[Row], chain: str, other: str, end: int, deeper: str) -> Finding:
    """The claim that tickets reach their lowest validation loss in fewer steps than another arm."""
    others = "the dense network" if other == DENSE else "reinitialised ones"
    claim = f"Tickets learn faster than {others} at 80–90 % sparsity"
    levels = [
        of for of in speed.slower(rows, chain, other, end) if in_range([Level(of.level, of.density, [])])
    ]
    if not levels:
        command = deeper if other == DENSE else _with(deeper, "--arms", TICKET, other)
        return Finding(claim, "not tested", "no level between 10 and 20 % of the weights", 0, command)
    tests = []
    for of in levels:
        known = f", {of.censored} of {len(of.ratios)} seeds known by bounds" if of.censored else ""
        place = f"at {100 * of.density:.1f} % of the weights{known}"
        equal = stats.geometric_equivalent(of.ratios, SAME_FACTOR)
        tests.append(At(place, stats.geometric_verdict(of.ratios, 1), equal))
    tested = everywhere(tests, same=1)
    n, where = min(len(of.ratios) for of in levels), Link("learning speed", "#speed")
    there = len(in_range(differences(rows, chain, TICKET, DENSE)))
    said = f"steps of {other} / ticket: {tested.said('.2f', '×')}{at_some(len(levels), there)}"
    return Finding(claim, tested.outcome, said, n, where, named(tested, SUPERIOR, TIMES))


def _late(rows: Sequence[Row], tickets: Sequence[str], again: str, deeper: str, images: int) -> list[Finding]:
    """Each later rewind step against the first."""
    claim = "Late rewinding helps at 80–90 % sparsity"
    first, *later = tickets
    if not later:
        return [Finding(claim, "not tested", "one rewind step", 0, _with(again, "--rewind", "0", "1 epoch"))]
    found, there = [], len(in_range(differences(rows, first, TICKET, DENSE)))
    for chain in later:
        steps = f"to step {imp.rewind_of(chain)} against {imp.rewind_of(first)}"
        gaps = differences(rows, chain, TICKET, TICKET, first, images)
        found += [
            _better(f"{claim}: {steps}", gaps, deeper, _LEVELS, there),
            _somewhere(f"Late rewinding helps at some density: {steps}", gaps, 0, deeper, _LEVELS),
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
    several = f"{len(censored)} of {n} seeds ({100 * len(censored) / n:.0f} %) {why}{each}"
    return f"{' and '.join(known) or 'no bound of the mean is known'}{by}; {several}"
