"""Conformance: a run beside published settings and values, row by row.

    python -m analysis.conform runs/lenet300_mnist-7bba21bc --against fc2019_lenet300
    python -m analysis.conform results/lenet300_mnist --against fc2019_lenet300 mine.csv

RUN is a run folder, or one that `analysis.publish` has written of a run. Ledgers are the CSV files in
analysis/ledgers, or others of the same columns (`analysis.conform.ledger`). Settings are compared field by
field. A published value agrees if ours is equivalent to it by two one-sided tests (TOST,
`lthjax.measures.stats.equivalent`), within the ledger's margin widened by the value's own spread; differs if
ours lies outside, by both; and is undecided else. A published inequality agrees if the verdict on it is
supported, and differs if it is refuted. There is no verdict on a value that was not measured. Prints two
tables; trains and writes nothing.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Outcome, geometric_interval, mean_interval

from .. import words
from ..differences import difference, floor
from ..page import Section, Table
from ..record import LEAST_SEEDS
from ..rows import diverged
from . import ledger as ledgers
from . import settings
from .ledger import BEST, COUNTS, EARLY, Ledger, Line
from .measured import Measured, opened

Mark = Literal["agrees", "differs", "undecided", "not comparable"]
_MARKS: dict[Outcome, Mark] = {"supported": "agrees", "refuted": "differs", "undecided": "undecided"}
_RELATIONS = {"=": "", ">": "more than ", ">=": "at least ", "<": "below ", "<=": "at most "}
# A level is of a published density if its own is within this factor of it.
_NEAR = 1.1
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds a run against published settings and values."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or a folder of results/ that holds one published run."""
    against: tuple[str, ...]
    """Ledgers: names in analysis/ledgers, for example fc2019_lenet300, or paths of CSV files."""


class Judged(NamedTuple):
    """A published value and ours.

    Attributes:
        quantity: in words, with its density.
        at: where it is read: "early stop", "end", or "".
        published, ours: in words, ours with its 95 % interval; "–" where there is none.
        mark: the outcome.
        why: why it cannot be compared, or "".
        n: number of seeds.
        margin: in words.
        source: of the published value.
    """

    quantity: str
    at: str
    published: str
    ours: str
    mark: Mark
    why: str
    n: int
    margin: str
    source: str


class _Ours(NamedTuple):
    """What a run has of a published quantity.

    Attributes:
        values: one a seed.
        said: their mean with its interval, in words.
        floor: the least standard deviation of a value, as in `analysis.differences.floor`.
        censored: number of seeds whose value is censored, only a bound.
        looked: levels of which the one that is furthest up was chosen; the error of 5 % is divided by it.
    """

    values: Sequence[float]
    said: str
    floor: float = 0.0
    censored: int = 0
    looked: int = 1


def judge(measured: Measured, ledger: Ledger) -> list[Judged]:
    """Every value of a ledger beside the run's.

    Raises:
        UserError: the ledger names a setting that there is not.
    """
    compared = settings.compared(measured, ledger)
    return [_judged(measured, line, settings.lacking(measured, line, compared)) for line in ledger.values]


def _judged(measured: Measured, line: Line, lacking: str) -> Judged:
    rewind = measured.rewinds[0] if line.rewind is None else line.rewind
    level, why = _level(measured, line, rewind)
    quantity = _quantity(measured, line, level, rewind)
    ours = _Ours((), "–")
    if not why:
        # It raises where there is no such cell.
        with contextlib.suppress(UserError):
            ours = _ours(measured, line, level, rewind)
    lost = 0 if why else _diverged(measured, line, level, rewind)
    if why:
        why = diverged(measured.rows) or why
    elif not ours.values:
        why = f"diverged in {words.seeds(lost)}" if lost else "not measured"
    elif lost:
        ours = ours._replace(said=f"{ours.said}; diverged in {words.seeds(lost)}")
    ours = ours._replace(looked=_looked(measured, line, rewind))
    if not why and ours.censored:
        why = f"the lowest validation loss is at the last evaluation in {words.seeds(ours.censored)}"
        # A mean over values of which some are bounds is no estimate.
        ours = ours._replace(said="–")
    why = lacking or why or ("" if line.value else "none printed")
    mark: Mark = "not comparable" if why else _mark(line, ours)
    said, seeds = (_published(line), ours.said), len(ours.values)
    return Judged(quantity, line.at, *said, mark, why, seeds, _margin(line), line.source)


def _level(measured: Measured, line: Line, rewind: int) -> tuple[int, str]:
    """The level of a line's density, and why there is none."""
    if (line.of == DENSE and line.other in ("", DENSE)) or not line.density:
        return 0, ""
    levels = measured.levels(rewind=rewind)
    if line.quantity == "rewound" and rewind == measured.rewinds[0]:
        return 0, "not measured: no ticket is rewound to an earlier step"
    if not levels:
        return 0, f"not measured: no ticket is rewound to step {rewind:,}"
    if line.density == BEST:
        if not measured.shared(line.other, rewind, line.at == EARLY):
            return 0, "not measured"
        return measured.best(line.other, rewind, line.at == EARLY), ""
    wanted = float(line.density)
    # A level without a single weight left is near no density.
    alive = [level for level in levels if measured.density(level, rewind)]
    if not alive:
        return 0, "not measured: no ticket has a weight left"
    level = min(alive, key=lambda n: abs(math.log(measured.density(n, rewind) / wanted)))
    near = measured.density(level, rewind)
    if abs(math.log(near / wanted)) > math.log(_NEAR):
        return 0, f"not measured: the nearest level has {words.share(near)}"
    return level, ""


def _diverged(measured: Measured, line: Line, level: int, rewind: int) -> int:
    """The number of seeds in which a network that a line is about diverged; counts are of none."""
    steps = (rewind, measured.rewinds[0]) if line.quantity == "rewound" else (rewind,)
    arms = [] if line.quantity in COUNTS else [arm for arm in (line.of, line.other) if arm]
    return len({seed for arm in arms for step in steps for seed in measured.diverged(arm, level, step)})


def _looked(measured: Measured, line: Line, rewind: int) -> int:
    """The levels of which a line's level is the best."""
    if line.density != BEST:
        return 1
    return max(1, len(measured.shared(line.other, rewind, line.at == EARLY)))


def _quantity(measured: Measured, line: Line, level: int, rewind: int) -> str:
    density = ""
    if line.density and level:
        density = f" at {words.share(measured.density(level, rewind))}"
    elif line.density not in ("", BEST):
        density = f" at {words.share(float(line.density))}"
    what = {
        "accuracy": line.of,
        "gap": f"{line.of} − {line.other}",
        "speedup": f"step of the lowest validation loss, {line.other} over {line.of},",
        "early_stop_step": f"step of the lowest validation loss, {line.of}",
        "rewound": f"tickets rewound to step {rewind:,} − those rewound to the earliest",
        "weights": "prunable weights",
        "parameters": "parameters",
    }[line.quantity]
    several = _looked(measured, line, rewind)
    looked = f" ({several} by Bonferroni)" if several > 1 else ""
    return f"{what}{density}{f', {line.note}' if line.note else ''}{looked}"


def _ours(measured: Measured, line: Line, level: int, rewind: int) -> _Ours:
    """What the run has, by the line's quantity; raises a UserError where it has no such cell."""
    early = line.at == EARLY
    if line.quantity in COUNTS:
        count = measured.weights() if line.quantity == "weights" else settings.parameters(measured)
        # Of every seed the same.
        return _Ours(
            [] if count is None else [count] * measured.seeds, "–" if count is None else f"{count:,}"
        )
    if line.quantity == "accuracy":
        of = measured.of_seeds(line.of, level, rewind, early)
        return _Ours([*of.values()], words.percent(measured.accuracy(line.of, level, rewind, early)))
    if line.quantity == "gap":
        return _difference(
            measured, *(measured.of_seeds(arm, level, rewind, early) for arm in (line.of, line.other))
        )
    if line.quantity == "rewound":
        first = measured.rewinds[0]
        return _difference(
            measured, *(measured.of_seeds(line.of, level, step, early) for step in (rewind, first))
        )
    if line.quantity == "speedup":
        values = measured.slowness(line.other, line.of, level, rewind)
        bounds = _censored(measured, (line.of, line.other), level, rewind)
        return _Ours(values, words.times(geometric_interval(values)) if values else "–", censored=bounds)
    steps = [*measured.steps(line.of, level, rewind).values()]
    said = words.interval(mean_interval(steps, within=stats.POSITIVE), ",.0f")
    return _Ours(steps, said, censored=_censored(measured, (line.of,), level, rewind))


def _difference(measured: Measured, ours: dict[int, float], theirs: dict[int, float]) -> _Ours:
    """Paired differences of accuracies in points, no less uncertain than the test set makes them."""
    values, images = stats.paired(ours, theirs), measured.about["data"].get("test", 0)
    return _Ours(values, words.points(difference(ours, theirs, images)), floor(ours, theirs, images))


def _censored(measured: Measured, arms: Sequence[str], level: int, rewind: int) -> int:
    """The seeds of which an arm's validation loss is lowest at the end, of those that have all arms."""
    shared = set.intersection(*({*measured.steps(arm, level, rewind)} for arm in arms))
    cells = [row for arm in arms for row in measured.cells(arm, level, rewind) if row.seed in shared]
    return len({row.seed for row in cells if row.early_stop_step == measured.about["lengths"]["total"]})


def _mark(line: Line, ours: _Ours) -> Mark:
    published, values = float(line.value), ours.values
    if line.quantity in COUNTS:
        return "agrees" if values[0] == published else "differs"
    if len(values) < LEAST_SEEDS:
        return "undecided"
    spread = line.spread or 0.0
    if line.quantity == "speedup":
        # The smaller side of the two, as the margin is the same on both.
        spread = math.log1p(spread / published)
        published, values = math.log(published), [math.log(value) for value in values]
    confidence = 1 - _ALPHA / ours.looked
    if line.relation != "=":
        sign = 1 if line.relation.startswith(">") else -1
        signed = [sign * value for value in values]
        return _MARKS[stats.verdict(signed, sign * published, confidence, floor=ours.floor).outcome]
    assert line.margin is not None, "the ledger was checked"
    margin = math.log(line.margin) if line.quantity == "speedup" else line.margin
    apart = [value - published for value in values]
    return _MARKS[stats.equivalent(apart, margin + spread, confidence, floor=ours.floor).outcome]


def _published(line: Line) -> str:
    if not line.value:
        return "–"
    value = f"{int(float(line.value)):,}" if line.quantity in COUNTS else line.value
    spread = f" ± {line.spread:g}" if line.spread else ""
    return f"{_RELATIONS[line.relation]}{value}{'×' if line.quantity == 'speedup' else ''}{spread}"


def _margin(line: Line) -> str:
    if line.margin is None or not line.value:
        return "–"
    return f"×{line.margin:g}" if line.quantity == "speedup" else f"±{line.margin:g}"


def value_table(judged: Sequence[Judged]) -> Table:
    """The values side by side, for a page or the screen."""
    header = ["quantity; accuracy in percent, differences in points", "read at", "published", "ours", "mark"]
    lines = []
    for one in judged:
        mark = f"{one.mark}: {one.why}" if one.why else one.mark
        said = [one.quantity, one.at or "–", one.published, one.ours]
        lines.append([*said, mark, str(one.n or "–"), one.margin, one.source])
    return Table("", [*header, "seeds", "within", "from"], lines, 2)


def setting_table(measured: Measured, ledger: Ledger) -> Table:
    """The settings side by side."""
    lines = []
    for one in settings.compared(measured, ledger):
        said = [one.name, settings.shown(one.published), settings.shown(one.ours)]
        lines.append([*said, "same" if one.same else "differs", one.line.source])
    return Table(f"Settings: {ledger.name}", ["setting", "published", "ours", "mark", "from"], lines, 1)


def rows(measured: Measured, *names: str) -> Table:
    """The values of several ledgers beside a run's, in one table."""
    return value_table([one for name in names for one in judge(measured, ledgers.read(name))])


def section(options: Options) -> Section:
    """The tables that the command prints.

    Raises:
        UserError: there is no such ledger or run.
    """
    if not options.against:
        raise UserError(f"--against: it is missing; name {', '.join(ledgers.known())}, or a CSV of your own.")
    found = [ledgers.read(name) for name in options.against]
    measured = opened(options.run)
    made = []
    for ledger in found:
        values = value_table(judge(measured, ledger))
        other = [one.name for one in settings.compared(measured, ledger) if not one.same]
        beside = f" (other settings: {', '.join(other)})" if other else ""
        made += [setting_table(measured, ledger), values._replace(title=f"Values: {ledger.name}{beside}")]
    return Section("conform", "Beside published values", tables=made, remark=REMARK)


REMARK = (
    "Agrees, differs: by two one-sided tests at 5 % each, within the margin widened by the value's own "
    "spread; inequalities by the one-sided verdict. Every row is tested by itself. Intervals are two-sided, "
    "95 %. Not checked: the ledger's row was written without the paper's text."
)
