"""The command of the savings."""

from lthjax import cli

from .. import record, savings

main = record.command(savings.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
