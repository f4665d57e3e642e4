"""The command `python -m analysis.landscape RUN --level L`."""

from lthjax import cli

from .. import landscape, record

if __name__ == "__main__":
    cli.run(record.command(landscape.ANALYSIS))
