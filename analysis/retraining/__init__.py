"""What to do after pruning: rewind weights, rewind the learning rate alone, or fine-tune, at what cost.

The report works it out for runs with arms that start from trained weights (`finetune`, `lr_rewind`, their
chains, `continued`), and leaves it out of others. It has no command.

Source: Renda et al. 2020 (arXiv 2003.02389). At equal rewind steps all of them train equally long; studies
with several rewind steps compare costs.
"""

from statistics import fmean

from lthjax import imp
from lthjax.measures import stats
from lthjax.measures.stats import nearest
from lthjax.optim import SCHEDULES

from .. import ends
from ..claims import NON_INFERIOR, SUPERIOR
from ..differences import FLOORED, floor
from ..page import Link, Section
from ..record import Analysis, Finding, Options
from ..rows import TICKET, select
from ..run import Run
from ..words import decided, share
from . import figures, table
from .table import Level, Retrained

_HERE = Link("retraining", "#retraining")
_REMARK = (
    "Steps trained count the dense network, the leaders of all levels before, and the arm itself. "
    f"Differences are paired by seed, with the 95 % interval of Student's t, {FLOORED}. Moments start fresh "
    "in all of them. finetune keeps the learning rate of the last step"
)
_FALLS = "; under a cosine that is nearly 0."
_STEADY = (
    ". Here that is the rate of every step from the rewind step on, so finetune and lr_rewind train the same "
    "networks."
)
# Percentage points below the ticket that still count as equal.
_MARGIN = 0.5


def section(run: Run, found: Retrained) -> Section:
    """The tables and the figure."""
    drawn = figures.drawn(run, found)
    remark = f"{_REMARK}{_STEADY if _is_steady(run, found) else _FALLS}"
    return Section("retraining", "After pruning", (), [drawn], table.shown(found), remark)


def _is_steady(run: Run, found: Retrained) -> bool:
    """Whether the learning rate is constant from the rewind step of every arm on."""
    course = SCHEDULES.get(run.study.optim.schedule)
    changes = [run.lengths.warmup, *run.lengths.milestones]
    first = min(imp.rewind_of(row.chain) for row in found.levels)
    return course is not None and not course.falls and first >= max(changes)


def findings(run: Run, found: Retrained | None) -> list[Finding]:
    """Whether rewinding beats fine-tuning, and whether weights need rewinding; at the level nearest 10 %."""
    if found is None:
        return []
    said = []
    for arm in ("finetune", "lr_rewind"):
        for name in (arm, f"{arm}_chain"):
            levels = [row for row in found.levels if row.arm == name and _pairs(found, row, TICKET)]
            if levels:
                near = nearest({row.level: row.density for row in levels}, 0.1)
                row = next(row for row in levels if row.level == near)
                cells = select(run.rows, chain=row.chain, level=near, arm=name)
                end, every = ends.total(run.about, run.rows), ends.spacing(run.about)
                learning = ends.mark(cells, name, end, every, fmean(_pairs(found, row, TICKET)))
                said.append(_finding(found, row, arm)._replace(beside=learning))
    return said


def _pairs(found: Retrained, row: Level, better: str) -> list[float]:
    """Differences by seed between an arm and the ticket of its level; `better` minus the other."""
    theirs, sign = table.tickets(found, row), 1 if better == row.arm else -1
    return [sign * (row.accuracy[seed] - theirs[seed]) for seed in row.accuracy if seed in theirs]


def _finding(found: Retrained, row: Level, kind: str) -> Finding:
    at = f"at {share(row.density)} of the weights, {row.trainings:.1f} dense trainings"
    named, theirs = table.named(row.chain, row.arm), table.tickets(found, row)
    least = floor(row.accuracy, theirs, found.images)
    if kind == "finetune":
        values = _pairs(found, row, TICKET)
        claim, test, tested = f"Tickets beat {named} {at}", SUPERIOR, stats.verdict(values, floor=least)
    else:
        values = _pairs(found, row, row.arm)
        claim = f"Weights need no rewinding: {named} within {_MARGIN} points of tickets {at}"
        test = f"{NON_INFERIOR}, margin {_MARGIN:g} pp"
        tested = stats.noninferior(values, _MARGIN, floor=least)
    return Finding(claim, tested.outcome, decided(tested, "+.2f", " pp"), len(values), _HERE, test)


ANALYSIS = Analysis("retraining", "After pruning", Options, None, {}, section, findings, load=table.load)
"""As `analysis.record.Analysis` says."""
