"""The loss landscape around the networks of one level: ticket, controls and the dense network.

    python -m analysis.landscape runs/quickstart-0123abcd --level 7
    python -m analysis.landscape runs/quickstart-0123abcd --level 7 --seeds 0 1 --images 1000 --no-training

Measures the trained networks inside their masks (`lthjax.measures.landscape`, `lthjax.measures.hessian`),
on the same images and along the same random directions for all arms of a seed. The run's own cells are only
read. Two kinds of trainings are added. A sibling has the seed, mask and start weights of a cell and another
data order: they lie in one basin if the straight path between them has no barrier. A replay is a cell's
training once more, with the same bits on one CPU: the one of ticket and control that ends at the lower train
loss is stopped where its loss reaches the other's end, found by sections to within 2 %, so that sharpness is
compared at matched train loss. Measures that do not change with the scale of the layers decide (ASAM, and the
curvature along filter-normalised directions). All files are written to RUN/landscape:

    chain=C/level=07/landscape.csv      `Number`: one a seed, arm and quantity
    chain=C/level=07/differences.csv    `ArmDifference`: ticket − other arm, paired over seeds
    chain=C/level=07/about.json         what was asked, notes
    chain=C/level=07/                   figures, as PNG, SVG and the CSV of their data
    seed=3/chain=C/level=07/ARM/        arrays: point, lines, plane, spectrum, path_OTHER (.npz)
    seed=3/chain=C/level=07/ARM_sibling/, ARM_matched_OTHER/    trained networks; the latter with arrays
    seed=3/dense/                       arrays of the dense network for all levels, KIND-SETTINGS.npz
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.quantities import BESIDE, FLATNESS, QUANTITIES, WITHIN
from lthjax.measures.stats import Ratio, mean_interval

from .. import barriers, commands, words
from ..barriers import LIMIT, SAME, Paths
from ..claims import NON_INFERIOR, SAME_FACTOR, SUPERIOR, TIMES, At, Judged, everywhere, named
from ..page import Link, Section, Table
from ..record import Analysis, Finding, Said, untested
from ..rows import TICKET, chains, select
from ..run import Run
from . import figures, table, work
from .table import (
    CONTROLS,
    END,
    NAME,
    SIBLING,
    ArmDifference,
    Found,
    Number,
    values_of,
)
from .work import LandscapeOptions

__all__ = ["ANALYSIS", "ArmDifference", "Found", "LandscapeOptions", "Number"]

_FLAT = {
    "reinit": "Tickets lie in flatter minima than reinitialised ones",
    "random": "Tickets lie in flatter minima than random ones",
}
_BASIN = "Two trainings of a ticket that differ in data order are linearly connected"
_LINK = Link(NAME, f"#{NAME}")
_REMARK = (
    "Measured inside the mask, on the same train images for all arms of a seed. “end” is after training, "
    "where arms differ in train loss too; “matched” takes the arm that ends at the lower train loss at the "
    "step at which its loss reached the other's end. ASAM and the curvature in lengths of the filters do not "
    "change with the scale of the layers, and decide; eigenvalues, trace and SAM do. Intervals are "
    "Student's t over seeds. The further eigenvalues are in differences.csv of the level's folder."
)


def section(run: Run, found: Sequence[Found]) -> Section:
    """The report's section: figures, and differences at the end and at matched loss."""
    header = ["level", "difference", "at", "quantity", "mean", "95 % interval", "n"]
    lines = []
    for level, row in ((of.scope.level, row) for of in found for row in table.differences(of.rows)):
        if row.quantity in QUANTITIES:
            place = [of.replace(" ", "\N{NO-BREAK SPACE}") for of in (f"ticket − {row.other}", row.where)]
            interval = "–" if row.n < 2 else f"[{row.low:+.3g}, {row.high:+.3g}]"
            values = [QUANTITIES[row.quantity], f"{row.mean:+.3g}", interval, str(row.n)]
            lines.append([str(level), *place, *values])
    shown = [Table("Differences, paired by seed", header, lines, 4), *_matched(found)]
    drawn = [figure for one in found for figure in figures.drawn_of(run, one)]
    return Section(NAME, "Landscape", [note for one in found for note in one.notes], drawn, shown, _REMARK)


def _matched(found: Sequence[Found]) -> list[Table]:
    """The losses of every matched pair; no table where there are none."""
    header = ["level", "ticket against", "seed", "ticket's step", "control's step", "ticket's loss",
              "control's loss", "apart (%)"]  # fmt: skip
    lines = [
        [str(one.scope.level), pair.control, *map(str, (pair.seed, *pair.steps)),
         *(f"{loss:.4g}" for loss in pair.losses), f"{100 * pair.off:.1f}"]
        for one in found
        for pair in table.matched_pairs(one.rows)
    ]  # fmt: skip
    title = f"Matched train losses (nats), to within {100 * WITHIN:g} % where the steps allow"
    return [Table(title, header, lines, 2)] if lines else []


def findings(run: Run, found: Sequence[Found] | None) -> list[Finding]:
    """The claims about tickets; flatness is compared at matched train loss where replays were trained."""
    if found:
        return [finding for one in found for finding in (*flatter(run, one), connected(run, one))]
    where = table.command(run, _proposed(run))
    claims = (*_FLAT.values(), _BASIN)
    return [untested(claim, "not measured", where) for claim in claims]


def _proposed(run: Run) -> int | str:
    """The level near 15 % of the weights where the first chain has a ticket and, if possible, a control."""
    done = [row for row in run.rows if row.status == "done"]
    first = (chains(select(done, arm=TICKET)) or [""])[0]
    tickets = select(done, chain=first, arm=TICKET)
    beside = {row.level for row in select(done, chain=first) if row.arm in CONTROLS}
    both = [row for row in tickets if row.level in beside] or tickets
    return min(both, key=lambda row: abs(row.density - 0.15)).level if both else "L"


def flatter(run: Run, found: Found) -> list[Finding]:
    """Whether tickets lie in flatter minima: one finding a control and measure that is free of scale."""
    return [
        _flatter(run, found, control, quantity, in_words)
        for control in CONTROLS
        for quantity, in_words in FLATNESS.items()
    ]


def _flatter(run: Run, found: Found, control: str, quantity: str, in_words: str) -> Finding:
    """Whether a measure is less for tickets than for a control, at matched loss where there are replays.

    A network that is stopped at a loss is at no minimum: a claim about minima that is found there must be
    found at the ends as well, or it is undecided.
    """

    def both(where: str, quantity: str) -> list[dict[int, float]]:
        return [values_of(found.rows, arm, where, quantity) for arm in (TICKET, control)]

    def against(quantity: str, form: str = ".3g") -> str:
        means = [np.mean([*of.values()]) if of else np.nan for of in both(where, quantity)]
        return " against ".join(f"{mean:{form}}" for mean in means)

    claim = f"{_FLAT[control]}, at {words.share(found.scope.density)}: {in_words}"
    paired = {at: stats.paired(*both(at, quantity)) for at in (table.MATCHED_WITH.format(control), END)}
    where = next((where for where in paired if paired[where]), "")
    if not where:
        if not select(run.rows, found.scope.chain, found.scope.level, control):
            missing = commands.with_control(run.about, run.rows, control, found.scope.level, run.path)
            return untested(claim, f"no {control} cell there", missing)
        return _again(run, found, claim, "not measured")

    def judged(at: str) -> Judged:
        less = stats.verdict([-value for value in paired[at]])
        return everywhere([At("", less, _equal(*both(at, quantity)))], same=1)

    tested = judged(where)
    difference = words.decided(tested.decides.verdict, "+.3g", below=True)
    if tested.outcome == "equivalent":
        difference = f"ticket / {control} {tested.said('.2f', '×')}"
    place = "at the end of training, not matched" if where == END else "at matched train loss"
    at_end = words.interval(mean_interval(paired[END]), "+.3g")
    also = "" if where == END else f"; at the end {at_end}"
    changing = [f"{name} {against(other)}" for other, name in BESIDE.items() if all(both(where, other))]
    scaled = f"; with the scale: {', '.join(changing)}" if changing else ""
    estimate = f"{against(quantity)}: {difference} {place} ({against('train_loss')} nats){also}{scaled}"
    outcome: Said = tested.outcome
    notes: list[str] = []
    if where != END:
        notes = [stopped(found.rows, control), unmatched(found.rows, control)]
        end = judged(END).outcome if paired[END] else outcome
        if outcome != "undecided" and end != outcome:
            notes.insert(0, f"{outcome} at matched loss, {end} at the ends")
            outcome = "undecided"
    test, beside = named(tested, SUPERIOR, TIMES), "; ".join(filter(None, notes))
    return Finding(claim, outcome, estimate, len(paired[where]), _LINK, test, beside)


def _equal(ours: Mapping[int, float], theirs: Mapping[int, float]) -> stats.Verdict | None:
    """Whether two measures are equal within a factor; None where one of them is not above 0."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if any(min(pair) <= 0 for pair in pairs):
        return None
    return stats.geometric_equivalent([Ratio(a / b, a / b) for a, b in pairs], SAME_FACTOR)


def stopped(rows: Sequence[table.Number], control: str) -> str:
    """At which steps tickets and a control have the losses that were matched; "" where none is known."""
    pairs = [pair.steps for pair in table.matched_pairs(rows) if pair.control == control]
    if not pairs:
        return ""
    ours, theirs = (
        f"{min(of):,}" if len({*of}) == 1 else f"{min(of):,} to {max(of):,}"
        for of in zip(*pairs, strict=True)
    )
    return f"matched at step {ours} of the ticket and {theirs} of {control}"


def unmatched(rows: Sequence[table.Number], control: str) -> str:
    """What must be said where pairs that count as matched are not within the limit; "" where all are."""
    apart = [pair.off for pair in table.matched_pairs(rows) if pair.control == control]
    far = [off for off in apart if off > WITHIN]
    if not far:
        return ""
    return (
        f"train losses of {len(far)} of {len(apart)} pairs are more than {100 * WITHIN:g} % apart, by up to "
        f"{100 * max(far):.0f} %"
    )


def connected(run: Run, found: Found) -> Finding:
    """Whether the paths between tickets and their siblings are without a barrier; other arms beside."""
    claim = f"{_BASIN}, at {words.share(found.scope.density)}: error barrier below {LIMIT:g} points"
    every = {arm: of for arm in (TICKET, *CONTROLS, DENSE) if (of := _paths(found, arm))}
    if TICKET not in every:
        return _again(run, found, claim, "no siblings trained")
    tested = {arm: barriers.below(of) for arm, of in every.items()}
    ticket = tested.pop(TICKET)
    said = f"barrier of the test error {words.decided(ticket, '.3g', ' pp', below=True)}"
    also = [_apart(arm, ticket.outcome, of, every) for arm, of in tested.items()]
    n, test = len(every[TICKET].barriers), f"{NON_INFERIOR}, margin {LIMIT:g} pp"
    return Finding(claim, ticket.outcome, said, n, _LINK, test, "; ".join(also))


def _paths(found: Found, arm: str) -> Paths | None:
    """The paths between an arm's networks and their siblings; None where there is none."""
    where = table.PATH_TO.format(SIBLING)
    highest, disagreements = (
        {seed: 100 * value for seed, value in values_of(found.rows, arm, where, name).items()}
        for name in ("barrier_test_error", "disagreement")
    )
    return barriers.paths(highest, disagreements, found.scope.settings.images) if highest else None


def _apart(arm: str, outcome: stats.Outcome, tested: stats.Verdict, every: Mapping[str, Paths]) -> str:
    """What the same test says of a control's siblings, and the verdict on its barrier − the ticket's."""
    passes = tested.outcome == "supported"
    told = ", so connection does not tell tickets from it" if passes and outcome == "supported" else ""
    more = everywhere([At("", *barriers.higher(every[arm], every[TICKET]))])
    within = f" within ±{SAME:g} pp" if more.outcome == "equivalent" else ""
    gap = f"{arm} − ticket {more.said('+.3g', ' pp')}: {more.outcome}{within}"
    return f"{arm} {'passes the same test' if passes else f'does not pass ({tested.outcome})'}{told}; {gap}"


def _again(run: Run, found: Found, claim: str, why: str) -> Finding:
    """A claim that is not tested, with the command that tests it."""
    again = table.command(run, found.scope.level, found.scope.chain)
    return untested(claim, why, again)


ANALYSIS = Analysis(
    NAME, "Landscape", LandscapeOptions, work.work, {}, section, findings, table.load,
    marker=f"{NAME}/chain=*/level=*/{table.MARKER}",
)  # fmt: skip
