"""The command of the savings."""

from analysis import record, savings
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(savings.ANALYSIS))
