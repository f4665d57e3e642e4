"""Checks every file of a run folder, and sets damaged ones aside on demand.

    python -m analysis.check runs/quickstart-0123abcd
    python -m analysis.check runs/quickstart-0123abcd --repair

Compares the files of every cell, rewind state and table with their checksums (`lthjax.check`). Cells of an
older version have no checksums; they are counted. With --repair damaged ones are moved to RUN/damaged/N/, and
the command that made them then makes them anew. A damaged table takes those beside it along. What is not
there, though a cell was made from it, is named with the command that makes it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, home
from lthjax.check import check, repair
from lthjax.errors import UserError
from lthjax.folder.verified import absent


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compares everything in run folders with the checksums that it was written with."""

    run: Annotated[tuple[Path, ...], tyro.conf.Positional, cli.several("RUN [RUN ...]")]
    """Run folders, for example runs/quickstart-0123abcd."""
    repair: bool = False
    """Set aside what is damaged."""


def main(arguments: list[str]) -> None:
    """The command line; without --repair, status 1 where something is damaged or not there."""
    options = cli.parsed(Options, arguments, home.command("check"))
    if not options.run:
        raise UserError("RUN: it is missing; name a run folder, or several.")
    left = 0
    for run in options.run:
        found = check(run)
        for why in found.damaged.values():
            print(why)
        for path in found.absent:
            print(absent(path))
        if options.repair and found.damaged:
            for path, where in repair(run, found).items():
                print(f"{path}: set aside as {where}")
        elif not options.repair:
            left += len(found.damaged) + len(found.absent)
        counts = f"{len(found.whole)} as written, {len(found.damaged)} damaged"
        old = f", {len(found.unchecked)} without a checksum" if found.unchecked else ""
        gone = f", {len(found.absent)} not there" if found.absent else ""
        print(f"{run}: {counts}{old}{gone}")
    if left:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
