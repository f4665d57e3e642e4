"""The claims about winning tickets, tested on a run: supported, refuted, undecided.

Claims and rules are fixed before the data: "at 80 to 90 % sparsity" means at every level of that range,
bounds are one-sided at 95 %, seeds are the unit and pair the arms. A claim without data is not tested, and
names the command that tests it.
"""

import math
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from analysis import words
from analysis.page import Link, Table
from analysis.record import Finding
from analysis.run import TICKET, Row, accuracies, arms, by_level, by_seed, chains, densities, select
from lthjax import imp
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Ratio, Verdict

# Densities of 80 to 90 % sparsity.
RANGE = (0.1, 0.2)
# Percentage points below the dense network that count as its accuracy.
TOLERANCE = 0.5
_ALPHA = 0.05
_LEVELS, _GAPS = Link("levels", "#levels"), Link("gaps", "#gaps")


class Level(NamedTuple):
    """Paired differences at one level, in percentage points.

    Attributes:
        level: of the chain.
        density: weights left / prunable weights.
        values: one a seed.
    """

    level: int
    density: float
    values: list[float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.values) / len(self.values)


def differences(
    rows: Sequence[Row], chain: str, arm: str, other: str, beside: str | None = None
) -> list[Level]:
    """arm − other in percentage points, at every level that has both.

    `other` may be the dense network; `beside` is its chain, by default the same.
    """
    dense, found = accuracies(select(rows, chain=DENSE)), []
    others = by_level(select(rows, chain=beside or chain, arm=other))
    for level, ours in by_level(select(rows, chain=chain, arm=arm)).items():
        theirs = dense if other == DENSE else accuracies(others.get(level, []))
        if values := stats.paired(accuracies(ours), theirs):
            found.append(Level(level, densities(ours)[level], values))
    return found


def findings(study: Mapping[str, Any], rows: Sequence[Row]) -> list[Finding]:
    """The claims about the accuracies of a run, from its study.json and its cells."""
    tickets = [chain for chain in chains(rows) if imp.leader(chain) == TICKET]
    # The command of the run, quoted as for a shell; with further options it adds cells.
    again = _of_all(study, {row.seed for row in rows})
    if not tickets:
        return [Finding("Winning tickets exist", "not tested", "no ticket is trained yet", 0, again)]
    chain, deeper = tickets[0], f"{again} --levels 11"
    to_dense = differences(rows, chain, TICKET, DENSE)
    found = []
    for margin in (2, 0.5, 0.2):
        claim = f"Tickets at 80–90 % sparsity are within {margin:g} points of the dense network"
        say = partial(stats.noninferior, margin=margin)
        found.append(_everywhere(claim, to_dense, say, deeper, _LEVELS))
    for control, others in (("reinit", "reinitialised ones"), ("random", "random pruning")):
        gaps = differences(rows, chain, TICKET, control)
        command = f"{deeper} --arms ticket {control}"
        if control == "reinit":
            claim = "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity"
            found += [
                _everywhere(claim, gaps, partial(stats.verdict, threshold=10), command, _GAPS),
                _somewhere("… by 10 points or more at some density", gaps, 10, command),
            ]
        found += [
            _everywhere(f"Tickets beat {others} at 80–90 % sparsity", gaps, stats.verdict, command, _GAPS),
            _somewhere("… at some density", gaps, 0, command),
        ]
    found += [_saved(rows, chain), _iso_accuracy(rows, chain, again), *_late(rows, tickets, again)]
    schedules = "Which pruning rate and schedule is best"
    command = "python run.py --config configs/rates_lenet5.py"
    return [*found, Finding(schedules, "not tested", "a run has one schedule", 0, command)]


def _of_all(study: Mapping[str, Any], seeds: Collection[int]) -> str:
    """The first command of a run, for all its seeds; a process may have trained a part of them."""
    commands = study.get("commands")
    if not commands:
        return "python run.py --config CONFIG"
    command = re.sub(r" --shard[ =]\S+", "", commands[0])
    named = re.search(r" --seeds((?:[ =][0-9]+)+)", command)
    if named and {*map(int, re.findall("[0-9]+", named[1]))} != {*seeds}:
        command = command.replace(named[0], f" --seeds {' '.join(map(str, sorted(seeds)))}", 1)
    return f"python {command}"


def _everywhere(
    claim: str, levels: Sequence[Level], say: Callable[[list[float]], Verdict], command: str, where: Link
) -> Finding:
    """A claim about every level of the range, with the estimate of the worst one."""
    # The mean of equal densities differs from them by rounding.
    levels = [level for level in levels if RANGE[0] - 1e-9 <= level.density <= RANGE[1] + 1e-9]
    if not levels:
        return Finding(claim, "not tested", "no level between 10 and 20 % of the weights", 0, command)
    worst = min(levels, key=lambda level: level.mean)
    several = f"{len(levels)} level{'s' if len(levels) > 1 else ''}"
    outcome = stats.conjunction(say(level.values).outcome for level in levels)
    n = min(len(level.values) for level in levels)
    return Finding(claim, outcome, f"{_at(worst)}, the least of {several}", n, where)


def _somewhere(claim: str, levels: Sequence[Level], threshold: float, command: str) -> Finding:
    """A claim about any level, by the p-values of t with Holm's correction for the search.

    It is refuted only where the gap is refuted at every level.
    """
    tested = [level for level in levels if len(level.values) > 1]
    if not levels:
        return Finding(claim, "not tested", "no such cells", 0, command)
    if not tested:
        return Finding(claim, "undecided", "one seed", 1, _GAPS)
    p_values = [stats.t_p_value(level.values, threshold, "greater") for level in tested]
    clear = [level for level, p in zip(tested, stats.holm(p_values), strict=True) if p < _ALPHA]
    n = min(len(level.values) for level in tested)
    if clear:
        first = max(clear, key=lambda level: level.density)
        return Finding(claim, "supported", f"first at {_at(first)}", n, _GAPS)
    most = max(tested, key=lambda level: level.mean)
    refuted = all(stats.verdict(level.values, threshold).outcome == "refuted" for level in tested)
    return Finding(claim, "refuted" if refuted else "undecided", f"at most {_at(most)}", n, _GAPS)


def _saved(rows: Sequence[Row], chain: str) -> Finding:
    claim = f"5–10× fewer weights within {TOLERANCE:g} points of the dense network"
    dense = accuracies(select(rows, chain=DENSE))
    matches = stats.sparsest_matches(_curves(rows, chain, TICKET), dense, TOLERANCE)
    if not matches:
        return Finding(claim, "not tested", "no ticket is trained yet", 0, "")
    known = [(1 / (smallest or 1.0), last) for smallest, last in matches.values()]
    factors = [Ratio(factor, math.inf if last else factor) for factor, last in known]
    outcome = stats.geometric_verdict(factors, 5).outcome
    return Finding(claim, outcome, _times(factors, "still match at the last level"), len(factors), _LEVELS)


def _iso_accuracy(rows: Sequence[Row], chain: str, again: str) -> Finding:
    claim = f"Reinitialised masks need more weights than tickets {TOLERANCE:g} points below dense"
    dense = accuracies(select(rows, chain=DENSE))
    tickets, controls = (_curves(rows, chain, arm) for arm in (TICKET, "reinit"))
    ratios = [*stats.iso_accuracy(tickets, controls, dense, TOLERANCE).ratios.values()]
    if not ratios:
        return Finding(claim, "not tested", "no such cells", 0, f"{again} --arms ticket reinit")
    outcome = stats.geometric_verdict(ratios, 1).outcome
    return Finding(claim, outcome, _times(ratios, "do not fall that low"), len(ratios), _LEVELS)


def _late(rows: Sequence[Row], tickets: Sequence[str], again: str) -> list[Finding]:
    """Each later rewind step against the first."""
    claim = "Late rewinding helps at 80–90 % sparsity"
    first, *later = tickets
    if not later:
        return [Finding(claim, "not tested", "one rewind step", 0, f'{again} --rewind 0 "1 epoch"')]
    found, deeper = [], f"{again} --levels 11"
    for chain in later:
        steps = f"to step {imp.rewind_of(chain)} against {imp.rewind_of(first)}"
        gaps = differences(rows, chain, TICKET, TICKET, beside=first)
        found.append(_everywhere(f"{claim}: {steps}", gaps, stats.verdict, deeper, _LEVELS))
    return found


def _curves(rows: Sequence[Row], chain: str, arm: str) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (density, accuracy in percent) of an arm, without networks that have no weight left."""
    curves: dict[int, dict[float, float]] = {}
    for of_level in by_level(select(rows, chain=chain, arm=arm)).values():
        density = by_seed(of_level, "density")
        for seed, value in accuracies(of_level).items():
            # Where no weight could be removed, a level repeats the density of the one before it.
            if density[seed]:
                curves.setdefault(seed, {}).setdefault(density[seed], value)
    return {seed: list(curve.items()) for seed, curve in curves.items()}


def gaps(rows: Sequence[Row], chain: str) -> Table:
    """Ticket against the dense network and every control at every level, with p-values and effect sizes."""
    lines = []
    for other in (DENSE, *(arm for arm in arms(select(rows, chain=chain)) if arm != TICKET)):
        levels = [level for level in differences(rows, chain, TICKET, other) if len(level.values) > 1]
        by_t = [stats.t_p_value(level.values) for level in levels]
        for level, p, adjusted in zip(levels, by_t, stats.holm(by_t), strict=True):
            g, low, high, _ = stats.hedges_gz(level.values)
            lines.append(
                [
                    f"{100 * level.density:.1f}",
                    f"ticket − {other}",
                    words.points(stats.mean_interval(level.values)),
                    str(len(level.values)),
                    _p(p),
                    _p(adjusted),
                    _p(stats.sign_flip_p_value(level.values)) if len(level.values) <= 20 else "–",
                    "–" if math.isnan(g) else f"{g:+.1f} [{low:+.1f}, {high:+.1f}]",
                ]
            )
    header = ["weights (%)", "difference", "pp", "n", "p (t)", "p (Holm)", "p (sign flips)", "Hedges' g_z"]
    return Table(f"Rewound to step {imp.rewind_of(chain)}", header, lines, 2)


def summaries(rows: Sequence[Row], chain: str) -> Table:
    """Every arm over all densities: how sparse it matches the dense network, and its area to the ticket."""
    dense = accuracies(select(rows, chain=DENSE))
    tickets, lines = _curves(rows, chain, TICKET), []
    for arm in arms(select(rows, chain=chain)):
        curves = _curves(rows, chain, arm)
        matches = [
            ", ".join(
                "none" if least is None else f"{'≤ ' if last else ''}{100 * least:.1f}"
                for least, last in stats.sparsest_matches(curves, dense, margin).values()
            )
            for margin in (0.0, TOLERANCE, 2.0)
        ]
        both = [seed for seed in curves if seed in tickets and seed in dense]
        areas = [stats.area_between(tickets[seed], curves[seed]) for seed in both]
        area = words.points(stats.mean_interval([area for area in areas if area is not None]))
        lines.append([arm, *matches, "" if arm == TICKET else area])
    header = ["arm", "matches dense down to (%), each seed", f"within {TOLERANCE:g} pp", "within 2 pp",
              "ticket − arm, mean over log density (pp)"]  # fmt: skip
    return Table(f"Over all densities, rewound to step {imp.rewind_of(chain)}", header, lines, 4)


def collapsed(rows: Sequence[Row], classes: int) -> Table | None:
    """The share of runs below twice chance; None where there are none, and for less than three classes."""
    if classes < 3:
        return None
    lines = []
    for chain, level, arm in dict.fromkeys((row.chain, row.level, row.arm) for row in rows):
        of_cell = select(rows, chain=chain, level=level, arm=arm)
        fractions = list(by_seed(of_cell, "test_accuracy").values())
        share = stats.collapse_share(fractions, classes)
        if share.collapsed:
            bounds = f"{100 * share.low:.0f}–{100 * share.high:.0f} %"
            median = f"{100 * statistics.median(fractions):.2f}"
            cell = [chain, f"{100 * of_cell[0].density:.1f}", arm]
            lines.append([*cell, f"{share.collapsed} of {share.n}", bounds, median])
    header = ["chain", "weights (%)", "arm", "collapsed", "95 % interval", "median accuracy (%)"]
    return Table("Collapsed runs", header, lines, 3) if lines else None


def _at(level: Level) -> str:
    gap = words.points(stats.mean_interval(level.values))
    return f"{gap} pp at {100 * level.density:.1f} % of the weights"


def _times(ratios: Sequence[Ratio], why: str) -> str:
    """The geometric mean with its interval; with censored seeds its one-sided bounds, and the reason."""
    censored = [ratio for ratio in ratios if ratio.low != ratio.high]
    if not censored:
        return words.times(stats.geometric_interval([ratio.low for ratio in ratios]), ".1f")
    # A single seed has only its own bounds.
    _, low, high, n = stats.geometric_bounds(ratios)
    low, high = (low, high) if n > 1 else censored[0]
    known = ([f"≥ {low:.1f}×"] if low > 0 else []) + ([f"≤ {high:.1f}×"] if math.isfinite(high) else [])
    by = ", one-sided 95 % bound of the mean" if known and n > 1 else ""
    least = min(ratio.low for ratio in censored)
    each = f", each ≥ {least:.1f}×" if n > 1 and least > 0 else ""
    several = f"{len(censored)} of {n} seeds ({100 * len(censored) / n:.0f} %) {why}{each}"
    return f"{' and '.join(known) or 'no bound of the mean is known'}{by}; {several}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")
