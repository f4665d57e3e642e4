"""Copies the part of a run that belongs under version control: numbers, verdicts, figures; no weights.

On the command line:

    python -m analysis.publish runs/lenet5_mnist-0123abcd results/lenet5_mnist
    python -m analysis.publish runs/rates_lenet5-* results/rates_lenet5

    FOLDER/
      published.json           names and checksums of all files here; a folder that matches it may be replaced
      study.json               of the run; of several a list
      cells.csv, verdicts.csv  of the report; of several comparison.csv
      NAME.svg (or .png)       the report's figures
      landscape/, stability/, predict/, geography/, examples/, forgetting/, earlybird/, transfer/,
      savings.json             the tables of other analyses, named as in the run folder
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, config, files, home, manifest, study
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.places import PUBLISHED
from lthjax.folder.verified import read_study

from . import page, report
from .analyses import ANALYSES, left_out
from .report.facts import unfinished
from .run import Run

# Bytes of a figure that a page on the web shows without being waited for.
LARGEST = 300_000


def publish(runs: Sequence[str | Path], to: str | Path) -> Path:
    """Writes the reports anew, copies the small files, and returns the folder.

    Args:
        runs: a run folder, or several, whose comparison is published.
        to: a folder that is new, empty, or from an earlier call, which is replaced whole or not at all.

    Raises:
        UserError: as `report.build_all`; the folder holds other or edited files, is a run's, lies in
            a run or holds one, or cannot be written; a table is damaged. All but the folder that cannot
            be written is found before anything is written.
    """
    to, folders = Path(os.path.abspath(to)), [Path(run) for run in runs]
    about = [read_study(run) for run in folders]
    try:
        _check(to, folders)
        files.recover_folder(to, PUBLISHED)
        foreign, edited = files.foreign(to, PUBLISHED), files.edited(to, PUBLISHED)
    except OSError as error:
        raise UserError(f"{to}: it cannot be read ({error.strerror}); name another folder.") from error
    if foreign is not None:
        raise UserError(
            f"{to}: it holds {foreign}, which publish did not write there, as far as its {PUBLISHED} says; "
            "move that or name another folder."
        )
    if edited is not None:
        raise UserError(
            f"{to}: {edited} is not as publish wrote it there, and would be replaced; move it away or name "
            "another folder."
        )
    found = _found(folders[0]) if len(folders) == 1 else []
    for path in found:
        _check_sum(path, folders[0])
    source = report.build_all(folders).parent
    tables = [source / name for name in ("cells.csv", "verdicts.csv", "comparison.csv")]
    contents = {table.name: table for table in [*tables, *_figures(source)] if table.is_file()}
    contents |= {path.relative_to(folders[0]).as_posix(): path for path in found}
    facts = json.dumps(about[0] if len(about) == 1 else about, indent=1) + "\n"
    try:
        files.replace_folder(to, {**contents, "study.json": facts.encode()}, PUBLISHED)
    except OSError as error:
        raise UserError(f"{to}: it cannot be written ({error.strerror}).") from error
    return to


def listed(folder: Path) -> list[str] | None:
    """The names of the files that `publish` wrote into a folder, its mark among them; None without a mark."""
    return files.listed(folder, PUBLISHED)


def _check(to: Path, runs: Sequence[Path]) -> None:
    """Raises where the folder is not one to replace, or a run lies in it or around it."""
    last = "the folder to write comes last, after the run folders, and must be another"
    around = [one.resolve() for one in (to, *to.parents) if one.exists()]
    for run in runs:
        if any(_same(run, one) for one in around):
            raise UserError(f"{to}: it is the run folder {run} or lies in it; {last}.")
        if any(_same(one, to) for one in run.resolve().parents):
            raise UserError(f"{to}: the run folder {run} lies in it; {last}.")
    for here in (Path.cwd(), Path(os.path.expanduser("~"))):
        if any(_same(one, to) for one in (here.resolve(), *here.resolve().parents)):
            raise UserError(f"{to}: it is or holds the folder {here}; {last}.")
    if to.is_symlink():
        raise UserError(f"{to}: it is a symbolic link; name the folder itself.")
    if to.exists() and not to.is_dir():
        raise UserError(f"{to}: it is a file; name a folder.")
    if (to / "study.json").is_file() and any(to.glob("seed=*")):
        raise UserError(f"{to}: it is a run folder; {last}.")
    for one in around:
        if (one / "study.json").is_file() and not _same(one, to):
            raise UserError(f"{to}: it lies in {one}, which is a run or a published folder; {last}.")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, whatever they are called."""
    return one.exists() and other.exists() and one.samefile(other)


def _figures(folder: Path) -> Iterable[Path]:
    """A report's figures as SVG, or as PNG where the SVG is too large; none where both are."""
    for vector in [folder / name for name in page.written(folder) if name.endswith(".svg")]:
        small = [p for p in (vector, vector.with_suffix(".png")) if p.stat().st_size <= LARGEST]
        yield from small[:1]


def _found(run: Path) -> list[Path]:
    """The tables of the analyses in a run folder, without the CSV files of figures and half-written files."""
    every = (path for name in ANALYSES for path in sorted((run / name).rglob("*.csv")))
    whole = (path for path in every if not any(x.startswith(".") for x in path.relative_to(run).parts))
    return [*(path for path in whole if not path.with_suffix(".png").is_file()), *run.glob("savings.json")]


def _check_sum(table: Path, run: Path) -> None:
    """Raises a UserError where a table is not as written; one without a checksum is not compared."""
    try:
        manifest.read_listed(table)
    except (OSError, ValueError) as error:
        command = home.command("check", run, "--repair")
        raise UserError(
            f"{table}: it cannot be read ({error}); {command} sets it aside, and its analysis makes it anew."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Options:
    """Copies numbers, verdicts and figures of runs, without weights, to a folder; prints it."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, cli.several("RUN [RUN ...] FOLDER")]
    """A run folder, or several to be compared; last the folder to write, for example results/lenet5_mnist."""
    config: Path | None = None
    """A config file to run first, for the networks and analyses it adds; RUN/config.py is the run's own."""


def _unfinished(run: Path) -> str:
    """That a run is not finished, and who trains it; "" where it is."""
    missing, busy = unfinished(Run(run)), claims.busy_seeds(run)
    trained = f"another process trains {study.seeds_in_words(busy)}" if busy else ""
    said = "; ".join(one for one in (missing, trained) if one)
    return f"{run}: {said}" if said else ""


def main(arguments: list[str]) -> None:
    """The command line; warns of a run that is not finished, and of results that are left out."""
    options = cli.parsed(Options, arguments, home.command("publish"))
    *runs, folder = options.paths or [Path()]
    if not runs:
        raise UserError("FOLDER: it is missing; name the run folders, and last the folder to write.")
    if options.config is not None:
        config.load_all(options.config)
    warnings = [line for run in runs for line in (_unfinished(run), *left_out(run)) if line]
    written = publish(runs, folder)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(written)


if __name__ == "__main__":
    cli.run(main)
