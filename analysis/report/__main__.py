"""The command of the report."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, config, home, progress, pulse
from lthjax.errors import UserError

from .. import report
from ..analyses import left_out


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes the reports of run folders and, of several, the page that compares them; prints the last one."""

    run: Annotated[tuple[Path, ...], tyro.conf.Positional, cli.several("RUN [RUN ...]")]
    """Run folders, for example runs/quickstart-0123abcd."""
    last: int = 1
    """Accuracy and loss at the end are averaged over the last N evaluations, at a constant learning rate."""
    config: Path | None = None
    """A config file to run first, for the networks and analyses it adds; RUN/config.py is the run's own."""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("report"))
    if not options.run:
        raise UserError("RUN: it is missing; name a run folder, or several.")
    if options.config is not None:
        config.load_all(options.config)
    watch, seen = progress.watch(quiet=False), sys.stderr.isatty()
    with pulse.telling(watch.say, "writing the report", at_once=seen):
        page = report.build_all(options.run, last=options.last)
    for line in itertools.chain.from_iterable(map(left_out, options.run)):
        print(f"warning: {line}", file=sys.stderr)
    print(page)


if __name__ == "__main__":
    cli.run(main)
