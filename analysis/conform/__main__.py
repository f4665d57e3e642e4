"""The command of conformance."""

from lthjax import cli, home

from .. import page
from . import Options, section


def main(arguments: list[str]) -> None:
    """The command line."""
    page.print_section(section(cli.parsed(Options, arguments, home.command("conform"))))


if __name__ == "__main__":
    cli.run(main)
