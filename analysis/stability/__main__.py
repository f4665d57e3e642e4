"""The command of the instability analysis."""

from lthjax import cli

from .. import record, stability

if __name__ == "__main__":
    cli.run(record.command(stability.ANALYSIS))
