"""The command of transfer."""

from lthjax import cli, config, home, progress

from .. import record
from . import Options, build


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("transfer"))
    record.prepare(options)
    if options.config is not None:
        config.load_all(options.config)
    print(build(options, progress.watch(options.quiet)))


if __name__ == "__main__":
    cli.run(main)
