"""The command of the examples."""

from analysis import examples, record
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(examples.ANALYSIS))
