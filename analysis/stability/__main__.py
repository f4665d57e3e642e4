"""The command of the instability analysis."""

from lthjax import cli

from .. import record, stability

main = record.command(stability.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
