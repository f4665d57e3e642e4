"""The command of Early-Bird tickets."""

from analysis import earlybird, record
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(earlybird.ANALYSIS))
