"""The command of Early-Bird tickets."""

from .. import earlybird, record

main = record.command(earlybird.ANALYSIS, __name__)
