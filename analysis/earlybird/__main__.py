"""The command of Early-Bird tickets."""

from lthjax import cli

from .. import earlybird, record

if __name__ == "__main__":
    cli.run(record.command(earlybird.ANALYSIS))
