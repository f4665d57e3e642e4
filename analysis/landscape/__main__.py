"""The command `python -m analysis.landscape RUN --level L`."""

from analysis import landscape, record
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(landscape.ANALYSIS))
