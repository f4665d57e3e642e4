"""The command of the instability analysis."""

from analysis import record, stability
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(stability.ANALYSIS))
