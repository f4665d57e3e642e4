"""The command of the geography."""

from analysis import geography, record
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(geography.ANALYSIS))
