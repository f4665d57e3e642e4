"""The command of transfer."""

from analysis import record
from analysis.transfer import Options, build
from lthjax import cli, progress


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, "python -m analysis.transfer")
    record.prepare(options)
    print(build(options, progress.watch(options.quiet)))


if __name__ == "__main__":
    cli.run(main)
