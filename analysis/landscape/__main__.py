"""The command `python -m analysis.landscape RUN --level L`."""

from .. import landscape, record

main = record.command(landscape.ANALYSIS, __name__)
