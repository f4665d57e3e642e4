"""Instability analysis: from which step on does the order of the data no longer decide where training ends?

    python -m analysis.stability runs/lenet300_mnist-0123abcd
    python -m analysis.stability runs/lenet300_mnist-0123abcd --k 0 100 1000 --levels 7 10 --pairs 3
    python -m analysis.stability runs/rewind_resnet8-0123abcd --at-rewind --arms dense ticket random

From the weights at step k, two copies are trained to the end with data orders of their own. Where the
straight path between the two ends has no error barrier, the training is stable from step k on (Frankle et
al. 2020, arXiv 1912.05671). The state at k is the cell's own training, once more up to k; the copies start
with fresh moments, and the learning rate and batches of step k, as after rewinding. Dense network, tickets
and controls share the orders of their seed and level. From the weights that the run has, paths are measured
between successive levels, and between tickets and the dense network (Paul et al. 2023, arXiv 2210.03044). All
files are written to RUN/stability:

    stability.csv   `PairRow`: one a pair of copies
    levels.csv      `LevelRow`: one a ticket and earlier level
    about.json      the pairs that are left out, as a training diverged
    stability_curve, stability_levels      figures, as PNG, SVG and CSV
    seed=3/chain=C/level=07/ARM_to_500/, ARM_from_500/, ARM_from_500.r2/    the state, and a pair of copies
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import mean_interval

from .. import barriers, words
from ..barriers import LIMIT, SAME
from ..claims import NON_INFERIOR, SUPERIOR, At, beside, everywhere, named
from ..differences import FLOORED
from ..page import Link, Section, Table
from ..record import Analysis, Finding, untested
from ..rows import TICKET, grouped, images_of, percent
from ..run import Run
from . import figures, table, work
from .table import (
    MATCHING,
    NAME,
    TABLES,
    LevelRow,
    PairRow,
    density,
    gap,
    gap_floor,
    gaps,
    own_starts,
    paths_of,
    subjects,
)
from .work import Options

__all__ = ["ANALYSIS", "LevelRow", "Options", "PairRow"]

_LINK = Link(NAME, f"#{NAME}")
_STABLE = f"is stable to the order of the data (error barrier below {LIMIT:g} points)"
_SUCCESSIVE = "Successive levels are linearly connected where the sparser one matches the dense network"
_REMARK = (
    "Barriers are highest errors on the straight path less the mean of its ends, in points; “units matched” "
    "after the second network's hidden units are matched with the first's by their weights. “stable” "
    f"counts the pairs whose barrier of the test error is below {LIMIT:g} points, “matching” those whose "
    f"accuracy is no more than {MATCHING:g} points below that of the run's dense network. Intervals are "
    "over seeds, of 95 %; of accuracy − dense, "
    f"{FLOORED}; of barriers, with the spread between seeds as it is, which the verdicts take as no less "
    "than the test images leave open."
)
_REWOUND = "Tickets and controls start from the step they were rewound to, so each k is a chain of its own."


def section(run: Run, found: Mapping[str, Any]) -> Section:
    """The report's section: figures, and a line for every state and every pair of levels."""
    images = images_of(run.about)
    header = ["level", "arm", "weights (%)", "k", "test error", "train error", "units matched", "distance",
              "degrees", "accuracy − dense", "stable", "matching", "n"]  # fmt: skip
    lines = [
        [str(level), arm, f"{100 * density(rows):.1f}", str(k), *_numbers(rows, images)]
        for (level, arm), steps in subjects(found["stability.csv"]).items()
        for k, rows in steps.items()
    ]
    pairs = Table("From a common state", header, lines, 2)
    header = ["level", "to", "weights (%)", "test error", "train error", "distance", "degrees",
              "accuracy − dense", "connected", "matching", "n"]  # fmt: skip
    lines = []
    for (level, other), rows in sorted(grouped(found["levels.csv"], "level", "other").items()):
        every = [
            f"{sum(getattr(r, name) for r in rows)} of {len(rows)}" for name in ("connected", "matching")
        ]
        means = [f"{np.mean([getattr(row, name) for row in rows]):.3g}" for name in ("distance", "degrees")]
        both = [_barrier(rows, f"barrier_{part}_error") for part in ("test", "train")]
        where = "dense" if not other else f"level {other}"
        lines.append(
            [
                str(level),
                where,
                f"{100 * density(rows):.1f}",
                *both,
                *means,
                words.points(gap(rows, images)),
                *every,
                str(len(gaps(rows))),
            ]
        )
    between = Table("Between levels", header, lines, 2)
    remark = f"{_REMARK} {_REWOUND}" if own_starts(found["stability.csv"]) else _REMARK
    without = table.left_out(found)
    notes = [f"{without[0].upper()}{without[1:]}."] if without else []
    return Section(NAME, "Stability", notes, figures.drawn(found, images), [pairs, between], remark)


def _numbers(rows: Sequence[PairRow], images: int) -> list[str]:
    """The cells of a state's line; `images` of the test set."""
    known = [row for row in rows if row.matched_test_error is not None]
    shown = [_barrier(rows, "barrier_test_error"), _barrier(rows, "barrier_train_error")]
    shown.append(_barrier(known, "matched_test_error") if known else "–")
    means = [f"{np.mean([getattr(row, name) for row in rows]):.3g}" for name in ("distance", "degrees")]
    counts = [f"{sum(getattr(r, name) for r in rows)} of {len(rows)}" for name in ("stable", "matching")]
    apart = gap(rows, images)
    return [*shown, *means, words.points(apart), *counts, str(apart.n)]


def _barrier(rows: Sequence[PairRow | LevelRow], column: str) -> str:
    return words.interval(mean_interval([*percent(rows, column).values()], within=stats.PERCENT), ".2f")


def findings(run: Run, found: Mapping[str, Any] | None) -> list[Finding]:
    """What is stable from which step, tickets against controls, and whether levels are connected."""
    if found is None:
        again = words.command(NAME, run.path)
        claims = (f"The training of the dense network {_STABLE}", f"The training of tickets {_STABLE}")
        return [untested(one, "not measured", again) for one in (*claims, _SUCCESSIVE)]
    # Arms of which every pair diverged have no rows.
    lost: list[table.LeftOut] = found.get(table.ABOUT, [])
    every = {**{(pair.level, pair.arm): {} for pair in lost}, **subjects(found["stability.csv"])}
    said, last_lost = [], max((pair.k for pair in lost), default=0)
    for (level, arm), steps in sorted(every.items(), key=lambda item: item[0][0]):
        controls = {
            name: of for (at, name), of in every.items() if at == level and name not in (DENSE, TICKET)
        }
        if not steps:
            said += [_noted(one, found, level, (arm,), last_lost) for one in _lost(arm, level, controls)]
            continue
        first = min(steps)
        if arm == DENSE:
            said.append(_noted(_stable(DENSE, steps, {}), found, level, (DENSE,), first))
        if arm == TICKET:
            both = _stable(TICKET, steps, controls), _matches(steps, controls, images_of(run.about))
            said += [_noted(one, found, level, (TICKET, *controls), first) for one in both]
            for control, other in controls.items():
                last = min(steps.keys() & other.keys(), default=last_lost)
                said.append(_noted(_against(arm, control, steps, other), found, level, (arm, control), last))
    return said + _connected(found["levels.csv"])


def _lost(arm: str, level: int, controls: Iterable[str]) -> list[Finding]:
    """The claims about an arm of which every pair diverged: those of `_stable`, `_matches`, `_against`."""
    if arm == DENSE:
        return [untested(f"The training of the dense network {_STABLE}", "every pair diverged", _LINK)]
    claims = [
        f"The training of tickets at level {level} {_STABLE}",
        f"Tickets at level {level} match the dense network in other orders of the data",
        *(f"Tickets at level {level} are more stable to the order of the data than {of}" for of in controls),
    ]
    return [untested(one, "every pair of tickets diverged", _LINK) for one in claims if arm == TICKET]


def _noted(finding: Finding, found: Mapping[str, Any], level: int, arms: Sequence[str], last: int) -> Finding:
    """The finding with the pairs of its arms that are left out, from steps up to the last, beside it."""
    parts = (finding.beside, table.left_out(found, level, arms, last))
    return finding._replace(beside="; ".join(filter(None, parts)))


def _from(k: int, steps: Mapping[int, Sequence[PairRow]]) -> str:
    """How the training from step k is named: tickets of several chains start where they were rewound to."""
    return f"Rewound to step {k}," if own_starts(itertools.chain(*steps.values())) else f"From step {k} on"


def _of(arm: str, rows: Sequence[PairRow]) -> str:
    return "the dense network" if arm == DENSE else f"tickets of {words.share(density(rows))} of the weights"


def _stable(
    arm: str, steps: Mapping[int, Sequence[PairRow]], controls: Mapping[str, Mapping[int, Sequence[PairRow]]]
) -> Finding:
    """Whether an arm is stable from the first step that was looked at; later steps in the estimate.

    Args:
        arm: the dense network or tickets.
        steps: step -> the arm's rows.
        controls: arm -> likewise, of the same level.
    """
    first, *later = steps

    def tested(rows: Sequence[PairRow]) -> stats.Verdict:
        return barriers.below(paths_of(rows))

    def said(verdict: stats.Verdict, rule: str = words.RULE) -> str:
        return words.decided(verdict, ".2f", " pp", below=True, rule=rule)

    verdict = tested(steps[first])
    after = [f"{said(tested(steps[k]), '')} from step {k}" for k in later]
    estimate = "; ".join([f"barrier of the test error {said(verdict)}", *after])
    same = {name: everywhere([At("", tested(of[first]))]) for name, of in controls.items() if first in of}
    besides = beside(verdict.outcome, same, ".2f", " pp", below=True)
    claim = f"{_from(first, steps)} the training of {_of(arm, steps[first])} {_STABLE}"
    test = f"{NON_INFERIOR}, margin {LIMIT:g} pp"
    return Finding(claim, verdict.outcome, estimate, verdict.bounds.n, _LINK, test, besides)


def _matches(
    steps: Mapping[int, Sequence[PairRow]],
    controls: Mapping[str, Mapping[int, Sequence[PairRow]]],
    images: int,
) -> Finding:
    """Whether tickets that start at the first step match, whatever the data order.

    Args:
        steps: step -> their rows.
        controls: arm -> likewise, of the same level.
        images: of the test set, whose error is the least spread of a difference.
    """
    first, rows = next(iter(steps.items()))

    def tested(rows: Sequence[PairRow]) -> stats.Verdict:
        return stats.noninferior([*gaps(rows).values()], MATCHING, floor=gap_floor(rows, images))

    verdict = tested(rows)
    claim = f"{_from(first, steps)} {_of(TICKET, rows)} match the dense network in other orders of the data"
    estimate = f"{words.decided(verdict, '+.2f', ' pp')}; within {MATCHING:g} points is asked"
    same = {name: everywhere([At("", tested(of[first]))]) for name, of in controls.items() if first in of}
    besides = beside(verdict.outcome, same, "+.2f", " pp")
    test = f"{NON_INFERIOR}, margin {MATCHING:g} pp"
    return Finding(claim, verdict.outcome, estimate, verdict.bounds.n, _LINK, test, besides)


def _against(arm: str, control: str, ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> Finding:
    """Whether tickets are more stable than a control, from the first step that both have."""
    k = next((k for k in ours if k in theirs), None)
    claim = f"Tickets are more stable to the order of the data than {control}"
    if k is None:
        why = "no step in common" if theirs else f"every pair of {control} diverged"
        return untested(claim, why, _LINK)
    start = "rewound to" if own_starts(itertools.chain(*ours.values())) else "from"
    claim += f", {start} step {k} at {words.share(density(ours[k]))}"
    judged = everywhere([At("", *barriers.higher(paths_of(theirs[k]), paths_of(ours[k])))])
    estimate = f"barrier less by {judged.said('+.2f', ' pp')}"
    test = named(judged, SUPERIOR, f"±{SAME:g} pp")
    return Finding(claim, judged.outcome, estimate, judged.decides.verdict.bounds.n, _LINK, test)


def _connected(rows: Sequence[LevelRow]) -> list[Finding]:
    """Whether successive levels are connected as long as the sparser one matches, and no longer."""
    levels = dict(sorted(grouped([row for row in rows if row.other == row.level - 1], "level").items()))
    every = {level: paths_of(of) for level, of in levels.items()}
    close = {level: table.matches(float(np.mean([*gaps(of).values()]))) for level, of in levels.items()}
    said = []
    for matching, claim in (
        (True, _SUCCESSIVE),
        (False, "… and are not where it does not match"),
    ):
        own = {level: of for level, of in every.items() if close[level] is matching}
        if not own:
            none = "no level matches" if matching else "every level matches"
            said.append(untested(claim, none, _LINK))
            continue
        # Above the limit is the same test with supported and refuted exchanged.
        judged = everywhere([
            At(
                f"at level {level} ({words.share(density(levels[level]))})",
                barriers.below(of) if matching else barriers.above(of),
            )
            for level, of in own.items()
        ])  # fmt: skip
        several = f", the least favourable of {len(own)} levels" if len(own) > 1 else ""
        decided = words.decided(judged.decides.verdict, ".2f", " pp", below=matching)
        estimate = f"barrier of the test error {decided} {judged.decides.place}{several}"
        n = min(len(of.barriers) for of in own.values())
        test = f"{NON_INFERIOR}, margin {LIMIT:g} pp" if matching else f"{SUPERIOR}, threshold {LIMIT:g} pp"
        said.append(Finding(claim, judged.outcome, estimate, n, _LINK, test))
    return said


ANALYSIS = Analysis(NAME, "Stability", Options, work.work, TABLES, section, findings, table.load)
