"""Early-Bird tickets: when in the dense training its mask stops changing, and could have been drawn.

    python -m analysis.earlybird runs/quickstart-0123abcd
    python -m analysis.earlybird runs/quickstart-0123abcd --levels 3 7 --every 25

Replays the dense trainings, with the same bits on one CPU, and draws every so many steps the mask of the
largest weights, with the layer densities of a level's ticket. The Early-Bird ticket is drawn when the mask is
near all others in a queue (`lthjax.measures.earlybird`; You et al. 2020, arXiv 1909.11957). The run's own
cells are only read. Without this command the report shows the masks that the study's own dense trainings drew
at their evaluations. Writes RUN/earlybird:

    masks.csv     `MaskRow`: distances of masks, and their overlap with the ticket's own
    draws.csv     `DrawRow`: when the ticket could have been drawn
    earlybird     the figure, as PNG, SVG and CSV
    masks=3/      the masks of a seed, so that a stopped call goes on after the last finished one
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lthjax.fields import largest_of
from lthjax.measures.stats import SHARE, Interval, Verdict, mean_interval, verdict

from .. import words
from ..claims import SUPERIOR, At, everywhere
from ..page import Link, Section, Table
from ..record import Analysis, Finding, untested
from ..run import Run
from . import figures
from .table import TABLES, DrawRow, by_density, load, recorded, scope_of
from .work import Options, work

# Share of the dense training by which the ticket should have been drawn.
_EARLY = 0.2
_CLAIM = f"Early-Bird: masks settle within the first {100 * _EARLY:.0f} % of the dense training"


def section(run: Run, found: Mapping[str, Any]) -> Section:
    """The report's section."""
    draws: Sequence[DrawRow] = found["draws.csv"]
    recorded = draws[0].level is None
    header = ["level", "% of weights", "drawn at step", "% of training", "epoch", "overlap with the ticket",
              "threshold / chance"]  # fmt: skip
    title = (
        "When the Early-Bird ticket could have been drawn "
        f"(queue of {draws[0].queue}, threshold {draws[0].threshold:g})"
    )
    table = Table(title, header, [_line(level, own) for (level, _), own in by_density(draws).items()])
    note = (
        "Where the threshold is near the distance of two random masks (last column near 1, or above it), "
        "masks are near each other for being sparse, and the rule says little. A step at which the queue is "
        "full for the first time is an upper bound: the masks may have settled before. So is a mean with "
        "such a seed, which has no interval. Other steps are known to within the "
        f"{draws[0].every:,} steps between two masks, and intervals are no narrower than that leaves open."
    )
    notes = [note]
    if recorded:
        finer = words.command("earlybird", run.path, *run.own_config())
        notes = [note, _kind(run), f"More masks, and their overlap with the tickets: {finer}"]
    elif not _is_of_weights(run):
        notes = [note, _beside_units(run)]
    return Section("earlybird", "Early-Bird", notes, figures.drawn(found), [table])


def _kind(run: Run) -> str:
    """Which weights the recorded masks keep, whatever the study itself prunes."""
    scope = scope_of(run)
    how = {"layer": "within every layer", "global": "over all layers together"}[scope]
    bound = (
        " The random masks have the same density in every layer; ones with the layer densities of these, "
        "which are not recorded, would be nearer to each other."
    )
    said = f"These are masks of single weights, ranked by magnitude {how}, whatever the study prunes."
    return said + bound if scope == "global" else said


def _is_of_weights(run: Run) -> bool:
    """Whether the study prunes single weights, as these masks do."""
    return run.study.prune.granularity == "weight"


def _beside_units(run: Run) -> str:
    """Why masks of single weights overlap little with tickets of units or N:M patterns."""
    return (
        "These are masks of single weights, with the ticket's density in every layer; "
        f"prune.granularity is {run.study.prune.granularity}. So their overlap with the ticket is small even "
        "where they have settled, and does not tell when the ticket itself could have been drawn."
    )


def _line(level: int | None, own: Sequence[DrawRow]) -> list[str]:
    """A level's line of the table, over the seeds whose masks settled."""
    steps = [row.step for row in own if row.step is not None]
    total = own[0].total
    settled = mean_interval([step / total for step in steps], within=SHARE, floor=_floor(own))
    # Of the training in epochs; of no use where no mask settled.
    epochs = next((row.epoch * total / row.step for row in own if row.epoch and row.step), 0.0)
    overlaps = [row.iou for row in own if row.iou is not None]
    first, never = sum(map(_is_first, own)), len(own) - len(steps)
    said = [f"{first} of {len(own)} known by a bound"] if first else []
    said += [f"{never} of {len(own)} never"] if never else []
    some = f" ({', '.join(said)})" if said else ""
    chance = f"{own[0].threshold / own[0].chance:.2f}" if own[0].chance else "–"
    return [
        "–" if level is None else str(level),
        f"{100 * own[0].density:.1f}",
        f"{_settled(settled, total, ',.0f', bool(first))}{some}",
        _settled(settled, 100, ".1f", bool(first)),
        _settled(settled, epochs, ".3f", bool(first)),
        words.interval(mean_interval(overlaps, within=SHARE), ".2f") if overlaps else "–",
        chance,
    ]


def _settled(of: Interval, factor: float, form: str, bound: bool) -> str:
    """A mean in another unit, with its interval; if it is an upper bound, without one."""
    if bound:
        return f"≤ {factor * of.mean:{form}}"
    return words.interval(Interval(factor * of.mean, factor * of.low, factor * of.high, of.n), form)


def _floor(own: Sequence[DrawRow]) -> float:
    """The least standard deviation of the share of the training at which masks settle.

    A step is known to within the steps between two masks: seeds that agree are no more certain than that.
    """
    return max(row.every / row.total for row in own) / math.sqrt(12)


def _is_first(row: DrawRow) -> bool:
    """Whether the masks had settled when the queue was full for the first time, and perhaps before."""
    return row.step is not None and row.step <= row.queue * row.every


def findings(run: Run, found: Mapping[str, Any] | None) -> list[Finding]:
    """Whether masks settle early, at every level that was looked at."""
    if found is None:
        return [untested(_CLAIM, _lacking(run), words.command("earlybird", run.path))]
    rule = found["draws.csv"][0]
    if rule.level is None and rule.queue * rule.every > _EARLY * rule.total:
        full = f"{100 * rule.queue * rule.every / rule.total:.0f} % of the training"
        why = f"masks were drawn too seldom: {rule.queue} of them, which the rule compares, take {full}"
        return [untested(_CLAIM, why, words.command("earlybird", run.path))]
    levels = by_density(found["draws.csv"])
    tests = {key: At(words.share(key[1]), _early(own)) for key, own in levels.items()}
    judged = everywhere([*tests.values()])
    own = next(levels[key] for key, test in tests.items() if test is judged.decides)
    n = min(len(of) for of in levels.values())
    never = sum(row.step is None for row in own)
    several = f", the latest of {len(levels)} densities" if len(levels) > 1 else ""
    more = f"; {never} of {len(own)} never, counted as 100 %" if never else ""
    first, decides = sum(map(_is_first, own)), judged.decides.verdict
    bound = ""
    if first:
        refuted = decides.outcome == "refuted"
        bound = "at least " if refuted else "at most "
        sooner = ": perhaps sooner, before as many masks were drawn as the rule compares"
        more += f"; {first} of {len(own)} known by a bound{', counted as 0 %' if refuted else sooner}"
    share = words.decided(decides, ".1f", " % of the training", below=True)
    estimate = f"after {bound}{share} at {judged.decides.place} of the weights{several}{more}"
    by_chance = any(row.threshold >= row.chance for row in own)
    also = ["two random masks of that density pass the same rule"] if by_chance else []
    also += [] if _is_of_weights(run) else ["masks of single weights, other than the study prunes"]
    where = Link("Early-Bird", "#earlybird")
    return [Finding(_CLAIM, judged.outcome, estimate, n, where, SUPERIOR, "; ".join(also))]


def _lacking(run: Run) -> str:
    """Why there is nothing to look at: no masks, or too few for the rule."""
    drawn = [
        (len(of["curves"]["step"]), of["draws"]["queue"])
        for of in run.results.values()
        if "draws" in of and largest_of(of["draws"], scope_of(run)) is not None
    ]
    few = [f"{count} masks were drawn, the rule compares {queue}" for count, queue in drawn if count < queue]
    return few[0] if few else "no masks were drawn"


def _early(own: Sequence[DrawRow]) -> Verdict:
    """Whether masks of a density settle in time, of percents of the training, negated.

    Masks that never settle count as settling at the end. Masks drawn too seldom to settle in time refute
    nothing. Seeds known by an upper bound leave no lower one: they count as 0 where that refutes the claim.
    """
    shares = [-100.0 if row.step is None else -100 * row.step / row.total for row in own]
    first = [_is_first(row) for row in own]
    least, most = (
        verdict(of, -100 * _EARLY, within=(-100.0, 0.0), floor=100 * _floor(own))
        for of in ([0.0 if bound else share for bound, share in zip(first, shares, strict=True)], shares)
    )
    seldom = any(row.queue * row.every > _EARLY * row.total for row in own)
    if least.outcome == "refuted" and not seldom:
        return least
    bounds = most.bounds._replace(high=math.inf) if any(first) else most.bounds
    return Verdict("supported" if most.outcome == "supported" else "undecided", bounds)


ANALYSIS = Analysis(
    "earlybird", "Early-Bird", Options, work, TABLES, section, findings, load=load, recorded=recorded
)
