"""The command of conformance."""

from analysis import page
from analysis.conform import Options, section
from lthjax import cli


def main(arguments: list[str]) -> None:
    """The command line."""
    page.print_section(section(cli.parsed(Options, arguments, "python -m analysis.conform")))


if __name__ == "__main__":
    cli.run(main)
