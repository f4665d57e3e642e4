"""The command of the savings."""

from lthjax import cli

from .. import record, savings

if __name__ == "__main__":
    cli.run(record.command(savings.ANALYSIS))
