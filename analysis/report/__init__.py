"""The report of a run folder: a self-contained page, figures, and tables as CSV and LaTeX.

On the command line:

    python -m analysis.report runs/quickstart-0123abcd
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lthjax import home
from lthjax.errors import UserError, counted, shell
from lthjax.folder import verified

from .. import compare, page, record, tables, words
from ..analyses import ANALYSES
from ..page import Link, Section, Table
from ..record import Analysis, Finding, settled, untested
from ..rows import TICKET, chains, images_of, ticket_chains, to_csv
from ..run import Run, open_run
from . import accuracy, facts, gaps, numbers, power, short, speed, training, until, verdicts


def build(run: str | Path | Run, *, only_if_changed: bool = False, last: int = 1) -> Path:
    """Writes `report/` into a run folder, and returns the path of its `index.html`.

    Args:
        run: the run or its folder; it may be unfinished.
        only_if_changed: whether to keep a report that is whole and up to date.
        last: evaluations whose mean is the accuracy at the end; of a run's folder.

    Raises:
        UserError: it is not a run folder, there is no cell in it, or it cannot be written; there are fewer
            evaluations, or the learning rate changes between them.
    """
    run = open_run(run, last)
    rows, folder = run.finished(), run.path / "report"
    table = to_csv(rows)
    shows = _digest(run, table)
    if only_if_changed and page.is_whole(folder, shows):
        return folder / "index.html"
    seeds = words.seeds(len({row.seed for row in rows}))
    parts = [_part(analysis, run) for analysis in ANALYSES.values()]
    own = until.noted(until.read(run.path), verdicts.findings(run.about, rows, run.path), run.about, rows)
    found = [*own, *(one for claims, _, _ in parts for one in claims)]
    said = [[*finding._replace(where=str(finding.where))] for finding in found]
    sections = [*_sections(run, found), *(one for _, shown, _ in parts for one in shown)]
    whole = all(readable for _, _, readable in parts) and run.is_loaded()
    return page.write(
        folder,
        title=words.title(run.about),
        subtitle=f"Lottery-ticket study {run.study.name!r}: {counted(len(rows), 'cell')}, {seeds}.",
        sections=sections,
        facts=facts.of_run(run),
        config=json.dumps(run.about["config"], indent=1),
        table=("cells.csv", table),
        beside={"verdicts.csv": tables.to_csv(Finding._fields, said), **numbers.beside(run)},
        # A report that lacks a part is made anew the next time.
        shows=shows if whole else "",
    )


def _part(analysis: Analysis, run: Run) -> tuple[list[Finding], list[Section], bool]:
    """The findings and section of an analysis, and whether its files could be read; the section says why."""
    name, title = analysis.name, analysis.title
    try:
        found = record.found(analysis, run)
        section = [] if found is None else [analysis.section(run, found)]
        # The options of an analysis of one ticket name its seed.
        if analysis.work is not None and "seed" not in analysis.options.__dataclass_fields__:
            section = [_of_some(one, found, run) for one in section]
        claims = [settled(_with_config(one, analysis, run)) for one in analysis.findings(run, found)]
        return claims, section, True
    except UserError as error:
        claim = f"{title}: its claims"
        lacking = untested(claim, "cannot be read", Link(title.lower(), f"#{name}"))
        # An analysis that the report does itself makes no claims.
        claims = [] if analysis.work is None and not analysis.marker else [lacking]
        return claims, [Section(name, title, [f"Not shown: {error}"])], False


def _with_config(finding: Finding, analysis: Analysis, run: Run) -> Finding:
    """The finding; the command that tests it loads the rows that the run's config file adds."""
    where = finding.where
    if isinstance(where, str) and where.startswith(home.command(analysis.name)):
        return finding._replace(where=" ".join([where, *map(shell, run.own_config())]))
    return finding


def _of_some(section: Section, found: Any, run: Run) -> Section:
    """A section; with a note where its tables lack seeds that the run has, as where it has grown since."""
    own = {row.seed for row in run.rows if row.arm == TICKET and row.status == "done"}
    there = _seeds_in(found)
    if not there or own <= there:
        return section
    several = f"{'seeds' if len(there) > 1 else 'seed'} {', '.join(map(str, sorted(there)))}"
    note = f"Of {several} alone; the run has {len(own)}. Its command, called again, adds what is missing."
    return section._replace(notes=[note, *section.notes])


def _seeds_in(found: Any) -> set[int]:
    """The seeds of all rows in an analysis's tables; a row of a pair of seeds has `other_seed`, too."""
    if isinstance(getattr(found, "seed", None), int):
        return {found.seed, getattr(found, "other_seed", found.seed)}
    if hasattr(found, "rows"):
        return _seeds_in(found.rows)
    parts = found.values() if isinstance(found, Mapping) else found
    return {seed for of in parts for seed in _seeds_in(of)} if isinstance(found, Mapping | list) else set()


def _digest(run: Run, table: str) -> str:
    """A digest of all files that the report of a run is made of."""
    markers = [path for analysis in ANALYSES.values() for path in record.written(analysis, run)]
    grown = [path for path in [run.path / until.FILE] if path.is_file()]
    paths = (run.path / "study.json", *markers, *grown)
    contents = [table.encode(), *(path.read_bytes() for path in paths)]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def _sections(run: Run, found: Sequence[Finding]) -> list[Section]:
    """The opening, verdicts, accuracy, length of training, learning speed, differences, levels."""
    rows, own = run.rows, chains(run.rows)
    notes = [*facts.notes(run), *facts.of_verdicts(found)]
    notes += [f"{elsewhere}."] if (elsewhere := verified.renamed(run.path)) else []
    tickets = ticket_chains(rows)
    images, heading = images_of(run.about), words.title(run.about)
    apart = [
        table
        for chain in tickets
        for table in (gaps.summaries(rows, chain, images), gaps.gaps(rows, chain, images))
    ]
    detects = power.table(run.about, rows)
    apart += [detects] if detects else []
    collapsed = gaps.collapsed(rows, run.about["data"]["classes"])
    levels = [*(facts.levels(rows, chain, images) for chain in own), *([collapsed] if collapsed else [])]
    return [
        short.section(run, heading, found),
        Section("verdicts", "Verdicts", notes, (), _said(found), _RULES),
        accuracy.section(run, heading),
        training.section(run),
        *speed.section(run, heading),
        Section("gaps", "Differences", tables=apart, remark=_TESTS),
        Section("levels", "Levels", tables=levels, remark=facts.remark(run)),
    ]


def _said(found: Sequence[Finding]) -> list[Table]:
    """The verdicts; claims that were not tested are folded, with the commands that test them."""
    tested: list[list[Any]] = []
    others: list[list[Any]] = []
    named = {True: "", False: ""}
    head = ""
    for of in found:
        untested, goes_on = of.outcome == "not tested", of.claim.startswith("…")
        head = head if goes_on else of.claim
        # A claim that goes on from one in the other table is not understood without it.
        claim = f"{head} {of.claim}" if goes_on and named[untested] != head else of.claim
        named[untested] = head
        if untested:
            others.append([claim, of.outcome, of.estimate, of.where])
        else:
            tested.append([claim, of.outcome, of.estimate, of.beside, of.test, str(of.n or "–"), of.where])
    header = ["claim", "verdict", "estimate, and the bound that decides", "caveats", "test", "n", "where"]
    shown = [Table("", header, tested, 7)] if tested else []
    if others:
        claims = f"{len(others)} claim{'s were' if len(others) > 1 else ' was'} not tested"
        untested_header = ["claim", "verdict", "why", "the command that tests it"]
        shown.append(Table("", untested_header, others, 4, folded=f"{claims}; the commands that test them"))
    return shown


def build_all(runs: Sequence[str | Path], *, only_if_changed: bool = False, last: int = 1) -> Path:
    """Writes the report of every run folder and, for several, the comparison; returns the path of the last.

    Raises:
        UserError: as `build`; before any is written, as `compare.opened_apart`.
    """
    opened = [open_run(run, last) for run in runs]
    if len(opened) > 1:
        compare.opened_apart(opened)
    pages = [build(run, only_if_changed=only_if_changed) for run in opened]
    return pages[0] if len(pages) == 1 else compare.build(opened, only_if_changed=only_if_changed)


_RULES = (
    "Rules, fixed before the data: a claim is supported if the lower one-sided 95 % bound of its mean lies "
    "above its threshold, refuted if the upper one lies below, else undecided; the bound that decides is "
    "shown. Seeds are the unit, arms of a seed are paired; below three seeds there is no verdict. The spread "
    "between seeds is taken as no less than the test set's own error. "
    "Superiority is a mean above the threshold (0 where none is named), non-inferiority one above minus the "
    "margin; where superiority is undecided, but both bounds lie within the margin named, the two are "
    "equivalent (two one-sided tests). A claim about 80–90 % sparsity is one about every level of that "
    "range at which both arms were trained (the estimate says where these are not all of the tickets'); its "
    "estimate is that of the least favourable level, the one with the smallest lower bound (of a refuted "
    "claim the smallest upper bound). Claims about some density are searched for over all levels, with "
    "Holm's correction, and their bounds have the confidence that it takes. Where tickets are rewound to "
    "several steps, a claim that names no step is of the earliest, as its estimate says. “10–15 points” is "
    "tested as 10 or more, and whether it is 15 or less stands in the estimate."
)
_TESTS = (
    "An arm matches the dense network of its seed down to a density if it does so at every larger one at "
    "which it was trained (≤: it still does at the last level, and sparser ones may do so, too); the "
    "mean over log density is taken from densities at which both were trained. Differences in percentage "
    "points, paired by seed, with the 95 % interval of Student's t; seeds that happen to agree to less than "
    "the test set's own error of a difference, √(p(1 − p)/N + q(1 − q)/N) of N images, are taken to differ "
    "by that much: in the interval, in the p-values by t and in g_z. p-values are two-sided: by t, the same "
    "adjusted by Holm within the block of one control, and by exact sign flips, which read no spread and "
    "cannot go below 2/2ⁿ. Verdicts are one-sided, so a two-sided interval that holds the threshold does not "
    "contradict them; the one-sided p-value of a difference above 0 is half of the one by t. Hedges' g_z is "
    "the mean difference over its standard deviation, unbiased, with its 95 % interval. A difference that "
    "seeds detect is the one that the one-sided 95 % bound finds with a power of 80 %: (t(.95, n − 1) + "
    "t(.80, n − 1)) s/√n; the spread s is the root mean square over the levels at 80–90 % sparsity (over "
    "all, where there is none)."
)
