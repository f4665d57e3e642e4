"""The command of the savings."""

from .. import record, savings

main = record.command(savings.ANALYSIS, __name__)
