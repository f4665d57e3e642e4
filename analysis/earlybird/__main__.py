"""The command of Early-Bird tickets."""

from lthjax import cli

from .. import earlybird, record

main = record.command(earlybird.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
