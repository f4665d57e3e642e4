"""Joins run folders of one study, for example of several machines, into one.

    python -m analysis.merge there/quickstart-0123abcd runs/quickstart-0123abcd --into all/quickstart-0123abcd

Checks every file first (`lthjax.merge`), and writes nothing where a folder is of another fingerprint, a file
is damaged, or two folders have the same cell with other numbers. Then copies what is missing. Tables of
analyses and log.txt stay where they are.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, home
from lthjax.errors import counted
from lthjax.folder.places import CONFIG
from lthjax.folder.verified import absent, renamed
from lthjax.merge import merge

from .analyses import ANALYSES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Copies the cells of run folders into one; prints that folder."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, cli.several("RUN [RUN ...]")]
    """Run folders of one fingerprint."""
    into: Path
    """The folder that gets all cells: new, or a run folder of the same fingerprint."""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("merge"))
    done = merge(options.runs, options.into)
    for run, count in done.copied.items():
        _say(f"{run}: {counted(count, 'cell or rewind state', 'cells and rewind states')} copied")
    _say(f"{done.into}: {counted(done.there, 'cell or rewind state', 'cells and rewind states')} in all")
    for path in done.absent:
        _say(str(absent(path)))
    if done.unlike:
        kept = done.into / CONFIG
        _say(f"not merged, as {kept} is another config: {', '.join(map(str, done.unlike))}")
    results = [run / of for run in done.copied for name in ANALYSES for of in (name, f"{name}.json")]
    if alone := [path for path in results if path.exists()]:
        _say(f"not merged, as analyses look at whole runs: {', '.join(map(str, alone))}")
    if elsewhere := renamed(done.into):
        _say(elsewhere)
    _say(f"{home.command('report', done.into)} writes the report")
    print(done.into)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
