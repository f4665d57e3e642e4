"""The command `python -m analysis.landscape RUN --level L`."""

from lthjax import cli

from .. import landscape, record

main = record.command(landscape.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
