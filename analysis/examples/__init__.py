"""Which test images a run's tickets win and lose, against the dense network and the controls.

    python -m analysis.examples runs/quickstart-0123abcd
    python -m analysis.examples runs/quickstart-0123abcd --levels 4 8 11

Two networks of one accuracy may be right about other images. The final weights on disk are passed over the
test set; every pair of a seed's networks has its counts of images won and lost, with McNemar's test and an
interval over test images (`lthjax.measures.examples`); and Cohen's κ says whether networks of one seed, and
of different seeds, err on the same images. Trains nothing. Writes RUN/examples:

    pairs.csv       `PairRow`: images won and lost by every network beside another of its seed
    agreement.csv   `AgreementRow`: agreement of errors, and of losses, between networks
    images.csv      `ImageRow`: the test images that tickets lose and win most often
    forgetting.csv  `ForgettingRow`: what tickets forget from level to level
    examples_pairs, examples_agreement      figures, as PNG, SVG and CSV
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, POSITIVE, equivalent, mean_interval, paired_error, verdict

from .. import words
from ..claims import SUPERIOR, At, beside, everywhere, named
from ..page import Link, Section, Table
from ..record import LEAST_SEEDS, Analysis, Finding, untested
from ..rows import TICKET
from ..run import Run
from . import figures
from .table import (
    FORGOTTEN,
    LOSSES,
    TABLES,
    AgreementRow,
    ForgettingRow,
    PairRow,
    arms,
    between,
    by_seed,
    levels,
    unknown,
)
from .work import Options, work

# κ within which agreement counts as none where it is not found to be above it.
_SAME = 0.05
_OWN = "A ticket errs on the images of its own dense network, more than of other seeds'"
_LOST = "Tickets of different seeds lose the same images, more than by chance"


def section(run: Run, found: Mapping[str, Any]) -> Section:
    """The report's section."""
    pairs: Sequence[PairRow] = found["pairs.csv"]
    header = ["level", "network", "beside", "lost (% of images)", "won", "difference (pp)",
              "networks with p < 5 %"]  # fmt: skip
    lines = []
    for level in levels(pairs):
        networks = [(arm, DENSE) for arm in arms(pairs)]
        networks += [(TICKET, arm) for arm in arms(pairs) if arm != TICKET]
        for arm, other in networks:
            own = [row for row in pairs if (row.level, row.arm, row.other) == (level, arm, other)]
            if not own:
                continue
            lost, won, gaps = (
                [*by_seed(own, level, arm, other, column).values()]
                for column in ("lost", "won", "difference")
            )
            # Images that only one of the two gets right are those that another test set would change.
            share = (sum(lost) + sum(won)) / (100 * len(lost))
            least = 100 * paired_error(share, own[0].images)
            gap = mean_interval(gaps, within=(-100.0, 100.0), floor=least)
            clear = sum(row.p < 0.05 for row in own)
            counts = [words.percent(mean_interval(of, within=PERCENT)) for of in (lost, won)]
            said = [*counts, words.points(gap), f"{clear} of {len(own)}"]
            lines.append([str(level), arm, other, *said])
    table = Table("Test images lost and won", header, lines, 3)
    shown = [table, _forgetting(found["forgetting.csv"], found["agreement.csv"])]
    return Section("examples", "Image by image", figures=figures.drawn(found), tables=shown)


def _forgetting(rows: Sequence[ForgettingRow], agreement: Sequence[AgreementRow]) -> Table:
    """What tickets forget from level to level, over the seeds that have most levels."""
    last, networks = max((row.last, row.networks) for row in rows)
    own = [row for row in rows if (row.last, row.networks) == (last, networks)]
    header = ["networks in sequence", "seeds", "always right (%)", "never", "forgotten", "events an image",
              "κ of two seeds"]  # fmt: skip
    shares = [
        words.percent(mean_interval([100 * getattr(row, name) / row.images for row in own], within=PERCENT))
        for name in ("always", "never", "forgotten")
    ]
    events = words.interval(mean_interval([row.events / row.images for row in own], within=POSITIVE), ".3f")
    seeds = {row.seed for row in own}
    pairs = [row for row in agreement if {row.seed, row.other_seed} <= seeds]
    alike = words.interval(mean_interval(between(pairs, last, TICKET, TICKET, FORGOTTEN)), "+.2f")
    title = (
        f"What tickets forget, from the dense network to level {last}: right, and wrong in the next network"
    )
    return Table(title, header, [[str(networks), str(len(own)), *shares, events, alike]], 0)


def findings(run: Run, found: Mapping[str, Any] | None) -> list[Finding]:
    """Whether networks err on the same images; a claim is one about every level that was looked at."""
    if found is None:
        command = words.command("examples", run.path)
        return [untested(claim, "images were not compared", command) for claim in (_OWN, _LOST)]
    rows: Sequence[AgreementRow] = found["agreement.csv"]
    made = [_finding(claim, rows) for claim in (_OWN, _LOST)]
    return [finding for finding in made if finding is not None]


def _values(claim: str, rows: Sequence[AgreementRow], level: int, arm: str) -> list[float]:
    """What a claim is about, of an arm in place of the ticket."""
    return _above(rows, level, arm) if claim == _OWN else between(rows, level, arm, arm, LOSSES)


def _above(rows: Sequence[AgreementRow], level: int, arm: str) -> list[float]:
    """κ of a network and its own dense network less the mean κ with other seeds', one a network's seed."""
    own = [row for row in rows if (row.level, row.of, row.arm, row.other) == (level, "errors", arm, DENSE)]
    made = []
    for seed in sorted({row.seed for row in own}):
        values = {row.other_seed: row.kappa for row in own if row.seed == seed and row.kappa is not None}
        others = [kappa for other, kappa in values.items() if other != seed]
        if seed in values and others:
            made.append(values[seed] - sum(others) / len(others))
    return made


def _tests(claim: str, rows: Sequence[AgreementRow], arm: str) -> dict[int, At]:
    """Level -> the test of a claim, of an arm in place of the ticket; without levels that have no values."""
    return {
        n: At(f"at level {n}", verdict(values), equivalent(values, _SAME))
        for n in levels(rows)
        if (values := _values(claim, rows, n, arm))
    }


def _finding(claim: str, rows: Sequence[AgreementRow]) -> Finding | None:
    tests, gaps = _tests(claim, rows, TICKET), _gaps(rows) if claim == _LOST else []
    where = Link("image by image", "#examples")
    if not tests:
        return untested(claim, "; ".join(gaps), where) if gaps else None
    judged = everywhere([*tests.values()])
    what = "κ" if claim == _LOST else "κ less that with other seeds' dense networks"
    seeds = [(row.level, row.seed) for row in rows if (row.arm, row.other) == (TICKET, DENSE)]
    # As few as the level with fewest has.
    n = min(len({seed for level, seed in seeds if level == at}) for at in tests)
    test = named(judged, SUPERIOR, f"±{_SAME:g}")
    others = {arm: _tests(claim, rows, arm) for arm in dict.fromkeys(row.arm for row in rows)}
    controls = {
        arm: everywhere([*of.values()]) for arm, of in others.items() if of and arm not in (TICKET, DENSE)
    }
    said = beside(
        judged.outcome if n >= LEAST_SEEDS else "too few seeds", controls, "+.3f", levels=len(tests)
    )
    estimate = "; ".join([f"{what} {judged.said('+.3f')}", *gaps])
    return Finding(claim, judged.outcome, estimate, n, where, test, said)


def _gaps(rows: Sequence[AgreementRow]) -> list[str]:
    """The levels at which κ of the tickets' losses is not known, in words."""
    said = []
    for level in levels(rows):
        count, pairs = unknown(rows, level, TICKET, TICKET, LOSSES)
        if count:
            said.append(f"not known at level {level}: in {count} of {pairs} pairs no image is lost by either")
    return said


ANALYSIS = Analysis("examples", "Image by image", Options, work, TABLES, section, findings)
