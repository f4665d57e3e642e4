"""The record of an analysis: what it works out of a run, writes, draws and claims; the command line of all.

An analysis is one `Analysis`; `analysis.analyses.ANALYSES` has them by name. Its package has the same files
as every other: `__init__` (the record, its section and findings), `table` (rows, and reading them), `work`
(what is worked out), `figures`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from analysis import page, tables, words
from analysis.page import Link, Section
from analysis.run import Run, open_run
from lthjax import cli, progress, settings
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.measures.stats import Outcome
from lthjax.study import Watch

Said = Outcome | Literal["not tested"]


class Finding(NamedTuple):
    """A claim and what came of it.

    Attributes:
        claim: in words.
        outcome: what the data say.
        estimate: with its interval.
        n: seeds.
        where: where to look, or the command that tests it.
    """

    claim: str
    outcome: Said
    estimate: str
    n: int
    where: str | Link


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every analysis is asked."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, for example runs/quickstart-0123abcd."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a command that trains is asked, whatever it reads."""

    data_dir: Path = Path("data")
    """Folder of the data sets."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    chunk: int | None = None
    """Replicates trained in one program; by default one for each core, or 16 for each GPU or TPU."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Training, Options):
    """What an analysis that trains is asked."""


class Analysis(NamedTuple):
    """Something that is found out of a finished run.

    Attributes:
        name: of its folder in the run, of its anchor on the page, of its command.
        title: of its section of the report.
        options: what it can be asked, a frozen dataclass derived from `Options`; its docstring and its
            fields' are the command's help.
        work: (run, options, watch) -> the folder of what was written. It says first what it will cost, may be
            stopped and called again, and writes its tables, the marker last. None where the report works
            all of it out.
        tables: file in RUN/name -> type of its rows, a NamedTuple; the last file is the marker.
        section: (run, what `load` gives) -> its section of the report.
        findings: (run, the same or None) -> its claims; None: not tested, with the command that tests them.
        load: run -> what was found; by default file -> rows, of `tables`.
        marker: the files in the run that say that there is something, as a pattern; by default the marker.
        prints: whether the command prints the section's tables and remark before the path.
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


def written(analysis: Analysis, run: Run) -> list[Path]:
    """The files that say that there is something to report, sorted."""
    pattern = _pattern(analysis)
    return sorted(run.path.glob(pattern)) if pattern else []


def _pattern(analysis: Analysis) -> str:
    """Of the files that say that there is something; "" of what the report works out itself."""
    return analysis.marker or (f"{analysis.name}/{[*analysis.tables][-1]}" if analysis.tables else "")


def found(analysis: Analysis, run: Run) -> Any:
    """What an analysis has found out of a run; None where it was not done.

    Raises:
        UserError: a file cannot be read; it names the command that makes it anew.
    """
    if _pattern(analysis) and not written(analysis, run):
        return None
    if analysis.load is not None:
        return analysis.load(run)
    return read_tables(run, analysis.name, analysis.tables)


def read_tables(
    run: Run, name: str, kinds: Mapping[str, type], check: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any]:
    """File -> rows of an analysis's tables.

    Args:
        run: the run.
        name: the analysis's.
        kinds: as `Analysis.tables`.
        check: raises a ValueError where tables lack rows or do not fit each other.

    Raises:
        UserError: one cannot be read; it names the command that makes it anew.
    """
    where = run.path / name
    try:
        found: dict[str, Any] = {file: tables.read_rows(where / file, kind) for file, kind in kinds.items()}
        if check is not None:
            check(found)
        return found
    except tables.DAMAGED as error:
        raise tables.unreadable(where, error, words.command(name, run.path)) from error


def needed(analysis: Analysis, run: Run) -> Any:
    """As `found`.

    Raises:
        UserError: as `found`, or it was not done; it names the command.
    """
    there = found(analysis, run)
    if there is None:
        command = words.command(analysis.name, run.path)
        raise UserError(f"{run.path}: {analysis.title.lower()} is not known yet; run {command} first.")
    return there


@settings.pinned()
def perform(analysis: Analysis, run: Run | str | Path, *, watch: Watch | None = None, **asked: Any) -> Path:
    """Works an analysis out of a run, as its command does; silent unless it is watched.

    Args:
        analysis: which.
        run: the run or its folder.
        watch: is told how it is getting on.
        **asked: fields of its options.

    Returns:
        The folder of what was written.

    Raises:
        UserError: an option is not allowed, a file cannot be read or written, or another process is at it.
    """
    run = run if isinstance(run, Run) else open_run(run)
    assert analysis.work is not None, f"{analysis.name} is worked out by the report"
    return analysis.work(run, analysis.options(run=run.path, **asked), watch or progress.watch(True))


def command(analysis: Analysis) -> Callable[[list[str]], None]:
    """The main function of an analysis's command."""

    def main(arguments: list[str]) -> None:
        options = cli.parsed(analysis.options, arguments, f"python -m analysis.{analysis.name}")
        prepare(options)
        asked = {name: value for name, value in vars(options).items() if name != "run"}
        run = open_run(options.run)
        path = perform(analysis, run, watch=progress.watch(options.quiet), **asked)
        if analysis.prints:
            page.print_section(analysis.section(run, found(analysis, run)))
        print(path)

    return main


def prepare(options: object) -> None:
    """Checks what all commands that train are asked, and keeps compiled programs if that is asked.

    Raises:
        UserError: the chunk is no number of replicates.
    """
    if isinstance(options, Training):
        if options.chunk is not None and options.chunk < 1:
            raise UserError(f"--chunk: {options.chunk} is not allowed; it must be 1 or more.")
        if options.cache:
            replicate.keep_programs()
