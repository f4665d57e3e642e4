"""The record of an analysis: what it computes, writes, draws and claims; and the command line of all.

`analysis.analyses.ANALYSES` has the records by name. Every analysis is a package of the same files:
`__init__` (the record, its section and findings), `table` (its rows), `work` (the computation), `figures`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from lthjax import cli, config, home, models, progress, settings
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.measures import wiring
from lthjax.measures.stats import Outcome
from lthjax.study import Watch

from . import page, tables, words
from .page import Link, Section
from .run import Run, open_run

Said = Outcome | Literal["equivalent", "too few seeds", "not tested"]
# A verdict takes this many seeds.
LEAST_SEEDS = 3


class Finding(NamedTuple):
    """A claim and its outcome.

    Attributes:
        claim, estimate: in words; the estimate has the one-sided bound that decides (`words.decided`).
        outcome: of the test.
        n: number of seeds.
        where: where to look, or the command that tests the claim.
        test: its kind, with the margin or threshold: "superiority", "non-inferiority, margin 2 pp"; one that
            is not over seeds is a `COUNT` or a `TIMING`.
        beside: caveats: what one must know to read the outcome, for example that controls pass the same test.
    """

    claim: str
    outcome: Said
    estimate: str
    n: int
    where: str | Link
    test: str = ""
    beside: str = ""


COUNT, TIMING = "exact count", "interval of the median ratio of paired timings"


def settled(finding: Finding) -> Finding:
    """The finding as it is shown: below three seeds no claim over seeds has a verdict."""
    over_seeds = finding.test not in (COUNT, TIMING) and finding.outcome != "not tested"
    few = over_seeds and finding.n < LEAST_SEEDS
    return finding._replace(outcome="too few seeds") if few else finding


def untested(claim: str, why: str, where: str | Link) -> Finding:
    """A claim that was not tested, and why; `where` is the command that tests it."""
    return Finding(claim, "not tested", why, 0, where)


def may_be_wired(run: Run) -> bool:
    """Whether it is known which layers of a run's network share units, or the network is not loaded here."""
    own = run.study.model in models.MODELS and run.study.model not in models.SHIPPED
    return not own or bool(wiring.layers(run.network()))


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every analysis."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder, for example runs/quickstart-0123abcd."""
    quiet: bool = False
    """Show no progress."""
    config: Path | None = None
    """A config file to run first, for the networks and other rows it adds; RUN/config.py is the run's own."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options of every command that trains."""

    data_dir: Path = Path("data")
    """Folder of the data sets."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    chunk: int | None = None
    """Replicates trained in one program; by default one for each core, or up to 16 for each GPU or TPU."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Training, Options):
    """The options of an analysis that trains."""


class Analysis(NamedTuple):
    """An analysis of a finished run.

    Attributes:
        name: of its folder in the run, its anchor on the page, and its command.
        title: of its section of the report.
        options: a frozen dataclass derived from `Options`; its docstrings are the command's help.
        work: (run, options, watch) -> the folder of the results. It announces its cost, may be stopped and
            called again, and writes its tables, the marker last. None where the report does all the work.
        tables: file in RUN/name -> the NamedTuple of its rows; the last file is the marker.
        section: (run, what `load` returns) -> its section of the report.
        findings: (run, the same) -> its claims; of None, the claims as not tested.
        load: run -> the results; by default file -> rows, for `tables`.
        marker: pattern of the files in the run that say that there are results; by default the marker.
        prints: whether the command prints the section's tables and remark before the path.
        recorded: run -> the results that the study itself has recorded, or None; they count where the command
            has not been run.
    """

    name: str
    title: str
    options: type[Options]
    work: Callable[[Run, Any, Watch], Path] | None
    tables: Mapping[str, type]
    section: Callable[[Run, Any], Section]
    findings: Callable[[Run, Any], list[Finding]]
    load: Callable[[Run], Any] | None = None
    marker: str = ""
    prints: bool = False
    recorded: Callable[[Run], Any] | None = None


def written(analysis: Analysis, run: Run) -> list[Path]:
    """The files that say that an analysis has results, sorted; none where the report does all the work."""
    if not (analysis.marker or analysis.tables):
        return []
    return sorted(run.path.glob(analysis.marker or f"{analysis.name}/{[*analysis.tables][-1]}"))


def found(analysis: Analysis, run: Run) -> Any:
    """The results of an analysis of a run, or None where there are none.

    Raises:
        UserError: a file cannot be read; the message names the command that makes it anew.
    """
    if (analysis.marker or analysis.tables) and not written(analysis, run):
        return analysis.recorded(run) if analysis.recorded else None
    return analysis.load(run) if analysis.load else read_tables(run, analysis.name, analysis.tables)


def read_tables(
    run: Run, name: str, kinds: Mapping[str, type], check: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any]:
    """File -> rows of the tables `kinds` of the analysis `name`; raises as `found`.

    `check` raises a ValueError where tables lack rows or do not fit each other.
    """
    where = run.path / name
    with tables.reading(where, words.command(name, run.path)):
        found: dict[str, Any] = {file: tables.read_rows(where / file, kind) for file, kind in kinds.items()}
        if check is not None:
            check(found)
    return found


def needed(analysis: Analysis, run: Run) -> Any:
    """As `found`; a UserError that names the command where there are no results."""
    there = found(analysis, run)
    if there is None:
        command = words.command(analysis.name, run.path)
        raise UserError(f"{run.path}: {analysis.title.lower()} is not known yet; run {command} first.")
    return there


@settings.pinned()
def perform(analysis: Analysis, run: Run | str | Path, *, watch: Watch | None = None, **asked: Any) -> Path:
    """Runs an analysis as its command does, and returns the folder of the results.

    Args:
        analysis: its record.
        run: the run or its folder.
        watch: is told of the progress; by default nothing is shown.
        **asked: fields of its options.

    Raises:
        UserError: an option is not allowed, a file cannot be read or written, or another process works on it.
    """
    run = open_run(run)
    assert analysis.work is not None, f"{analysis.name} is worked out by the report"
    return analysis.work(run, analysis.options(run=run.path, **asked), watch or progress.watch(True))


def command(analysis: Analysis, module: str = "") -> Callable[[list[str]], None]:
    """The main function of the command of an analysis; it is run where `module` is the program."""

    def main(arguments: list[str]) -> None:
        options = cli.parsed(analysis.options, arguments, home.command(analysis.name))
        prepare(options)
        if options.config is not None:
            config.load_all(options.config)
        asked = {name: value for name, value in vars(options).items() if name != "run"}
        run = open_run(options.run)
        path = perform(analysis, run, watch=progress.watch(options.quiet), **asked)
        if analysis.prints:
            page.print_section(analysis.section(run, found(analysis, run)))
        print(path)

    if module == "__main__":
        cli.run(main)
    return main


def prepare(options: object) -> None:
    """Checks the options of a command that trains, and turns on the cache of compiled programs.

    Raises:
        UserError: the chunk is less than 1.
    """
    if isinstance(options, Training):
        if options.chunk is not None and options.chunk < 1:
            raise UserError(f"--chunk: {options.chunk} is not allowed; it must be 1 or more.")
        if options.cache:
            replicate.keep_programs()
