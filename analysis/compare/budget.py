"""Runs that differ in the length of training alone: the gap between tickets and their controls against it."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from lthjax.arms import ARMS
from lthjax.fields import About
from lthjax.measures import stats
from lthjax.measures.stats import Interval, mean_interval

from .. import draw, words
from ..claims import SAME, SUPERIOR, At, everywhere, named
from ..differences import FLOORED, floor
from ..ends import Ends, ends, spacing, total
from ..page import Drawn, Section, Table
from ..record import Finding, settled
from ..rows import TICKET, Row, accuracies, arms, by_level, densities, images_of, select, ticket_chains
from ..tables import grouped

# The gap in percentage points of test accuracy that is claimed of tickets at 80–90 % sparsity.
CLAIMED = 10.0
# The density from which on the claim is made.
_SPARSE = 0.2
_TITLE = "Is the gap one of tickets, or of short training?"
# Fields of a study's identity that are its training's length. Its number of levels is in it only where the
# densities depend on it.
_LENGTH = ("train.steps", "train.epochs", "train.eval_every")


class Gap(NamedTuple):
    """Tickets − a control at one level, after trainings of one length.

    Attributes:
        chain, level, control: which cells; the control is an arm of the chain.
        density: weights left / prunable weights, mean over seeds.
        steps: of every training.
        values: seed -> ticket − control in percentage points of test accuracy at the end.
        floor: the least standard deviation of a value: what the test set leaves open.
        control_ends: how the control's trainings ended.
    """

    chain: str
    level: int
    control: str
    density: float
    steps: int
    values: dict[int, float]
    floor: float
    control_ends: Ends

    @property
    def interval(self) -> Interval:
        """The mean with its two-sided 95 % interval."""
        return mean_interval([*self.values.values()], floor=self.floor)

    @property
    def ten(self) -> stats.Verdict:
        """The test of the claim that the gap is `CLAIMED` points or more."""
        return stats.verdict([*self.values.values()], CLAIMED, floor=self.floor)

    @property
    def place(self) -> tuple[str, int, str]:
        """What is the same for every length of training."""
        return self.chain, self.level, self.control


def differ(about: Sequence[About]) -> bool:
    """Whether studies differ in the length of training, and in nothing else that changes numbers."""
    rest = [{k: v for k, v in of["identity"].items() if k not in _LENGTH} for of in about]
    return all(other == rest[0] for other in rest) and len({of["lengths"]["total"] for of in about}) > 1


def gaps(about: Sequence[About], tables: Sequence[Sequence[Row]]) -> list[Gap]:
    """Every gap that all lengths of training have: by chain, level and control, then by steps.

    Args:
        about: every study.json.
        tables: the rows of each.
    """
    kept, _ = _of_all(about, tables)
    return kept


def lacking(about: Sequence[About], tables: Sequence[Sequence[Row]]) -> list[str]:
    """A sentence on the gaps that not all lengths of training have; none where there is no such gap."""
    kept, others = _of_all(about, tables)
    rewound = _rewound([*kept, *others])
    at = {gap.place: f"{100 * gap.density:.1f}" for gap in others}
    by_arm = grouped(((rewound[chain], control), share) for (chain, _, control), share in at.items())
    alike = grouped(((", ".join(shares), chain), control) for (chain, control), shares in by_arm.items())
    said = "; ".join(f"{', '.join(of)} at {shares} %{chain}" for (shares, chain), of in alike.items())
    return [f"Not shown, as not every length of training has both networks: {said}."] if said else []


def _of_all(about: Sequence[About], tables: Sequence[Sequence[Row]]) -> tuple[list[Gap], list[Gap]]:
    """The gaps that all lengths of training have, and the others; each by chain, level, control, steps."""
    of_run = [_gaps(facts, rows) for facts, rows in zip(about, tables, strict=True)]
    everywhere = set.intersection(*({gap.place for gap in found} for found in of_run))
    # Controls in their usual order, those from outside the package last.
    order = {arm: place for place, arm in enumerate(ARMS)}

    def place(gap: Gap) -> tuple[str, int, int, str, int]:
        return gap.chain, gap.level, order.get(gap.control, len(order)), gap.control, gap.steps

    every = sorted((gap for found in of_run for gap in found), key=place)
    kept, others = ([gap for gap in every if (gap.place in everywhere) is of_all] for of_all in (True, False))
    return kept, others


def _gaps(about: About, rows: Sequence[Row]) -> list[Gap]:
    found, end, every = [], total(about, rows), spacing(about)
    for chain in ticket_chains(rows):
        own = select(rows, chain=chain)
        tickets = by_level(select(own, arm=TICKET))
        for control in [arm for arm in arms(own) if arm != TICKET]:
            for level, theirs in by_level(select(own, arm=control)).items():
                ours, other = accuracies(tickets.get(level, [])), accuracies(theirs)
                values = {seed: ours[seed] - other[seed] for seed in sorted(ours) if seed in other}
                if values:
                    least = floor(ours, other, images_of(about))
                    density = densities(tickets[level])[level]
                    ended = ends(theirs, end, every)
                    found.append(Gap(chain, level, control, density, end, values, least, ended))
    return found


def claims(found: Sequence[Gap]) -> list[Finding]:
    """Of every place: is the gap 10 points after the longest training, and less than after the shortest?

    Differences of gaps are paired by seed; the test set's error of either gap counts.
    """
    said, rewound = [], _rewound(found)
    for (chain, _, control), of_place in itertools.groupby(found, key=lambda gap: gap.place):
        short, *_, long = of_place
        tickets = f"{words.share(long.density)}{rewound[chain]}"
        most, networks = long.ten, long.control_ends.networks
        said.append(
            Finding(
                f"Tickets of {tickets} beat {control} by {CLAIMED:g} points or more after {long.steps:,} "
                "steps",
                most.outcome,
                words.decided(most, "+.2f", " pp"),
                len(long.values),
                "",
                f"{SUPERIOR}, threshold {CLAIMED:g} pp",
                f"{long.control_ends.learning} of {networks} of {control} still learn" if networks else "",
            )
        )
        fewer = stats.paired(short.values, long.values)
        least = math.hypot(short.floor, long.floor)
        tests = stats.verdict(fewer, floor=least), stats.equivalent(fewer, SAME, floor=least)
        less = everywhere([At("", *tests)])
        said.append(
            Finding(
                f"… and the gap is less after {long.steps:,} steps than after {short.steps:,}",
                less.outcome,
                less.said("+.2f", " pp"),
                len(fewer),
                "",
                named(less, SUPERIOR),
            )
        )
    return [settled(one) for one in said]


def _rewound(found: Sequence[Gap]) -> dict[str, str]:
    """Chain -> words that tell it from the others, after the density of its tickets; "" of a single chain."""
    there = dict.fromkeys(gap.chain for gap in found)
    return {chain: f" {words.rewound(chain)}" if len(there) > 1 else "" for chain in there}


def by_outcome(found: Sequence[Gap]) -> dict[str, list[int]]:
    """Whether a gap is 10 points or more -> the steps after which that is so."""
    return grouped((_of_ten(gap), gap.steps) for gap in found)


def _of_ten(gap: Gap) -> str:
    return settled(Finding("", gap.ten.outcome, "", len(gap.values), "")).outcome


def table(found: Sequence[Gap]) -> Table:
    """A line for every gap: how large, whether 10 points or more, and how many controls still learn."""
    lines, rewound = [], _rewound(found)
    for gap in found:
        verdict = _of_ten(gap)
        _, _, bound = words.decided(gap.ten, "+.2f", rule="").partition(", ")
        networks = gap.control_ends.networks
        learning = f"{gap.control_ends.learning} of {networks}" if networks else "–"
        lines.append(
            [
                f"{words.share(gap.density)}{rewound[gap.chain]}, {gap.control}",
                f"{gap.steps:,}",
                words.points(gap.interval),
                str(len(gap.values)),
                f"{verdict}, {bound}" if bound and verdict != "too few seeds" else verdict,
                learning,
            ]
        )
    header = [
        "weights, control",
        "steps",
        "ticket − control (pp)",
        "n",
        f"≥ {CLAIMED:g} pp",
        "still learning",
    ]
    return Table("Gap against the length of training", header, lines)


@matplotlib.rc_context(draw.STYLE)
def figure(found: Sequence[Gap], heading: str) -> Figure:
    """The gap against steps; a panel a density, a line a control."""
    levels = [*dict.fromkeys((gap.chain, gap.level) for gap in found)]
    drawn, panels = draw.few_beside(heading, len(levels))
    steps = sorted({gap.steps for gap in found})
    for axes, level in zip(panels.ravel(), levels, strict=False):
        here = [gap for gap in found if (gap.chain, gap.level) == level]
        several = f", {level[0]}" if len({chain for chain, _ in levels}) > 1 else ""
        axes.set_title(f"{words.share(here[0].density)} of the weights{several}", loc="left", fontsize=10)
        axes.axhline(0, color="#444444", lw=1)
        axes.axhline(CLAIMED, label=f"the claimed {CLAIMED:g} points", **draw.CHANCE)
        for control in dict.fromkeys(gap.control for gap in here):
            line = [gap for gap in here if gap.control == control]
            values = [[*gap.values.values()] for gap in line]
            style, floors = draw.style(control), [gap.floor for gap in line]
            draw.curve(axes, [gap.steps for gap in line], values, style, f"to {control}", floors=floors)
        axes.set_xscale("log")
        draw.plain_ticks(axes.xaxis, steps)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("steps of every training (log scale)")
    drawn.supylabel("test accuracy, ticket − control (pp)", fontsize=10)
    draw.legend_below(drawn, *panels.ravel()[: len(levels)])
    return drawn


def section(found: Sequence[Gap], heading: str, notes: Sequence[str] = ()) -> Section:
    """The part of the comparison's page; its notes alone where there is no gap."""
    if not found:
        return Section("budget", _TITLE, notes)
    shown = next((gap for gap in found if gap.density <= _SPARSE), found[0])
    short, *_, long = [gap for gap in found if gap.place == shown.place]
    tickets = f"{words.share(short.density)}{_rewound(found)[shown.chain]}"
    lead = (
        f"After {short.steps:,} steps tickets of {tickets} are "
        f"{words.points(short.interval)} points from {short.control}, after {long.steps:,} steps "
        f"{words.points(long.interval)}."
    )
    verdicts = Table(
        "Verdicts",
        ["claim", "verdict", "estimate, and the bound that decides", "beside it", "test", "seeds"],
        [[of.claim, of.outcome, of.estimate, of.beside or "–", of.test, str(of.n)] for of in claims(found)],
        5,
    )
    drawn = Drawn(
        "budget",
        "Gap against the length of training",
        figure(found, f"{heading}: gap against training"),
        "Test accuracy of tickets at the end of training minus that of a control with as many weights, of "
        "the same seed, in percentage points, against the steps of every training, the dense network's "
        "too. Points are seeds, lines their means, bands the 95 % interval by Student's t, "
        f"{FLOORED}. Look whether "
        "the lines stay above the claimed gap as training grows longer.",
        (("chain", "level", "density", "control", "steps", "seed", "gap_points"), [
            (gap.chain, gap.level, gap.density, gap.control, gap.steps, seed, value)
            for gap in found for seed, value in gap.values.items()
        ]),
    )  # fmt: skip
    remark = (
        "Still learning: so many of the control's networks have their lowest validation loss at the last "
        "evaluation, so a longer training may narrow the gap further. Intervals are two-sided, 95 %, by "
        "Student's t over seeds; bounds of verdicts are one-sided, 95 %. The spread between seeds is no less "
        "than the test set's own error."
    )
    return Section(
        "budget",
        _TITLE,
        notes,
        figures=[drawn],
        tables=[verdicts, table(found)],
        remark=remark,
        lead=lead,
    )
