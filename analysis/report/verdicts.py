"""The claims that are made of winning tickets, each held against a run: supported, refuted, undecided.

Claims and rules are fixed before the data: "at 80 to 90 % sparsity" means at every level of that range,
bounds are one-sided at 95 %, seeds are the unit and pair the arms. What a run has no data for is named
as not tested, with the command that tests it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from analysis import words
from analysis.page import Link, Table
from analysis.record import Finding
from analysis.run import Row, accuracies, arms, by_seed, chains, select
from lthjax import imp
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Outcome, Ratio

# Densities of 80 to 90 % sparsity.
RANGE = (0.1, 0.2)
# Percentage points below the dense network that still count as its accuracy, for savings.
TOLERANCE = 0.5
_ALPHA = 0.05


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


def differences(rows: Sequence[Row], chain: str, arm: str, other: str) -> list[Level]:
    """arm − other at every level that has both, in percentage points; `other` may be the dense network."""
    dense = accuracies(select(rows, chain=DENSE))
    found = []
    for level in sorted({row.level for row in select(rows, chain=chain, arm=arm)}):
        ours = select(rows, chain=chain, level=level, arm=arm)
        theirs = select(rows, chain=chain, level=level, arm=other)
        values = stats.paired(accuracies(ours), dense if other == DENSE else accuracies(theirs))
        if values:
            found.append(Level(level, sum(row.density for row in ours) / len(ours), values))
    return found


def in_range(levels: Sequence[Level]) -> list[Level]:
    """The levels of 80 to 90 % sparsity."""
    # A mean of equal densities differs from them by rounding.
    return [level for level in levels if RANGE[0] - 1e-9 <= level.density <= RANGE[1] + 1e-9]


def findings(study: Mapping[str, Any], rows: Sequence[Row]) -> list[Finding]:
    """The claims that a run's accuracies speak to.

    Args:
        study: the run's study.json.
        rows: its cells.
    """
    tickets = [chain for chain in chains(rows) if imp.leader(chain) == "ticket"]
    again = _command(study)
    if not tickets:
        return [Finding("Winning tickets exist", "not tested", "no ticket is trained yet", 0, again)]
    chain = tickets[0]
    to_dense = differences(rows, chain, "ticket", DENSE)
    found = [
        _everywhere(
            f"Tickets at 80–90 % sparsity are within {margin:g} points of the dense network",
            to_dense,
            _within(margin),
            f"{again} --levels 11",
            "levels",
        )
        for margin in (2, 0.5, 0.2)
    ]
    for control, others in (("reinit", "reinitialised ones"), ("random", "random pruning")):
        gaps = differences(rows, chain, "ticket", control)
        command = f"{again} --levels 11 --arms ticket {control}"
        if control == "reinit":
            claim = "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity"
            found += [
                _everywhere(claim, gaps, lambda v: stats.verdict(v, 10).outcome, command, "gaps"),
                _somewhere("… by 10 points or more at some density", gaps, 10, command),
            ]
        found += [
            _everywhere(
                f"Tickets beat {others} at 80–90 % sparsity",
                gaps,
                lambda v: stats.verdict(v).outcome,
                command,
                "gaps",
            ),
            _somewhere("… at some density", gaps, 0, command),
        ]
    found += [_saved(rows, chain), _iso_accuracy(rows, chain, again)]
    found += _late(rows, tickets, again)
    schedules = "Which pruning rate and schedule is best"
    command = "python run.py --config configs/rates_lenet5.py"
    return [*found, Finding(schedules, "not tested", "a run has one schedule", 0, command)]


def _within(margin: float) -> Callable[[list[float]], Outcome]:
    return lambda values: stats.noninferior(values, margin).outcome


def _everywhere(
    claim: str, levels: Sequence[Level], say: Callable[[list[float]], Outcome], command: str, where: str
) -> Finding:
    """A claim on every level of the range; the estimate is that of its worst level."""
    levels = in_range(levels)
    if not levels:
        return Finding(claim, "not tested", "no level between 10 and 20 % of the weights", 0, command)
    worst = min(levels, key=lambda level: sum(level.values) / len(level.values))
    return Finding(
        claim,
        stats.conjunction(say(level.values) for level in levels),
        f"{_at(worst)}, the least of {len(levels)} level{'s' if len(levels) > 1 else ''}",
        min(len(level.values) for level in levels),
        Link("levels" if where == "levels" else "gaps", f"#{where}"),
    )


def _somewhere(claim: str, levels: Sequence[Level], threshold: float, command: str) -> Finding:
    """A claim on any level, searched for; p-values by t, adjusted for the search by Holm.

    Never refuted: that it is not found does not say that it is not there, but for a gap that is refuted
    at every level.
    """
    tested = [level for level in levels if len(level.values) > 1]
    if not levels:
        return Finding(claim, "not tested", "no such cells", 0, command)
    if not tested:
        return Finding(claim, "undecided", "one seed", 1, Link("gaps", "#gaps"))
    p_values = [stats.t_p_value(level.values, threshold, "greater") for level in tested]
    clear = [level for level, p in zip(tested, stats.holm(p_values), strict=True) if p < _ALPHA]
    n = min(len(level.values) for level in tested)
    if clear:
        first = max(clear, key=lambda level: level.density)
        return Finding(claim, "supported", f"first at {_at(first)}", n, Link("gaps", "#gaps"))
    most = max(tested, key=lambda level: sum(level.values) / len(level.values))
    refuted = all(stats.verdict(level.values, threshold).outcome == "refuted" for level in tested)
    return Finding(
        claim, "refuted" if refuted else "undecided", f"at most {_at(most)}", n, Link("gaps", "#gaps")
    )


def _saved(rows: Sequence[Row], chain: str) -> Finding:
    claim = f"5–10× fewer weights within {TOLERANCE:g} points of the dense network"
    dense = accuracies(select(rows, chain=DENSE))
    factors = []
    for seed, curve in _curves(rows, chain, "ticket").items():
        if seed not in dense:
            continue
        smallest, last = _matching(curve, dense[seed], TOLERANCE)
        factor = 1 / (smallest or 1.0)
        factors.append(Ratio(factor, math.inf if last else factor))
    if not factors:
        return Finding(claim, "not tested", "no ticket is trained yet", 0, "")
    outcome = stats.geometric_verdict(factors, 5).outcome
    estimate = _times(factors, "still match at the last level")
    return Finding(claim, outcome, estimate, len(factors), Link("levels", "#levels"))


def _matching(curve: stats.Curve, dense: float, margin: float) -> tuple[float | None, bool]:
    """A seed's smallest matching density, and whether it is its last: then sparser ones may match, too."""
    smallest = stats.smallest_match(curve, dense, margin, unbroken=True)
    return smallest, smallest == min(density for density, _ in curve)


def _iso_accuracy(rows: Sequence[Row], chain: str, again: str) -> Finding:
    claim = f"Reinitialised masks need more weights than tickets {TOLERANCE:g} points below dense"
    dense = accuracies(select(rows, chain=DENSE))
    tickets, controls = (_curves(rows, chain, arm) for arm in ("ticket", "reinit"))
    found = stats.iso_accuracy(tickets, controls, dense, TOLERANCE)
    if not found.ratios:
        return Finding(claim, "not tested", "no such cells", 0, f"{again} --arms ticket reinit")
    ratios = list(found.ratios.values())
    outcome = stats.geometric_verdict(ratios, 1).outcome
    estimate = _times(ratios, "do not fall that low")
    return Finding(claim, outcome, estimate, len(ratios), Link("levels", "#levels"))


def _late(rows: Sequence[Row], tickets: Sequence[str], again: str) -> list[Finding]:
    """Each later rewind step against the first."""
    claim = "Late rewinding helps at 80–90 % sparsity"
    if len(tickets) < 2:
        return [
            Finding(claim, "not tested", "one rewind step", 0, f'{again} --rewind 0 "1 epoch"'),
        ]
    first, *later = tickets
    found = []
    for chain in later:
        step = imp.rewind_of(chain)
        levels = []
        for level in sorted({row.level for row in select(rows, chain=chain, arm="ticket")}):
            ours, theirs = (select(rows, chain=c, level=level, arm="ticket") for c in (chain, first))
            values = stats.paired(accuracies(ours), accuracies(theirs))
            if values:
                levels.append(Level(level, sum(row.density for row in ours) / len(ours), values))
        found.append(
            _everywhere(
                f"{claim}: to step {step} against {imp.rewind_of(first)}",
                levels,
                lambda values: stats.verdict(values).outcome,
                f"{again} --levels 11",
                "levels",
            )
        )
    return found


def _curves(rows: Sequence[Row], chain: str, arm: str) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (density, accuracy in percent) of an arm; a network without weights is no point of a curve."""
    curves: dict[int, dict[float, float]] = {}
    own = select(rows, chain=chain, arm=arm)
    for level in sorted({row.level for row in own}):
        of_level = select(own, level=level)
        density = by_seed(of_level, "density")
        for seed, value in accuracies(of_level).items():
            # A level at which no weight was left to remove is the one before it, trained again.
            if density[seed]:
                curves.setdefault(seed, {}).setdefault(density[seed], value)
    return {seed: list(curve.items()) for seed, curve in curves.items()}


def gaps(rows: Sequence[Row], chain: str) -> Table:
    """Ticket against every control and the dense network, level by level, with p-values and effect sizes."""
    lines = []
    for other in (DENSE, *(arm for arm in arms(select(rows, chain=chain)) if arm != "ticket")):
        levels = [level for level in differences(rows, chain, "ticket", other) if len(level.values) > 1]
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
    tickets = _curves(rows, chain, "ticket")
    lines = []
    for arm in arms(select(rows, chain=chain)):
        curves = {seed: curve for seed, curve in _curves(rows, chain, arm).items() if seed in dense}
        line = [arm]
        for margin in (0.0, TOLERANCE, 2.0):
            found = [_matching(curve, dense[seed], margin) for seed, curve in curves.items()]
            line.append(
                ", ".join(
                    "none" if least is None else f"{'≤ ' if last else ''}{100 * least:.1f}"
                    for least, last in found
                )
            )
        areas = [
            area
            for seed, curve in curves.items()
            if seed in tickets and (area := stats.area_between(tickets[seed], curve)) is not None
        ]
        line.append("" if arm == "ticket" else words.points(stats.mean_interval(areas)))
        lines.append(line)
    header = ["arm", "matches dense down to (%), each seed", f"within {TOLERANCE:g} pp", "within 2 pp",
              "ticket − arm, mean over log density (pp)"]  # fmt: skip
    return Table(f"Over all densities, rewound to step {imp.rewind_of(chain)}", header, lines, 4)


def collapsed(rows: Sequence[Row], classes: int) -> Table | None:
    """The share of runs below twice chance, where there are any; with two classes that says nothing."""
    if classes < 3:
        return None
    lines = []
    places = dict.fromkeys((row.chain, row.level, row.arm) for row in rows)
    for chain, level, arm in places:
        of_cell = select(rows, chain=chain, level=level, arm=arm)
        fractions = list(by_seed(of_cell, "test_accuracy").values())
        share = stats.collapse_share(fractions, classes)
        if share.collapsed:
            median = 100 * statistics.median(fractions)
            lines.append(
                [
                    chain,
                    f"{100 * of_cell[0].density:.1f}",
                    arm,
                    f"{share.collapsed} of {share.n}",
                    f"{100 * share.low:.0f}–{100 * share.high:.0f} %",
                    f"{median:.2f}",
                ]
            )
    header = ["chain", "weights (%)", "arm", "collapsed", "95 % interval", "median accuracy (%)"]
    return Table("Collapsed runs", header, lines, 3) if lines else None


def _at(level: Level) -> str:
    return (
        f"{words.points(stats.mean_interval(level.values))} pp at {100 * level.density:.1f} % of the weights"
    )


def _times(ratios: Sequence[Ratio], why: str) -> str:
    """The geometric mean and its interval; where seeds are censored its one-sided bounds, and the reason."""
    censored = [ratio for ratio in ratios if ratio.low != ratio.high]
    if not censored:
        mean, low, high, n = stats.geometric_interval([ratio.low for ratio in ratios])
        return f"{mean:.1f}×" if n < 2 else f"{mean:.1f}× [{low:.1f}, {high:.1f}]"
    # Of a single seed its own bounds are all that is known.
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


def _command(study: Mapping[str, Any]) -> str:
    """The command that made the run, to be widened; it is recorded quoted, as a shell takes it."""
    commands = study.get("commands") or ["run.py --config CONFIG"]
    return f"python {commands[0]}"
