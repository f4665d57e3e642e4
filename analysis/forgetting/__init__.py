"""What tickets forget along their training, beside the dense network and the controls.

    python -m analysis.forgetting runs/quickstart-0123abcd
    python -m analysis.forgetting runs/quickstart-0123abcd --levels 4 8 --every 25

An image is forgotten when a network that got it right gets it wrong at the next look (Toneva et al. 2019,
arXiv 1812.05159). Replays trainings of the run, with the same bits on one CPU, and passes train and test
images through the weights every so many steps. `analysis.examples` counts the same along levels of pruning,
from the final weights. The run's own cells are only read. Writes RUN/forgetting:

    events.csv     `EventRow`: events of every network, and how alike they are to the dense network's
    forgetting     the figure, as PNG, SVG and CSV
    events/        events of the images of every training, so that a stopped call goes on after the last one
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT, POSITIVE, equivalent, mean_interval, paired, verdict

from .. import words
from ..claims import SUPERIOR, At, everywhere, named
from ..page import Link, Section, Table
from ..record import Analysis, Finding, untested
from ..rows import TICKET
from ..run import Run
from . import figures
from .table import TABLES, TEST, TRAIN, EventRow, alike, arms, levels, of, rate
from .work import Options, work

# The controls that tickets are compared with: the first one that was replayed.
_CONTROLS = {"reinit": "reinitialised masks", "random": "random masks"}
# Events an image within which a difference counts as none.
_SAME = 0.01
_DENSE = "Along a training, tickets forget train images less often than the dense network"
_LESS = "… and less often than {}"


def section(run: Run, found: Mapping[str, Any]) -> Section:
    """The report's section."""
    rows: Sequence[EventRow] = found["events.csv"]
    note = (
        "Events are counted from the rewind step on. A network that is right about fewer images has fewer to "
        "forget. Those that it never gets right have no event, are named in a column of their own, and rank "
        "above all others in the correlation, which so tells about them, too. The fewer events a network "
        "has, the more images are tied and the less it correlates with the dense network, even where both "
        "find the same images hard: correlations tell of the images only where events are about as many."
    )
    shown = [_table(rows, TRAIN, ""), _table(rows, TEST, "The same of test images")]
    return Section("forgetting", "Forgetting in training", [note], figures.drawn(found), shown)


def _table(rows: Sequence[EventRow], part: str, folded: str) -> Table:
    header = ["level", "% of weights", "network", "events an image", "never forgotten (% of images)",
              "never right (%)", "rank correlation with dense"]  # fmt: skip
    lines = []
    for arm, level in [(DENSE, 0), *((arm, n) for n in levels(rows) for arm in arms(rows) if arm != DENSE)]:
        own = [*of(rows, part, level, arm).values()]
        if not own:
            continue
        events = mean_interval([rate(row) for row in own], within=POSITIVE)
        kept, never = (
            mean_interval([100 * count / row.images for count, row in zip(counts, own, strict=True)],
                          within=PERCENT)
            for counts in ([r.unforgettable for r in own], [r.images - r.learned for r in own])
        )  # fmt: skip
        like = mean_interval([*alike(rows, part, level, arm).values()], within=(-1.0, 1.0))
        density = 100 * sum(row.density for row in own) / len(own)
        said = [words.interval(events, ".3f"), words.percent(kept), words.percent(never)]
        lines.append([str(level), f"{density:.1f}", arm, *said, words.interval(like, "+.2f")])
    title = f"Forgetting events of {part} images along a training"
    return Table(title, header, lines, 3, folded)


def findings(run: Run, found: Mapping[str, Any] | None) -> list[Finding]:
    """Whether tickets forget less; a claim is one about every level looked at.

    There is none about which images they forget: the rank correlation with the dense network is less for a
    network of fewer events, whichever these are.
    """
    claims, again = [_DENSE, _LESS.format(_CONTROLS["reinit"])], words.command("forgetting", run.path)
    if found is None:
        return [untested(claim, "no training was replayed", again) for claim in claims]
    rows: Sequence[EventRow] = found["events.csv"]
    control = next((arm for arm in _CONTROLS if arm in arms(rows)), "")
    made = [_finding(_DENSE, rows, DENSE)]
    if control:
        made.append(_finding(_LESS.format(_CONTROLS[control]), rows, control))
    else:
        made.append(untested(claims[1], "no control was replayed", again))
    return [finding for finding in made if finding is not None]


def _finding(claim: str, rows: Sequence[EventRow], arm: str) -> Finding | None:
    """A claim that tickets have fewer events than an arm, at every level that has both."""
    tests = []
    for n in levels(rows):
        theirs, ours = (
            {seed: rate(row) for seed, row in of(rows, TRAIN, n, a).items()} for a in (arm, TICKET)
        )
        if apart := paired(theirs, ours):
            tests.append(At(f"at level {n}", verdict(apart), equivalent(apart, _SAME)))
    if not tests:
        return None
    judged = everywhere(tests)
    n, test = min(at.verdict.bounds.n for at in tests), named(judged, SUPERIOR, f"±{_SAME:g}")
    estimate = judged.said("+.3f", " events an image")
    return Finding(claim, judged.outcome, estimate, n, Link("forgetting", "#forgetting"), test)


ANALYSIS = Analysis("forgetting", "Forgetting in training", Options, work, TABLES, section, findings)
"""The command of forgetting along trainings."""
