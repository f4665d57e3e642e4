"""The command of the ticket doctor."""

import sys

from lthjax import cli, home

from . import Options, diagnose, line


def main(arguments: list[str]) -> None:
    """The command line; status 1 where a check fails."""
    found = diagnose(cli.parsed(Options, arguments, home.command("doctor")))
    for check in found:
        print(line(check))
    if any(check.outcome == "FAILED" for check in found):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
